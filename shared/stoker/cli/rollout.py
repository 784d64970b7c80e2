"""`stoker rollout`: start, see and steer the move of a deployment to another version."""

from __future__ import annotations

import time
from typing import Annotated, Any

import typer

from stoker.cli import output
from stoker.cli.follow import Follower
from stoker.cli.human import local
from stoker.cli.kinds import message_of, state_phase
from stoker.cli.options import Home, Json, connect, examples, verb_app
from stoker.cli.rollout_explain import print_explained
from stoker.cli.rollout_find import find_rollout, free_name, promoted, refuse_known, to_take_back
from stoker.cli.rollout_flags import guard, steps_of, target, usual_guards, usual_steps
from stoker.cli.rollout_plan import print_plan
from stoker.cli.rollout_text import arms_line, outcome, print_pair, print_rollout
from stoker.client import Client, path_of, read_as, read_list
from stoker.errors import Conflict, Invalid
from stoker.specs import load_specs
from stoker.types.apply import ApplyRequest
from stoker.types.base import now
from stoker.types.registry import Model
from stoker.types.rollouts import FINAL_PHASES, Rollout, RolloutPlan, Verb
from stoker.types.serving import Deployment
from stoker.types.traffic import AnswerPair, Served

app = verb_app("Bring a deployment to another version, step by step.")
EXIT_ENDED_BADLY = 7
_LOOK_SECONDS = 0.5
_LATELY_SECONDS = 30 * 86400.0
_TELL_SECONDS = 5.0  # numbers alone are told again after this; a change of phase at once


def _choice(option: str, metavar: str, help: str, *, usual: str = "") -> Any:
    """An option whose value the spec's validation judges; the first word of *metavar* is its default."""
    default = usual or metavar.partition("|")[0]
    return typer.Option(f"--{option}", metavar=metavar, help=f"{help} Default: {default}.", show_default=False)


Target = Annotated[
    str, typer.Argument(metavar="ROLLOUT", help="A rollout's name, or its deployment's for the one that goes on.")
]


@app.command(
    epilog=examples(
        "stoker rollout start chat --to 2",
        "stoker rollout start chat --to challenger --dry-run",
        "stoker rollout start chat --to 2 --step shadow:10 --step canary:25:50:5m --guard ttft=1.5 --wait",
        "stoker rollout start chat --to 2 --target x-team=ml --step target --step approve:ann --step canary:50",
        "stoker rollout start chat --to 2 --max-callers 20 --guard ttft:p95=1.3 --guard total=8s",
    )
)
def start(
    context: typer.Context,
    deployment: Annotated[str, typer.Argument(metavar="DEPLOYMENT")],
    to: Annotated[str, typer.Option("--to", metavar="VERSION", help="A version's number or alias.")],
    name: Annotated[
        str | None, typer.Option("--name", metavar="NAME", help="Default: DEPLOYMENT-1, -2, …", show_default=False)
    ] = None,
    steps: Annotated[
        list[str] | None,
        typer.Option(
            "--step",
            metavar="STEP",
            help="shadow:PERCENT, canary:PERCENT or target, each with [:REQUESTS[:DURATION]] that it takes at least; "
            f"approve[:USER], pause:DURATION, promote. Repeatable, in order. Default: {usual_steps()}.",
        ),
    ] = None,
    guards: Annotated[
        list[str] | None,
        typer.Option(
            "--guard",
            metavar="METRIC=LIMIT",
            help="Against stable: ttft=1.5 (times stable's), ttft:p95=1.3, error_rate=2% (points over stable's), "
            "finish_rate:length=0.05, score:helpfulness=0.02. Absolute: total=8s, "
            f"series:device.temperature_celsius=90. Repeatable. Default: {usual_guards()}.",
        ),
    ] = None,
    max_callers: Annotated[
        int | None,
        typer.Option(
            "--max-callers", metavar="N", min=1, help="The most distinct callers of each canary step. Default: any."
        ),
    ] = None,
    targets: Annotated[
        list[str] | None,
        typer.Option(
            "--target",
            metavar="HEADER=VALUE|key:NAME",
            help="Callers who get the candidate in canary and target steps. Repeatable.",
        ),
    ] = None,
    keep_answers: Annotated[
        bool, typer.Option("--keep-answers", help="Keep what both versions answer in shadow steps, and compare it.")
    ] = False,
    placement: Annotated[str | None, _choice("placement", "auto|beside|swap", "Where it runs; swap: in place.")] = None,
    on_pass: Annotated[str | None, _choice("on-pass", "promote|hold|shadow", "After the last step.")] = None,
    on_fail: Annotated[str | None, _choice("on-fail", "roll-back|hold|shadow", "When a guard fails.")] = None,
    on_starved: Annotated[
        str | None, _choice("on-starved", "hold|roll-back|shadow|promote", "When traffic is too little to say.")
    ] = None,
    keep_warm: Annotated[
        str | None,
        _choice("keep-warm", "DURATION", "The old version stands by so long after promotion.", usual="10m"),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show where it would run, each step with its time, the way back.")
    ] = False,
    wait: Annotated[bool, typer.Option("--wait", "-w", help="Return when it has ended.")] = False,
    home: Home = None,
    as_json: Json = False,
) -> None:
    """Start a rollout of a deployment to a version.

    With --wait the exit code is 0 if it was promoted and 7 if it was rolled back or aborted; Ctrl-C stops the waiting,
    not the rollout. With --dry-run nothing is started, and the exit code is 5 if it could not be. For everything that
    a rollout can be told, write a spec: `stoker apply`.
    """
    if dry_run and wait:
        raise Invalid("--dry-run starts nothing: there is nothing to --wait for.", "Give one of them.", code="usage")
    told: dict[str, Any] = {"placement": placement, "on_pass": on_pass, "on_fail": on_fail, "on_starved": on_starved}
    told |= {"keep_warm": keep_warm, "keep_answers": keep_answers or None}
    told |= {"steps": steps_of(steps or [], max_callers), "guards": [guard(g) for g in guards or []] or None}
    told |= {"targets": [target(t) for t in targets or []] or None}
    with connect(context, home) as client:
        chosen = name or free_name(client, deployment)
        if name is not None:
            refuse_known(client, name)
        spec: dict[str, Any] = {"kind": "rollout", "name": chosen, "deployment": deployment, "to": _version(to)}
        spec |= {k: v for k, v in told.items() if v is not None}
        request = ApplyRequest(specs=load_specs(output.to_json(spec), "<command line>", None))
        if dry_run:
            _show_plan(client, request.specs[0], as_json=as_json)
            return
        client.request("POST", "/v1/apply", json=request.model_dump(mode="json"))
        rollout = client.get(Rollout, chosen)
        if not wait:
            _print_state(rollout, as_json=as_json)
        else:
            _attend(client, rollout, as_json=as_json)


@app.command(epilog=examples("stoker rollout status chat", "stoker rollout status chat-2 --json"))
def status(context: typer.Context, name: Target, home: Home = None, as_json: Json = False) -> None:
    """Show a rollout: steps, arms side by side, guards."""
    with connect(context, home) as client:
        rollout = find_rollout(client, name)
    if as_json:
        output.print_json(rollout)
    else:
        print_rollout(rollout)


@app.command(epilog=examples("stoker rollout watch chat", "stoker rollout watch chat --json"))
def watch(context: typer.Context, name: Target, home: Home = None, as_json: Json = False) -> None:
    """Follow a rollout to its end.

    A line for each change, and the arms' numbers every few seconds. The exit code is 0 if it was promoted and 7 if it
    was rolled back or aborted. With --json, the rollout a line.
    """
    with connect(context, home) as client:
        rollout = find_rollout(client, name)
        told: Rollout | None = None
        told_at = 0.0
        follower = Follower(client, is_quiet=as_json)
        while True:
            is_new = told is None or told.state != rollout.state
            is_due = rollout != told and time.monotonic() - told_at > _TELL_SECONDS
            if is_new or is_due:
                _print_progress(rollout, as_json=as_json)
                told, told_at = rollout, time.monotonic()
            if rollout.phase in FINAL_PHASES:
                break
            time.sleep(_LOOK_SECONDS)
            rollout = follower.steadily(lambda: client.get(Rollout, rollout.name))  # noqa: B023
    _exit_with(rollout, as_json=as_json)


@app.command(epilog=examples("stoker rollout approve chat", "stoker rollout approve chat --step 3"))
def approve(
    context: typer.Context,
    name: Target,
    step: Annotated[
        int | None, typer.Option(min=1, help="Only if that step is on, as it is counted in `status`: not a later one.")
    ] = None,
    home: Home = None,
    as_json: Json = False,
) -> None:
    """Say yes to a rollout that waits for approval."""
    with connect(context, home) as client:
        target = find_rollout(client, name, is_active=True).name
        rollout = _say(client, target, "approve", {} if step is None else {"step": step - 1})
    _print_state(rollout, as_json=as_json)


def _say(client: Client, rollout: str, verb: Verb, params: dict[str, int] | None = None) -> Rollout:
    """Tell the daemon; it answers with what the rollout is then."""
    return read_as(Rollout, client.request("POST", path_of("rollouts", rollout, verb), params=params))


def _command(verb: Verb, text: str, sample: str) -> None:
    """Add one of the verbs that the daemon is just told."""

    def command(context: typer.Context, name: Target, home: Home = None, as_json: Json = False) -> None:
        with connect(context, home) as client:
            rollout = _say(client, find_rollout(client, name, is_active=True).name, verb)
        _print_state(rollout, as_json=as_json)

    command.__doc__ = text
    app.command(verb, epilog=examples(sample))(command)


_command("pause", "Hold a rollout where it is: its arms keep their shares.", "stoker rollout pause chat")
_command("resume", "Go on with a paused rollout.", "stoker rollout resume chat")
_command("promote", "Give all traffic to the new version now.", "stoker rollout promote chat")
_command("abort", "Give all traffic back to the old version now.", "stoker rollout abort chat")


@app.command(epilog=examples("stoker rollout rollback chat", "stoker rollout rollback chat-2"))
def rollback(context: typer.Context, name: Target, home: Home = None, as_json: Json = False) -> None:
    """Give traffic back to the old version, promoted or not.

    Of a deployment, it is the rollout that goes on, else the one that brought what it serves.
    """
    with connect(context, home) as client:
        rollout = _say(client, to_take_back(client, name).name, "rollback")
    _print_state(rollout, as_json=as_json)


@app.command(
    epilog=examples("stoker rollout back chat", "stoker rollout back chat --wait", "stoker rollout back chat --to 5")
)
def back(
    context: typer.Context,
    deployment: Annotated[str, typer.Argument(metavar="DEPLOYMENT")],
    to: Annotated[
        str | None,
        typer.Option(
            "--to",
            metavar="VERSION",
            help="One that it served in the last 30 days. Default: the one before.",
            show_default=False,
        ),
    ] = None,
    wait: Annotated[bool, typer.Option("--wait", "-w", help="Return when the old version serves.")] = False,
    home: Home = None,
    as_json: Json = False,
) -> None:
    """Let a deployment serve again what it served before.

    It takes back the rollout that brought the version which is served now, and says how.
    While the old version stands by (see --keep-warm of `stoker rollout start`), nothing has to start first. With --to,
    a rollout without steps brings a version that everybody got lately. With --wait the exit code is 0 if the old
    version serves again, else 7.
    """
    with connect(context, home) as client:
        found = client.get(Deployment, deployment)
        if to is not None:
            rollout = _bring_back(client, found, to, as_json=as_json)
            if wait:
                _attend(client, rollout, as_json=as_json)
            else:
                _print_state(rollout, as_json=as_json)
            return
        brought = promoted(client, found)
        rollout = _say(client, brought.name, "rollback")
        if not as_json:
            output.paragraph(_way_back(found, brought))
        if not wait:
            _print_state(rollout, as_json=as_json)
            return
        ended = _until_ended(client, rollout, as_json=as_json)
    if not as_json:
        output.paragraph(outcome(ended))
    if ended.phase == "promoted":
        raise typer.Exit(EXIT_ENDED_BADLY)


def _bring_back(client: Client, deployment: Deployment, to: str, *, as_json: bool) -> Rollout:
    """Start a rollout without steps to a version that everybody got lately. Raises `Conflict` if nobody did."""
    name = deployment.name
    wanted = _version(to)
    number = client.get(Model, deployment.spec.model).aliases.get(wanted) if isinstance(wanted, str) else wanted
    data = client.request(
        "GET", path_of("deployments", name, "history"), params={"since": time.time() - _LATELY_SECONDS}
    )
    served = [s for s in read_list(Served, data) if s.version == number and s.percent == 100 and s.arm != "shadow"]
    if not served:
        raise Conflict(
            f"deployment {name} has not served version {to} to everybody in the last 30 days.",
            f"`stoker rollout start {name} --to {to}` brings it in steps.",
            code="not-served",
        )
    chosen = free_name(client, name)
    spec: dict[str, Any] = {"kind": "rollout", "name": chosen, "deployment": name, "to": number, "guards": []}
    spec["steps"] = [{"type": "promote"}]
    request = ApplyRequest(specs=load_specs(output.to_json(spec), "<command line>", None))
    client.request("POST", "/v1/apply", json=request.model_dump(mode="json"))
    if not as_json:
        until = served[-1].until
        last = f"until {local(until)}" if until else "till now"
        output.paragraph(
            f"{name} goes to version {number}, which it served {last}, as soon as its replicas are ready; version "
            f"{deployment.version} stands by for a while."
        )
    return client.get(Rollout, chosen)


def _way_back(deployment: Deployment, brought: Rollout) -> str:
    """What going back to before the rollout *brought* takes."""
    old, new = brought.from_version, brought.to_version
    text = f"{deployment.name} goes back from version {new} to version {old}, which it served before {brought.name}"
    warm = deployment.warm
    if warm is not None and warm.version == old and warm.until > now() and warm.rests:
        return f"{text}: version {new} stops, version {old} wakes up in its place, and requests are held meanwhile."
    if warm is not None and warm.version == old and warm.until > now():
        return f"{text}: its replicas stand by, so nothing has to start first."
    if brought.plan is not None and brought.plan.placement == "swap":
        return f"{text}: version {new} stops, version {old} starts in its place, and requests are held meanwhile."
    return f"{text}: its replicas start, and version {new} serves until they are ready."


@app.command(epilog=examples("stoker rollout explain chat", "stoker rollout explain chat-2 --json"))
def explain(context: typer.Context, name: Target, home: Home = None, as_json: Json = False) -> None:
    """Tell each decision of a rollout with its evidence.

    When, what, by whom and why; each guard's verdict, the arms' numbers, and whom the candidate had answered. With
    --json, its events.
    """
    with connect(context, home) as client:
        rollout = find_rollout(client, name)
        events = list(client.events(follow=False, kind=Rollout.kind, name=rollout.name))
    if as_json:
        output.print_json(events)
    else:
        print_explained(rollout, events)


@app.command(epilog=examples("stoker rollout answers chat", "stoker rollout answers chat-2 --last 1000 --json"))
def answers(
    context: typer.Context,
    name: Target,
    last: Annotated[int, typer.Option("--last", "-n", metavar="N", min=1, max=1000, help="At most so many.")] = 20,
    home: Home = None,
    as_json: Json = False,
) -> None:
    """Print what both versions answered to the same requests.

    Shadow steps keep it where the rollout says `keep_answers`.
    """
    with connect(context, home) as client:
        rollout = find_rollout(client, name).name
        data = client.request("GET", path_of("rollouts", rollout, "shadows"), params={"since": 0, "limit": last})
    if as_json:
        output.print_json(data)
    elif pairs := read_list(AnswerPair, data):
        for pair in pairs:
            print_pair(pair)
    else:
        output.note(f"no answers of {rollout} are kept: a shadow step keeps them if its rollout says keep_answers")


def _version(text: str) -> int | str:
    number = text.rpartition("@")[2]
    return int(number) if number.isascii() and number.isdigit() else number


def _show_plan(client: Client, spec: Any, *, as_json: bool) -> None:
    """Print the plan of *spec*; exits as a conflict with the present state does, if it can't be started."""
    plan = read_as(RolloutPlan, client.request("POST", "/v1/rollouts/plan", json=spec.model_dump(mode="json")))
    if as_json:
        output.print_json(plan)
    else:
        print_plan(spec.name, plan)
    if not plan.fits:
        raise typer.Exit(Conflict.exit_code)


def _attend(client: Client, rollout: Rollout, *, as_json: bool) -> None:
    try:
        ended = _until_ended(client, rollout, as_json=as_json)
    except KeyboardInterrupt:
        output.note(
            f"\nstoker: detached; rollout {rollout.name} goes on. "
            f"`stoker rollout watch {rollout.name}` follows it, `stoker rollout abort {rollout.name}` takes it back."
        )
        raise
    _exit_with(ended, as_json=as_json)


def _until_ended(client: Client, rollout: Rollout, *, as_json: bool) -> Rollout:
    """Wait for its end; each change is a line, or with *as_json* the end is printed."""
    told: object = None

    def tell(now: Rollout) -> None:
        nonlocal told
        if now.state != told and not as_json:
            _print_state(now, as_json=False)
        told = now.state

    follower = Follower(client, is_quiet=as_json)
    ended = follower.until(Rollout, rollout.name, lambda r: r.phase in FINAL_PHASES, tell)
    if as_json:
        output.print_json(ended)
    return ended


def _exit_with(ended: Rollout, *, as_json: bool) -> None:
    if not as_json and (text := outcome(ended)):
        output.line(text)
    if ended.phase != "promoted":
        raise typer.Exit(EXIT_ENDED_BADLY)


def _print_state(rollout: Rollout, *, as_json: bool) -> None:
    if as_json:
        output.print_json(rollout)
        return
    versions = f"{rollout.deployment}@{rollout.from_version} -> @{rollout.to_version}"
    output.line(f"rollout/{rollout.name}", state_phase(rollout), versions, message_of(rollout))


def _print_progress(rollout: Rollout, *, as_json: bool) -> None:
    if as_json:
        output.print_json_line(rollout.model_dump(mode="json"))
    else:
        output.line(time.strftime("%H:%M:%S"), state_phase(rollout), arms_line(rollout), message_of(rollout))
