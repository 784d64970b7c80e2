from __future__ import annotations

import asyncio
import itertools
import threading
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from stoker.types.rollouts import Paused, Promoted, Promoting, Rollout, RolloutSpec, RolloutState, Stepping
from stoker.types.serving import Ready, Replica
from stokerd.gateway.wire import Record
from stokerd.rollouts.evidence import Evidence
from stokerd.telemetry import metrics as metrics_module
from stokerd.telemetry.metrics import Metrics
from tests.harness import DEADLINE, wait_for
from tests.unit.telemetry.conftest import make_record

BEGAN = 50  # the event that began the step, and so the version of the first table of it
T0 = datetime(2026, 1, 1, tzinfo=UTC)
FIRST = Stepping(step=0, since=T0, began=BEGAN)


def rollout(state: RolloutState = FIRST, **fields: Any) -> Rollout:
    steps = [{"type": "canary", "percent": 50}, {"type": "shadow", "percent": 50}]
    spec = {"kind": "rollout", "name": "r", "deployment": "chat", "to": 2, "steps": steps, "cold_requests": 2}
    return Rollout(
        name="r", spec=RolloutSpec.model_validate({**spec, **fields}), deployment="chat", from_version=1, to_version=2,
        state=state, created_at=T0 - timedelta(seconds=60),
    )  # fmt: skip


def record(seq: int, arm: str = "candidate", *, table: int = BEGAN, caller: str = "", **fields: Any) -> Record:
    made = make_record(seq, T0.timestamp() + seq, arm=arm, version=1 if arm == "stable" else 2, **fields)
    return replace(made, table_version=table, caller=caller or f"c{seq}", address=f"unix:/{arm}")


@pytest.fixture
def metrics(tmp_path: Path) -> Iterator[Metrics]:
    made = Metrics(tmp_path / "metrics.db", max_age_seconds=1e12, max_bytes=10**9, reserve_bytes=0)
    made.keeps_recent = True
    yield made
    made.close()


def test_each_request_counts_once_however_it_became_known(metrics: Metrics) -> None:
    """Some were stored before the daemon started, some come while they are read, some after; some come twice."""

    async def work() -> None:
        await metrics.write_records("e", [record(1), record(2, "stable")])
        evidence, present = Evidence(rollout()), rollout()
        reading = asyncio.create_task(evidence.update(metrics, present, []))
        await metrics.write_records("e", [record(3), record(4, is_error=True)])
        await reading
        await evidence.update(metrics, present, [])
        await metrics.write_records("e", [record(4, is_error=True), record(5), record(6, "stable")])
        await evidence.update(metrics, present, [])
        await evidence.update(metrics, present, [])
        assert (evidence.tested.requests, evidence.tested.errors, evidence.stable.requests) == (4, 1, 2)
        assert (evidence.exposure.requests, evidence.exposure.callers, evidence.exposure.errors) == (4, 4, 1)
        anew = Evidence(rollout())
        await anew.update(metrics, present, [])
        assert anew.tested.stats() == evidence.tested.stats()

    asyncio.run(work())


def test_what_memory_did_not_keep_is_read_again(metrics: Metrics, monkeypatch: pytest.MonkeyPatch) -> None:
    async def work() -> None:
        evidence, present = Evidence(rollout()), rollout()
        await evidence.update(metrics, present, [])
        batch = [record(i) for i in range(1, metrics_module.RECENT_RECORDS + 10)]
        await metrics.write_records("e", batch)
        await evidence.update(metrics, present, [])
        assert evidence.tested.requests == len(batch)
        assert evidence.exposure.requests == len(batch)

    asyncio.run(work())


def test_a_step_is_judged_by_its_own_requests_whatever_the_clock_says(metrics: Metrics) -> None:
    """Requests are told by the table by which they were routed; those of the step before may end much later."""

    async def work() -> None:
        evidence = Evidence(rollout())
        hours_ago = replace(record(9), time=T0.timestamp() - 3600)  # the clock was set back since
        await metrics.write_records("e", [record(7), record(8, table=BEGAN - 1), hours_ago])
        await evidence.update(metrics, rollout(), [])
        assert evidence.tested.requests == 2
        again = Stepping(step=0, since=T0 + timedelta(seconds=9), began=BEGAN + 10)
        await evidence.update(metrics, rollout(again), [])
        await metrics.write_records("e", [record(10), record(11, table=BEGAN + 10)])
        await evidence.update(metrics, rollout(again), [])
        assert evidence.tested.requests == 1
        assert evidence.exposure.requests == 5
        restarted = Evidence(rollout(again))
        await restarted.update(metrics, rollout(again), [])
        assert restarted.tested.requests == 1

    asyncio.run(work())


def test_latencies_of_a_replica_that_just_got_ready_do_not_count(metrics: Metrics) -> None:
    replica = Replica(
        name="chat-v2-0", deployment="chat", version=2, index=0, address="unix:/candidate",
        state=Ready(process="p", since=T0),
    )  # fmt: skip

    async def work() -> None:
        evidence = Evidence(rollout())
        await metrics.write_records("e", [record(i, total=60.0 if i < 3 else 1.0) for i in range(1, 6)])
        await evidence.update(metrics, rollout(), [replica])
        assert evidence.tested.requests == 5
        assert evidence.tested.stats().total_p99 == 1.0

    asyncio.run(work())


def test_five_failures_in_a_row_are_a_trip_be_they_of_all_or_of_one_caller(metrics: Metrics) -> None:
    async def trip(*records: Record) -> str | None:
        evidence, present = Evidence(rollout()), rollout()
        await metrics.write_records(str(id(evidence)), list(records))
        await evidence.update(metrics, present, [])
        return evidence.trip()

    def of(caller: str, start: int, is_error: bool, status: int = 500) -> list[Record]:
        """Ten of one caller, each second one of another that is well."""
        mine = [replace(record(start + 2 * i, caller=caller, is_error=is_error)) for i in range(5)]
        mine = [replace(r, status=status) if is_error else r for r in mine]
        return [r for pair in zip(mine, [record(start + 2 * i + 1) for i in range(5)], strict=True) for r in pair]

    async def work() -> None:
        assert await trip(*[record(i, is_error=True) for i in range(1, 5)]) is None
        said = await trip(*of("ada", 10, is_error=True))
        assert said == "v2 failed 5 times in a row for one caller (ada)"

    asyncio.run(work())


def test_one_caller_who_asks_nonsense_trips_nothing(metrics: Metrics) -> None:
    async def work() -> None:
        evidence, present = Evidence(rollout()), rollout()
        records = []
        for i in range(10):
            records += [replace(record(2 * i, caller="ada", is_error=True), status=400), record(2 * i + 1)]
        records += [replace(record(30 + i, caller="ada", is_error=True), status=400) for i in range(10)]
        await metrics.write_records("e", records)
        await evidence.update(metrics, present, [])
        assert evidence.trip() is None

    asyncio.run(work())


def nonsense(
    seq: int, arm: str = "candidate", *, sent: int = 100, address: str = "unix:/x", status: int = 400
) -> Record:
    """A refused request of nobody in particular."""
    made = record(seq, arm, is_error=True)
    return replace(made, caller="", status=status, request_bytes=sent, address=address)


SHADOWED = Stepping(step=1, since=T0, began=BEGAN)
WARM = Promoted(finished_at=T0, warm_until=T0 + timedelta(seconds=600), began=BEGAN)


@pytest.mark.parametrize(
    ("state", "records", "trips"),
    [
        (FIRST, [nonsense(i) for i in range(9)], False),
        (FIRST, [nonsense(i, sent=i) for i in range(5)], True),
        (SHADOWED, [nonsense(i, arm, sent=i) for i in range(5) for arm in ("stable", "shadow")], False),
        (SHADOWED, [nonsense(i, "shadow", sent=i) for i in range(5)], True),
        (WARM, [replace(nonsense(i, "stable"), version=2) for i in range(9)], False),
        (WARM, [replace(nonsense(i, "stable", sent=i), version=2) for i in range(5)], True),
        (FIRST, [nonsense(i, sent=i, address="", status=429) for i in range(9)], False),
        (FIRST, [nonsense(i, sent=i, address="", status=503) for i in range(5)], True),
        (
            FIRST,
            [nonsense(i, "stable", address="", status=429) for i in range(9)] + [nonsense(i, sent=i) for i in range(5)],
            True,
        ),
    ],
    ids=[
        "one client without a name who tries again", "a version that refuses everybody",
        "in a shadow, stable does, too", "in a shadow, stable doesn't",
        "one client after promotion", "everybody after promotion",
        "the gateway refuses everybody", "no replica is well", "the gateway refused what stable would have answered",
    ],
)  # fmt: skip
def test_refusals_take_a_version_back_only_where_they_are_its_own_doing(
    metrics: Metrics, state: RolloutState, records: list[Record], trips: bool
) -> None:
    async def work() -> None:
        evidence = Evidence(rollout(state))
        await metrics.write_records("e", [replace(r, seq=i) for i, r in enumerate(records, 1)])
        await evidence.update(metrics, rollout(state), [])
        assert (evidence.trip() is not None) == trips

    asyncio.run(work())


def test_what_the_gateway_refuses_ends_no_streak_of_failures_for_one_caller(metrics: Metrics) -> None:
    async def work() -> None:
        evidence, present = Evidence(rollout()), rollout()
        failed = [replace(record(3 * i, caller="ada", is_error=True), status=500) for i in range(1, 6)]
        well = [record(3 * i + 1) for i in range(1, 6)]
        crowded = [replace(nonsense(3 * i + 2, address="", status=429), caller="ada") for i in range(1, 6)]
        await metrics.write_records("e", sorted([*failed, *well, *crowded], key=lambda r: r.seq))
        await evidence.update(metrics, present, [])
        assert evidence.trip() == "v2 failed 5 times in a row for one caller (ada)"

    asyncio.run(work())


def test_a_replica_that_dies_with_requests_which_stable_answers_then_is_no_good_one(metrics: Metrics) -> None:
    async def work() -> None:
        evidence, present = Evidence(rollout()), rollout()
        saved = [replace(record(i, "stable"), fell_back=True, lost_version=2) for i in range(5)]
        elsewhere = [replace(record(i, "stable"), fell_back=True) for i in range(5, 9)]  # it had been away already
        await metrics.write_records("e", [*saved[:4], *elsewhere, record(20), record(21, "stable")])
        await evidence.update(metrics, present, [])
        assert (evidence.tested.requests, evidence.tested.errors) == (5, 4)
        assert evidence.stable.requests == 1, "the time that was lost elsewhere is not stable's"
        assert evidence.exposure.errors == 0, "no client heard of it"

    asyncio.run(work())


def test_what_comes_while_the_file_is_read_counts_once_though_the_file_keeps_only_microseconds(
    metrics: Metrics,
) -> None:
    async def work() -> None:
        evidence, present = Evidence(rollout()), rollout()
        reading = asyncio.create_task(evidence.update(metrics, present, []))
        odd = [replace(record(i), time=T0.timestamp() + i + 1e-7 * i) for i in range(1, 40)]
        await metrics.write_records("e", odd)
        await reading
        await evidence.update(metrics, present, [])
        assert evidence.tested.requests == len(odd)

    asyncio.run(work())


def test_two_workers_records_that_are_stored_while_the_file_is_read_count_once_though_they_are_told_one_by_one(
    metrics: Metrics, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second worker's are in the file already, and whoever stores them has not been told so yet."""
    database = metrics._database
    write, read = database._write, database._read
    stored, told = threading.Event(), threading.Event()
    writes = itertools.count(1)

    def slow_write(*args: Any) -> Any:
        found = write(*args)
        if next(writes) == 2:
            stored.set()
            assert told.wait(DEADLINE)
        return found

    def late_read(*args: Any) -> Any:
        assert stored.wait(DEADLINE)
        return read(*args)

    monkeypatch.setattr(database, "_write", slow_write)
    monkeypatch.setattr(database, "_read", late_read)

    async def work() -> None:
        evidence, present = Evidence(rollout()), rollout()
        first = asyncio.create_task(metrics.write_records("one", [record(1)]))
        second = asyncio.create_task(metrics.write_records("two", [record(2)]))
        reading = asyncio.create_task(evidence.update(metrics, present, []))
        async with asyncio.timeout(DEADLINE):
            await first
            assert await asyncio.to_thread(stored.wait, DEADLINE)
            waiting = database._writer._work_queue.qsize
            await asyncio.to_thread(wait_for, lambda: reading.done() or waiting(), "it has read, or waits for its turn")
            if reading.done():
                await evidence.update(metrics, present, [])
            told.set()
            await asyncio.gather(second, reading)
        await metrics.write_records("one", [replace(record(1), seq=2)])
        await evidence.update(metrics, present, [])
        assert evidence.tested.requests == evidence.exposure.requests == 3

    asyncio.run(work())


def test_whoever_asks_for_a_version_by_name_is_neither_evidence_nor_exposed(metrics: Metrics) -> None:
    async def work() -> None:
        evidence, present = Evidence(rollout()), rollout()
        testers = [replace(record(i, is_error=True), is_pinned=True) for i in range(5)]
        await metrics.write_records("e", [*testers, record(7)])
        await evidence.update(metrics, present, [])
        assert (evidence.tested.requests, evidence.exposure.requests, evidence.trip()) == (1, 1, None)
        anew = Evidence(rollout())  # as after a restart: the file keeps who chose
        await anew.update(metrics, present, [])
        assert anew.exposure.requests == 1

    asyncio.run(work())


def test_a_rollout_before_exposed_nobody_to_this_one(metrics: Metrics) -> None:
    async def work() -> None:
        second = rollout(Stepping(step=0, since=T0, began=BEGAN)).model_copy(update={"began": BEGAN - 5})
        await metrics.write_records("e", [record(i, table=BEGAN - 6 + i) for i in range(4)])
        evidence = Evidence(second)
        await evidence.update(metrics, second, [])
        assert evidence.exposure.requests == 3

    asyncio.run(work())


def test_while_it_is_promoted_its_failures_are_seen_too(metrics: Metrics) -> None:
    async def work() -> None:
        promoting = rollout(Promoting(since=T0))
        evidence = Evidence(promoting)
        await metrics.write_records("e", [record(i, is_error=True) for i in range(5)])
        await evidence.update(metrics, promoting, [])
        assert evidence.trip() == "v2 failed each of its last 5 answers: 5 times HTTP 500"

    asyncio.run(work())


def test_after_promotion_only_what_the_new_version_answered_since_is_looked_at(metrics: Metrics) -> None:
    later = T0 + timedelta(seconds=3600)  # the clock was set back since
    state = Promoted(finished_at=later, warm_until=later + timedelta(seconds=600), began=BEGAN)

    async def work() -> None:
        evidence = Evidence(rollout(state))
        bad = [replace(record(i, "stable", is_error=True), version=2) for i in range(1, 20)]
        before = [replace(each, table_version=BEGAN - 1) for each in bad[:12]]
        await metrics.write_records("e", before)
        await evidence.update(metrics, rollout(state), [])
        assert evidence.trip() is None
        await metrics.write_records("e", bad[12:])
        await evidence.update(metrics, rollout(state), [])
        assert evidence.trip() is not None

    asyncio.run(work())


def test_a_candidate_that_was_made_a_shadow_is_judged_as_one(metrics: Metrics) -> None:
    held = Paused(step=0, since=T0, because="x", exposure="shadow", began=BEGAN)

    async def work() -> None:
        evidence = Evidence(rollout(held))
        await metrics.write_records("e", [record(1), record(2, "shadow"), record(3, "stable")])
        await evidence.update(metrics, rollout(held), [])
        assert (evidence.tested_arm, evidence.tested.requests, evidence.stable.requests) == ("shadow", 1, 1)
        assert evidence.exposure.requests == 1

    asyncio.run(work())


def test_stable_before_the_rollout_is_read_once(metrics: Metrics) -> None:
    async def work() -> None:
        evidence = Evidence(rollout())
        early = [replace(record(i, "stable"), time=T0.timestamp() - 100 - i) for i in range(5)]
        await metrics.write_records("e", [*early, record(9, "stable")])
        baseline = await evidence.look_back(metrics, rollout())
        assert baseline.requests == 5
        assert await evidence.look_back(metrics, rollout()) is baseline

    asyncio.run(work())
