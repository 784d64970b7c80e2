"""The two versions of a rollout side by side: who gets them, how they do, and how their latencies are spread."""

from __future__ import annotations

from collections.abc import Sequence

from stoker.types.rollouts import (
    ArmStats,
    CanaryStep,
    Distribution,
    JudgedStep,
    Paused,
    Rollout,
    ShadowStep,
    TargetStep,
)
from stoker_tui.histogram import bars, ground, position, ticks
from stoker_tui.model import View
from stoker_tui.text import Line, Span, fit, line
from stoker_tui.words import NOTHING, errors, rate

PAST_STABLE = ("promoting", "promoted", "returning")
METRICS = (("TTFT", "ttft"), ("inter-token", "inter_token"), ("total", "total"))
QUANTILES = ("p50", "p90", "p99")
LABEL = 15
NUMBERS = (5, 5, 5)
"""Cells for the three quantiles, right of a histogram."""
BINS = 24
"""Counts of a distribution, where there's none to ask."""

Quantiles = tuple[float | None, float | None, float | None]


def splitting_step(rollout: Rollout) -> JudgedStep | None:
    """The step that says who gets the candidate now: the present one, or where that leaves it so the last before."""
    present = rollout.present_step
    steps = rollout.spec.steps[: present[0] + 1] if present is not None else []
    return next((s for s in reversed(steps) if isinstance(s, ShadowStep | CanaryStep | TargetStep)), None)


def is_shadow(rollout: Rollout) -> bool:
    """Whether the candidate's answers reach nobody now."""
    at = rollout.state
    held = isinstance(at, Paused) and at.exposure == "shadow"
    return not rollout.is_swap and (held or isinstance(splitting_step(rollout), ShadowStep))


def weights(rollout: Rollout) -> tuple[str, str]:
    """Stable's and the candidate's share of the traffic, in words."""
    phase, step = rollout.phase, splitting_step(rollout)
    if rollout.is_swap:
        if phase in ("preparing", "returning", "rolling-back"):
            return "held", "held"
        return ("0 %", "100 %") if phase in (*PAST_STABLE, "stepping", "paused") else ("100 %", "0 %")
    if phase in PAST_STABLE:
        return "0 %", "100 %"
    targets = " and targets" if rollout.spec.targets else ""
    match step:
        case CanaryStep(percent=percent) | ShadowStep(percent=percent) if is_shadow(rollout):
            return "100 %", f"{percent:g} % mirrored"
        case CanaryStep(percent=percent):
            return f"{100 - percent:g} %", f"{percent:g} %{targets}"
        case TargetStep() if not is_shadow(rollout):
            return "all but targets", "targets"
    return "100 %", "0 %"


def candidate_name(rollout: Rollout) -> str:
    """What the tested arm is called: candidate, or shadow."""
    return "shadow" if "shadow" in rollout.arms and "candidate" not in rollout.arms else "candidate"


def candidate_stats(rollout: Rollout) -> ArmStats:
    """The tested arm's requests of this step."""
    return rollout.arms.get(candidate_name(rollout)) or ArmStats()


def arms(rollout: Rollout, view: View, width: int, *, tall: bool) -> list[Line]:
    """Who gets which version and how each does; below, how its latencies are spread, one above the other.

    *tall*: there's room for histograms of two rows.
    """
    stable, candidate = rollout.arms.get("stable") or ArmStats(), candidate_stats(rollout)
    names = (f"stable v{rollout.from_version}", f"{candidate_name(rollout)} v{rollout.to_version}")
    columns = (20, 21, 21) if width >= 76 else (18, 16, 18)
    head = tuple((text, "head") for text, _ in fit(_cells(("ARMS", *names, "difference"), columns), width))
    speeds = {t.version: t.requests_per_second for t in view.traffic_of(rollout.deployment)}
    rows: list[tuple[str, str, str, Span]] = [
        ("share of traffic", *weights(rollout), ("", "")),
        (
            "requests/s",
            _speed(speeds, rollout.from_version),
            _speed(speeds, rollout.to_version),
            ("", ""),
        ),
        ("requests", str(stable.requests), str(candidate.requests), ("", "")),
        ("callers", str(stable.callers or NOTHING), str(candidate.callers or NOTHING), ("", "")),
        (
            "errors",
            errors(stable.errors, stable.requests),
            errors(candidate.errors, candidate.requests),
            _points(stable, candidate),
        ),
    ]
    lines = [head, *(fit((*_cells(row[:3], columns), row[3]), width) for row in rows)]
    if not (stable.requests or candidate.requests):
        return [*lines, line(("  no latencies yet", "muted"))]
    for title, key in METRICS:
        lines.extend(_spread(rollout, title, key, names, width, 2 if tall else 1))
    return lines


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


def _spread(rollout: Rollout, title: str, key: str, names: tuple[str, str], width: int, rows: int) -> list[Line]:
    """A latency's two histograms on one axis, each over a line that marks its quantiles; the numbers at the right."""
    found = rollout.distributions.get(key)
    pair = ("stable", candidate_name(rollout))
    measured = [_quantiles(rollout.arms.get(arm) or ArmStats(), key) for arm in pair]
    bins = max((len(c) for c in found.counts.values()), default=BINS) if found is not None else BINS
    each = 2 if width >= LABEL + 2 * bins + sum(NUMBERS) - 1 else 1
    across = each * bins
    unit = _unit(measured)
    lines = [fit((*_scale(f"  {title}, {unit}", found, across), _numbers(QUANTILES, "muted")), width)]
    for arm, name, quantiles in zip(pair, names, measured, strict=True):
        counts = found.counts.get(arm, []) if found is not None else []
        is_last = arm != "stable"
        *above, lowest = [(f"{row:<{across}}", "accent" if is_last else "") for row in bars(counts, each, rows)]
        lines.extend(fit((_label(""), row), width) for row in above)
        lines.append(fit((_label(name), lowest, _numbers([_in_unit(q, unit) for q in quantiles])), width))
        ratios = _ratios(*measured) if is_last else ["", "", ""]
        if found is None and not any(ratios):
            continue
        marks = _marks(found, quantiles, across) if found is not None and counts else " " * across
        label = _label("× stable’s" if any(ratios) else "")
        lines.append(fit((label, (marks, "muted"), _numbers(ratios)), width))
    return lines


def _label(text: str) -> Span:
    return f"  {text:<{LABEL - 2}}", "muted"


def _numbers(texts: Sequence[str], role: str = "") -> Span:
    return "".join(f"{text:>{cells}}" for text, cells in zip(texts, NUMBERS, strict=True)), role


def _quantiles(arm: ArmStats, key: str) -> Quantiles:
    return getattr(arm, f"{key}_p50"), getattr(arm, f"{key}_p90"), getattr(arm, f"{key}_p99")


def _unit(measured: Sequence[Quantiles]) -> str:
    """Milliseconds, where all numbers have four digits at most in them."""
    largest = max((q for quantiles in measured for q in quantiles if q is not None), default=0.0)
    return "ms" if largest < 9.9995 else "s"


def _in_unit(seconds: float | None, unit: str) -> str:
    """To three digits or so, without the unit."""
    if seconds is None:
        return NOTHING
    value = seconds * 1000 if unit == "ms" else seconds
    return f"{value:.1f}" if value < 9.95 else f"{value:.0f}"


def _ratios(before: Quantiles, after: Quantiles) -> list[str]:
    """How many times slower the candidate is at each quantile; empty where nothing is known."""
    return [f"{b / a:.2f}" if a and b is not None else "" for a, b in zip(before, after, strict=True)]


def _scale(title: str, distribution: Distribution | None, across: int) -> Line:
    """A latency's name, and round values over the axis at their places."""
    cells = [" "] * (LABEL + across)
    if distribution is not None:
        for value, at in ticks(distribution.low, distribution.high, across):
            text = f"{value * 1000:g} ms" if value < 0.9995 else f"{value:g} s"
            if LABEL + at > len(title) and at + len(text) <= across:
                cells[LABEL + at : LABEL + at + len(text)] = list(text)
    return (title, "strong"), ("".join(cells[len(title) :]), "muted")


def _marks(distribution: Distribution, quantiles: Quantiles, across: int) -> str:
    named = [
        (name, position(value, distribution.low, distribution.high, across))
        for name, value in zip(QUANTILES, quantiles, strict=True)
        if value is not None
    ]
    return ground(named, across)
