from __future__ import annotations

import random
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stoker.types.rollouts import ArmStats
from stokerd.gateway.wire import Record
from stokerd.rollouts.sample import ColdStart, Measurements, Sample, distributions
from stokerd.rollouts.statistics import Weighed
from stokerd.telemetry.quantiles import arm_stats
from tests.unit.rollouts.test_verdict import record


def sample(records: list[Record], name: str = "v6") -> Sample:
    made = Sample(name)
    for one in records:
        made.add(one)
    return made


def test_a_sample_sums_up_as_telemetry_does() -> None:
    dice = random.Random(1)
    records = [
        record(total=dice.lognormvariate(0, 1), failed=dice.random() < 0.1, caller=dice.choice(["", "a", "b", "c"]))
        for _ in range(500)
    ]
    made = sample(records)
    assert made.stats() == arm_stats(records)
    assert made.requests == 500
    assert made.errors == sum(r.is_error for r in records)
    assert made.callers == 3 + sum(not r.caller for r in records)


def test_an_empty_sample_has_no_latencies() -> None:
    assert Sample("v6").stats() == ArmStats()
    assert Sample("v6").callers == 0


def test_cold_requests_count_for_rates_and_not_for_latencies() -> None:
    made = Sample("v6")
    made.add(record(total=30.0, caller="a"), is_cold=True)
    made.add(record(failed=True, caller="b"), is_cold=True)
    made.add(record(total=1.0, caller="c"))
    assert (made.requests, made.errors, made.callers) == (3, 1, 3)
    assert made.stats().total_p99 == 1.0
    assert made.measurements["tokens_out"].callers == 2


def test_clients_that_went_away_are_no_requests_of_the_arm() -> None:
    made = sample([record(gone=True, caller="a"), record(failed=True, gone=True, caller="b")])
    assert (made.requests, made.errors, made.callers) == (1, 1, 1)
    assert len(made.measurements["total"]) == 0
    assert len(made.measurements["ttft"]) == 1


@given(
    st.lists(st.lists(st.tuples(st.floats(0, 1e3), st.sampled_from(["", "a", "b"])), max_size=30), max_size=20),
    st.floats(0.01, 0.99),
)
def test_measurements_stay_in_order_with_their_callers_however_they_come(
    batches: list[list[tuple[float, str]]], q: float
) -> None:
    made = Measurements()
    items: list[tuple[float, str]] = []
    for batch in batches:
        for value, caller in batch:
            made.add(value, caller)
        items += batch
        assert list(made.values) == sorted(value for value, _ in items)
    above = made.above(q)
    threshold = made.values[min(len(items) - 1, int(q * len(items)))] if items else 0.0
    for caller in ("a", "b"):
        assert above.counts.get(caller, 0) == sum(c == caller for _, c in items)
        assert above.hits.get(caller, 0) == sum(c == caller and v > threshold for v, c in items)
    assert above.anonymous == sum(not c for _, c in items)
    assert above.anonymous_hits == sum(not c and v > threshold for v, c in items)


def test_a_large_sample_takes_few_new_measurements_in_their_places() -> None:
    made, dice = Measurements(), random.Random(1)
    for i in range(1000):
        made.add(dice.random(), f"c{i % 7}")
    assert len(made.values) == 1000
    for value in (0.0, 0.5, 1.0):
        made.add(value, "new")
    assert list(made.values) == sorted(made.values)
    assert made.above(0.9).hits["new"] == 1
    assert (made.values[0], made.values[-1], len(made)) == (0.0, 1.0, 1003)


def test_weights_of_callers_shift_a_quantile() -> None:
    made = Measurements()
    for _ in range(90):
        made.add(1.0, "many")
    for i in range(10):
        made.add(2.0, f"few{i}")
    units = {"many": 0.1, "": 1.0} | {f"few{i}": 1.0 for i in range(10)}
    assert made.ordered(Weighed(100.0, units={"": 1.0, **dict.fromkeys(made.counts, 1.0)})).least(0.5) == 1.0
    assert made.ordered(Weighed(19.0, units=units, weight=19.0)).least(0.5) == 2.0


@given(
    st.dictionaries(
        st.sampled_from(["stable", "candidate"]), st.lists(st.floats(0, 1e4), max_size=60), min_size=1, max_size=2
    )
)
def test_a_distribution_counts_each_request_once_on_one_grid(arms: dict[str, list[float]]) -> None:
    samples = {name: sample([record(total=v) for v in values], name) for name, values in arms.items()}
    found = distributions(samples)
    assert set(found) == ({"ttft", "inter_token", "total"} if any(arms.values()) else set())
    for distribution in found.values():
        assert 0 < distribution.low < distribution.high
        assert distribution.counts.keys() == arms.keys()
        for name, counts in distribution.counts.items():
            assert len(counts) == 24
            assert sum(counts) == len(arms[name])


def test_a_slower_arm_lies_to_the_right() -> None:
    dice = random.Random(1)
    samples = {
        name: sample([record(total=slower * dice.lognormvariate(0, 0.3)) for _ in range(500)], name)
        for name, slower in (("stable", 1.0), ("candidate", 3.0))
    }
    counts = distributions(samples)["total"].counts
    middle = {name: sum(i * n for i, n in enumerate(c)) / sum(c) for name, c in counts.items()}
    assert middle["candidate"] > middle["stable"] + 5


def at(address: str, version: int = 7, time: float = 300.0) -> Record:
    return replace(record(), address=address, version=version, time=time)


def test_the_first_requests_of_a_replica_that_got_ready_are_cold() -> None:
    cold = ColdStart(3)
    cold.ready("unix:/a", 7, 100.0)
    assert [cold.is_cold(at("unix:/a")) for _ in range(5)] == [True] * 3 + [False] * 2
    assert not cold.is_cold(at("unix:/b"))


def test_two_adapters_in_one_server_are_cold_each_once_and_what_was_before_it_was_ready_does_not_count() -> None:
    cold = ColdStart(1)
    for _ in range(2):  # as often as somebody looks
        cold.ready("unix:/a", 6, 50.0)
        cold.ready("unix:/a", 7, 100.0)
    assert not cold.is_cold(at("unix:/a", 7, time=99.0))
    assert [cold.is_cold(at("unix:/a", version)) for version in (6, 7, 6, 7)] == [True, True, False, False]


def test_a_restart_makes_a_replica_cold_anew_and_hearing_the_same_again_does_not() -> None:
    cold = ColdStart(1)
    cold.ready("unix:/a", 7, 100.0)
    assert cold.is_cold(at("unix:/a"))
    cold.ready("unix:/a", 7, 100.0)
    assert not cold.is_cold(at("unix:/a"))
    cold.ready("unix:/a", 7, 200.0)
    assert cold.is_cold(at("unix:/a"))


@pytest.mark.parametrize("count", [0])
def test_without_cold_requests_none_is_cold(count: int) -> None:
    cold = ColdStart(count)
    cold.ready("unix:/a", 7, 100.0)
    assert not cold.is_cold(at("unix:/a"))
