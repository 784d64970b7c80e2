"""The tables of the overview: deployments, rollouts, runs and the feed of events."""

from __future__ import annotations

from collections.abc import Sequence

from stoker.types.events import Event
from stoker.types.rollouts import FINAL_PHASES, Rollout
from stoker.types.serving import Deployment
from stoker.types.training import ACTIVE_PHASES, Queued, Run, Succeeded
from stoker_tui.braille import trend
from stoker_tui.clock import Clock
from stoker_tui.model import Curves, View
from stoker_tui.table import Column, Row, Table
from stoker_tui.text import Line, line, printable
from stoker_tui.views.common import because, elapsed, replica_message, rollout_state, state, warm_until
from stoker_tui.words import NOTHING, clock_time, errors, latency, mark, number, rate

TREND = 12
FEED_LEAST = 4
SECTION_LEAST = 3


def allocate(room: int, wants: Sequence[int]) -> list[int]:
    """Share *room* rows among sections that would like so many each; the last one, the feed, takes what is left.

    Each gets a heading and two rows first, then one more row in turn. When even that is too much, the last ones go.
    """
    least = [min(want, SECTION_LEAST) for want in wants[:-1]] + [FEED_LEAST]
    given = [0] * len(wants)
    for i, rows in enumerate(least):
        given[i] = rows if sum(given) + rows <= room else max(0, room - sum(given))
        if given[i] < 2:
            given[i] = 0
    spare = room - sum(given)
    while spare > 0 and any(0 < g < w for g, w in zip(given[:-1], wants[:-1], strict=True)):
        for i, want in enumerate(wants):
            if spare > 0 and 0 < given[i] < want:
                given[i] += 1
                spare -= 1
    if given[-1]:
        given[-1] += spare
    return given


DEPLOYMENT_COLUMNS = (
    Column("DEPLOYMENTS", 12, flex=True),
    Column("MODEL", 8, flex=True, drop=4),
    Column("VERSION", 7),
    Column("STATE", 10),
    Column("REPLICAS", 8),
    Column("REQ/S", 5, "right"),
    Column("TTFT P90", 8, "right"),
    Column("INTER-TOKEN", 8, "right", drop=5),
    Column("TOTAL P90", 9, "right", drop=3),
    Column("ERRORS", 9, "right"),
    Column("TOKENS/S", 8, "right", drop=6),
    Column("", 30, flex=True, drop=8),
)


def deployments(view: View) -> Table:
    """What is served, and how it is doing over the last minute."""
    rows = [_deployment(view, d) for d in sorted(view.deployments.values(), key=lambda d: d.name)]
    return Table(DEPLOYMENT_COLUMNS, rows, "no deployments yet: `stoker apply -f deployment.yaml` makes one")


def _deployment(view: View, deployment: Deployment) -> Row:
    arms = [t for t in view.traffic_of(deployment.name) if t.arm != "shadow"]
    stable = next((t for t in arms if t.arm == "stable"), None)
    requests, failed = sum(t.requests for t in arms), sum(t.errors for t in arms)
    tokens = sum(t.completion_tokens / t.window_seconds for t in arms if t.window_seconds)
    replicas = [r for r in view.replicas_of(deployment.name) if r.version == deployment.version and r.wanted]
    ready = sum(r.phase == "ready" for r in replicas)
    going = view.rollouts.get(deployment.rollout or "")
    move = f"v{deployment.version} → v{going.to_version}" if going is not None else f"v{deployment.version}"
    short = ready < deployment.spec.replicas
    more = deployment_more(view, deployment)
    return Row(
        deployment.name,
        (
            line((deployment.name, "strong")),
            line((deployment.spec.model, "muted")),
            line(move),
            state(deployment.phase),
            line((f"{ready}/{deployment.spec.replicas}", "warn" if short else "")),
            line(rate(sum(t.requests_per_second for t in arms)) if arms else NOTHING),
            line(latency(stable.ttft_p90 if stable else None)),
            line(latency(stable.inter_token_p90 if stable else None)),
            line(latency(stable.total_p90 if stable else None)),
            line((errors(failed, requests), "bad" if failed else "")),
            line(rate(tokens) if arms else NOTHING),
            line((more, "muted")),
        ),
        f"{deployment.name}: {more}",
    )


def deployment_more(view: View, deployment: Deployment) -> str:
    """A sentence on a deployment: its own message, else that of the replica that is worst off, else its traffic."""
    if deployment.message:
        return printable(deployment.message)
    for phase in ("failed", "unreachable", "stalled", "backing-off", "starting", "pending"):
        for replica in view.replicas_of(deployment.name):
            if replica.phase == phase and replica.wanted:
                said = replica_message(replica)
                return f"{replica.name} {mark(phase).word}" + (f": {said}" if said else "")
    arms = view.traffic_of(deployment.name)
    served = sum(t.requests for t in arms if t.arm != "shadow")
    return f"{served} requests in the last minute" if served else "no requests in the last minute"


_BAD_PHASES = frozenset({"failed", "lost", "stalled", "unreachable", "rolled-back", "rolling-back", "returning"})

ROLLOUT_COLUMNS = (
    Column("ROLLOUTS", 12, flex=True),
    Column("MOVE", 12, drop=3),
    Column("STATE", 22),
    Column("GUARDS", 12),
    Column("TIME", 11, drop=4),
    Column("", 30, flex=True, drop=5),
)


def rollouts(view: View, clock: Clock) -> Table:
    """Those that go on, then the newest."""
    found = sorted(view.rollouts.values(), key=lambda r: (r.phase in FINAL_PHASES, -r.created_at.timestamp()))
    return Table(
        ROLLOUT_COLUMNS,
        [_rollout(r, view, clock) for r in found],
        "no rollouts yet: `stoker rollout start DEPLOYMENT --to VERSION` starts one",
    )


def _rollout(rollout: Rollout, view: View, clock: Clock) -> Row:
    more = rollout_more(rollout, view, clock)
    move = f"{rollout.deployment} v{rollout.from_version} → v{rollout.to_version}"
    return Row(
        rollout.name,
        (
            line((rollout.name, "strong")),
            line(move),
            rollout_state(rollout),
            guards_summary(rollout),
            line((elapsed(rollout, clock), "muted")),
            line((more, "muted")),
        ),
        f"{rollout.name}: {move}. {more}",
    )


def guards_summary(rollout: Rollout) -> Line:
    """``2 hold, 1 starved``: how many guards say what, the worst first."""
    counts = [(v, sum(r.verdict.verdict == v for r in rollout.readings)) for v in ("fail", "starved", "pass")]
    words = {"fail": ("✗", "fails", "fail"), "starved": ("?", "starved", "starved"), "pass": ("✓", "holds", "hold")}
    spans: list[tuple[str, str]] = []
    for verdict, count in counts:
        if count:
            symbol, one, many = words[verdict]
            spans.append(("" if not spans else ", ", ""))
            spans.append((f"{symbol} {count} {one if count == 1 else many}", mark(verdict).role))
    return tuple(spans) or line((NOTHING, "muted"))


def rollout_more(rollout: Rollout, view: View, clock: Clock) -> str:
    """Why it stands as it does: the reason of its end or pause, the way back, else what its worst guard says."""
    said = because(rollout)
    if said:
        return printable(said)
    until = warm_until(rollout, view, clock)
    if until is not None:
        return f"v{rollout.from_version} stands by, warm, till {clock.local(until):%H:%M:%S}"
    for verdict in ("fail", "starved", "pass"):
        for reading in rollout.readings:
            if reading.verdict.verdict == verdict:
                return printable(reading.verdict.reason)
    return ""


RUN_COLUMNS = (
    Column("RUNS", 12, flex=True),
    Column("STATE", 12),
    Column("LOSS", 7, "right"),
    Column("TREND", TREND, drop=4),
    Column("STEP", 6, "right", drop=3),
    Column("TIME", 11),
    Column("DATA", 8, drop=6),
    Column("BASE", 8, drop=7),
    Column("CODE", 8, drop=8),
    Column("RESULT", 12, flex=True, drop=2),
)


def runs(view: View, clock: Clock) -> Table:
    """Those that go on, then the newest."""
    rows = [_run(r, view.curves.get(r.name), clock) for r in ordered_runs(view)]
    return Table(RUN_COLUMNS, rows, "no runs yet: `stoker apply -f job.yaml`, then `stoker run JOB` starts one")


def ordered_runs(view: View) -> list[Run]:
    """Running ones, queued ones, then the others; the newest first."""
    order = {"running": 0, "cancelling": 0, "queued": 1}
    return sorted(view.runs.values(), key=lambda r: (order.get(r.phase, 2), -r.created_at.timestamp()))


def _run(run: Run, curves: Curves | None, clock: Clock) -> Row:
    main = curves.main() if curves is not None else None
    key, curve = main if main is not None else ("", None)
    last = curve.last if curve is not None else None
    result, role = run_result(run)
    value = NOTHING if last is None else number(last.value) if key == "loss" else f"{key} {number(last.value)}"
    return Row(
        run.name,
        (
            line((run.name, "strong")),
            state(run.phase),
            line(value),
            line((trend([y for _, y in curve.drawn()], TREND) if curve is not None else "", "accent")),
            line(str(last.step) if last is not None else NOTHING),
            line((elapsed(run, clock), "muted")),
            line((run.dataset_version or NOTHING, "muted")),
            line((run.base_version or NOTHING, "muted")),
            line(((run.code_commit or run.code_digest or NOTHING)[:8], "muted")),
            line((result, role)),
        ),
        f"{run.name}: {run_sentence(run)}",
    )


def run_result(run: Run) -> tuple[str, str]:
    """What came of a run, with a role: the version it made, why it failed, what it waits for."""
    match run.state:
        case Succeeded(registered=registered):
            return registered or "", "good"
        case Queued(why=why):
            return printable(why), "muted"
        case _:
            return printable(str(getattr(run.state, "message", ""))), "bad" if run.phase in ("failed", "lost") else ""


def run_sentence(run: Run) -> str:
    """A run's state and what came of it, in words."""
    result, _ = run_result(run)
    attempt = f", attempt {run.attempt} of {run.spec.retries + 1}" if run.attempt > 1 else ""
    if run.phase in ACTIVE_PHASES or not result:
        return mark(run.phase).word + attempt + (f": {result}" if result else "")
    return f"{mark(run.phase).word}{attempt}: {result}"


EVENT_COLUMNS = (
    Column("EVENTS", 8),
    Column("KIND", 10),
    Column("REASON", 16, drop=3),
    Column("", 44, flex=True),
)


def events(view: View, clock: Clock) -> Table:
    """The latest facts, the newest first."""
    present = clock.local(clock.now())
    rows = [
        Row(
            str(event.id),
            (
                line((clock_time(clock.local(event.time), present), "muted")),
                line(event.kind),
                line((event.reason, "muted")),
                line((event_sentence(event), event_role(event))),
            ),
            event_sentence(event),
        )
        for event in reversed(view.events)
    ]
    return Table(EVENT_COLUMNS, rows, "nothing has happened yet")


def event_sentence(event: Event) -> str:
    """What happened, and to what, whether or not the message names it."""
    message = printable(event.message) or event.reason
    return message if event.name in message else f"{event.name}: {message}"


def event_role(event: Event) -> str:
    """Bad news stands out."""
    phase = str(event.data.get("phase", ""))
    return "bad" if phase in _BAD_PHASES else "warn" if phase == "backing-off" else ""
