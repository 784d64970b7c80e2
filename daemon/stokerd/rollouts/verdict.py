"""Whether a candidate holds a guard against stable: pass, fail or starved, each with its evidence in a sentence.

Judged are single requests of the same step, never averages of time buckets, by bounds that stay valid however often
they are looked at (`stokerd.rollouts.statistics`). A fail needs proof: over a whole step a guard fails without a cause
with a chance of at most its share of alpha. A pass needs `Guard.min_requests` of either arm and an estimate within the
limit. All between is starved: it may still become either.

Pure; called after each batch of records, so a sample is read and sorted once for all guards.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import islice
from math import inf, isfinite

from stoker.types.rollouts import Fail, Guard, GuardReading, Pass, Starved, Verdict
from stokerd.gateway.wire import Record
from stokerd.rollouts.statistics import difference_bounds, quantile_bounds
from stokerd.telemetry.quantiles import quantile_of_sorted

_WORDS = {"error_rate": "error rate", "ttft": "TTFT", "inter_token": "inter-token", "total": "total"}
_MEASURES = {
    "ttft": "an answer with a first token",
    "inter_token": "a streamed answer of several chunks",
    "total": "an answer that was read to its end",
}
_RESOLUTION_SECONDS = 1e-6  # latencies below it count as it, so that ratios are finite


class Sample:
    """What guards need of one arm's requests in one step. Latencies in seconds, in ascending order.

    Left out: of all, requests whose client went away before the arm could fail or not; of latencies, failed answers
    (a refusal is quick); of the total time, requests whose client went away (the client chose it). A first token or a
    gap between tokens that was measured before the client went counts: clients leave the slow ones.
    """

    def __init__(self, records: Iterable[Record], fallback_name: str) -> None:
        self.name = fallback_name
        self.requests = 0
        self.errors = 0
        self.latencies: dict[str, list[float]] = {"ttft": [], "inter_token": [], "total": []}
        ttft, inter_token, total = self.latencies.values()
        for record in records:
            self.name = f"v{record.version}"
            if record.is_error:
                self.requests += 1
                self.errors += 1
                continue
            if not record.client_gone:
                self.requests += 1
                total.append(record.total_seconds)
            if record.ttft_seconds is not None:
                ttft.append(record.ttft_seconds)
            if record.is_stream and record.inter_token_seconds is not None:
                inter_token.append(record.inter_token_seconds)
        for metric, values in self.latencies.items():
            self.latencies[metric] = sorted(max(v, _RESOLUTION_SECONDS) for v in values if isfinite(v))


def judge(guard: Guard, stable: Sequence[Record], candidate: Sequence[Record], *, alpha: float) -> Verdict:
    """Say whether *candidate* (or a shadow) holds *guard* against *stable*, valid however often it is asked.

    Both are the arms' records of the present step. *alpha* is the chance, over all times that it is asked in the step,
    to fail a candidate that is within the limit. `Starved` while either arm has fewer than `Guard.min_requests`
    measurements, and while the estimate is over the limit without proof. Never raises.
    """
    return _judge(guard, _stable(stable), _candidate(candidate), alpha)


def judge_all(
    guards: Sequence[Guard], stable: Sequence[Record], candidate: Sequence[Record], alpha: float
) -> list[GuardReading]:
    """`judge` each guard, with *alpha* shared equally over them (Bonferroni): the chance that any fails without a cause
    is at most *alpha*."""
    if not guards:
        return []
    arms = _stable(stable), _candidate(candidate)
    return [GuardReading(guard=guard, verdict=_judge(guard, *arms, alpha / len(guards))) for guard in guards]


def overall(readings: Sequence[GuardReading]) -> Verdict:
    """One verdict of all: fail if any fails, else starved if any is starved, else pass; with the reasons that count."""
    if not readings:
        return Pass(reason="there are no guards")
    for kind in (Fail, Starved, Pass):
        reasons = [r.verdict.reason for r in readings if isinstance(r.verdict, kind)]
        if reasons:
            return kind(reason=". Also, ".join(reasons))
    raise AssertionError(readings)


def hard_trip(candidate: Sequence[Record], max_errors_in_a_row: int) -> str | None:
    """A sentence when the last *max_errors_in_a_row* answers (records in order of time) all failed, else None.

    It needs no statistics: it acts before there is enough traffic for them. Requests whose client went away are no
    answers.
    """
    answers = (r for r in reversed(candidate) if r.is_error or not r.client_gone)
    last = list(islice(answers, max_errors_in_a_row))
    if len(last) < max_errors_in_a_row or not all(r.is_error for r in last):
        return None
    kinds = Counter(_failure(r) for r in last).most_common()
    what = f"v{last[0].version} failed"
    which = "its last answer" if len(last) == 1 else f"each of its last {len(last)} answers"
    return f"{what} {which}: {', '.join(f'{count} times {kind}' if count > 1 else kind for kind, count in kinds)}"


def _stable(records: Sequence[Record]) -> Sample:
    return Sample(records, "stable")


def _candidate(records: Sequence[Record]) -> Sample:
    return Sample(records, "the candidate")


def _judge(guard: Guard, stable: Sample, candidate: Sample, alpha: float) -> Verdict:
    if guard.metric == "error_rate":
        return _judge_errors(guard, stable, candidate, alpha)
    return _judge_latency(guard, stable, candidate, alpha)


def _judge_errors(guard: Guard, stable: Sample, candidate: Sample, alpha: float) -> Verdict:
    n, base_n = candidate.requests, stable.requests
    if min(n, base_n) < guard.min_requests:
        return _too_few(guard, stable, candidate, base_n, n)
    rate, base_rate = candidate.errors / n, stable.errors / base_n
    low, high = difference_bounds(candidate.errors, n, stable.errors, base_n, alpha)
    evidence = (
        f"error rate of {candidate.name} is {100 * rate:.1f} %, {stable.name}'s {100 * base_rate:.1f} %: "
        f"{100 * (rate - base_rate):+.1f} points ({100 * low:+.1f} to {100 * high:+.1f}); "
        f"limit {100 * guard.limit:+.3g}; {n} and {base_n} requests"
    )
    return _say(rate - base_rate, low, guard.limit, evidence)


def _judge_latency(guard: Guard, stable: Sample, candidate: Sample, alpha: float) -> Verdict:
    values, base_values = candidate.latencies[guard.metric], stable.latencies[guard.metric]
    estimate, base = quantile_of_sorted(values, guard.quantile), quantile_of_sorted(base_values, guard.quantile)
    if estimate is None or base is None or min(len(values), len(base_values)) < guard.min_requests:
        return _too_few(guard, stable, candidate, len(base_values), len(values))
    least, most = quantile_bounds(values, guard.quantile, alpha / 2)
    base_least, base_most = quantile_bounds(base_values, guard.quantile, alpha / 2)
    low = max(least, 0.0) / base_most
    high = most / base_least if base_least > 0 else inf
    evidence = (
        f"{_WORDS[guard.metric]} p{100 * guard.quantile:g} of {candidate.name} is {estimate / base:.2f} "
        f"{_range(low, high)}times {stable.name}'s ({_seconds(estimate)} and {_seconds(base)}); "
        f"limit {guard.limit:.2f}; {len(values)} and {len(base_values)} requests"
    )
    return _say(estimate / base, low, guard.limit, evidence)


def _say(estimate: float, low: float, limit: float, evidence: str) -> Verdict:
    if low > limit:
        return Fail(reason=evidence)
    if estimate <= limit:
        return Pass(reason=evidence)
    return Starved(reason=f"{evidence}: over the limit, but too few to be sure")


def _too_few(guard: Guard, stable: Sample, candidate: Sample, base_n: int, n: int) -> Starved:
    """Say what is missing, and on which arm: a guard without measurements must not look like one that holds."""
    word, counts = _WORDS[guard.metric], f"{n} of {candidate.name} and {base_n} of {stable.name}"
    if stable.requests == 0:
        return Starved(reason=f"no request of this step went to stable: nothing to compare the {word} with")
    if candidate.requests == 0:
        return Starved(reason=f"no request of this step was answered by {candidate.name}: no {word} to judge")
    if guard.metric in _MEASURES and min(n, base_n) == 0:
        return Starved(reason=f"{word} can't be judged without {_MEASURES[guard.metric]}: so far {counts}")
    return Starved(reason=f"too few requests to judge the {word}: {counts}; needed are {guard.min_requests} of either")


def _failure(record: Record) -> str:
    if record.status == 0:
        return "no answer"
    return f"HTTP {record.status}" if record.status >= 400 else "an answer that broke off"


def _range(low: float, high: float) -> str:
    """The bounds of a ratio, with a blank behind; nothing while there are none."""
    if isfinite(high):
        return f"({low:.2f} to {high:.2f}) " if low > 0 else f"(at most {high:.2f}) "
    return f"(at least {low:.2f}) " if low > 0 else ""


def _seconds(value: float) -> str:
    return f"{value:.3g} s" if value >= 1 else f"{1000 * value:.3g} ms"
