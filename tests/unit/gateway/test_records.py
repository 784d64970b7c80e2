from __future__ import annotations

import asyncio
import json
from contextlib import closing
from functools import partial
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stokerd.gateway.records import GATHER_SECONDS, HURRY_SECONDS, Records
from stokerd.gateway.wire import BATCH, RECORD_FIELDS, RecordBatch, parse_batch
from tests.fuzz.seams import World
from tests.harness import DEADLINE

ROW: tuple[Any, ...] = (
    1.5,
    "m",
    "stable",
    1,
    "unix:/a",
    "/v1/x",
    200,
    False,
    True,
    False,
    False,
    0.1,
    None,
    0.2,
    3,
    4,
    7,
    0.05,
    "stop",
    120,
    600,
    "c0ffee",
    "team",
    0.01,
    "4bf92f3577b34da6a3ce929d0e0e4736",
    0,
    False,
)


def batch_of(records: Records, *, as_rows: bool = True) -> RecordBatch:
    return parse_batch(json.loads(records.batch(as_rows=as_rows)))


def read(records: Records) -> list[int]:
    return [record.seq for record in batch_of(records).records]


@pytest.mark.parametrize("as_rows", [True, False])
def test_a_row_comes_out_as_the_record_that_wire_describes(as_rows: bool) -> None:
    records = Records("e", 2)
    assert batch_of(records, as_rows=as_rows) == RecordBatch("e", (), 0)
    for _ in range(3):
        records.add(ROW)
    batch = batch_of(records, as_rows=as_rows)
    assert (batch.epoch, batch.dropped) == ("e", 1)
    assert [[getattr(r, name) for name in RECORD_FIELDS] for r in batch.records] == [[2, *ROW], [3, *ROW]]


def test_rows_of_an_older_or_newer_gateway_can_be_read() -> None:
    least = RECORD_FIELDS.index("max_gap_seconds") - 1  # what follows has defaults
    data = {"epoch": "e", "first": 7, "dropped": 0, "rows": [ROW[:least], [*ROW, "more", "to tell"]]}
    older, newer = parse_batch(data).records
    assert (older.seq, older.table_version, older.finish_reason) == (7, 7, "")
    assert (newer.seq, newer.finish_reason, newer.is_pinned) == (8, "stop", False)


@given(bound=st.integers(1, 30), steps=st.lists(st.integers(1, 10) | st.none(), max_size=60))
def test_no_record_is_lost_uncounted_or_seen_twice(bound: int, steps: list[int | None]) -> None:
    records = Records("e", bound)
    added, got = 0, list[int]()
    for step in steps:
        if step is None:
            seqs = read(records)
            got += seqs
            records.acknowledge("e", seqs[-1] if seqs else 0)
        for _ in range(step or 0):
            records.add(ROW)
            added += 1
    got += read(records)
    assert got == sorted(set(got))
    assert len(got) + records.dropped == added
    assert len(records) <= bound


def test_records_stay_until_acknowledged_in_their_own_epoch() -> None:
    records = Records("e", 10)
    for _ in range(3):
        records.add(ROW)
    records.acknowledge("another", 3)
    assert read(records) == [1, 2, 3]
    assert read(records) == [1, 2, 3]
    records.acknowledge("e", 2)
    assert read(records) == [3]


def test_a_batch_is_bounded() -> None:
    records = Records("e", 3 * BATCH)
    for _ in range(2 * BATCH):
        records.add(ROW)
    assert read(records) == list(range(1, BATCH + 1))


def test_a_waiting_reader_is_answered_once_soon_after_the_first_record() -> None:
    async def play() -> list[str]:
        records, told = Records("e", 10), list[str]()
        answered = asyncio.Event()

        def answer() -> None:
            told.append("answered")
            answered.set()

        records.wait(3600.0, answer)
        records.add(ROW)
        records.add(ROW)
        await asyncio.wait_for(answered.wait(), DEADLINE)
        cancelled = records.wait(0.0, lambda: told.append("never"))
        cancelled.cancel()
        answered.clear()
        records.wait(3600.0, answer)  # there are records: no need to wait
        await asyncio.wait_for(answered.wait(), DEADLINE)
        return told

    assert asyncio.run(play()) == ["answered", "answered"]


@pytest.mark.parametrize(
    ("count", "is_urgent", "seconds"),
    [(1, False, GATHER_SECONDS), (3, True, HURRY_SECONDS), (BATCH - 1, False, GATHER_SECONDS), (BATCH, False, 0.0)],
)
def test_a_reader_gets_many_rows_at_once_but_hears_of_what_failed_soon(
    count: int, is_urgent: bool, seconds: float
) -> None:
    records = Records("e", 2 * BATCH)
    for number in range(count):
        records.add(ROW, is_urgent=is_urgent and number == 1)
    assert records.patience == seconds
    records.acknowledge("e", count)
    records.add(ROW)
    assert records.patience == GATHER_SECONDS, "what was urgent has been read"


def test_a_request_that_failed_is_one_that_a_reader_hears_of_soon() -> None:
    with closing(World()) as world:
        for status, patience in ((b"200 OK", GATHER_SECONDS), (b"500 Oh", HURRY_SECONDS)):
            got = world.ask([b"HTTP/1.1 %b\r\ncontent-length: 2\r\n\r\n{}" % status], is_stream=False)
            assert got.startswith(b"HTTP/1.1 %b" % status)
            assert world.patience == patience


def test_a_reader_who_waits_is_woken_sooner_when_there_is_more_reason_to() -> None:
    async def play() -> list[str]:
        told, last = list[str](), asyncio.Event()
        for name, rows, is_urgent in (("full", BATCH, False), ("failed", 2, True), ("usual", 2, False)):
            records = Records("e", BATCH)
            records.wait(3600.0, partial(told.append, name))
            records.add(ROW)
            for _ in range(rows - 1):
                records.add(ROW, is_urgent=is_urgent)
        records.wait(3600.0, last.set)
        await asyncio.wait_for(last.wait(), DEADLINE)
        return told

    assert asyncio.run(play()) == ["full", "failed", "usual"]


def test_a_reader_with_nothing_to_read_is_answered_when_its_time_is_up() -> None:
    async def play() -> None:
        answered = asyncio.Event()
        Records("e", 10).wait(0.01, answered.set)
        await asyncio.wait_for(answered.wait(), DEADLINE)

    asyncio.run(play())
