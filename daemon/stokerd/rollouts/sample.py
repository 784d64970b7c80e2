"""One arm's requests of one step, as guards need them: single requests, each with its caller, in order of size.

A sample grows with each batch of records and is looked at after each: what is looked at is kept in order, so that a
look at 50,000 requests costs milliseconds.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections import Counter
from collections.abc import Mapping
from itertools import pairwise
from math import isfinite, log
from operator import itemgetter

from stoker.types.rollouts import ArmStats, Distribution
from stokerd.gateway.wire import Record
from stokerd.rollouts.statistics import Clusters, Ordered, Weighed
from stokerd.telemetry.quantiles import quantile_of_sorted

_RESOLUTION_SECONDS = 1e-6  # latencies below it count as it, so that ratios are finite; and an answer has a token
_REFUSALS = ("content_filter", "refusal")
_DISTRIBUTIONS = ("ttft", "inter_token", "total")
_FEW = 200  # a new measurement among so many is put into its place; when there are more, all are merged
_COUNTS = 24  # of a distribution
_OUTSIDE = 0.005  # share of each arm's requests that may lie beyond either end of it


class Measurements:
    """Numbers of one kind (seconds, tokens), each with its caller; the caller of an anonymous one is empty."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self.anonymous = 0
        self._values: list[float] = []  # in order, and whose they are
        self._callers: list[str] = []
        self._new: list[tuple[float, str]] = []

    def __len__(self) -> int:
        return len(self._values) + len(self._new)

    @property
    def callers(self) -> int:
        """Distinct ones; each anonymous measurement counts as one."""
        return len(self.counts) + self.anonymous

    def add(self, value: float, caller: str) -> None:
        """Take one in; what isn't a number is none."""
        if not isfinite(value):
            return
        self._new.append((value, caller))
        if caller:
            self.counts[caller] += 1
        else:
            self.anonymous += 1

    @property
    def values(self) -> list[float]:
        """In ascending order."""
        if len(self._new) * _FEW > len(self._values):
            items = [*zip(self._values, self._callers, strict=True), *self._new]
            items.sort()  # takes what is in order already as it is, and merges the rest
            self._values[:], self._callers[:] = map(itemgetter(0), items), map(itemgetter(1), items)
        else:
            for value, caller in self._new:
                place = bisect_right(self._values, value)
                self._values.insert(place, value)
                self._callers.insert(place, caller)
        self._new.clear()
        return self._values

    def above(self, q: float) -> Clusters:
        """Whose measurements are above the *q*-quantile."""
        values = self.values
        place = bisect_right(values, values[min(len(values) - 1, int(q * len(values)))]) if values else 0
        hits = Counter(self._callers[place:])
        anonymous_hits = hits.pop("", 0)
        return Clusters(self.counts, hits, self.anonymous, anonymous_hits)

    def ordered(self, weighed: Weighed) -> Ordered:
        """In order, with the weights of their callers."""
        values = self.values
        if len(self.counts) == 0 or min(weighed.units.values()) == 1:
            return Ordered(values, weighed.n)
        return Ordered(values, weighed.n, self._callers, weighed.units, weighed.weight)


class Sample:
    """What guards need of one arm's requests in one step. Latencies in seconds.

    Left out: of all, requests whose client went away before the arm could fail or not; of latencies, failed answers
    (a refusal is quick), and those of a replica that was cold; of the total time, tokens and finish reasons, requests
    whose client went away (the client chose it). A first token or a gap between tokens that was measured before the
    client went counts: clients leave the slow ones.

    Attributes:
        name: of the version, for sentences: ``v7``.
        requests: that the arm answered or failed.
        errors: of them.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.requests = 0
        self.errors = 0
        self.measurements = {
            metric: Measurements() for metric in ("ttft", "inter_token", "max_gap", "total", "tokens_out")
        }
        self._counts: Counter[str] = Counter()
        self._failed: Counter[str] = Counter()
        self._ended: Counter[str] = Counter()  # answers that tell why they ended
        self._reasons: dict[str, Counter[str]] = {}

    @property
    def callers(self) -> int:
        """Distinct ones; each anonymous request counts as one."""
        anonymous = self._counts.get("", 0)
        return len(self._counts) + max(0, anonymous - 1)

    def add(self, record: Record, *, is_cold: bool = False) -> None:
        """Take a request in; *is_cold*: its replica had just started, so its latencies say nothing of the version."""
        caller = record.caller
        if record.is_error:
            self.requests += 1
            self.errors += 1
            self._counts[caller] += 1
            self._failed[caller] += 1
            return
        if not record.client_gone:
            self.requests += 1
            self._counts[caller] += 1
            self._add_answer(record, caller)
        if is_cold:
            return
        into = self.measurements
        if not record.client_gone:
            into["total"].add(max(record.total_seconds, _RESOLUTION_SECONDS), caller)
        if record.ttft_seconds is not None:
            into["ttft"].add(max(record.ttft_seconds, _RESOLUTION_SECONDS), caller)
        if record.is_stream and record.inter_token_seconds is not None:
            into["inter_token"].add(max(record.inter_token_seconds, _RESOLUTION_SECONDS), caller)
        if record.is_stream and record.max_gap_seconds is not None:
            into["max_gap"].add(max(record.max_gap_seconds, _RESOLUTION_SECONDS), caller)

    def _add_answer(self, record: Record, caller: str) -> None:
        if record.completion_tokens is not None:
            self.measurements["tokens_out"].add(max(1.0, float(record.completion_tokens)), caller)
        if record.finish_reason:
            self._ended[caller] += 1
            self._reasons.setdefault(record.finish_reason, Counter())[caller] += 1

    def rate(self, metric: str, name: str = "") -> Clusters:
        """Whose requests failed (``error_rate``), were refused (``refusal_rate``), ended for *name* (``finish_rate``).

        The latter two are shares of the answers that tell why they ended.
        """
        if metric == "error_rate":
            return _clusters(self._counts, self._failed)
        hits: Counter[str] = Counter()
        for reason in _REFUSALS if metric == "refusal_rate" else (name,):
            hits.update(self._reasons.get(reason, {}))
        return _clusters(self._ended, hits)

    def stats(self) -> ArmStats:
        """Sum up, as `stokerd.telemetry.quantiles.arm_stats` does."""
        quantiles = {
            f"{metric}_p{percent}": quantile_of_sorted(self.measurements[metric].values, percent / 100)
            for metric in _DISTRIBUTIONS
            for percent in (50, 90, 99)
        }
        return ArmStats(requests=self.requests, errors=self.errors, callers=self.callers, **quantiles)


def _clusters(counts: Mapping[str, int], hits: Mapping[str, int]) -> Clusters:
    anonymous = counts.get("", 0)
    if not anonymous:
        return Clusters(counts, hits)
    return Clusters(
        {caller: n for caller, n in counts.items() if caller},
        {caller: n for caller, n in hits.items() if caller},
        anonymous,
        hits.get("", 0),
    )


def distributions(samples: Mapping[str, Sample]) -> dict[str, Distribution]:
    """How latencies are spread over each arm's requests, by metric; those without measurements are left out.

    All arms have one grid: from where all but 0.5 % of the requests of each are above, to where all but 0.5 % of each
    are below. The few beyond count at its ends.
    """
    found = {}
    for metric in _DISTRIBUTIONS:
        arms = {name: sample.measurements[metric].values for name, sample in samples.items()}
        told = [values for values in arms.values() if values]
        if not told:
            continue
        low = min(values[int(_OUTSIDE * len(values))] for values in told)
        high = max(values[-1 - int(_OUTSIDE * len(values))] for values in told)
        if high < 1.1 * low:  # all alike, or nearly: a grid of some width around it
            low, high = low / 1.05, high * 1.05
        step = log(high / low) / _COUNTS
        edges = [low * (high / low) ** (i / _COUNTS) for i in range(1, _COUNTS)] if step > 0 else []
        found[metric] = Distribution(low=low, high=high, counts={n: _histogram(v, edges) for n, v in arms.items()})
    return found


def _histogram(values: list[float], edges: list[float]) -> list[int]:
    places = [0, *(bisect_left(values, edge) for edge in edges), len(values)]
    return [after - before for before, after in pairwise(places)]


class ColdStart:
    """Which requests found their replica cold: the first few that it answers after it got ready.

    They compile, fill caches and graphs; slow as they are, they don't say that the version is.
    """

    def __init__(self, requests: int) -> None:
        self._requests = requests
        self._since: dict[tuple[str, int], float] = {}
        self._answered: dict[tuple[str, int], int] = {}

    def ready(self, address: str, version: int, since: float) -> None:
        """The replica of *version* at *address* got ready at unix time *since*; another time: it was started anew.

        Two adapters are at one address: that of the server which has loaded both.
        """
        if self._since.get((address, version)) != since:
            self._since[address, version] = since
            self._answered[address, version] = 0

    def is_cold(self, record: Record) -> bool:
        """Count *record* for its replica; one that was never said to be `ready` is warm."""
        replica = record.address, record.version
        answered = self._answered.get(replica)
        if answered is None or answered >= self._requests or record.time < self._since[replica]:
            return False
        self._answered[replica] = answered + 1
        return True
