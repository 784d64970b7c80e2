"""A deployment in full: what it serves, how its arms do, and its replicas."""

from __future__ import annotations

from stoker.types.serving import Deployment, Replica
from stoker_tui.clock import Clock
from stoker_tui.model import View
from stoker_tui.table import Column, Row, Table
from stoker_tui.text import Line, fit, line, printable, wrapped
from stoker_tui.views.common import elapsed, heading, replica_message, state
from stoker_tui.words import NOTHING, errors, latency, mark, rate

_ARM_WIDTHS = (18, 8, 10, 13, 18, 18, 18)


def title(deployment: Deployment, clock: Clock, width: int) -> list[Line]:
    """What it serves and how it stands."""
    found = mark(deployment.phase)
    before = f" (before: v{deployment.previous_version})" if deployment.previous_version else ""
    serves = f"{deployment.spec.model} v{deployment.version}{before} by {deployment.spec.engine.type}"
    lines = [line(" ", (deployment.name, "strong"), "   ", (found.text, f"{found.role} strong"), "   ", serves)]
    if deployment.message:
        role = "bad" if deployment.phase == "failed" else ""
        lines.extend(wrapped(line("   "), printable(deployment.message), width, role))
    if deployment.rollout:
        lines.append(line("   ", ("rollout ", "muted"), deployment.rollout, (" is going on (r opens it)", "muted")))
    if deployment.warm is not None:
        warm = deployment.warm
        stands_by = f"v{warm.version} stands by, warm, till {clock.local(warm.until):%H:%M:%S}: "
        lines.append(line("   ", (stands_by, "muted"), warm.rollout, (" can be rolled back at once", "muted")))
    return lines


def traffic(deployment: Deployment, view: View, width: int) -> list[Line]:
    """Each arm's last minute, a row each."""
    arms = view.traffic_of(deployment.name)
    if not arms:
        return [heading("TRAFFIC, last minute", width), line(("  no requests", "muted"))]
    sizes = _ARM_WIDTHS if width >= sum(_ARM_WIDTHS) + 2 else (18, 7, 9, 11, 16, 16, 0)
    titles = ("TRAFFIC", "REQ/S", "REQUESTS", "ERRORS", "TTFT P50/P90", "TOTAL P50/P90", "INTER-TOKEN")
    lines = [tuple((text, "head") for text, _ in fit(_row(titles, sizes), width))]
    lines.extend(
        _row(
            (
                f"{t.arm} v{t.version}",
                rate(t.requests_per_second),
                str(t.requests),
                errors(t.errors, t.requests),
                _pair(t.ttft_p50, t.ttft_p90),
                _pair(t.total_p50, t.total_p90),
                _pair(t.inter_token_p50, t.inter_token_p90),
            ),
            sizes,
        )
        for t in arms
    )
    return lines


def _pair(median: float | None, tail: float | None) -> str:
    return NOTHING if median is None and tail is None else f"{latency(median)} / {latency(tail)}"


def _row(texts: tuple[str, ...], sizes: tuple[int, ...]) -> Line:
    return line("  ", *("".join(f"{text:<{size}}" for text, size in zip(texts, sizes, strict=True) if size),))


REPLICA_COLUMNS = (
    Column("REPLICAS", 14, flex=True),
    Column("VERSION", 7),
    Column("STATE", 13),
    Column("TIME", 12),
    Column("STARTS", 6, "right"),
    Column("FAILURES", 8, "right", drop=2),
    Column("", 10, flex=True),
)


def replicas(deployment: str, view: View, clock: Clock) -> Table:
    """Its replicas, the newest version first."""
    rows = [_replica(r, clock) for r in view.replicas_of(deployment)]
    return Table(REPLICA_COLUMNS, rows, "no replicas")


def _replica(replica: Replica, clock: Clock) -> Row:
    said = replica_message(replica)
    return Row(
        replica.name,
        (
            line((replica.name, "strong")),
            line(f"v{replica.version}"),
            state(replica.phase),
            line((elapsed(replica, clock), "muted")),
            line(str(replica.starts)),
            line((str(replica.failures), "bad" if replica.failures else "")),
            line(
                (
                    said or ", ".join(replica.devices),
                    "bad" if replica.phase in ("failed", "stalled", "unreachable") else "muted",
                )
            ),
        ),
        said,
    )
