from __future__ import annotations

import itertools
import time
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from stoker.errors import Invalid
from stokerd.telemetry.metrics import Metrics
from stokerd.telemetry.quantiles import quantile
from tests.unit.telemetry.conftest import MakeRecord, OpenMetrics, Run

numbers = itertools.count()
many = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=40, deadline=None)


def test_a_record_comes_back_as_it_was(run: Run, metrics: Metrics, record: MakeRecord) -> None:
    full = record(seq=5, time=1_760_000_000.123456)
    bare = replace(
        record(seq=6, time=1_760_000_001.5, ttft=None, inter_token=None, prompt_tokens=None, completion_tokens=None),
        status=0,
        is_error=True,
        is_stream=False,
        client_gone=True,
        fell_back=True,
        arm="candidate",
        version=2,
        max_gap_seconds=None,
        finish_reason="",
        request_bytes=0,
        response_bytes=0,
        caller="",
        key="",
        queued_seconds=0.0,
        trace="",
    )
    run(metrics.write_records("e", [bare, full]))
    assert run(metrics.records("chat", since=0)) == [full, bare]
    assert isinstance(run(metrics.records("chat", since=0))[0].total_seconds, float)


@many
@given(batches=st.lists(st.lists(st.tuples(st.sampled_from(["e1", "e2"]), st.integers(1, 12)), max_size=8), max_size=6))
def test_batches_sent_again_in_any_cut_and_order_leave_each_record_once(
    run: Run, metrics: Metrics, record: MakeRecord, batches: list[list[tuple[str, int]]]
) -> None:
    deployment = f"example-{next(numbers)}"
    sent = set()
    for batch in batches:
        for epoch in ("e1", "e2"):
            seqs = [s for e, s in batch if e == epoch]
            records = [record(s, 1000.0 + s % 3, deployment=deployment, arm=f"a{s % 2}") for s in seqs]
            run(metrics.write_records(deployment + epoch, records))
            sent |= {(epoch, s) for s in seqs}
    stored = run(metrics.records(deployment, since=0))
    assert sorted(r.seq for r in stored) == sorted(s for _, s in sent)
    assert [r.time for r in stored] == sorted(r.time for r in stored)
    for epoch in ("e1", "e2"):
        last = max((s for e, s in sent if e == epoch), default=0)
        assert run(metrics.last_record(deployment + epoch)) == last


def test_a_puller_goes_on_where_it_was_after_a_crash(run: Run, open_metrics: OpenMetrics, record: MakeRecord) -> None:
    first = open_metrics()
    run(first.write_records("e", [record(s, 1000.0 + s) for s in (1, 2, 3)]))
    first.close()
    second = open_metrics()
    assert run(second.last_record("e")) == 3
    assert run(second.last_record("another life")) == 0
    run(second.write_records("e", [record(s, 1000.0 + s) for s in (2, 3, 4)]))
    assert [r.seq for r in run(second.records("chat", since=0))] == [1, 2, 3, 4]


def test_those_that_went_wrong_can_be_asked_for_alone(run: Run, metrics: Metrics, record: MakeRecord) -> None:
    run(metrics.write_records("e", [record(s, 100.0 + s, is_error=s % 10 == 0) for s in range(1, 101)]))
    assert [r.seq for r in run(metrics.records("chat", since=0, errors_only=True, limit=3))] == [80, 90, 100]


def test_records_are_those_of_the_deployment_since_then_and_of_the_arms_asked_for(
    run: Run, metrics: Metrics, record: MakeRecord
) -> None:
    run(
        metrics.write_records(
            "e",
            [
                record(1, 100.0),
                record(2, 101.0, arm="candidate", version=2),
                record(3, 102.0, arm="shadow", version=2),
                record(4, 103.0, deployment="other"),
                record(5, 104.0),
            ],
        )
    )

    def seqs(**options: Any) -> list[int]:
        return [r.seq for r in run(metrics.records("chat", **options))]

    assert seqs(since=0) == [1, 2, 3, 5]
    assert seqs(since=101.0) == [2, 3, 5]
    assert seqs(since=101.000001) == [3, 5]
    assert seqs(since=0, arms=["stable", "candidate"]) == [1, 2, 5]
    assert seqs(since=0, arms=[]) == []
    assert run(metrics.records("nobody", since=0)) == []


def test_of_more_records_than_the_limit_those_that_ended_last_are_given(
    run: Run, metrics: Metrics, record: MakeRecord
) -> None:
    run(metrics.write_records("e", [record(s, 100.0 + s) for s in range(1, 10)] + [record(10, 50.0, total=500.0)]))
    assert [r.seq for r in run(metrics.records("chat", since=0, limit=3))] == [10, 8, 9]


def test_traffic_is_summed_from_single_requests_by_deployment_version_and_arm(
    run: Run, metrics: Metrics, record: MakeRecord
) -> None:
    now = time.time()
    totals = [0.1, 0.2, 0.3, 5.0]
    stable = [record(i, now - 10 + i, total=t) for i, t in enumerate(totals, 1)]
    failed = record(9, now - 5, arm="candidate", version=2, is_error=True, ttft=None, prompt_tokens=None)
    run(metrics.write_records("e", [*stable, failed]))
    run(metrics.write_records("e2", [record(1, now - 3, total=0.4)]))  # another life of the gateway, the same arm
    candidate, one = run(metrics.traffic(20))[::-1]
    assert (one.deployment, one.version, one.arm, one.requests, one.errors) == ("chat", 1, "stable", 5, 0)
    assert one.requests_per_second == pytest.approx(5 / 20)
    assert (one.prompt_tokens, one.completion_tokens) == (35, 55)
    assert one.total_p50 == pytest.approx(0.3)
    assert one.total_p90 == pytest.approx(quantile([*totals, 0.4], 0.9))
    assert (candidate.version, candidate.arm, candidate.requests, candidate.errors) == (2, "candidate", 1, 1)
    assert (candidate.prompt_tokens, candidate.total_p50) == (0, None)


def test_traffic_counts_an_answer_that_took_longer_than_the_window(
    run: Run, metrics: Metrics, record: MakeRecord
) -> None:
    now = time.time()
    run(metrics.write_records("e", [record(1, now - 60, total=55.0), record(2, now - 60, total=1.0)]))
    (stats,) = run(metrics.traffic(10))
    assert (stats.requests, stats.total_p50) == (1, 55.0)


@pytest.mark.parametrize("window", [0, -1, float("nan")])
def test_traffic_of_no_time_can_not_be_asked_for(run: Run, metrics: Metrics, window: float) -> None:
    with pytest.raises(Invalid, match="window"):
        run(metrics.traffic(window))
