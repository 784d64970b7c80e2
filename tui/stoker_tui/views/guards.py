"""What a rollout's guards say: each verdict, its interval drawn against the limit, and how much evidence is missing."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from stoker.types.guards import Evidence, Guard, GuardReading
from stoker.types.rollouts import FINAL_PHASES, Rollout
from stoker_tui.interval import ALIKE, BEYOND, LIMIT, Interval, draw_interval
from stoker_tui.text import Line, line, printable, width_of, wrapped
from stoker_tui.views.common import heading
from stoker_tui.words import NOTHING, bar, latency, mark, number

INDENT = 13
NUMBERS = 26
"""Cells right of an axis, for its numbers."""
AXIS_MOST = 48
_KEY = f"{ALIKE} as stable  {LIMIT} limit  {BEYOND} beyond"


def guards(rollout: Rollout, width: int, *, in_full: bool) -> list[Line]:
    """Each guard with its latest verdict; with the verdict's sentence where it isn't a pass, or always *in_full*."""
    lines = [_heading("GUARDS", rollout.readings, width)]
    readings = {r.guard: r for r in rollout.readings}
    if not rollout.spec.guards:
        lines.append(line(("  none: only a row of failed answers stops it", "muted")))
    for guard in rollout.spec.guards:
        lines.extend(_guard(guard, readings.get(guard), width, in_full, is_over=rollout.phase in FINAL_PHASES))
    hard = f"{rollout.spec.max_errors_in_a_row} failed answers in a row roll back at once."
    lines.extend(wrapped(line(" " * INDENT), hard, width, "muted"))
    return lines


def contention(rollout: Rollout, width: int, *, in_full: bool) -> list[Line]:
    """What stable itself suffers since the candidate shares its devices; nothing where nobody looked."""
    if not rollout.contention:
        return []
    stable = f"v{rollout.from_version}"
    title = f"CONTENTION: {stable} now against {stable} before v{rollout.to_version} came"
    lines = [heading(title, width)]
    for reading in rollout.contention:
        lines.extend(_guard(reading.guard, reading, width, in_full, is_over=rollout.phase in FINAL_PHASES))
    return lines


def _heading(title: str, readings: Sequence[GuardReading], width: int) -> Line:
    is_drawn = any(r.evidence is not None for r in readings)
    return heading(title, width, _KEY if is_drawn and width >= len(title) + len(_KEY) + 6 else "")


def _guard(guard: Guard, reading: GuardReading | None, width: int, in_full: bool, *, is_over: bool) -> list[Line]:
    found = mark(reading.verdict.verdict) if reading is not None else mark("pending")
    demand = line("  ", (f"{found.text:<10} ", found.role), (printable(guard.words), "strong"))
    if reading is None:
        return [demand]
    evidence = reading.evidence
    lines = _with_amount(demand, evidence, width, is_over)
    if evidence is not None:
        lines.append(_drawn(guard, evidence, found.role, width))
    is_well = reading.verdict.verdict == "pass"
    if in_full or evidence is None or not is_well:
        lines.extend(wrapped(line(" " * INDENT), reading.verdict.reason, width, "muted" if is_well else ""))
    return lines


def _drawn(guard: Guard, evidence: Evidence, role: str, width: int) -> Line:
    room = width - INDENT - 2
    across = min(AXIS_MOST, room - NUMBERS) if room >= NUMBERS + 16 else max(8, room)
    drawn = draw_interval(interval(guard, evidence), across, role)
    numbers = line("  ", (_estimate(evidence), "strong"), (f" {_bounds(evidence)}", "muted"))
    row = (*line(" " * INDENT), *drawn)
    return (*row, *numbers) if width_of((*row, *numbers)) <= width else row


def interval(guard: Guard, evidence: Evidence) -> Interval:
    """What of a guard's evidence is drawn."""
    is_ratio = evidence.unit == "ratio"
    bad: Literal["above", "below", "outside"] = "below" if guard.metric in ("similarity", "score") else "above"
    if guard.metric == "tokens_out" and is_ratio:
        bad = "outside"
    limit, alike = evidence.limit, {"ratio": 1.0, "points": 0.0}.get(evidence.unit)
    if guard.metric == "score" and guard.is_compared:
        limit, alike = -limit, 0.0  # so much less than stable's is allowed; the estimate is the difference
    return Interval(limit, evidence.low, evidence.estimate, evidence.high, alike, bad, is_ratio)


def _estimate(evidence: Evidence) -> str:
    return "no value yet" if evidence.estimate is None else said(evidence, evidence.estimate)


def said(evidence: Evidence, value: float) -> str:
    """A value in the evidence's unit."""
    match evidence.unit:
        case "ratio":
            return f"{value:.2f} ×"
        case "points":
            return f"{100 * value:+.1f} points"
        case "seconds":
            return latency(value)
        case "share":
            return f"{100 * value:.1f} %"
        case "tokens":
            return f"{value:.0f}"
        case _:
            return number(value)


def _bounds(evidence: Evidence) -> str:
    """``0.97 to 1.31``, ``up to 1.31``, ``from 0.97 on``; the unit stands at the estimate already."""
    low, high = (_bare(evidence, x) for x in (evidence.low, evidence.high))
    match low, high:
        case "", "":
            return "" if evidence.estimate is None else "not bounded"
        case "", _:
            return f"up to {high}"
        case _, "":
            return f"from {low} on"
    return f"{low} to {high}"


def _bare(evidence: Evidence, value: float | None) -> str:
    if value is None:
        return ""
    text = said(evidence, value)
    return text if evidence.unit == "seconds" else text.partition(" ")[0]


def _with_amount(demand: Line, evidence: Evidence | None, width: int, is_over: bool) -> list[Line]:
    """The demand, and on its right how much evidence there is and is missing; below it where there's no room."""
    if evidence is None:
        return [demand]
    room = width - width_of(demand) - 4
    wordings = amounts(evidence.model_copy(update={"missing": None}) if is_over else evidence)
    fitting = next((text for text in wordings if len(text) <= room), "")
    if fitting:
        return [(*demand, (" " * (width - width_of(demand) - len(fitting) - 1), ""), (fitting, "muted"))]
    below = next((text for text in wordings if len(text) <= width - INDENT), wordings[-1])
    return [demand, line(" " * INDENT, (below, "muted"))]


def amounts(evidence: Evidence) -> list[str]:
    """How much evidence there is, and how much is missing until it passes or fails: in several lengths, longest first.

    A bar shows what there is as a share of what it will take.
    """
    have = _count(evidence.requests, "request")
    callers = f" of {_count(evidence.callers, 'caller')}" if evidence.callers else ""
    missing = evidence.missing
    if missing is None:  # nobody can tell, or nothing will come any more
        return [f"{have}{callers}", have]
    if missing <= 0:
        return [f"{have}{callers}, enough", f"{have}, enough"]
    share = bar(evidence.requests / (evidence.requests + missing), 8)
    more = f"about {missing} more to go"
    return [f"{share} {have}{callers}, {more}", f"{share} {have}, {more}", f"{have}, {more}", more]


def _count(number_: int, thing: str) -> str:
    return f"{number_} {thing}" if number_ == 1 else f"{number_} {thing}s"


def still_needed(rollout: Rollout) -> list[str]:
    """The guards that don't hold yet, by what they measure; those of which nothing was said among them."""
    verdicts = {r.guard: r.verdict.verdict for r in rollout.readings}
    return [g.words.partition(" at ")[0] or NOTHING for g in rollout.spec.guards if verdicts.get(g) != "pass"]
