"""Bounds that stay valid however often one looks, for requests that come in clusters: those of one caller are alike.

A usual 95 % interval is right once; asked after each request it is wrong sooner or later. A *confidence sequence* at
level ``alpha`` contains the truth at all times at once with probability 1 - ``alpha``, so a rollout may be judged after
each request and stopped at any moment. Everything here rests on one e-process, Robbins' beta-binomial mixture: for n
trials with k hits, and any fixed a, b > 0,

    E(p) = B(a + k, b + n - k) / B(a, b) / (p^k (1 - p)^(n - k))

is a martingale with mean 1 if the hits are independent with probability p, so that it ever reaches 1 / alpha with
probability at most alpha (Ville's inequality). What stays below 1 / alpha makes up the confidence sequence. Where a
"hit" is any number in [0, 1] of mean p, E is a supermartingale, and the same holds (its factors are convex in the
number, so that 0 and 1 are the worst case).

**Clusters.** A caller with long prompts is slow in each of its requests, and arms are drawn by caller: a hundred
requests of one caller tell less than one request of each of a hundred callers. `weigh` measures how alike requests of
one caller are (the intraclass correlation), gives each request the weight that makes the best of it (GEE's, for
exchangeable clusters: a caller with n requests counts n / (1 + rho (n - 1))), and says to how many independent requests
the arm amounts. The bounds above then take these effective counts, which may be fractions, and a level that is stricter
the fewer callers the measured correlation rests on (as Student's t is wider than the normal distribution).

What is exact, as far as requests of distinct callers are independent: `rate_bounds` and `quantile_bounds`, where
callers are distinct or anonymous. What is approximate: `difference_bounds` and `ratio_bounds` spend (half of) their
level on a normal mixture, which holds asymptotically, and where callers have several requests, effective counts are
estimated from these same requests. Both are of the kind of Waudby-Smith et al. (2024): the level is reached as counts
grow. How well that holds from the first few requests on is simulated in tests and by ``make bench-verdicts``.

Sources: Robbins, "Statistical methods related to the law of the iterated logarithm" (1970), for the mixture; Howard and
Ramdas, "Sequential estimation of quantiles with applications to A/B testing and best-arm identification" (2022), for
quantiles; Ramdas et al., "Game-theoretic statistics and safe anytime-valid inference" (2023), for products and minima;
Waudby-Smith and Ramdas, "Estimating means of bounded random variables by betting" (2024), for bounded numbers;
Waudby-Smith, Arbour, Sinha, Kennedy and Ramdas, "Time-uniform central limit theory and asymptotic confidence sequences"
(2024), for estimated variances and means of series; Flegal and Jones, "Batch means and spectral variance estimators in
Markov chain Monte Carlo" (2010), for means of blocks; Liang and Zeger, "Longitudinal data analysis using generalized
linear models" (1986), for the weights; Wallace, "Bounds on normal approximations to Student's and the chi-square
distributions" (1959), for the stricter level.

Pure, stdlib only.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections import Counter
from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import dataclass, field
from itertools import accumulate, pairwise
from math import exp, expm1, inf, lgamma, log, log1p, pi, sin, sqrt

_RATE_PRIOR = (0.25, 0.75)
"""Beta prior of a failure rate: leans to small ones, as servers rarely fail. Any choice is valid; this one was found to
need 10 to 20 % fewer requests than (1/2, 1/2) to see 10 to 50 % of errors against 0 to 1 %."""

_RATE_TUNING, _QUANTILE_TUNING = 250.0, 8.0
"""Requests of a comparison (n m / (n + m), of arms with n and m) around which its normal mixture is tightest, or a few
times as many. Rates have a beta mixture besides, for large differences that a few requests show."""

_SERIES_TUNING = 60.0
"""Values of a series around which the bound of its mean is tightest."""

_QUANTILE_WEIGHT = 6.0
"""The prior of the share below a quantile q is Beta(w q, w (1 - q)): tightest around some 100 requests."""

_STEPS = 40  # of bisection: 1e-12 of the interval

_TELLING = 20
"""So many requests of one caller tell all that they can of how callers differ, unless they hardly do."""

_SPLITS = tuple(sin(pi * j / 16) ** 2 for j in range(9))
"""How the evidence may be split between two arms; what lies between two splits is missed by 0.5 % of the width."""


# Clusters


@dataclass(frozen=True, slots=True)
class Clusters:
    """An arm's requests by caller, and their hits (0 to 1 each). Anonymous requests are callers of their own.

    Attributes:
        counts: requests of each caller that can be told apart.
        hits: sums of hits; callers without any may be left out.
        squares: sums of squared hits; None where hits are 0 or 1.
    """

    counts: Mapping[str, int]
    hits: Mapping[str, float]
    anonymous: int = 0
    anonymous_hits: float = 0.0
    squares: Mapping[str, float] | None = None
    anonymous_squares: float = 0.0

    @property
    def n(self) -> int:
        """Requests."""
        return sum(self.counts.values()) + self.anonymous

    @property
    def callers(self) -> int:
        """Distinct callers."""
        return len(self.counts) + self.anonymous


@dataclass(frozen=True, slots=True)
class Weighed:
    """What an arm's requests amount to.

    Attributes:
        n: to how many independent requests.
        share: of hits among them, 0 to 1.
        units: weight of one request, by caller; that of an anonymous one (no name) is 1.
        weight: of all requests together.
        freedom: degrees of freedom of the measured correlation; infinite where it doesn't matter.
    """

    n: float = 0.0
    share: float = 0.0
    units: Mapping[str, float] = field(default_factory=dict)
    weight: float = 0.0
    freedom: float = inf

    @property
    def hits(self) -> float:
        """Of `n`."""
        return self.share * self.n


def weigh(arm: Clusters, other: Clusters | None = None) -> tuple[Weighed, Weighed]:
    """Say to how many independent requests *arm* amounts when it is compared with *other*, and to how many that does.

    Let u(c) be the weight of one request of caller c, a(c) and b(c) the shares of weight that c has in either arm, and
    rho the correlation of both arms' requests of one caller. With an effect of each caller, drawn at random and the
    same on either arm, the difference of the arms' shares has variance p (1 - p) times

        sum u^2 / (sum u)^2 of either arm + rho (sum over c of (a(c) - b(c))^2, less what is in the first term)

    so an arm whose callers the other has too, in the same mix (shadow), loses nothing by clusters, however few callers
    there are; and one caller alone, in a canary, tells as much as one request. `Weighed.n` is 1 over an arm's part.
    """
    arms = (arm, other) if other is not None else (arm,)
    rho = _correlation(arms)
    sizes = [max(1, a.n) for a in arms]
    both = 0.0
    shared = arm.counts.keys() & other.counts.keys() if other is not None else set()
    if other is not None:
        both = sum(min(arm.counts[c] / sizes[0], other.counts[c] / sizes[1]) for c in shared)
    damping = rho * (1 - both)  # the same mix on either arm needs none, and would be spoilt where n differ
    mixes = [_Mix(a, damping) for a in arms]
    first = _weighed(mixes[0], mixes[-1], shared, rho)
    return first, (_weighed(mixes[1], mixes[0], shared, rho) if other is not None else Weighed())


class _Mix:
    """An arm with the weight of each caller's requests: by how many it made, as most made as many as some other."""

    def __init__(self, arm: Clusters, damping: float) -> None:
        self.arm = arm
        self.sizes = Counter(arm.counts.values())
        self.units = {n: 1 / (1 + damping * (n - 1)) for n in self.sizes}
        self.weight = arm.anonymous + sum(times * n * self.units[n] for n, times in self.sizes.items())

    def of(self, caller: str) -> float:
        n = self.arm.counts[caller]
        return n * self.units[n]


def _weighed(mix: _Mix, other: _Mix, shared: Set[str], rho: float) -> Weighed:
    arm, weight = mix.arm, mix.weight
    if not weight:
        return Weighed()
    alone, between, callers = float(arm.anonymous), 0.0, float(arm.anonymous)
    for n, times in mix.sizes.items():
        unit = mix.units[n]
        mine = n * unit
        alone += times * mine * unit
        callers += times * mine * mine
        between += times * mine * (mine - unit)
    scale = weight / other.weight if other.weight else 0.0
    for caller in shared:  # whom the other arm has, too: only what they have more of here
        mine, unit = mix.of(caller), mix.units[arm.counts[caller]]
        between += mine * (max(0.0, abs(mine - scale * other.of(caller)) - unit) - (mine - unit))
    alone, between = alone / weight**2, rho * max(0.0, between) / weight**2
    total = alone + between
    hits = arm.anonymous_hits + sum(k * mix.units[arm.counts[caller]] for caller, k in arm.hits.items())
    freedom = max(0.0, weight**2 / callers - 1) * (total / between) ** 2 if between > 1e-12 * alone else inf
    units = dict(zip(arm.counts, map(mix.units.__getitem__, arm.counts.values()), strict=True)) | {"": 1.0}
    return Weighed(1 / total, min(1.0, hits / weight), units, weight, freedom)


def _correlation(arms: Sequence[Clusters]) -> float:
    """How alike requests of one caller are, 0 to 1: rather too high than too low where few callers tell.

    The mean over callers of the products of pairs of their requests, around their arm's mean. A caller's weight grows
    with its requests, but not past `_TELLING`: more of them say more of this caller, and nothing of others. Added are
    the standard error (as if effects were normal) and the bias that comes from measuring the mean, too.
    """
    products = variance = weights = 0.0
    errors = [0.0, 0.0, 0.0]  # of the standard error: its parts that grow with rho^2, with rho, and not at all
    for arm in arms:
        told, telling = float(arm.anonymous), 0.0
        for n, times in Counter(arm.counts.values()).items():
            told += times * n * _tells(n)
            weight = (n - 1) * _tells(n)
            telling += times * weight
            for power in range(3):
                errors[power] += times * weight * weight / n**power
        if not told:
            continue
        mean, second = arm.anonymous_hits, arm.anonymous_hits if arm.squares is None else arm.anonymous_squares
        pairs = singles = 0.0
        for caller, k in arm.hits.items():
            n = arm.counts[caller]
            square = k if arm.squares is None else arm.squares[caller]
            tells = _tells(n)
            mean += k * tells
            second += square * tells
            if n > 1:
                pairs += tells * (k * k - square) / n
                singles += tells * (n - 1) * k / n
        mean, second = mean / told, second / told
        products += pairs - 2 * mean * singles + mean * mean * telling
        variance += max(0.0, second - mean * mean) * telling
        weights += telling
    if not weights:
        return 0.0
    rho = max(0.0, products / variance) if variance > 0 else 0.0
    error = sqrt(2 * (errors[0] * rho * rho + 2 * errors[1] * rho + errors[2])) / weights
    return min(1.0, rho + error + error * error)


def _tells(n: int) -> float:
    """How much one of *n* requests of a caller says of how callers differ."""
    return 1 / (1 + (n - 1) / _TELLING)


def level(alpha: float, *arms: Weighed) -> float:
    """The level at which to ask so that it amounts to *alpha*, though the correlation within callers is estimated.

    With f degrees of freedom, what is ``x`` normal standard errors away is as rare as ``y`` of Student's t with
    y^2 = f (exp(x^2 / f) - 1) (Wallace, 1959); here x^2 = -2 log(alpha). 0: nothing can be said.
    """
    freedom = min(arm.freedom for arm in arms)
    if freedom == inf:
        return alpha
    exponent = -2 * log(alpha) / freedom if freedom > 0 else inf
    return exp(-freedom / 2 * expm1(exponent)) if exponent < 50 else 0.0


# Rates


def log_evidence(hits: float, n: float, p: float, prior: tuple[float, float]) -> float:
    """Log of the e-process (see the module) against the hit probability being *p*, after *hits* of *n*."""
    return _log_mixture(hits, n, prior) - _log_likelihood(hits, n, p)


def rate_bounds(failures: float, n: float, alpha: float) -> tuple[float, float]:
    """Confidence sequence for a failure rate, in [0, 1]: holds at all n at once with probability 1 - *alpha*.

    The rates p with ``E(p) < 1/alpha``; log E is convex in p, so they form an interval, whose ends are bisected.
    """
    if n <= 0 or alpha <= 0:
        return 0.0, 1.0
    threshold, estimate = _log_mixture(failures, n, _RATE_PRIOR) + log(alpha), failures / n

    def is_excluded(p: float) -> bool:
        return _log_likelihood(failures, n, p) <= threshold

    low = 0.0 if failures <= 0 else _boundary(is_excluded, 0.0, estimate)[0]
    high = 1.0 if failures >= n else _boundary(is_excluded, 1.0, estimate)[0]
    return low, high


def difference_bounds(
    failures: float, n: float, base_failures: float, base_n: float, alpha: float
) -> tuple[float, float]:
    """Confidence sequence for one failure rate minus another (*base*'s), in [-1, 1], at level *alpha*.

    Half of *alpha* each goes to two e-processes against the difference being d; both grow as d gets less likely, so
    that what they leave is an interval:

    - ``min over p of E(p + d) E_base(p)``: the product of two arms' e-processes is one for the pair, and the minimum is
      at most what it is at the true p. Exact, and good at large differences; but it pays for two unknown rates.
    - Robbins' normal mixture of the likelihood ratio (`_needed_ratio`), which pays for the difference alone: for
      small differences that take thousands of requests. It holds asymptotically.
    """
    if n <= 0 or base_n <= 0 or alpha <= 0:
        return -1.0, 1.0
    needed = _needed_likelihood(failures, n, base_failures, base_n, -log(alpha))

    def is_excluded(d: float) -> bool:
        return _difference_likelihood(failures, n, base_failures, base_n, d) <= needed

    estimate = failures / n - base_failures / base_n
    low = -1.0 if estimate <= -1 else _boundary(is_excluded, -1.0, estimate, steps=20)[0]
    high = 1.0 if estimate >= 1 else _boundary(is_excluded, 1.0, estimate, steps=20)[0]
    return low, high


def _needed_likelihood(failures: float, n: float, base_failures: float, base_n: float, evidence: float) -> float:
    """Log of the likelihood up to which either e-process of `difference_bounds` has that log *evidence*, less log 2."""
    exact = _log_mixture(failures, n, _RATE_PRIOR) + _log_mixture(base_failures, base_n, _RATE_PRIOR)
    best = _log_likelihood(failures, n, failures / n) + _log_likelihood(base_failures, base_n, base_failures / base_n)
    ratio = _needed_ratio(n, base_n, evidence + log(2), _RATE_TUNING)
    return max(exact - evidence - log(2), best - ratio)


def _needed_ratio(n: float, base_n: float, evidence: float, tuning: float) -> float:
    """Log of the likelihood ratio at which Robbins' normal mixture of a comparison has that log *evidence*.

    With V the information on the difference and z^2 / 2 the log of the likelihood ratio, the mixture over differences
    with variance 1/t has the log ``z^2 / 2 V / (V + t) - log(1 + V / t) / 2``. V is in requests here.
    """
    return _needed(n * base_n / (n + base_n), evidence, tuning)


def _needed(information: float, evidence: float, tuning: float) -> float:
    """The same, for that *information*: z^2 / 2."""
    return (evidence + log1p(information / tuning) / 2) * (1 + tuning / information)


def _difference_likelihood(failures: float, n: float, base_failures: float, base_n: float, d: float) -> float:
    """Log of the greatest likelihood with rates that are *d* apart."""
    good, base_good = n - failures, base_n - base_failures
    low, high = max(0.0, -d), min(1.0, 1.0 - d)
    for _ in range(_STEPS):  # the log likelihood is concave in p: follow the sign of its slope
        p = (low + high) / 2
        other = p + d
        if not (0 < p < 1 and 0 < other < 1) or high - low < 1e-6 * p:
            break
        slope = base_failures / p - base_good / (1 - p) + failures / other - good / (1 - other)
        low, high = (p, high) if slope > 0 else (low, p)
    p = (low + high) / 2
    return _log_likelihood(base_failures, base_n, p) + _log_likelihood(failures, n, p + d)


# Quantiles


class Ordered:
    """Values in ascending order, which amount to *n* independent ones.

    With *callers* (each value's) and *units* (each caller's weight of one value) they have unequal weights.
    """

    def __init__(
        self,
        values: Sequence[float],
        n: float | None = None,
        callers: Sequence[str] = (),
        units: Mapping[str, float] | None = None,
        weight: float = 0.0,
    ) -> None:
        self.values = values
        self.n = float(len(values)) if n is None else n
        self._callers, self._units = callers, units
        self._weight = weight if units is not None else float(len(values))
        self._tail: list[float] = []  # weights of the greatest value, the greatest two, …: as many as were needed

    def least(self, share: float) -> float:
        """The least value that *share* of all values are at most; -inf where *share* is 0."""
        if share <= 0:
            return -inf
        above = self._weight * (1 - share) * (1 + 1e-12)
        place = bisect_right(self._sums(above), above) if self._units is not None else int(above)
        return self.values[max(0, len(self.values) - 1 - place)]

    def most(self, share: float) -> float:
        """The greatest value that *share* of all values may be below; inf where that is all of them."""
        above = self._weight * (1 - share) * (1 - 1e-12)
        if above <= 0:
            return inf
        place = bisect_left(self._sums(above), above) if self._units is not None else _ceil(above) - 1
        return self.values[max(0, len(self.values) - 1 - place)]

    def _sums(self, above: float) -> list[float]:
        """`_tail`, at least so far that it exceeds *above*: most often a small part of all."""
        assert self._units is not None
        while len(self._tail) < len(self.values) and (not self._tail or self._tail[-1] <= above):
            length = min(
                len(self.values), max(256, 2 * len(self._tail), int(1.1 * len(self.values) * above / self._weight))
            )
            top = self._callers[len(self.values) - length :]
            self._tail = list(accumulate(map(self._units.__getitem__, reversed(top))))
        return self._tail


def quantile_bounds(values: Sequence[float] | Ordered, q: float, alpha: float) -> tuple[float, float]:
    """Confidence sequence for the *q*-quantile, in the values' unit; an end is infinite while there are too few values.

    Howard and Ramdas (2022), section 3: each value falls below the quantile Q with probability q, so the number k of
    those below stays where ``E(q) < 1/alpha``, say in [a, b], at all times at once with probability 1 - *alpha*. Hence
    the a-th smallest value is at most Q, and the (b+1)-th at least. No assumption on the distribution; ties are fine.
    """
    ordered = values if isinstance(values, Ordered) else Ordered(sorted(values))
    if alpha <= 0 or not ordered.values:
        return -inf, inf
    curve = _Curve(ordered.n, q)
    return ordered.least(curve.lowest(-log(alpha))), ordered.most(curve.highest(-log(alpha)))


def ratio_bounds(arm: Ordered, base: Ordered, q: float, alpha: float) -> tuple[float, float]:
    """Confidence sequence for the *q*-quantile of positive *arm* over that of *base*, in [0, inf], at level *alpha*.

    Let q be below the true quantiles, and u and v the shares below them in the samples. The likelihood ratio of u and
    v against q and q is n KL(u, q) + m KL(v, q), a sum of two squares of near-normal numbers; and the logarithm of the
    ratio of quantiles is off by a weighted sum of the two. So its interval is what pairs (u, v) give whose likelihood
    ratio is below the threshold for *one* number, by Robbins' normal mixture: the disc's extent in that direction.
    It takes less than half the requests of dividing two `quantile_bounds`, each at half the level. Asymptotic: for the
    quantiles are taken to be smooth near q, as far as the two arms share the threshold.
    """
    if alpha <= 0 or not arm.values or not base.values:
        return 0.0, inf
    budget = _needed_ratio(arm.n, base.n, -log(alpha), _QUANTILE_TUNING)
    low, high = inf, 0.0
    for part in _SPLITS:
        under, over = _shares(arm.n, q, part * budget)
        base_under, base_over = _shares(base.n, q, (1 - part) * budget)
        low = min(low, max(arm.least(under), 0.0) / base.most(base_over))
        least = base.least(base_under)
        high = max(high, arm.most(over) / least if least > 0 else inf)
    return low, high


def _shares(n: float, q: float, budget: float) -> tuple[float, float]:
    """The least and the greatest share below the *q*-quantile with a log likelihood ratio of at most *budget*."""

    def is_excluded(share: float) -> bool:
        below = share * log(share / q) if share > 0 else 0.0
        above = (1 - share) * log((1 - share) / (1 - q)) if share < 1 else 0.0
        return n * (below + above) > budget

    steps = max(8, int(n * 16).bit_length())
    under = _boundary(is_excluded, 0.0, q, steps)[0] if is_excluded(0.0) else 0.0
    return under, _boundary(is_excluded, 1.0, q, steps)[0] if is_excluded(1.0) else 1.0


class _Curve:
    """Log of the e-process against q as a function of the share of *n* values below the quantile; convex."""

    def __init__(self, n: float, q: float) -> None:
        a, b = _QUANTILE_WEIGHT * q, _QUANTILE_WEIGHT * (1 - q)
        self._n, self._q = n, q
        self._a, self._b = a, b
        self._fixed = -lgamma(a + b + n) - (lgamma(a) + lgamma(b) - lgamma(a + b)) - n * log(1 - q)
        self._slope = n * (log(1 - q) - log(q))

    def __call__(self, share: float) -> float:
        k = share * self._n
        return lgamma(self._a + k) + lgamma(self._b + self._n - k) + self._fixed + share * self._slope

    def lowest(self, evidence: float) -> float:
        """The least share with at most that log *evidence* against it; 0 if all are."""
        return self._end(evidence, 0.0)

    def highest(self, evidence: float) -> float:
        """The greatest one; 1 if all are."""
        return self._end(evidence, 1.0)

    def _end(self, evidence: float, outside: float) -> float:
        if self(outside) < evidence:
            return outside
        return _boundary(lambda share: self(share) >= evidence, outside, self._q)[0]


# Means of series


def mean_bounds(values: Sequence[float], limit: float, alpha: float) -> tuple[float, float]:
    """Confidence sequence for the mean of a series (*values* in order of time), to be compared with *limit*.

    An asymptotic confidence sequence (Waudby-Smith et al., 2024): Robbins' normal mixture around the mean,
    with an estimated variance; it holds as the number of values grows. As neighbours in time are alike, the variance is
    that of means of blocks, of the square root of n values each (Flegal and Jones, 2010), and made larger as far as
    neighbouring blocks are alike, too: by (1 + r) / (1 - r) with their correlation r, to which its standard error
    and its bias are added. That few blocks tell little is in the `level`, as for callers; and that those to come may be
    other ones in one more block, which is counted as if it had been at *limit*: a series that hasn't moved yet proves
    nothing by that. Infinite for less than three blocks.
    """
    n = len(values)
    length = int(sqrt(n))
    count = n // length if n else 0
    if count < 3:
        return -inf, inf
    mean = sum(values) / n
    blocks = [sum(values[i * length : (i + 1) * length]) / length for i in range(count)]
    middle = sum(blocks) / count
    off = [block - middle for block in blocks]
    squares = sum(d * d for d in off)
    r = sum(d * e for d, e in pairwise(off)) / squares if squares else 0.0
    r = min(1 - 1 / count, max(0.0, r + (1 + 4 * max(0.0, r)) / count + 1 / sqrt(count)))
    one_more = (mean - limit) ** 2 * count / (count + 1)
    variance = length * (squares + one_more) / count * (1 + r) / (1 - r)
    strict = level(alpha, Weighed(freedom=count - 1))
    if strict <= 0:
        return -inf, inf
    half = sqrt(2 * _needed(n, -log(strict), _SERIES_TUNING) * variance / n)
    return mean - half, mean + half


def _ceil(number: float) -> int:
    return -int(-number // 1)


def _boundary(
    is_excluded: Callable[[float], bool], outside: float, inside: float, steps: int = _STEPS
) -> tuple[float, float]:
    """Where exclusion ends between *outside* and *inside*: the nearest points known to be (out, in) after *steps*."""
    for _ in range(steps):
        middle = (outside + inside) / 2
        outside, inside = (middle, inside) if is_excluded(middle) else (outside, middle)
    return outside, inside


def _log_mixture(hits: float, n: float, prior: tuple[float, float]) -> float:
    a, b = prior
    return _log_beta(a + hits, b + n - hits) - _log_beta(a, b)


def _log_beta(a: float, b: float) -> float:
    return lgamma(a) + lgamma(b) - lgamma(a + b)


def _log_likelihood(hits: float, n: float, p: float) -> float:
    """Of *hits* in one given order. -inf where *p* makes them impossible."""
    misses = n - hits
    if (hits > 0 and p <= 0) or (misses > 0 and p >= 1):
        return -inf
    return (hits * log(p) if hits > 0 else 0.0) + (misses * log(1 - p) if misses > 0 else 0.0)
