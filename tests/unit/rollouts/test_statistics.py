from __future__ import annotations

import random
from bisect import insort
from math import inf, log

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stokerd.rollouts.statistics import (
    difference_bounds,
    difference_log_evidence,
    log_evidence,
    quantile_bounds,
    quantile_ranks,
    rate_bounds,
)

# Figures of the package confseq 0.0.11, whose authors wrote the papers: beta_binomial_log_mixture(hits - n p,
# n p (1 - p), v_opt, p, 1 - p, is_one_sided=False), with v_opt chosen so that its prior is Beta(6 p, 6 (1 - p)).
CONFSEQ_EVIDENCE = [
    (3, 50, 0.1, -0.5754918380),
    (0, 20, 0.02, 0.2191068532),
    (45, 60, 0.9, 3.4651847743),
    (900, 1000, 0.95, 17.4393223062),
]

# n q - bound and n q + bound, of its beta_binomial_mixture_bound with the same prior.
CONFSEQ_RANKS = [
    (0.5, 10, 0.05, 0.074434, 9.925566),
    (0.5, 50, 0.00833, 12.452392, 37.547608),
    (0.5, 20000, 0.05, 9733.651577, 10266.348423),
    (0.9, 50, 0.05, 37.139837, 49.707032),
    (0.9, 50, 0.00833, 35.511556, 50.0),
    (0.9, 100, 0.00833, 77.150295, 98.541281),
    (0.9, 1000, 0.05, 866.066182, 930.091608),
    (0.99, 20000, 0.00833, 19735.038525, 19857.742680),
]


@pytest.mark.parametrize(("hits", "n", "p", "expected"), CONFSEQ_EVIDENCE)
def test_the_evidence_is_what_the_published_implementation_says(hits: int, n: int, p: float, expected: float) -> None:
    assert log_evidence(hits, n, p, (6 * p, 6 * (1 - p))) == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize(("q", "n", "alpha", "low", "high"), CONFSEQ_RANKS)
def test_the_ranks_of_a_quantile_are_those_of_the_published_implementation(
    q: float, n: int, alpha: float, low: float, high: float
) -> None:
    least, most = quantile_ranks(n, q, alpha)
    assert least - 1 < low <= least
    assert most <= high < most + 1


@given(st.integers(1, 400), st.data(), st.floats(1e-4, 0.5))
def test_rate_bounds_enclose_the_estimate_and_stay_within_a_rate(n: int, data: st.DataObject, alpha: float) -> None:
    failures = data.draw(st.integers(0, n))
    low, high = rate_bounds(failures, n, alpha)
    assert 0 <= low <= failures / n <= high <= 1
    assert low < high


@given(st.integers(1, 300), st.integers(1, 300), st.data(), st.floats(1e-4, 0.5))
def test_difference_bounds_enclose_the_estimate_and_are_mirrored_when_arms_are_swapped(
    n: int, base_n: int, data: st.DataObject, alpha: float
) -> None:
    failures, base_failures = data.draw(st.integers(0, n)), data.draw(st.integers(0, base_n))
    low, high = difference_bounds(failures, n, base_failures, base_n, alpha)
    assert -1 <= low <= failures / n - base_failures / base_n <= high <= 1
    swapped = difference_bounds(base_failures, base_n, failures, n, alpha)
    assert (-swapped[1], -swapped[0]) == pytest.approx((low, high), abs=1e-5)


@given(st.integers(1, 300), st.integers(1, 300), st.data(), st.floats(-0.9, 0.9))
def test_a_difference_is_outside_its_bounds_exactly_when_the_evidence_against_it_suffices(
    n: int, base_n: int, data: st.DataObject, d: float
) -> None:
    failures, base_failures = data.draw(st.integers(0, n)), data.draw(st.integers(0, base_n))
    low, high = difference_bounds(failures, n, base_failures, base_n, 0.05)
    evidence = difference_log_evidence(failures, n, base_failures, base_n, d)
    if low + 1e-6 < d < high - 1e-6:
        assert evidence < -log(0.05)
    if d < low - 1e-6 or d > high + 1e-6:
        assert evidence >= -log(0.05)


@given(
    st.lists(st.floats(0, 1e3), max_size=200),
    st.floats(0.01, 0.99),
    st.floats(1e-4, 0.5),
    st.randoms(use_true_random=False),
)
def test_quantile_bounds_are_in_order_and_do_not_depend_on_the_order_of_values(
    values: list[float], q: float, alpha: float, shuffler: random.Random
) -> None:
    low, high = quantile_bounds(values, q, alpha)
    assert low <= high
    assert low == -inf or low in values
    assert high == inf or high in values
    shuffler.shuffle(values)
    assert quantile_bounds(values, q, alpha) == (low, high)


@given(st.integers(0, 3000), st.floats(0.001, 0.999), st.floats(1e-6, 0.5))
def test_ranks_are_the_ends_of_what_the_evidence_allows(n: int, q: float, alpha: float) -> None:
    least, most = quantile_ranks(n, q, alpha)

    def is_excluded(k: int) -> bool:
        return log_evidence(k, n, q, (6 * q, 6 * (1 - q))) >= -log(alpha)

    assert not is_excluded(least)
    assert not is_excluded(most)
    assert least == 0 or is_excluded(least - 1)
    assert most == n or is_excluded(most + 1)


def test_without_requests_nothing_is_known() -> None:
    assert rate_bounds(0, 0, 0.05) == (0, 1)
    assert difference_bounds(0, 0, 0, 10, 0.05) == (-1, 1)
    assert difference_bounds(5, 10, 0, 0, 0.05) == (-1, 1)
    assert quantile_bounds([], 0.9, 0.05) == (-inf, inf)


def test_a_high_quantile_has_no_upper_bound_until_there_are_enough_values() -> None:
    first = next(n for n in range(1000) if quantile_bounds(range(n), 0.9, 0.05)[1] < inf)
    assert 30 <= first <= 60
    assert next(n for n in range(1000) if quantile_bounds(range(n), 0.5, 0.05)[1] < inf) <= 10


def test_ties_keep_the_bounds_valid() -> None:
    assert quantile_bounds([1.0] * 500, 0.9, 0.05) == (1, 1)
    assert quantile_bounds([0.0] * 990 + [1.0] * 10, 0.9, 0.05) == (0, 0)


RUNS, LOOKS, ALPHA = 300, 150, 0.1
MISSES_ALLOWED = (0.1 + 2 * 0.018) * RUNS  # alpha, and two standard deviations of the simulation itself


def test_looking_after_each_request_the_true_rate_is_missed_with_at_most_alpha() -> None:
    misses = 0
    for seed in range(RUNS):
        failures, dice = 0, random.Random(seed)
        for n in range(1, LOOKS + 1):
            failures += dice.random() < 0.05
            if log_evidence(failures, n, 0.05, (0.25, 0.75)) >= -log(ALPHA):  # then rate_bounds leave it out
                low, high = rate_bounds(failures, n, ALPHA)
                assert not low < 0.05 < high
                misses += 1
                break
    assert 0 < misses <= MISSES_ALLOWED


@pytest.mark.parametrize(("rate", "extra"), [(0.05, 0.0), (0.02, 0.05)])
def test_looking_after_each_request_arms_within_the_limit_are_told_apart_with_at_most_alpha(
    rate: float, extra: float
) -> None:
    """Alike, or apart by just what a guard allows."""
    misses = 0
    for seed in range(RUNS):
        failures, n, base_failures, base_n, dice = 0, 0, 0, 0, random.Random(seed)
        for _ in range(LOOKS):
            if dice.random() < 0.3:
                n += 1
                failures += dice.random() < rate + extra
            else:
                base_n += 1
                base_failures += dice.random() < rate
            if not n or not base_n or failures / n - base_failures / base_n <= extra:
                continue
            if difference_log_evidence(failures, n, base_failures, base_n, extra) >= -log(ALPHA):
                misses += 1
                break
    assert misses <= MISSES_ALLOWED


@pytest.mark.parametrize("q", [0.5, 0.9])
def test_looking_after_each_request_the_true_quantile_is_missed_with_at_most_alpha(q: float) -> None:
    """With a heavy tail: the method asks nothing of the distribution."""
    truth, misses = (1 - q) ** (-1 / 1.1), 0  # Pareto with shape 1.1
    for seed in range(RUNS):
        values: list[float] = []
        dice = random.Random(seed)
        for _ in range(LOOKS):
            insort(values, dice.paretovariate(1.1))
            low, high = quantile_bounds(values, q, ALPHA)
            if not low <= truth <= high:
                misses += 1
                break
    assert 0 < misses <= MISSES_ALLOWED
