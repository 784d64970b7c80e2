"""A rollout in full: where it is on its ladder, its arms side by side, what its guards say, what has happened."""

from __future__ import annotations

from collections.abc import Sequence

from stoker.types.events import Event
from stoker.types.rollouts import FINAL_PHASES, ArmStats, Guard, Paused, Rollout, Step, Stepping
from stoker_tui.clock import Clock
from stoker_tui.model import View
from stoker_tui.text import Line, Span, fit, line, printable, width_of, wrap, wrapped
from stoker_tui.views.common import because, elapsed, heading
from stoker_tui.views.overview import event_role, event_sentence
from stoker_tui.words import NOTHING, clock_time, duration, errors, latency, mark, rate

METRIC_WORDS = {"error_rate": "error rate", "ttft": "TTFT", "inter_token": "inter-token", "total": "total"}
PAST_STABLE = ("promoting", "promoted")


def present_step(rollout: Rollout) -> tuple[int, Step] | None:
    """The step that is on, or that it is paused in, with its index; None before and after."""
    at = rollout.state
    if isinstance(at, Stepping | Paused) and 0 <= at.step < len(rollout.spec.steps):
        return at.step, rollout.spec.steps[at.step]
    return None


def weights(rollout: Rollout) -> tuple[str, str]:
    """Stable's and the candidate's share of the traffic, in words."""
    if rollout.phase in PAST_STABLE:
        return "0 %", "100 %"
    present = present_step(rollout)
    if present is None:
        return "100 %", "0 %"
    step = present[1]
    if step.type == "shadow":
        return "100 %", f"{step.percent:g} % mirrored"
    return f"{100 - step.percent:g} %", f"{step.percent:g} %"


def title(rollout: Rollout, clock: Clock, width: int) -> list[Line]:
    """What moves where and how it stands with it, in one row if it fits; then its reason if there's one."""
    found = mark(rollout.phase)
    moved = f"{rollout.deployment} v{rollout.from_version} → v{rollout.to_version}"
    name = line(" ", (rollout.name, "strong"), f"   {moved}   ")
    time = elapsed(rollout, clock)
    when = f", {time}" if time.endswith("ago") or time == "now" else f", for {time}"
    present = present_step(rollout)
    word, where = found.word, ""
    if present is not None:
        index, step = present
        where = f"step {index + 1} of {len(rollout.spec.steps)}, {step.type} {step.percent:g} %"
        word = "" if isinstance(rollout.state, Stepping) else f"{word} at "
    stands = line((f"{found.symbol} {word}{where}", f"{found.role} strong"), when)
    lines = [(*name, *stands)] if width_of((*name, *stands)) <= width else [name, (*line(" "), *stands)]
    said = because(rollout)
    if said:
        lines.extend(wrapped(line("   "), said, width))
    if rollout.verdict_at is not None:
        lines.extend(wrapped(line("   "), _rolled_back_in(rollout), width, "muted"))
    return lines


def _rolled_back_in(rollout: Rollout) -> str:
    failed = f"{rollout.candidate_errors} failed answers of v{rollout.to_version} reached clients"
    if rollout.verdict_at is None or rollout.restored_at is None:
        return f"{failed}."
    seconds = (rollout.restored_at - rollout.verdict_at).total_seconds()
    return f"Stable had all traffic again {latency(seconds)} after the verdict; {failed}."


def ladder(rollout: Rollout, clock: Clock, width: int) -> list[Line]:
    """Its steps, the present one marked, with what it still needs."""
    present = present_step(rollout)
    at = _reached_step(rollout)
    lines = [heading("STEPS", width)]
    for index, step in enumerate(rollout.spec.steps):
        name = f"{index + 1}  {step.type} {step.percent:g} %"
        if present is not None and index == present[0]:
            symbol, role = ("=", "warn") if isinstance(rollout.state, Paused) else ("▸", "accent")
            lines.append(_rung(symbol, name, f"{role} strong", _needs(rollout, step, clock), "", width))
        elif index < at:
            lines.append(_rung("✓", name, "good", "passed", "muted", width))
        else:
            wish = "" if rollout.phase in FINAL_PHASES else _wish(step)
            lines.append(_rung("·", name, "muted", wish, "muted", width))
    return lines


def _rung(symbol: str, name: str, role: str, more: str, more_role: str, width: int) -> Line:
    return fit(line("  ", (f"{symbol} {name:<20}", role), (more, more_role)), width)


def _reached_step(rollout: Rollout) -> int:
    """How many steps were passed, as far as the rollout says."""
    if rollout.phase in PAST_STABLE:
        return len(rollout.spec.steps)
    present = present_step(rollout)
    return present[0] if present is not None else 0


def _candidate(rollout: Rollout) -> ArmStats:
    return rollout.arms.get("candidate") or rollout.arms.get("shadow") or ArmStats()


def _needs(rollout: Rollout, step: Step, clock: Clock) -> str:
    text = f"{_candidate(rollout).requests} of {step.min_requests} requests"
    if step.min_duration and isinstance(rollout.state, Stepping):
        passed = min(clock.since(rollout.state.since), step.min_duration)
        text += f", {duration(passed)} of {duration(step.min_duration)}"
    return text


def _wish(step: Step) -> str:
    least = f", at least {duration(step.min_duration)}" if step.min_duration else ""
    return f"{step.min_requests} requests{least}"


def arms(rollout: Rollout, view: View, width: int) -> list[Line]:
    """The two versions side by side, and how they differ."""
    stable, candidate = rollout.arms.get("stable") or ArmStats(), _candidate(rollout)
    other = "shadow" if "shadow" in rollout.arms and "candidate" not in rollout.arms else "candidate"
    columns = _columns(width)
    names = ("ARMS", f"stable v{rollout.from_version}", f"{other} v{rollout.to_version}", "difference")
    head = tuple((text, "head") for text, _ in fit(_cells(names, columns), width))
    rows: list[tuple[str, str, str, Span]] = [("share of traffic", *weights(rollout), ("", ""))]
    speeds = {t.version: t.requests_per_second for t in view.traffic_of(rollout.deployment)}
    rows.append(
        (
            "requests/s",
            _speed(speeds, rollout.from_version),
            _speed(speeds, rollout.to_version),
            ("", ""),
        )
    )
    rows.append(("requests", str(stable.requests), str(candidate.requests), ("", "")))
    rows.append(
        (
            "errors",
            errors(stable.errors, stable.requests),
            errors(candidate.errors, candidate.requests),
            _points(stable, candidate),
        )
    )
    for name, key in (("TTFT", "ttft"), ("inter-token", "inter_token"), ("total", "total")):
        before, after = _latencies(stable, key), _latencies(candidate, key)
        rows.append((f"{name} p50 / p90", _pair(before), _pair(after), _times(before, after)))
    return [head, *(fit((*_cells(row[:3], columns), row[3]), width) for row in rows)]


def _columns(width: int) -> tuple[int, int, int]:
    return (24, 18, 20) if width >= 80 else (22, 17, 17)


def _cells(texts: Sequence[str], columns: tuple[int, ...]) -> Line:
    spans: list[Span] = [("  ", "")]
    for i, text in enumerate(texts):
        role = "muted" if i == 0 else ""
        spans.append((f"{text:<{columns[i]}}" if i < len(columns) else text, role))
    return tuple(spans)


def _speed(speeds: dict[int, float], version: int) -> str:
    return rate(speeds[version]) if version in speeds else NOTHING


def _points(stable: ArmStats, candidate: ArmStats) -> Span:
    """How many percentage points more of the candidate's requests fail."""
    if not stable.requests or not candidate.requests:
        return NOTHING, "muted"
    points = 100 * (candidate.errors / candidate.requests - stable.errors / stable.requests)
    return f"{points:+.1f} points", "bad" if points > 0 else ""


Latencies = tuple[float | None, float | None]


def _latencies(arm: ArmStats, key: str) -> Latencies:
    return getattr(arm, f"{key}_p50"), getattr(arm, f"{key}_p90")


def _pair(both: Latencies) -> str:
    return NOTHING if both == (None, None) else f"{latency(both[0])} / {latency(both[1])}"


def _times(before: Latencies, after: Latencies) -> Span:
    """How many times slower the candidate is, at the median and at p90."""
    ratios = [b / a if a and b is not None else None for a, b in zip(before, after, strict=True)]
    if ratios == [None, None]:
        return NOTHING, "muted"
    times = " / ".join(NOTHING if r is None else f"{r:.2f}" for r in ratios) + " ×"
    tail = ratios[1] or ratios[0] or 1.0
    return times + (" slower" if tail >= 1.1 else " faster" if tail <= 0.9 else ""), ""


def guards(rollout: Rollout, width: int) -> list[Line]:
    """Each guard with its latest verdict and the verdict's reason."""
    lines = [heading("GUARDS", width)]
    readings = {r.guard: r.verdict for r in rollout.readings}
    if not rollout.spec.guards:
        lines.append(line(("  none: only a row of failed answers stops it", "muted")))
    for guard in rollout.spec.guards:
        verdict = readings.get(guard)
        found = mark(verdict.verdict) if verdict is not None else mark("pending")
        lines.append(line("  ", (f"{found.text:<10} ", found.role), (guard_words(guard), "strong")))
        if verdict is not None:
            lines.extend(wrapped(line(" " * 13), verdict.reason, width))
    hard = f"{rollout.spec.max_errors_in_a_row} failed answers in a row roll back at once."
    lines.extend(wrapped(line(" " * 13), hard, width, "muted"))
    return lines


def guard_words(guard: Guard) -> str:
    """What a guard demands."""
    if guard.metric == "error_rate":
        return f"error rate at most {guard.limit * 100:g} points over stable's"
    return f"{METRIC_WORDS[guard.metric]} p{guard.quantile * 100:g} at most {guard.limit:g} × stable's"


def story(events: Sequence[Event], clock: Clock, width: int) -> list[Line]:
    """What has happened to it, the newest first."""
    lines = [heading("HISTORY", width)]
    if not events:
        return [*lines, line(("  nothing has happened yet", "muted"))]
    present = clock.local(clock.now())
    for event in reversed(events):
        time = clock_time(clock.local(event.time), present)
        label = line("  ", (f"{time:<8}", "muted"), "  ")
        lines.extend(wrapped(label, event_sentence(event), width, event_role(event)))
        reason = event.data.get("because") or event.data.get("verdict_reason")
        if isinstance(reason, str) and reason not in event.message:
            lines.extend(line(" " * 12, (rest, "muted")) for rest in wrap(printable(reason), width - 12))
    return lines


def consequence(rollout: Rollout, verb: str) -> str:
    """What will happen when a person says *verb*, in a sentence or two."""
    old, new = f"v{rollout.from_version}", f"v{rollout.to_version}"
    present = present_step(rollout)
    match verb:
        case "promote":
            return f"All traffic goes to {new}; {old} drains and stops. Steps and guards that are left are skipped."
        case "abort":
            return f"All traffic goes back to {old}; {new} drains and stops."
        case "pause":
            share = weights(rollout)[1]
            return (
                f"{new} keeps its share of the traffic ({share}) until you go on. Guards no longer judge; "
                f"{rollout.spec.max_errors_in_a_row} failed answers in a row still roll back."
            )
        case _:
            step = f"Step {present[0] + 1}" if present is not None else "The rollout"
            return f"{step} goes on, and the guards judge {new} again."
