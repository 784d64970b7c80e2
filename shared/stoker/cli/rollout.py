"""`stoker rollout`: start, see and steer the move of a deployment to another version."""

from __future__ import annotations

import time
from typing import Annotated, Any

import typer

from stoker.cli import output
from stoker.cli.follow import Follower
from stoker.cli.kinds import message_of, state_phase
from stoker.cli.options import Home, Json, connect, examples, verb_app
from stoker.cli.rollout_text import arms_line, outcome, print_rollout
from stoker.client import Client, path_of, read_as
from stoker.errors import Conflict, Invalid, NotFound
from stoker.specs import load_specs
from stoker.types.apply import ApplyRequest
from stoker.types.rollouts import FINAL_PHASES, Rollout
from stoker.types.serving import Deployment

app = verb_app("Bring a deployment to another version, step by step.")
EXIT_ENDED_BADLY = 7
_LOOK_SECONDS = 0.5
_TELL_SECONDS = 5.0  # numbers alone are told again after this; a change of phase at once

Target = Annotated[
    str, typer.Argument(metavar="ROLLOUT", help="A rollout's name, or its deployment's for the one that goes on.")
]


@app.command(
    epilog=examples(
        "stoker rollout start chat --to 2",
        "stoker rollout start chat --to challenger --step shadow:10 --step canary:25:50:5m --guard ttft=1.5 --wait",
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
            metavar="TYPE:PERCENT[:REQUESTS[:DURATION]]",
            help="shadow or canary, its share, and what it takes at least. Repeatable. Default: canary 5, 25, 50.",
        ),
    ] = None,
    guards: Annotated[
        list[str] | None,
        typer.Option(
            "--guard",
            metavar="METRIC=LIMIT",
            help="error_rate (points over stable, 0.02 is 2 %), ttft, inter_token or total (times stable). Repeatable.",
        ),
    ] = None,
    wait: Annotated[bool, typer.Option("--wait", "-w", help="Return when it has ended.")] = False,
    home: Home = None,
    as_json: Json = False,
) -> None:
    """Start a rollout of a deployment to a version.

    With --wait the exit code is 0 if it was promoted and 7 if it was rolled back or aborted; Ctrl-C stops the waiting,
    not the rollout. For everything that a rollout can be told, write a spec: `stoker apply`.
    """
    with connect(context, home) as client:
        chosen = name or _free_name(client, deployment)
        if name is not None:
            _refuse_known(client, name)
        spec: dict[str, Any] = {"kind": "rollout", "name": chosen, "deployment": deployment, "to": _version(to)}
        spec |= {"steps": [_step(s) for s in steps]} if steps else {}
        spec |= {"guards": [_guard(g) for g in guards]} if guards else {}
        request = ApplyRequest(specs=load_specs(output.to_json(spec), "<command line>", None))
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


def _command(verb: str, text: str, sample: str) -> None:
    """Add one of the verbs that the daemon is just told."""

    def command(context: typer.Context, name: Target, home: Home = None, as_json: Json = False) -> None:
        with connect(context, home) as client:
            target = find_rollout(client, name, is_active=True).name
            rollout = read_as(Rollout, client.request("POST", path_of("rollouts", target, verb)))
        _print_state(rollout, as_json=as_json)

    command.__doc__ = text
    app.command(verb, epilog=examples(sample))(command)


_command("pause", "Hold a rollout where it is: its arms keep their shares.", "stoker rollout pause chat")
_command("resume", "Go on with a paused rollout.", "stoker rollout resume chat")
_command("promote", "Give all traffic to the new version now.", "stoker rollout promote chat")
_command("abort", "Give all traffic back to the old version now.", "stoker rollout abort chat")


def find_rollout(client: Client, name: str, *, is_active: bool = False) -> Rollout:
    """The rollout of that name, or of the deployment of that name: the one that goes on, else the newest.

    Raises `NotFound`, or `Conflict` when the deployment has none (with *is_active*: none that goes on).
    """
    try:
        return client.get(Rollout, name)
    except NotFound:
        pass
    try:
        deployment = client.get(Deployment, name)
    except NotFound:
        raise NotFound(
            f"there is no rollout and no deployment named {name!r}.", "`stoker get rollouts` lists what there is."
        ) from None
    if deployment.rollout is not None:
        return client.get(Rollout, deployment.rollout)
    past = client.list(Rollout, deployment=name)
    if is_active or not past:
        raise Conflict(
            f"deployment {name} is in no rollout{' now' if past else ''}.",
            f"Start one with `stoker rollout start {name} --to VERSION`.",
            code="no-rollout",
        )
    return max(past, key=lambda r: r.created_at)


def _free_name(client: Client, deployment: str) -> str:
    taken = {r.name for r in client.list(Rollout)}
    stem = deployment[:56]
    return next(n for i in range(1, len(taken) + 2) if (n := f"{stem}-{i}") not in taken)


def _refuse_known(client: Client, name: str) -> None:
    """A spec that is applied again changes nothing; here the user means to start something."""
    try:
        known = client.get(Rollout, name)
    except NotFound:
        return
    raise Conflict(f"there is a rollout {name} already ({known.phase}).", "Give this one another --name.")


def _version(text: str) -> int | str:
    number = text.rpartition("@")[2]
    return int(number) if number.isascii() and number.isdigit() else number


def _step(text: str) -> dict[str, Any]:
    """``canary:25:50:5m`` as a step's spec; what is wrong in it is said by the spec's validation."""
    parts = text.split(":")
    if not 2 <= len(parts) <= 4 or not all(parts):
        raise Invalid(
            f"--step {text!r} can't be read.", "Write TYPE:PERCENT[:REQUESTS[:DURATION]], e.g. canary:25:50:5m."
        )
    names = ("type", "percent", "min_requests", "min_duration")
    return dict(zip(names, [parts[0], parts[1].removesuffix("%"), *parts[2:]], strict=False))


def _guard(text: str) -> dict[str, Any]:
    metric, equals, limit = text.partition("=")
    if not equals:
        raise Invalid(f"--guard {text!r} can't be read.", "Write METRIC=LIMIT, e.g. ttft=1.5.")
    return {"metric": metric.replace("-", "_"), "limit": limit}


def _attend(client: Client, rollout: Rollout, *, as_json: bool) -> None:
    told: object = None

    def tell(now: Rollout) -> None:
        nonlocal told
        if now.state != told and not as_json:
            _print_state(now, as_json=False)
        told = now.state

    try:
        follower = Follower(client, is_quiet=as_json)
        ended = follower.until(Rollout, rollout.name, lambda r: r.phase in FINAL_PHASES, tell)
    except KeyboardInterrupt:
        output.note(
            f"\nstoker: detached; rollout {rollout.name} goes on. "
            f"`stoker rollout watch {rollout.name}` follows it, `stoker rollout abort {rollout.name}` takes it back."
        )
        raise
    if as_json:
        output.print_json(ended)
    _exit_with(ended, as_json=as_json)


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
