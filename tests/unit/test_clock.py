from __future__ import annotations

import asyncio
import time
from datetime import UTC, datetime, timedelta

import pytest

from stoker.errors import Unavailable
from stokerd import clock
from stokerd.clock import Elapsed
from tests.harness import DEADLINE

T0 = datetime(2026, 1, 1, tzinfo=UTC)
HOUR = timedelta(hours=1)


class Clocks:
    """A wall clock that people set, and a monotonic one that they can't."""

    def __init__(self) -> None:
        self.wall, self.monotonic = T0, 1000.0
        self.elapsed = Elapsed(lambda: self.monotonic, lambda: self.wall)

    def pass_seconds(self, seconds: float) -> None:
        self.wall += timedelta(seconds=seconds)
        self.monotonic += seconds


def test_time_passes_as_it_does_and_not_as_the_clock_is_set() -> None:
    clocks = Clocks()
    clocks.pass_seconds(5)
    assert clocks.elapsed.since("r", T0) == 5
    for jump in (HOUR, -2 * HOUR, HOUR):
        clocks.wall += jump
        assert clocks.elapsed.since("r", T0) == 5
    clocks.pass_seconds(7)
    assert clocks.elapsed.since("r", T0) == 12


def test_after_a_restart_the_clock_is_all_there_is_and_the_future_counts_as_now() -> None:
    clocks = Clocks()
    clocks.pass_seconds(30)
    assert Elapsed(lambda: 0.0, lambda: clocks.wall).since("r", T0) == 30
    assert Elapsed(lambda: 0.0, lambda: T0 - HOUR).since("r", T0) == 0


def test_a_moment_comes_when_so_much_time_has_passed() -> None:
    clocks = Clocks()
    retry = T0 + timedelta(seconds=10)
    assert not clocks.elapsed.has_come("r", retry, 60)
    clocks.wall += HOUR  # set forward: it has not waited yet
    assert not clocks.elapsed.has_come("r", retry, 60)
    clocks.wall -= 2 * HOUR  # and back
    assert clocks.elapsed.until("r", retry, 60) == 10
    clocks.pass_seconds(4)
    assert clocks.elapsed.until("r", retry, 60) == 6
    clocks.pass_seconds(6)
    assert clocks.elapsed.has_come("r", retry, 60)


def test_nothing_waits_longer_than_is_meant_when_the_clock_was_set_back_while_the_daemon_was_away() -> None:
    clocks = Clocks()
    retry = T0 + HOUR
    assert not clocks.elapsed.has_come("r", retry, 60)
    clocks.pass_seconds(60)
    assert clocks.elapsed.has_come("r", retry, 60)
    assert clocks.elapsed.has_come("past", T0, 60)


def test_another_moment_of_the_same_thing_is_counted_anew_and_old_ones_are_forgotten() -> None:
    clocks = Clocks()
    for number in range(10_000):
        clocks.elapsed.since(f"r{number}", T0)
    clocks.pass_seconds(3)
    assert clocks.elapsed.since("r9999", T0 + timedelta(seconds=1)) == 2
    assert clocks.elapsed.since("r9999", T0) == 3


class Leaps:
    """What is told of the clock, which people set while it is watched."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.told: list[float] = []
        self.is_disk_full = False
        self._ahead = 0.0
        self._looks: asyncio.Queue[None] = asyncio.Queue()
        monkeypatch.setattr(clock, "_offset", self._look)

    def _look(self) -> float:
        self._looks.put_nowait(None)
        return self._ahead

    async def set(self, ahead: float) -> None:
        """Set the clock, and wait until it was looked at, and whatever that leads to was done."""
        self._ahead = ahead
        while not self._looks.empty():
            self._looks.get_nowait()
        async with asyncio.timeout(DEADLINE):
            for _ in range(3):
                await self._looks.get()

    async def on_set(self, seconds: float) -> None:
        if self.is_disk_full:
            self.is_disk_full = False
            raise Unavailable("the disk is full")
        self.told.append(seconds)


@pytest.mark.parametrize("has_alarm", [True, False], ids=["with the kernel's alarm", "without"])
def test_a_clock_that_is_set_is_told_once_and_again_where_that_failed(
    monkeypatch: pytest.MonkeyPatch, has_alarm: bool
) -> None:
    monkeypatch.setattr(clock, "_OFTEN_SECONDS", 0.01)
    monkeypatch.setattr(clock, "_SELDOM_SECONDS", 0.01)
    if not has_alarm:
        monkeypatch.setattr(clock, "_CANCEL_ON_SET", 1 << 20)  # which no kernel knows
    leaps = Leaps(monkeypatch)

    async def work() -> None:
        watching = asyncio.create_task(clock.watch_clock(leaps.on_set))
        await leaps.set(0.0)
        await leaps.set(3600.0)
        assert leaps.told == [3600.0]
        await leaps.set(3601.0)  # NTP does as much, slowly
        assert leaps.told == [3600.0]
        leaps.is_disk_full = True
        await leaps.set(1.0)
        assert leaps.told == [3600.0, -3600.0]
        watching.cancel()
        await asyncio.gather(watching, return_exceptions=True)

    asyncio.run(work())


def test_the_alarm_rings_and_can_ring_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """A moment that has passed rings it at once, as the kernel does when the clock is set: which a test must not do."""

    async def work() -> None:
        for _ in range(2):
            with clock.ClockAlarm() as alarm:
                if not alarm.is_set:
                    pytest.skip("this kernel has no such timer")
                began = time.monotonic()
                monkeypatch.setattr(clock, "_FAR_SECONDS", 1)
                alarm._arm()
                monkeypatch.undo()
                await alarm.wait(10 * DEADLINE)
                assert time.monotonic() - began < 10 * DEADLINE
                await alarm.wait(0.01)  # and not for ever
            assert not alarm.is_set

    asyncio.run(work())
