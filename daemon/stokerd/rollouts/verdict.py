"""Whether a candidate holds a guard: pass, fail or starved, each with its evidence in a sentence.

Judged are single requests of the same step, never averages of time buckets, by bounds that stay valid however often
they are looked at, and that know that requests of one caller are alike (`stokerd.rollouts.statistics`). A fail needs
proof: over a whole step a guard fails without a cause with a chance of at most its share of alpha. A pass needs
`Guard.min_requests` of either arm and an estimate within the limit; with `Guard.proof`, the whole interval. All between
is starved: it may still become either. A guard without measurements is starved, always.

Pure.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from itertools import islice
from math import ceil, inf, isfinite, log
from typing import Literal

from stoker.types.guards import (
    LATENCIES,
    Evidence,
    Fail,
    Guard,
    GuardReading,
    Pass,
    Starved,
    Verdict,
    guard_subject,
)
from stoker.words import latency
from stokerd.gateway.wire import Record
from stokerd.rollouts.sample import Measurements, Sample
from stokerd.rollouts.statistics import (
    Clusters,
    difference_bounds,
    level,
    mean_bounds,
    quantile_bounds,
    rate_bounds,
    ratio_bounds,
    weigh,
)

_MEASURES = {
    "ttft": "an answer with a first token",
    "inter_token": "a streamed answer of several chunks",
    "max_gap": "a streamed answer of several chunks",
    "total": "an answer that was read to its end",
    "tokens_out": "an answer that tells its tokens",
    "refusal_rate": "an answer that tells why it ended",
    "finish_rate": "an answer that tells why it ended",
}
_SERIES_VALUES = 5  # fewer say nothing of a mean
_MOST_MISSING = 10_000_000  # an estimate so close to its limit isn't told from it


@dataclass(frozen=True, slots=True)
class Pair:
    """What comparison said of both versions' answers to one request.

    ``likeness``: 0 to 1, 1 being the same. ``judged``: the candidate's answer, by a judge; None: nobody judged it.
    """

    caller: str
    is_same: bool
    likeness: float
    judged: Literal["better", "same", "worse"] | None = None


@dataclass(frozen=True, slots=True)
class Findings:
    """What guards judge besides requests.

    Attributes:
        pairs: answers of shadow and stable to the same requests of this step.
        scores: evaluation's name -> its value for stable's version and for the candidate's; None: not evaluated.
        series: name -> its values in this step, in order of time.
        known_series: names that there are, to say which one was meant.
    """

    pairs: Sequence[Pair] = ()
    scores: Mapping[str, tuple[float | None, float | None]] = field(default_factory=dict)
    series: Mapping[str, Sequence[float]] = field(default_factory=dict)
    known_series: Sequence[str] = ()


def judge_all(
    guards: Sequence[Guard], stable: Sample, candidate: Sample, alpha: float, findings: Findings | None = None
) -> list[GuardReading]:
    """Say whether *candidate* (or a shadow) holds each guard, valid however often it is asked in the step.

    *alpha* is the chance, over all times that it is asked in the step, that any guard fails though the candidate is
    within all limits. It is shared equally over the guards that judge what chance has a part in (Bonferroni).
    """
    findings = findings or Findings()
    share = alpha / max(1, count_statistical(guards))
    return [_judge(guard, stable, candidate, share, findings) for guard in guards]


def count_statistical(guards: Sequence[Guard]) -> int:
    """How many of them judge what chance has a part in: all but evaluations, which are as they are."""
    return sum(guard.metric != "score" for guard in guards)


def judge_contention(guards: Sequence[Guard], before: Sample, during: Sample, alpha: float) -> list[GuardReading]:
    """Say of each latency guard whether stable itself holds it against itself *before* the candidate came.

    Where both versions share a device, a candidate that takes its time makes both slow, and comparing them at the same
    time doesn't show it. Before and during aren't the same hours: a fail says that stable got slower, and the shared
    device is the likely reason, not a proven one.
    """
    latencies = [guard for guard in guards if guard.metric in LATENCIES and guard.is_compared]
    readings = []
    for guard in latencies:
        reading = _judge(guard, before, during, alpha / len(latencies), Findings())
        readings.append(reading.model_copy(update={"verdict": _contention(guard, reading, before, during)}))
    return readings


def overall(readings: Sequence[GuardReading]) -> Verdict:
    """One verdict of all: fail if any fails, else starved if any is starved, else pass; with the reasons that count."""
    if not readings:
        return Pass(reason="there are no guards")
    for kind in (Fail, Starved, Pass):
        reasons = [r.verdict.reason for r in readings if isinstance(r.verdict, kind)]
        if reasons:
            return kind(reason=". Also, ".join(reasons))
    raise AssertionError(readings)


def hard_trip(records: Sequence[Record], max_errors_in_a_row: int, refused_by_stable: int = 0) -> str | None:
    """A sentence when the last *max_errors_in_a_row* answers (records in order of time) all failed, else None.

    It needs no statistics: it acts before there is enough traffic for them. No answers of the version are: requests
    whose client went away, and those that the gateway refused (`is_refused_by_gateway`).

    Where all of them are refusals (4xx), it may be the clients who ask nonsense. So they must be of two askers at
    least: anonymous ones are told apart by what they sent. And where stable refused so many in this step, too
    (*refused_by_stable*), guards decide, which compare the two.
    """
    answers = (r for r in reversed(records) if (r.is_error or not r.client_gone) and not is_refused_by_gateway(r))
    last = list(islice(answers, max_errors_in_a_row))
    if len(last) < max_errors_in_a_row or not all(r.is_error for r in last):
        return None
    if all(is_refusal(r) for r in last):
        askers = {r.caller or (r.request_bytes, r.path) for r in last}
        if len(askers) < min(2, max_errors_in_a_row) or refused_by_stable >= max_errors_in_a_row:
            return None
    kinds = Counter(_failure(r) for r in last).most_common()
    what = f"v{last[0].version} failed"
    which = "its last answer" if len(last) == 1 else f"each of its last {len(last)} answers"
    return f"{what} {which}: {', '.join(f'{count} times {kind}' if count > 1 else kind for kind, count in kinds)}"


def is_refusal(record: Record) -> bool:
    """Whether the request itself is said to be at fault (4xx)."""
    return record.is_error and 400 <= record.status < 500


def is_refused_by_gateway(record: Record) -> bool:
    """Whether the gateway refused it before any replica had it, as it does when too many wait: no version is at fault.

    A 5xx without a replica is something else: the arm has none that is well.
    """
    return is_refusal(record) and not record.address


def _judge(guard: Guard, stable: Sample, candidate: Sample, alpha: float, findings: Findings) -> GuardReading:
    match guard.metric:
        case "score":
            return _judge_score(guard, stable, candidate, findings)
        case "series":
            return _judge_series(guard, alpha, findings)
        case "disagreement" | "judged_worse" | "similarity":
            return _judge_pairs(guard, candidate, alpha, findings.pairs)
        case "error_rate" | "refusal_rate" | "finish_rate":
            return _judge_rate(guard, stable, candidate, alpha)
        case _:
            return _judge_quantile(guard, stable, candidate, alpha)


# Rates


def _judge_rate(guard: Guard, stable: Sample, candidate: Sample, alpha: float) -> GuardReading:
    mine, others = candidate.rate(guard.metric, guard.name), stable.rate(guard.metric, guard.name)
    counted = _Counted(
        mine.n, mine.callers, others.n if guard.is_compared else 0, others.callers if guard.is_compared else 0
    )
    unit: Literal["points", "share"] = "points" if guard.is_compared else "share"
    if counted.is_too_few(guard):
        return _too_few(guard, unit, stable, candidate, counted)
    what, of = guard_subject(guard), f"of {candidate.name}"
    if not guard.is_compared:
        return _judge_share(guard, mine, alpha, f"{what} {of}")
    arm, base = weigh(mine, others)
    low, high = difference_bounds(arm.hits, arm.n, base.hits, base.n, level(alpha, arm, base))
    evidence = _evidence(guard, unit, alpha, arm.share - base.share, low, high, counted, arm.share, base.share)
    said = (
        f"{what} {of} is {100 * arm.share:.1f} %, {stable.name}'s {100 * base.share:.1f} %: {100 * low:+.1f} to "
        f"{100 * high:+.1f} points at {_sure(alpha)}; limit {100 * guard.limit:+.3g}; {counted.words}"
    )
    return _say(guard, evidence, said)


def _judge_share(guard: Guard, clusters: Clusters, alpha: float, what: str, of: str = "request") -> GuardReading:
    """Against a limit alone."""
    arm, _ = weigh(clusters)
    low, high = rate_bounds(arm.hits, arm.n, level(alpha, arm))
    counted = _Counted(clusters.n, clusters.callers, what=of)
    evidence = _evidence(guard, "share", alpha, arm.share, low, high, counted, arm.share)
    if guard.metric == "similarity":
        said = f"{what} is {low:.2f} to {high:.2f} at {_sure(alpha)}; limit {guard.limit:.3g}; {counted.words}"
        return _say(guard, evidence, said, at_least=True)
    said = (
        f"{what} is {100 * low:.1f} to {100 * high:.1f} % at {_sure(alpha)}; limit {100 * guard.limit:.3g} %; "
        f"{counted.words}"
    )
    return _say(guard, evidence, said)


def _judge_pairs(guard: Guard, candidate: Sample, alpha: float, pairs: Sequence[Pair]) -> GuardReading:
    """Kept answers of shadow: shares of pairs, or their mean likeness; both are means of numbers in [0, 1]."""
    counts: dict[str, int] = {}
    hits: dict[str, float] = {}
    squares: dict[str, float] = {}
    for caller, value in _values_of_pairs(guard, pairs):
        counts[caller] = counts.get(caller, 0) + 1
        hits[caller] = hits.get(caller, 0.0) + value
        squares[caller] = squares.get(caller, 0.0) + value * value
    anonymous, alone, alone_squares = counts.pop("", 0), hits.pop("", 0), squares.pop("", 0)
    clusters = Clusters(counts, hits, anonymous, alone, squares, alone_squares)
    counted = _Counted(clusters.n, clusters.callers, what="pair")
    subject = guard_subject(guard)
    if not clusters.n or clusters.n < guard.min_requests:
        judged = " was judged" if guard.metric == "judged_worse" else " was kept and compared"
        reason = (
            f"too few pairs of answers to judge {subject}: {clusters.n}; needed are {guard.min_requests}"
            if clusters.n
            else f"no pair of answers of {candidate.name} and stable{judged} in this step: {subject} can't be judged"
        )
        evidence = _evidence(guard, "share", alpha, counted=counted, missing=guard.min_requests - clusters.n)
        return GuardReading(guard=guard, verdict=Starved(reason=reason), evidence=evidence)
    what = subject if guard.metric == "similarity" else f"share of {subject}"
    return _judge_share(guard, clusters, alpha, f"{what} of {candidate.name}", "pair")


def _values_of_pairs(guard: Guard, pairs: Sequence[Pair]) -> Iterator[tuple[str, float]]:
    for pair in pairs:
        if guard.metric == "disagreement":
            yield pair.caller, float(not pair.is_same)
        elif guard.metric == "judged_worse":
            if pair.judged is not None:
                yield pair.caller, float(pair.judged == "worse")
        elif isfinite(pair.likeness):
            yield pair.caller, min(1.0, max(0.0, pair.likeness))


# Quantiles


def _judge_quantile(guard: Guard, stable: Sample, candidate: Sample, alpha: float) -> GuardReading:
    mine, others = candidate.measurements[guard.metric], stable.measurements[guard.metric]
    if not guard.is_compared:
        return _judge_quantile_alone(guard, stable, candidate, mine, alpha)
    counted = _Counted(len(mine), mine.callers, len(others), others.callers)
    if counted.is_too_few(guard):
        return _too_few(guard, "ratio", stable, candidate, counted)
    arm, base = weigh(mine.above(guard.quantile), others.above(guard.quantile))
    values, base_values = mine.ordered(arm), others.ordered(base)
    low, high = ratio_bounds(values, base_values, guard.quantile, level(alpha, arm, base))
    estimate, base_estimate = values.least(guard.quantile), base_values.least(guard.quantile)
    ratio = estimate / base_estimate
    evidence = _evidence(guard, "ratio", alpha, ratio, low or None, high, counted, estimate, base_estimate)
    said = (
        f"{guard_subject(guard)} of {candidate.name} is {_range(low, high, ratio)} times {stable.name}'s at "
        f"{_sure(alpha)}; limit {guard.limit:.2f}; {counted.words}"
    )
    return _say(guard, evidence, said, two_sided=guard.metric == "tokens_out")


def _judge_quantile_alone(
    guard: Guard, stable: Sample, candidate: Sample, mine: Measurements, alpha: float
) -> GuardReading:
    """Against a limit in seconds or tokens."""
    unit: Literal["tokens", "seconds"] = "tokens" if guard.metric == "tokens_out" else "seconds"
    counted = _Counted(len(mine), mine.callers)
    if counted.is_too_few(guard):
        return _too_few(guard, unit, stable, candidate, counted)
    arm, _ = weigh(mine.above(guard.quantile))
    values = mine.ordered(arm)
    low, high = quantile_bounds(values, guard.quantile, level(alpha, arm))
    estimate = values.least(guard.quantile)
    evidence = _evidence(guard, unit, alpha, estimate, low, high, counted, estimate)

    def word(value: float) -> str:
        return latency(value) if unit == "seconds" else f"{value:g}"

    between = f"{word(low)} to {word(high)}" if isfinite(low) and isfinite(high) else f"about {word(estimate)}"
    if isfinite(low) != isfinite(high):
        between = f"at least {word(low)}" if isfinite(low) else f"at most {word(high)}"
    said = (
        f"{guard_subject(guard)} of {candidate.name} is {between} at {_sure(alpha)}; limit {word(guard.limit)}; "
        f"{counted.words}"
    )
    return _say(guard, evidence, said)


# Series


def _judge_series(guard: Guard, alpha: float, findings: Findings) -> GuardReading:
    values = [value for value in findings.series.get(guard.name, ()) if isfinite(value)]
    counted = _Counted(len(values), 0)
    if len(values) < _SERIES_VALUES:
        if values or guard.name in findings.known_series:
            reason = f"series {guard.name} has {len(values)} values in this step; needed are {_SERIES_VALUES}"
        else:
            near = get_close_matches(guard.name, findings.known_series, 1)
            reason = f"there is no series {guard.name}" + (f"; did you mean {near[0]}?" if near else "")
        evidence = Evidence(unit="number", limit=guard.limit, requests=len(values))
        return GuardReading(guard=guard, verdict=Starved(reason=reason), evidence=evidence)
    mean = sum(values) / len(values)
    low, high = mean_bounds(values, guard.limit, alpha)
    between = f"{low:.4g} to {high:.4g} at {_sure(alpha)}" if isfinite(low) else f"about {mean:.4g}"
    said = f"mean of {guard.name} in this step is {between}; limit {guard.limit:g}; {len(values)} values"
    evidence = _evidence(guard, "number", alpha, mean, low, high, counted, mean)
    return _say(guard, evidence, said)


# Without chance


def _judge_score(guard: Guard, stable: Sample, candidate: Sample, findings: Findings) -> GuardReading:
    base, mine = findings.scores.get(guard.name, (None, None))
    base, mine = (value if value is not None and isfinite(value) else None for value in (base, mine))
    evidence = Evidence(unit="number", limit=guard.limit, stable=base, candidate=mine)
    lacking = [candidate.name] * (mine is None) + [stable.name] * (base is None and guard.is_compared)
    if mine is None or (base is None and guard.is_compared):
        reason = f"there is no value of evaluation {guard.name} for {' and '.join(lacking)}"
        return GuardReading(guard=guard, verdict=Starved(reason=reason), evidence=evidence)
    if base is not None and guard.is_compared:
        estimate, holds = mine - base, mine >= base - guard.limit
        said = f"evaluation {guard.name} of {candidate.name} is {mine:.4g}, {stable.name}'s {base:.4g}: {estimate:+.3g}"
        said += f"; limit {-guard.limit:g}"
    else:
        estimate, holds = mine, mine >= guard.limit
        said = f"evaluation {guard.name} of {candidate.name} is {mine:.4g}; limit {guard.limit:g}"
    evidence = evidence.model_copy(
        update={"estimate": estimate, "low": estimate, "high": estimate, "missing": 0, "confidence": 1.0}
    )
    return GuardReading(guard=guard, verdict=Pass(reason=said) if holds else Fail(reason=said), evidence=evidence)


# What they share


@dataclass(frozen=True, slots=True)
class _Counted:
    """What a guard has of either arm."""

    requests: int
    callers: int
    stable_requests: int = 0
    stable_callers: int = 0
    what: str = "request"

    def is_too_few(self, guard: Guard) -> bool:
        return min(self.requests, self.stable_requests if guard.is_compared else inf) < guard.min_requests

    @property
    def words(self) -> str:
        return f"{_some(self.requests, self.what)} of {_some(self.callers, 'caller')}"


def _evidence(
    guard: Guard,
    unit: Literal["ratio", "points", "seconds", "tokens", "share", "number"],
    alpha: float,
    estimate: float | None = None,
    low: float | None = None,
    high: float | None = None,
    counted: _Counted | None = None,
    candidate: float | None = None,
    stable: float | None = None,
    missing: int | None = None,
) -> Evidence:
    counted = counted or _Counted(0, 0)
    return Evidence(
        unit=unit,
        limit=guard.limit,
        estimate=estimate,
        low=low if low is not None and isfinite(low) else None,
        high=high if high is not None and isfinite(high) else None,
        stable=stable,
        candidate=candidate,
        stable_requests=counted.stable_requests,
        requests=counted.requests,
        stable_callers=counted.stable_callers,
        callers=counted.callers,
        missing=missing,
        confidence=1 - alpha,
    )


def _say(
    guard: Guard, evidence: Evidence, said: str, *, at_least: bool = False, two_sided: bool = False
) -> GuardReading:
    """Pass, fail or starved by where the interval and the estimate lie beside the limit; *said* is what is known."""
    estimate = evidence.estimate
    assert estimate is not None
    low = evidence.low if evidence.low is not None else -inf
    high = evidence.high if evidence.high is not None else inf
    least = guard.limit if at_least else 1 / guard.limit if two_sided else -inf
    most = inf if at_least else guard.limit
    is_within = least <= estimate <= most
    verdict: Verdict
    if low > most or high < least:
        verdict = Fail(reason=said)
    elif is_within and (not guard.proof or (least <= low and high <= most)):
        verdict = Pass(reason=said)
    elif is_within:
        verdict = Starved(reason=f"{said}: within the limit so far, but not proven yet")
    else:
        side = "over" if estimate > most else "under"
        verdict = Starved(reason=f"{said}: {side} the limit by now, but too few to be sure")
    missing = 0 if not isinstance(verdict, Starved) else _missing(evidence, (least, most), is_within=is_within)
    return GuardReading(guard=guard, verdict=verdict, evidence=evidence.model_copy(update={"missing": missing}))


def _missing(evidence: Evidence, limits: tuple[float, float], *, is_within: bool) -> int | None:
    """How many more requests of the candidate it takes, if the estimate stays and stable's grow along.

    An interval shrinks with the square root of the requests: until its end is no farther from the estimate than the
    limit is. None where there is no end yet, or the estimate lies on the limit.
    """
    estimate, (least, most) = evidence.estimate, limits
    assert estimate is not None
    if is_within:
        ways = [(evidence.low, least), (evidence.high, most)]
    else:
        ways = [(evidence.low, most) if estimate > most else (evidence.high, least)]
    is_ratio = evidence.unit in ("ratio", "seconds", "tokens")
    factors = []
    for end, limit in ways:
        if not isfinite(limit):
            continue
        if end is None or limit == estimate or (is_ratio and min(end, limit, estimate) <= 0):
            return None
        width, gap = (log(end / estimate), log(limit / estimate)) if is_ratio else (end - estimate, limit - estimate)
        factors.append((width / gap) ** 2)
    more = evidence.requests * (max(factors, default=1.0) - 1)
    return max(1, ceil(more)) if more < _MOST_MISSING else None


def _too_few(
    guard: Guard,
    unit: Literal["ratio", "points", "seconds", "tokens", "share"],
    stable: Sample,
    candidate: Sample,
    counted: _Counted,
) -> GuardReading:
    """Say what is missing, and on which arm: a guard without measurements must not look like one that holds."""
    word, n, base_n = guard_subject(guard), counted.requests, counted.stable_requests
    counts = f"{n} of {candidate.name}" + (f" and {base_n} of {stable.name}" if guard.is_compared else "")
    least = base_n if guard.is_compared and base_n < n else n
    needed = f"needed are {guard.min_requests}" + (" of either" if guard.is_compared else "")
    if guard.is_compared and stable.requests == 0:
        reason = f"no request of this step went to stable: nothing to compare the {word} with"
    elif candidate.requests == 0 and n == 0:
        reason = f"no request of this step was answered by {candidate.name}: no {word} to judge"
    elif guard.metric in _MEASURES and least == 0:
        reason = f"{word} can't be judged without {_MEASURES[guard.metric]}: so far {counts}"
    else:
        reason = f"too few requests to judge the {word}: {counts}; {needed}"
    missing = None  # until the scarcer arm has enough, at the present proportion of both
    if least:
        missing = max(1, -(-n * (guard.min_requests - least) // least))
    elif n == 0 and (base_n or not guard.is_compared):
        missing = guard.min_requests
    evidence = _evidence(guard, unit, 1.0, counted=counted, missing=missing)
    return GuardReading(guard=guard, verdict=Starved(reason=reason), evidence=evidence)


def _contention(guard: Guard, reading: GuardReading, before: Sample, during: Sample) -> Verdict:
    evidence, what = reading.evidence, guard_subject(guard)
    if evidence is None or evidence.estimate is None:
        reason = f"stable {during.name} can't be compared with itself before the candidate came: "
        return Starved(
            reason=f"{reason}{len(before.measurements[guard.metric])} measurements of then, "
            f"{len(during.measurements[guard.metric])} of now in {what}"
        )
    between = _range(evidence.low or 0.0, evidence.high if evidence.high is not None else inf, None)
    said = f"{what} of stable {during.name} itself is {evidence.estimate:.2f}"
    said += f" ({between})" if between else ""
    said += " times what it was before the candidate came"
    if isinstance(reading.verdict, Fail):
        return Fail(reason=f"{said}: they share a device")
    if isinstance(reading.verdict, Pass):
        return Pass(reason=f"{said}; limit {guard.limit:.2f}")
    return Starved(reason=f"{said}; limit {guard.limit:.2f}: too few to be sure")


def _failure(record: Record) -> str:
    if record.status == 0:
        return "no answer"
    return f"HTTP {record.status}" if record.status >= 400 else "an answer that broke off"


def _some(count: int, what: str) -> str:
    return f"{count} {what}" if count == 1 else f"{count} {what}s"


def _sure(alpha: float) -> str:
    """The confidence in percent, never rounded up to certainty."""
    percent = 100 * (1 - alpha)
    return f"{percent:.3g} %" if percent < 99.5 else f"{percent:.4g} %"


def _range(low: float, high: float, estimate: float | None) -> str:
    """The bounds of a ratio; while there are none, the *estimate*, if it is given."""
    if isfinite(high):
        return f"{low:.2f} to {high:.2f}" if low > 0 else f"at most {high:.2f}"
    if low > 0:
        return f"at least {low:.2f}"
    return f"about {estimate:.2f}" if estimate is not None else ""
