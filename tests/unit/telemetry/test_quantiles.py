from __future__ import annotations

import statistics
from dataclasses import replace
from typing import NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stoker.types.rollouts import ArmStats
from stokerd.telemetry.quantiles import arm_stats, quantile
from tests.unit.telemetry.conftest import MakeRecord

values = st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=50)


@given(values, st.integers(1, 99))
def test_a_quantile_is_that_of_the_standard_library(values: list[float], percent: int) -> None:
    expected = statistics.quantiles([*values, values[0]] if len(values) == 1 else values, n=100, method="inclusive")
    assert quantile(values, percent / 100) == pytest.approx(expected[percent - 1], abs=1e-6)


@given(values, st.floats(0, 1), st.floats(0, 1))
def test_a_quantile_lies_within_the_values_and_grows_with_q(values: list[float], q: float, r: float) -> None:
    low, high = sorted((q, r))
    lower, higher = quantile(values, low), quantile(values, high)
    assert lower is not None
    assert higher is not None
    assert min(values) <= lower <= higher <= max(values)
    assert quantile(values, 0) == min(values)
    assert quantile(values, 1) == max(values)


def test_there_is_no_quantile_of_nothing_and_none_beyond_one() -> None:
    assert quantile([], 0.5) is None
    with pytest.raises(ValueError, match="between 0 and 1"):
        quantile([1.0], 1.1)


def test_failed_answers_count_as_errors_and_not_in_latencies(record: MakeRecord) -> None:
    records = [
        record(ttft=0.2, inter_token=0.01, total=1.0),
        record(ttft=0.4, inter_token=0.03, total=3.0),
        record(is_error=True, ttft=None, total=0.001),
        record(client_gone=True, ttft=0.6, inter_token=None, total=0.7),
    ]
    stats = arm_stats(records)
    assert (stats.requests, stats.errors) == (4, 1)
    assert stats.ttft_p50 == pytest.approx(0.4)
    assert stats.ttft_p90 == pytest.approx(0.56)
    assert stats.inter_token_p50 == pytest.approx(0.02)
    assert stats.total_p50 == pytest.approx(2.0)
    assert (stats.ttft_p99, stats.inter_token_p99, stats.total_p99) == pytest.approx((0.596, 0.0298, 2.98))


def test_callers_are_counted_and_each_anonymous_request_is_one(record: MakeRecord) -> None:
    records = [replace(record(), caller=caller) for caller in ("a", "a", "b", "", "")]
    assert arm_stats(records).callers == 4


class WithoutCaller(NamedTuple):
    is_error: bool = False
    client_gone: bool = False
    ttft_seconds: float | None = 0.1
    inter_token_seconds: float | None = 0.1
    total_seconds: float = 1.0


def test_where_requests_have_no_caller_none_is_counted() -> None:
    assert arm_stats([WithoutCaller()]).callers == 0


def test_an_arm_without_requests_has_no_latencies() -> None:
    assert arm_stats([]) == ArmStats()
