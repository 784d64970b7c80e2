"""What others do to judge a canary, on the same requests: each says after how many requests it rolled back, or None."""

from __future__ import annotations

import math
from bisect import bisect_left
from collections import defaultdict
from collections.abc import Sequence
from statistics import NormalDist, fmean

from tests.bench.verdicts.world import Request

METRICS = ("errors", "ttft", "inter_token", "total")
_MOST_INTERVALS = 60  # Kayenta's points of a metric: one a minute, or fewer in a long rollout


def _values(request: Request) -> tuple[float, float, float, float]:
    return float(request.is_error), request.ttft_seconds, request.inter_token_seconds, request.total_seconds


def t_test_each_minute(requests: Sequence[Request], alpha: float) -> int | None:
    """Welch's t-test of the means (one-sided, normal from 30 requests on), *alpha* shared over the four metrics."""
    critical = NormalDist().inv_cdf(1 - alpha / len(METRICS))
    sums = [[[0.0, 0.0] for _ in METRICS] for _ in range(2)]
    counts, minute = [0, 0], 0
    for seen, request in enumerate(requests):
        if request.minute != minute:
            minute = request.minute
            if min(counts) >= 30 and any(
                _welch(one, two, counts) > critical for one, two in zip(sums[0], sums[1], strict=True)
            ):
                return seen
        counts[request.is_candidate] += 1
        for kept, value in zip(sums[request.is_candidate], _values(request), strict=True):
            kept[0] += value
            kept[1] += value * value
    return None


def _welch(stable: list[float], candidate: list[float], counts: list[int]) -> float:
    means = [arm[0] / n for arm, n in zip((stable, candidate), counts, strict=True)]
    noise = sum(
        max(0.0, arm[1] / n - mean * mean) / n for arm, n, mean in zip((stable, candidate), counts, means, strict=True)
    )
    return (means[1] - means[0]) / math.sqrt(noise) if noise > 0 else 0.0


def mann_whitney_at_the_end(requests: Sequence[Request]) -> int | None:
    """Kayenta's: at the end, averages per interval of either arm; a metric fails if the 98 % interval of the shift
    (Hodges and Lehmann's, by Mann-Whitney) is above a quarter of its estimate. One failed metric rolls back."""
    minutes = requests[-1].minute + 1
    length = math.ceil(minutes / _MOST_INTERVALS)
    arms = [_averages(requests, length, is_candidate=arm) for arm in (False, True)]
    for metric in range(len(METRICS)):
        stable, candidate = ([point[metric] for point in arm] for arm in arms)
        if min(len(stable), len(candidate)) < 5:
            continue
        shifts = sorted(x - y for x in candidate for y in stable)
        n, m = len(candidate), len(stable)
        place = n * m / 2 - NormalDist().inv_cdf(0.99) * math.sqrt(n * m * (n + m + 1) / 12)
        low, estimate = shifts[max(0, int(place))], shifts[len(shifts) // 2]
        if low > 0.25 * abs(estimate):
            return len(requests)
    return None


def _averages(requests: Sequence[Request], length: int, *, is_candidate: bool) -> list[list[float]]:
    intervals: dict[int, list[tuple[float, ...]]] = defaultdict(list)
    for request in requests:
        if request.is_candidate == is_candidate:
            intervals[request.minute // length].append(_values(request))
    return [[fmean(column) for column in zip(*rows, strict=True)] for rows in intervals.values()]


THRESHOLDS = (0.03, 1.5, 1.2, 1.5)
"""An error share; and factors of the usual averages, which whoever writes the rules has to know."""


def thresholds_each_minute(requests: Sequence[Request], usual: Sequence[float], checks: int) -> int | None:
    """Flagger's: each minute the candidate's averages against fixed limits; that many failed checks roll back."""
    limits = [THRESHOLDS[0], *(factor * value for factor, value in zip(THRESHOLDS[1:], usual[1:], strict=True))]
    rows: list[tuple[float, ...]] = []
    failed, minute = 0, 0
    for seen, request in enumerate(requests):
        if request.minute != minute:
            minute = request.minute
            if rows:
                averages = [fmean(column) for column in zip(*rows, strict=True)]
                failed += any(value > limit for value, limit in zip(averages, limits, strict=True))
                if failed >= checks:
                    return seen
            rows = []
        if request.is_candidate:
            rows.append(_values(request))
    return None


def usual_averages(requests: Sequence[Request]) -> list[float]:
    """What the metrics are on average."""
    return [fmean(column) for column in zip(*map(_values, requests), strict=True)]


def median_detection(found: Sequence[int | None]) -> int | None:
    """The number of requests by which half of all rollouts were detected; None if fewer were."""
    ordered = sorted(n for n in found if n is not None)
    half = math.ceil(len(found) / 2)
    return ordered[half - 1] if len(ordered) >= half else None


def share_by(found: Sequence[int | None], limit: int) -> float:
    """The share of rollouts that were rolled back within *limit* requests."""
    ordered = sorted(n for n in found if n is not None)
    return bisect_left(ordered, limit + 1) / max(1, len(found))
