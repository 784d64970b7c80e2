from __future__ import annotations

import asyncio
import json
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from stokerd.gateway.records import BATCH, FIELDS, Records
from stokerd.gateway.wire import parse_batch
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
)


def read(records: Records) -> list[int]:
    return [record.seq for record in parse_batch(json.loads(records.batch())).records]


def test_a_row_comes_out_as_the_record_that_wire_describes() -> None:
    records = Records("e", 10)
    records.add(ROW)
    batch = parse_batch(json.loads(records.batch()))
    assert (batch.epoch, batch.dropped) == ("e", 0)
    assert [getattr(batch.records[0], name) for name in FIELDS] == [1, *ROW]


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


def test_a_reader_with_nothing_to_read_is_answered_when_its_time_is_up() -> None:
    async def play() -> None:
        answered = asyncio.Event()
        Records("e", 10).wait(0.01, answered.set)
        await asyncio.wait_for(answered.wait(), DEADLINE)

    asyncio.run(play())
