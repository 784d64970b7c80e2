"""What several screens say: the header, the state of things in a word, how long something lasts."""

from __future__ import annotations

from datetime import datetime, timedelta

from stoker.types.rollouts import CanaryStep, Paused, Promoted, Rollout, Step, Stepping
from stoker.types.serving import BackingOff, Replica
from stoker.types.training import Run
from stoker_tui.clock import Clock
from stoker_tui.model import Connected, Lost, View
from stoker_tui.text import Line, Span, fit, printable, width_of
from stoker_tui.words import ago, duration, mark


def state(phase: str) -> Line:
    """A phase as symbol and word."""
    found = mark(phase)
    return ((found.text, found.role),)


def connection(view: View, clock: Clock) -> Span:
    """How it stands with the daemon, in a few words."""
    match view.link:
        case Connected():
            return "✓ connected", "good"
        case Lost(since=since):
            gone = duration(clock.monotonic() - since)
            if view.host is None:
                return f"✗ no daemon for {gone}", "bad"
            return f"✗ reconnecting… daemon gone since {gone}", "bad"
        case _:
            return "▲ connecting…", "warn"


def header(view: View, clock: Clock, width: int) -> list[Line]:
    """One line: the host, the gateway's address and state, the connection. What doesn't fit goes, the state stays."""
    right = connection(view, clock)
    left: list[Span] = [(" stoker", "head strong"), ("  ", "head")]
    host = view.host
    if host is not None:
        left.append((printable(host.hostname), "head"))
        is_partly_ready = host.gateway_phase == "ready" and bool(host.gateway_message)  # one of its workers is away
        gateway = mark("degraded" if is_partly_ready else host.gateway_phase)
        wide: list[Span] = [
            ("  gateway ", "head muted"),
            (printable(host.gateway), "head"),
            (f" {gateway.text}", f"head {gateway.role}"),
        ]
        room = width - width_of(tuple(left)) - width_of((right,)) - 3
        if width_of(tuple(wide)) > room:
            wide = [*wide[:1], wide[2]]
        if view.is_live and width_of(tuple(wide)) <= room:
            left.extend(wide)
    space = width - width_of((right,)) - 1
    filled = fit(tuple(left), max(0, space))
    return [(*((t, r or "head") for t, r in filled), (right[0], f"head {right[1]}"), (" ", "head"))]


def as_of(view: View, clock: Clock) -> str:
    """That what is shown is of the past, in a sentence; empty when it isn't."""
    if not isinstance(view.link, Lost):
        return ""
    moment = clock.now() - timedelta(seconds=clock.monotonic() - view.link.since)
    return f"What is shown was so at {clock.local(moment):%H:%M:%S}: {view.link.message}"


def step_words(rollout: Rollout) -> str:
    """The present step: ``step 2/3 canary 25 %``."""
    at = rollout.state
    if not isinstance(at, Stepping | Paused):
        return ""
    steps = rollout.spec.steps
    if not 0 <= at.step < len(steps):
        return f"step {at.step + 1}/{len(steps)}"
    return f"step {at.step + 1}/{len(steps)} {step_name(steps[at.step])}"


def step_name(step: Step) -> str:
    """A step in as few words as a table has room for."""
    return f"canary {step.percent:g} %" if isinstance(step, CanaryStep) else step.words


def rollout_state(rollout: Rollout) -> Line:
    """A rollout's state in a table: what it does now, or how it ended."""
    found = mark(rollout.phase)
    match rollout.state:
        case Stepping():
            return ((f"{found.symbol} {printable(step_words(rollout))}", found.role),)
        case Paused():
            held = "as shadow, " if rollout.state.exposure == "shadow" else ""
            return ((f"{found.symbol} paused, {held}{printable(step_words(rollout))}", found.role),)
        case _:
            return ((found.text, found.role),)


def because(rollout: Rollout) -> str:
    """Why it is in the state it is in, if there's a reason."""
    return str(getattr(rollout.state, "because", ""))


def warm_until(rollout: Rollout, view: View, clock: Clock) -> datetime | None:
    """Until when the old version's replicas stand by, after promotion; None when they don't."""
    if not isinstance(rollout.state, Promoted):
        return None
    until = rollout.state.warm_until
    deployment = view.deployments.get(rollout.deployment)
    is_gone = deployment is not None and (deployment.warm is None or deployment.warm.rollout != rollout.name)
    return None if until is None or until <= clock.now() or is_gone else until


def reached(resource: Rollout | Run | Replica) -> datetime:
    """When it came into its present state, as far as the state says; else when it was made."""
    for name in ("finished_at", "started_at", "since"):
        moment = getattr(resource.state, name, None)
        if isinstance(moment, datetime):
            return moment
    return resource.created_at


def elapsed(resource: Rollout | Run | Replica, clock: Clock) -> str:
    """How long it has been so (``2 min 10 s``), or how long ago it ended (``3 h ago``), or when it is tried again."""
    if isinstance(resource.state, BackingOff):
        wait = max(0.0, (resource.state.retry_at - clock.now()).total_seconds())
        return f"again in {duration(wait)}" if wait >= 1 else "again now"
    seconds = clock.since(reached(resource))
    return ago(seconds) if hasattr(resource.state, "finished_at") else duration(seconds)


def heading(title: str, width: int, right: str = "") -> Line:
    """The heading of a section that isn't a table."""
    text = f"  {title}"
    return ((f"{text:<{max(0, width - len(right) - 1)}}", "head"), (right + " " if right else " ", "head"))


def replica_message(replica: Replica) -> str:
    """What a replica's state says of itself."""
    return printable(str(getattr(replica.state, "message", "")))
