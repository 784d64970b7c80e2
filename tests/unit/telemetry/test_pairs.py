from __future__ import annotations

import time

from hypothesis import given
from hypothesis import strategies as st

from stokerd.telemetry import pairs as pairs_of
from stokerd.telemetry.metrics import PAIRS_SHARE, Metrics
from tests.unit.telemetry.conftest import MakePair, MakeRecord, OpenMetrics, Run
from tests.unit.telemetry.test_traffic import many, numbers


def test_a_pair_comes_back_as_it_was(run: Run, metrics: Metrics, pair: MakePair) -> None:
    old, new = pair(1, 1000.5), pair(2, 1001.25, text='"quotes"\n\x00')
    run(metrics.write_pairs("e", [new, old]))
    run(metrics.write_pairs("e", []))
    assert run(metrics.pairs("chat-2", since=0, limit=10)) == [old, new]
    assert run(metrics.pairs("chat-2", since=1001, limit=10)) == [new]
    assert run(metrics.pairs("chat-2", since=0, limit=1)) == [new]
    assert run(metrics.pairs("another", since=0, limit=10)) == []


@many
@given(batches=st.lists(st.lists(st.integers(1, 9), max_size=6), max_size=6))
def test_batches_sent_again_leave_each_pair_once(
    run: Run, metrics: Metrics, pair: MakePair, batches: list[list[int]]
) -> None:
    name = f"example-{next(numbers)}"
    for seqs in batches:
        run(metrics.write_pairs(name, [pair(seq, rollout=name) for seq in seqs]))
    sent = {seq for seqs in batches for seq in seqs}
    assert sorted(p.seq for p in run(metrics.pairs(name, since=0, limit=100))) == sorted(sent)
    assert run(metrics.last_pair(name)) == max(sent, default=0)


def test_records_and_pairs_of_one_gateway_are_acknowledged_each_for_itself(
    run: Run, metrics: Metrics, record: MakeRecord, pair: MakePair
) -> None:
    run(metrics.write_records("e", [record(7)]))
    run(metrics.write_pairs("e", [pair(3)]))
    run(metrics.write_records("e", [record(8)]))
    assert (run(metrics.last_record("e")), run(metrics.last_pair("e"))) == (8, 3)


def test_pairs_are_forgotten_with_age(run: Run, open_metrics: OpenMetrics, pair: MakePair) -> None:
    now = time.time()
    metrics = open_metrics(max_age_seconds=100)
    run(metrics.write_pairs("e", [pair(s, now - 200 + s) for s in (1, 80, 110, 150)]))
    run(metrics.trim())
    assert [p.seq for p in run(metrics.pairs("chat-2", since=0, limit=10))] == [110, 150]
    assert run(metrics.last_pair("e")) == 150


def test_pairs_push_nothing_else_out_of_a_full_file(
    run: Run, open_metrics: OpenMetrics, record: MakeRecord, pair: MakePair
) -> None:
    now, bound = time.time(), 2**21
    metrics = open_metrics(max_bytes=bound)
    run(metrics.write_records("e", [record(s, now - 5000 + s) for s in range(1, 1001)]))
    run(metrics.write_pairs("e", [pair(s, now - 1000 + s, text="x" * 20_000) for s in range(1, 201)]))
    run(metrics.trim())
    kept = [p.seq for p in run(metrics.pairs("chat-2", since=0, limit=1000))]
    assert kept == list(range(kept[0], 201))  # the newest, without a gap
    assert 0.8 * PAIRS_SHARE * bound < 20_000 * len(kept) <= PAIRS_SHARE * bound
    assert len(run(metrics.records("chat", since=0))) == 1000
    assert run(metrics._database.read(lambda c: pairs_of.too_many(c, round(PAIRS_SHARE * bound)))) is None
