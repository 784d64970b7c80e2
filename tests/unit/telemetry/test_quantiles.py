from __future__ import annotations

import statistics

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stoker.types.rollouts import ArmStats
from stokerd.telemetry.quantiles import arm_stats, quantile

values = st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=50)


@given(values, st.integers(1, 99))
def test_a_quantile_is_that_of_the_standard_library(values, percent):
    expected = statistics.quantiles([*values, values[0]] if len(values) == 1 else values, n=100, method="inclusive")
    assert quantile(values, percent / 100) == pytest.approx(expected[percent - 1], abs=1e-6)


@given(values, st.floats(0, 1), st.floats(0, 1))
def test_a_quantile_lies_within_the_values_and_grows_with_q(values, q, r):
    low, high = sorted((q, r))
    assert min(values) <= quantile(values, low) <= quantile(values, high) <= max(values)
    assert quantile(values, 0) == min(values)
    assert quantile(values, 1) == max(values)


def test_there_is_no_quantile_of_nothing_and_none_beyond_one():
    assert quantile([], 0.5) is None
    with pytest.raises(ValueError, match="between 0 and 1"):
        quantile([1.0], 1.1)


def test_failed_answers_count_as_errors_and_not_in_latencies(record):
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


def test_an_arm_without_requests_has_no_latencies():
    assert arm_stats([]) == ArmStats()
