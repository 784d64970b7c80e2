"""The numbers of a rollout in a terminal: arms side by side, guards with their intervals, who was exposed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from stoker.cli import output
from stoker.cli.human import count, latency
from stoker.types.rollouts import ArmStats, Evidence, Exposure, GuardReading, guard_subject

_ORDER = ("stable", "candidate", "shadow")
_LATENCIES = (("TTFT", "ttft"), ("inter-token", "inter_token"), ("total", "total"))
_QUANTILES = ("p50", "p90", "p99")


def print_arms(arms: Mapping[str, ArmStats], *, indent: int = 0) -> None:
    """A column for each arm that has answered anything; nothing if none has."""
    names = [a for a in (*_ORDER, *sorted(set(arms) - set(_ORDER))) if a in arms]
    stats = [arms[a] for a in names]
    if not any(s.requests for s in stats):
        return
    rows: list[list[output.Cell]] = [
        ["requests", *(str(s.requests) for s in stats)],
        ["failed", *map(_failed, stats)],
        ["callers", *(str(s.callers) for s in stats)],
    ]
    for title, field in _LATENCIES:
        found = [[getattr(s, f"{field}_{q}") for q in _QUANTILES] for s in stats]
        if any(x is not None for values in found for x in values):
            rows.append([f"{title} {'/'.join(_QUANTILES)}", *map(_latencies, found)])
    output.table(["", *(n.upper() for n in names)], rows, indent=indent)


def _failed(stats: ArmStats) -> str:
    # With a decimal: limits of error rates are a point or two.
    return f"{stats.errors} ({100 * stats.errors / stats.requests:.1f} %)" if stats.requests else str(stats.errors)


def _latencies(values: Sequence[float | None]) -> str:
    """``20 / 30 / 45 ms``: the unit once, where all have the same."""
    words = [latency(v) for v in values]
    units = {w.partition(" ")[2] for w in words if w != "-"}
    if len(units) == 1:
        unit = units.pop()
        return f"{' / '.join(w.removesuffix(f' {unit}') for w in words)} {unit}"
    return " / ".join(words) if units else "-"


def print_guards(title: str, readings: Sequence[GuardReading]) -> None:
    """Each guard: what was measured, within which interval, against which limit, what is missing; below it, why."""
    sure = max((r.evidence.confidence for r in readings if r.evidence), default=0.0)
    output.heading(f"{title} (intervals at {100 * sure:.4g} %)" if sure else title)
    rows: list[list[output.Cell]] = []
    for reading in readings:
        proof = reading.evidence
        rows.append(
            [
                guard_subject(reading.guard),
                output.phase(reading.verdict.verdict),
                _number(proof, proof.estimate) if proof else "-",
                _interval(proof) if proof else "-",
                _limit(reading),
                _missing(reading),
            ]
        )
    heads = ["GUARD", "VERDICT", "MEASURED", "INTERVAL", "LIMIT", "MISSING"]
    output.table(heads, rows, notes=[r.verdict.reason for r in readings])


def print_verdicts(readings: Sequence[GuardReading], *, indent: int) -> None:
    """Each guard's verdict, with its reason whole."""
    for reading in readings:
        verdict = output.phase(reading.verdict.verdict)
        verdict.append(" " * (len("starved ") - len(verdict)))
        output.paragraph(_sentence(reading), label=verdict, indent=indent)


def _sentence(reading: GuardReading) -> str:
    """The reason, with what it is about in front where it doesn't say so itself."""
    subject, reason = guard_subject(reading.guard), reading.verdict.reason
    word = subject.rpartition(" p")[0] or subject
    return reason if word.lower() in reason.lower().replace("_", "-") else f"{subject}: {reason}"


def exposure_words(exposure: Exposure) -> str:
    """Whom the candidate has answered so far."""
    if not exposure.requests:
        return "nobody has got the candidate's answers"
    callers = f" of {count(exposure.callers, 'caller')}" if exposure.callers else ""
    failed = "all" if exposure.errors >= exposure.requests else exposure.errors or "none"
    return f"the candidate has answered {count(exposure.requests, 'request')}{callers}; failed: {failed}"


def _interval(proof: Evidence) -> str:
    low, high = proof.low, proof.high
    if low is None or high is None:
        side, bound = ("at most", high) if low is None else ("at least", low)
        return "-" if bound is None else f"{side} {_number(proof, bound)}"
    least, most = _number(proof, low), _number(proof, high)
    unit = least.partition(" ")[2]
    if unit and unit == most.partition(" ")[2]:
        least = least.removesuffix(f" {unit}")
    return f"{least} to {most}"


def _number(proof: Evidence, value: float | None) -> str:
    if value is None:
        return "-"
    match proof.unit:
        case "ratio":
            return f"{value:.2f} ×"
        case "points":
            return f"{100 * value:+.3g} points"
        case "seconds":
            return latency(value)
        case "share":
            return f"{100 * value:.3g} %"
        case "tokens" | "number":
            return f"{value:.4g}"


def _limit(reading: GuardReading) -> str:
    proof, limit = reading.evidence, reading.guard.limit
    if proof is None:
        return f"{limit:g}"
    return f"{limit:g} ×" if proof.unit == "ratio" else _number(proof, proof.limit)


def _missing(reading: GuardReading) -> str:
    """How many more requests it takes to a pass or fail."""
    missing = reading.evidence.missing if reading.evidence else None
    if missing is None:
        return "unknown" if reading.verdict.verdict == "starved" else "-"
    return f"about {missing}" if missing else "-"
