from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stoker.errors import Conflict, InvalidSpec
from stoker.types.base import now
from stoker.types.training import Run, Schedule, ScheduleSpec
from stokerd.store.store import Store
from stokerd.training.schedules import MAX_MADE_UP, Schedules, due, resume_intervals, trigger_of
from tests.unit.state import make_state_db

START = datetime(2026, 3, 1, tzinfo=UTC)


def spec(**fields: object) -> ScheduleSpec:
    return ScheduleSpec.model_validate({"kind": "schedule", "name": "s", "job": "j", **fields})


@given(st.integers(1, 10**7), st.integers(1, 10**5))
def test_an_interval_fires_at_each_multiple_since_it_was_made(absence: int, interval: int) -> None:
    trigger = trigger_of(spec(interval=interval), START)
    found = due(trigger, START, START + timedelta(seconds=absence))
    expected = absence // interval
    assert len(found) == min(expected, MAX_MADE_UP)
    if found:
        assert found[-1] == START + timedelta(seconds=expected * interval)
        assert sorted(set(found)) == found


def test_a_year_away_from_a_schedule_of_each_second_costs_nothing() -> None:
    found = due(trigger_of(spec(interval=1), START), START, START + timedelta(days=365))
    assert len(found) == MAX_MADE_UP
    assert found[-1] == START + timedelta(days=365)


def test_cron_keeps_local_time_over_the_change_to_summer_time() -> None:
    trigger = trigger_of(spec(cron="0 6 * * *", timezone="Europe/Berlin"), START)
    found = due(trigger, datetime(2026, 3, 28, tzinfo=UTC), datetime(2026, 3, 30, tzinfo=UTC))
    assert [m.astimezone(UTC).hour for m in found] == [5, 4]


def test_a_date_fires_once_and_is_made_up_for_only_if_it_was_missed() -> None:
    trigger = trigger_of(spec(date=(START + timedelta(hours=1)).isoformat()), START)
    assert due(trigger, START, START + timedelta(minutes=59)) == []
    assert due(trigger, START, START + timedelta(days=9)) == [START + timedelta(hours=1)]
    assert due(trigger, START + timedelta(hours=1), START + timedelta(days=9)) == []


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"cron": "61 * * * *"}, "cron"),
        ({"cron": "daily"}, "five fields"),
        ({"interval": 60, "timezone": "Mars"}, "Mars"),
    ],
)
def test_a_trigger_that_cannot_be_is_refused_with_what_was_expected(fields: dict[str, object], message: str) -> None:
    with pytest.raises(InvalidSpec) as refused:
        trigger_of(spec(**fields), START)
    assert message in str(refused.value)


def test_when_the_clock_is_set_back_an_interval_goes_on_from_now_and_nothing_fires_twice(tmp_path: Path) -> None:
    ahead = now() + timedelta(hours=1)
    settled = Schedule(name="c", spec=spec(cron="* * * * *"), last_fired_at=ahead, spec_set_at=START)
    going = Schedule(name="i", spec=spec(interval=60), last_fired_at=ahead, spec_set_at=START)

    async def work() -> tuple[Schedule, Schedule]:
        store = Store(tmp_path / "state.db")
        try:
            for schedule in (settled, going):
                await store.write(lambda tx, s=schedule: tx.save(s))  # type: ignore[misc]
            await store.write(resume_intervals)
            return await store.read(lambda q: (q.get(Schedule, "c"), q.get(Schedule, "i")))
        finally:
            store.close()

    make_state_db(tmp_path)
    cron, interval = asyncio.run(work())
    assert cron == settled
    assert interval.last_fired_at is not None
    assert interval.last_fired_at <= now()


class NoJobs:
    """Makes no run, and says so."""

    async def create_run(self, job: str, _params: dict[str, object], *, key: str) -> Run:
        raise Conflict(f"job {job} makes no run for {key}.")


def test_what_is_told_of_a_firing_and_that_it_is_settled_are_one_change(tmp_path: Path) -> None:
    """Else a daemon that is killed in between would tell of it twice."""
    moment = START + timedelta(minutes=1)

    async def work() -> None:
        store = Store(tmp_path / "state.db")
        schedules = Schedules(store, NoJobs())  # type: ignore[arg-type]
        made = Schedule(name="s", spec=spec(interval=60), spec_set_at=START)
        try:
            await store.write(lambda tx: tx.save(made))
            before = store.writes
            await schedules._run("s", moment)
            writes = store.writes - before
            schedule, events = await store.read(lambda q: (q.get(Schedule, "s"), q.events(0)))
        finally:
            store.close()
        assert writes == 1
        assert schedule.last_fired_at == moment
        assert [e.reason for e in events] == ["ScheduleFailed"]

    make_state_db(tmp_path)
    asyncio.run(work())
