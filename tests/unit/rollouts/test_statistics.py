from __future__ import annotations

import random
from bisect import insort
from collections.abc import Callable, Iterator
from itertools import count, islice
from math import inf, log, pi, sin, sqrt

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stokerd.rollouts.statistics import (
    Clusters,
    Ordered,
    Weighed,
    difference_bounds,
    level,
    log_evidence,
    mean_bounds,
    quantile_bounds,
    rate_bounds,
    ratio_bounds,
    weigh,
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


def quantile_ranks(n: int, q: float, alpha: float) -> tuple[int, int]:
    """The least and the most of *n* values that can plausibly be below the *q*-quantile."""
    low, high = quantile_bounds(range(1, n + 1), q, alpha)
    return 0 if low == -inf else int(low), n if high == inf else int(high) - 1


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


@given(st.integers(1, 300), st.integers(1, 300), st.data(), st.floats(1e-4, 0.2))
def test_difference_bounds_get_wider_with_more_confidence(
    n: int, base_n: int, data: st.DataObject, alpha: float
) -> None:
    counts = (data.draw(st.integers(0, n)), n, data.draw(st.integers(0, base_n)), base_n)
    low, high = difference_bounds(*counts, alpha)
    wider = difference_bounds(*counts, alpha / 10)
    assert wider[0] <= low + 1e-5
    assert wider[1] >= high - 1e-5


@given(
    st.lists(st.floats(1e-3, 1e3), min_size=1, max_size=200),
    st.lists(st.floats(1e-3, 1e3), min_size=1, max_size=200),
    st.floats(0.05, 0.99),
    st.floats(1e-4, 0.5),
)
def test_ratio_bounds_enclose_the_estimate_and_are_inverted_when_arms_are_swapped(
    values: list[float], base_values: list[float], q: float, alpha: float
) -> None:
    arm, base = Ordered(sorted(values)), Ordered(sorted(base_values))
    low, high = ratio_bounds(arm, base, q, alpha)
    assert 0 <= low <= arm.least(q) / base.least(q) <= high
    swapped = ratio_bounds(base, arm, q, alpha)
    assert low == pytest.approx(0.0 if swapped[1] == inf else 1 / swapped[1])


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
def test_looking_again_and_again_arms_within_the_limit_are_told_apart_with_at_most_alpha(
    rate: float, extra: float
) -> None:
    """Alike, or apart by just what a guard allows."""
    misses = 0
    for seed in range(RUNS):
        failures, n, base_failures, base_n, dice = 0, 0, 0, 0, random.Random(seed)
        for i in range(LOOKS):
            if dice.random() < 0.3:
                n += 1
                failures += dice.random() < rate + extra
            else:
                base_n += 1
                base_failures += dice.random() < rate
            if i % 6 or not n or not base_n or failures / n - base_failures / base_n < extra + 0.06:
                continue
            if difference_bounds(failures, n, base_failures, base_n, ALPHA)[0] > extra:
                misses += 1
                break
    assert misses <= MISSES_ALLOWED


@pytest.mark.parametrize("q", [0.5, 0.9])
def test_looking_again_and_again_arms_alike_are_told_apart_by_a_quantile_with_at_most_alpha(q: float) -> None:
    """With a heavy tail, and arms of different size."""
    misses = 0
    for seed in range(RUNS // 2):
        arms: tuple[list[float], list[float]] = ([], [])
        dice = random.Random(seed)
        for i in range(2 * LOOKS):
            insort(arms[dice.random() < 0.3], dice.paretovariate(1.1))
            if i % 5 == 0 and all(arms):
                low, high = ratio_bounds(Ordered(arms[1]), Ordered(arms[0]), q, ALPHA)
                if not low <= 1 <= high:
                    misses += 1
                    break
    assert misses <= MISSES_ALLOWED / 2


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


# Clusters


def clusters(counts: dict[str, int], hits: dict[str, int] | None = None, anonymous: int = 0, lone: int = 0) -> Clusters:
    return Clusters(counts, hits or {}, anonymous, lone)


callers = st.dictionaries(st.sampled_from("abcdefgh"), st.integers(1, 50), max_size=8)


@st.composite
def some_clusters(draw: st.DrawFn) -> Clusters:
    counts = draw(callers)
    anonymous = draw(st.integers(0, 20))
    hits = {caller: draw(st.integers(0, n)) for caller, n in counts.items()}
    return clusters(counts, hits, anonymous, draw(st.integers(0, anonymous)))


@given(some_clusters(), some_clusters())
def test_requests_never_amount_to_more_than_they_are_nor_to_less_than_one(arm: Clusters, other: Clusters) -> None:
    for weighed, of in zip(weigh(arm, other), (arm, other), strict=True):
        assert 0 <= weighed.share <= 1
        assert (1 if of.n else 0) <= weighed.n + 1e-9
        assert weighed.n <= of.n + 1e-9
        assert weighed.freedom >= 0
    assert 0 <= level(0.05, *weigh(arm, other)) <= 0.05


@given(st.integers(1, 200), st.data())
def test_requests_of_distinct_callers_count_in_full(n: int, data: st.DataObject) -> None:
    hits = data.draw(st.integers(0, n))
    named = clusters({str(i): 1 for i in range(n)}, {str(i): 1 for i in range(hits)})
    for arm in (named, clusters({}, {}, n, hits)):
        weighed = weigh(arm, arm)[0]
        assert (weighed.n, weighed.hits) == pytest.approx((n, hits))
        assert level(0.05, weighed) == 0.05


def test_requests_of_callers_who_are_all_alike_in_themselves_amount_to_their_callers() -> None:
    fails = clusters({str(i): 20 for i in range(100)}, {str(i): 20 for i in range(10)})
    weighed, _ = weigh(fails)
    assert 95 <= weighed.n <= 101
    assert weighed.share == pytest.approx(0.1)


def test_requests_of_callers_who_do_not_differ_lose_little_by_being_theirs() -> None:
    dice = random.Random(1)
    counts = {str(i): 20 for i in range(200)}
    hits = {caller: sum(dice.random() < 0.1 for _ in range(20)) for caller in counts}
    assert weigh(clusters(counts, hits))[0].n > 2500  # of 4000


def test_a_caller_with_most_of_the_requests_does_not_drown_the_others() -> None:
    others = {str(i): 5 for i in range(100)}
    arm = clusters({**others, "loud": 5000}, {"loud": 2500, **{str(i): 5 for i in range(10)}})
    assert weigh(arm)[0].share < 0.2  # of requests, 0.46


def test_one_caller_alone_proves_nothing_unless_both_arms_answer_it() -> None:
    arm, other = clusters({"a": 500}, {"a": 250}), clusters({"b": 500}, {"b": 10})
    assert level(0.05, *weigh(arm, other)) == 0
    assert difference_bounds(250, 500, 10, 500, 0.0) == (-1, 1)
    same = clusters({"a": 500}, {"a": 10})
    assert level(0.05, *weigh(arm, same)) == 0.05
    assert weigh(arm, same)[0].n == pytest.approx(500)


def test_the_level_is_stricter_the_fewer_callers_a_correlation_rests_on() -> None:
    levels = [level(0.05, Weighed(freedom=f)) for f in (inf, 1000.0, 100.0, 10.0, 3.0, 1.0, 0.0)]
    assert levels == sorted(levels, reverse=True)
    assert levels[1] == pytest.approx(0.05, rel=0.05)
    assert levels[-1] == 0


def test_looking_again_and_again_at_correlated_callers_arms_alike_are_told_apart_with_at_most_alpha() -> None:
    """Each caller fails in its own way; a third as many callers as requests in some, a tenth in others. With the same
    bounds on bare requests, it would be more than twice alpha."""
    misses, bare = 0, 0
    for seed in range(120):
        dice = random.Random(seed)
        counts: tuple[dict[str, int], dict[str, int]] = ({}, {})
        hits: tuple[dict[str, int], dict[str, int]] = ({}, {})
        has_missed = [False, False]
        for caller in range(60):
            is_candidate = dice.random() < 0.5
            n, fails = min(60, int(3 * dice.paretovariate(1.2))), dice.betavariate(0.3, 0.7)
            counts[is_candidate][str(caller)] = n
            hits[is_candidate][str(caller)] = sum(dice.random() < fails for _ in range(n))
            if caller % 4 or not all(counts):
                continue
            base, arm = (clusters(c, h) for c, h in zip(counts, hits, strict=True))
            mine, others = weigh(arm, base)
            low, high = difference_bounds(mine.hits, mine.n, others.hits, others.n, level(ALPHA, mine, others))
            has_missed[0] |= not low <= 0 <= high
            low, high = difference_bounds(sum(arm.hits.values()), arm.n, sum(base.hits.values()), base.n, ALPHA)
            has_missed[1] |= not low <= 0 <= high
        misses += has_missed[0]
        bare += has_missed[1]
    assert misses <= (ALPHA + 2 * sqrt(ALPHA * (1 - ALPHA) / 120)) * 120
    assert bare > 2 * ALPHA * 120


# Where the package is installed (it is not among Stoker's)


def test_the_normal_mixture_of_a_comparison_is_that_of_the_published_implementation() -> None:
    boundaries = pytest.importorskip("confseq.boundaries")
    v_opt, alpha = 500.0, 0.05
    tuning = v_opt / (2 * log(1 / alpha) + log(1 + 2 * log(1 / alpha)))  # what it makes of v_opt, about
    for v in (50.0, 500.0, 5000.0):
        bound = float(boundaries.normal_mixture_bound(v, alpha=alpha, v_opt=v_opt, alpha_opt=alpha, is_one_sided=False))
        ours = sqrt(v * (1 + tuning / v) * 2 * (-log(alpha) + log(1 + v / tuning) / 2))
        assert ours == pytest.approx(bound, rel=0.05)


@pytest.mark.parametrize(("q", "slower"), [(0.5, 1.3), (0.9, 1.3)])
def test_a_slower_arm_is_seen_no_later_than_by_the_published_two_sample_test(q: float, slower: float) -> None:
    """Of Howard and Ramdas; on requests that don't hang together, as it knows no callers."""
    published = pytest.importorskip("confseq.quantiles").quantile_ab_p_value
    array = pytest.importorskip("numpy").array
    ours, theirs = 0, 0
    for seed in range(10):
        dice, arm, base = random.Random(seed), list[float](), list[float]()
        for _ in range(2000):
            insort(base, dice.lognormvariate(0, 0.5))
            insort(arm, slower * dice.lognormvariate(0, 0.5))
            if len(arm) % 10:
                continue
            is_seen = ratio_bounds(Ordered(arm), Ordered(base), q, 0.05)[0] > 1
            is_seen_there = published(array(arm), array(base), q, 500) <= 0.05
            ours += 10 * (not is_seen)
            theirs += 10 * (not is_seen_there)
            if is_seen and is_seen_there:
                break
    assert ours <= theirs


# Means of series


def wandering(seed: int, likeness: float, noise: float = 0.0) -> Iterator[float]:
    """Values of mean 0 whose neighbours are as alike as that, with noise of its own on each."""
    dice = random.Random(f"{likeness} {noise} {seed}")
    x = dice.gauss(0, 1 / sqrt(1 - likeness**2))
    while True:
        yield x + noise * dice.gauss(0, 1)
        x = likeness * x + dice.gauss(0, 1)


def bursts(seed: int) -> Iterator[float]:
    """One of two values for a while, then the other."""
    dice = random.Random(seed)
    x = dice.choice([-0.5, 0.5])
    while True:
        yield x
        x = -x if dice.random() < 0.1 else x


def swinging(seed: int) -> Iterator[float]:
    """Up and down in 120 values, from anywhere on."""
    phase = random.Random(seed).random() * 2 * pi
    return (sin(phase + 2 * pi * i / 120) for i in count())


@pytest.mark.parametrize(
    "series",
    [
        lambda seed: wandering(seed, 0.0),
        lambda seed: wandering(seed, 0.9),
        lambda seed: wandering(seed, 0.97, noise=4.0),
        bursts,
        swinging,
    ],
    ids=["noise", "neighbours alike", "a wave in noise", "bursts", "up and down"],
)
def test_a_series_whose_mean_is_at_its_limit_is_hardly_ever_said_to_be_over_it(
    series: Callable[[int], Iterator[float]],
) -> None:
    """However often one looks: of 60 at most 3, at a level of 0.01, looking at 5, 6, 7, … to 600 values.

    A comparison of the bare mean with the limit, at five values and later, is wrong in nearly all of them.
    """
    wrong = wrong_by_mean = 0
    for seed in range(60):
        values = list(islice(series(seed), 600))
        looks = sorted({int(5 * 1.05**i) for i in range(98)})
        wrong += any(mean_bounds(values[:n], 0.0, 0.01)[0] > 0 for n in looks)
        wrong_by_mean += any(sum(values[:n]) > 0 for n in looks)
    assert wrong <= 3
    assert wrong_by_mean > 30


@pytest.mark.parametrize(("noise", "alpha", "most"), [(0.0, 0.04, 70), (0.0, 0.002, 130), (0.3, 0.002, 200)])
def test_a_series_that_is_clearly_over_its_limit_is_found_out_after_a_while(
    noise: float, alpha: float, most: int
) -> None:
    """*noise*, alike in neighbours, in units of what it is over the limit."""
    for seed in range(10):
        values = [1 + noise * 0.6 * x for x in islice(wandering(seed, 0.8), most)]
        assert any(mean_bounds(values[:n], 0.0, alpha)[0] > 0 for n in range(5, most + 1)), seed


@given(st.lists(st.floats(-1e6, 1e6), max_size=60), st.floats(0, 1e6))
def test_the_bounds_of_a_series_mean_are_around_it(values: list[float], limit: float) -> None:
    low, high = mean_bounds(values, limit, 0.01)
    assert low <= sum(values) / max(1, len(values)) <= high
    assert len(values) >= 3 or (low, high) == (-inf, inf)
