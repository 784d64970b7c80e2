from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import pytest

from stokerd import reconciler
from stokerd.reconciler import LONGEST_WAIT_SECONDS, MIN_GAP_SECONDS, Reconciler
from stokerd.wakes import Wakes
from tests.harness import DEADLINE

DAY = 86_400.0


class Part:
    """Steps that are counted, and do what they are told to."""

    def __init__(self, *, interval_seconds: float = DAY) -> None:
        self.moments: list[float] = []
        self.act: Callable[[], float | None] = lambda: None
        self.reconciler = Reconciler("part", self._step, interval_seconds=interval_seconds)
        self._stepped = asyncio.Condition()

    @property
    def steps(self) -> int:
        return len(self.moments)

    async def _step(self) -> float | None:
        self.moments.append(time.monotonic())
        async with self._stepped:
            self._stepped.notify_all()
        return self.act()

    async def until(self, steps: int) -> None:
        async with asyncio.timeout(DEADLINE), self._stepped:
            await self._stepped.wait_for(lambda: self.steps >= steps)

    async def settle(self) -> None:
        """Let go by what would follow at once."""
        await asyncio.sleep(3 * MIN_GAP_SECONDS)


@asynccontextmanager
async def running(*parts: Part) -> AsyncIterator[None]:
    tasks = [asyncio.create_task(part.reconciler.run()) for part in parts]
    try:
        for part in parts:
            await part.until(1)
            await part.settle()
        yield
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def test_it_steps_at_the_start_and_then_sleeps_until_it_is_poked() -> None:
    async def work() -> None:
        part = Part()
        async with running(part):
            assert part.steps == 1
            part.reconciler.poke()
            await part.until(2)
            await part.settle()
            assert part.steps == 2

    asyncio.run(work())


def test_a_poke_during_a_step_is_not_lost() -> None:
    async def work() -> None:
        part = Part()
        part.act = lambda: part.reconciler.poke() if part.steps == 1 else None
        async with running(part):
            await part.until(2)
            await part.settle()
            assert part.steps == 2

    asyncio.run(work())


def test_a_step_says_when_the_next_one_is_due_and_without_that_the_backstop_comes() -> None:
    async def work() -> None:
        part = Part()
        part.act = lambda: 0.05 if part.steps < 3 else None
        async with running(part):
            await part.until(3)
        part = Part(interval_seconds=0.05)
        async with running(part):
            await part.until(3)

    asyncio.run(work())


@pytest.mark.parametrize(("said", "expected"), [(None, DAY), (0.0, 0.0), (7.5, 7.5), (DAY, LONGEST_WAIT_SECONDS)])
def test_no_wait_by_the_time_is_so_long_that_a_suspension_of_the_machine_would_make_it_endless(
    said: float | None, expected: float
) -> None:
    async def step() -> float | None:
        return said

    assert asyncio.run(Reconciler("part", step, interval_seconds=DAY)._take_step()) == expected


def test_however_often_it_is_poked_there_is_a_gap_between_the_beginnings_of_steps() -> None:
    async def work() -> None:
        part = Part()
        part.act = lambda: part.reconciler.poke() if part.steps < 6 else None
        async with running(part):
            await part.until(6)
        gaps = [after - before for before, after in zip(part.moments, part.moments[1:], strict=False)]
        assert min(gaps) > MIN_GAP_SECONDS / 2  # the loop's timers are rounded

    asyncio.run(work())


def test_soon_is_a_little_later_and_once_for_many(monkeypatch: pytest.MonkeyPatch) -> None:
    async def work() -> None:
        part = Part()
        async with running(part):
            asked = time.monotonic()
            for _ in range(5):
                part.reconciler.poke_soon()
            await part.until(2)
            assert part.moments[1] - asked > reconciler.SOON_SECONDS / 2
            await part.settle()
            assert part.steps == 2
            monkeypatch.setattr(reconciler, "SOON_SECONDS", DAY)
            part.reconciler.poke_soon()
            part.reconciler.poke()  # which does for both
            await part.until(3)
            monkeypatch.setattr(reconciler, "SOON_SECONDS", 0.0)
            part.reconciler.poke_soon()
            await part.until(4)

    asyncio.run(work())


def test_a_step_that_fails_is_told_once_and_tried_again_until_it_does_not(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(reconciler, "RETRY_SECONDS", 0.01)
    caplog.set_level(logging.ERROR)

    async def work() -> None:
        part = Part()

        def act() -> None:
            if part.steps in (1, 2, 3, 5):
                raise OSError("no disk")

        part.act = act
        async with running(part):
            await part.until(4)
            assert len(caplog.records) == 1
            part.reconciler.poke()
            await part.until(6)
            await part.settle()
            assert part.steps == 6

    asyncio.run(work())
    assert len(caplog.records) == 2


def test_it_ends_when_it_is_cancelled_whatever_it_does() -> None:
    async def work() -> None:
        part = Part()
        task = asyncio.create_task(part.reconciler.run())
        await part.until(1)
        part.reconciler.poke()
        task.cancel()
        async with asyncio.timeout(DEADLINE):
            with contextlib.suppress(asyncio.CancelledError):
                await task
        assert task.cancelled()

    asyncio.run(work())


def test_a_change_wakes_whom_it_concerns_and_nobody_else() -> None:
    async def work() -> None:
        runs, replicas = Part(), Part()
        wakes = Wakes()
        wakes.add(runs.reconciler, at_once={"run"}, soon={"replica"}, processes="run-")
        wakes.add(replicas.reconciler, at_once={"replica"}, processes="replica-")
        async with running(runs, replicas):
            wakes.of_events({"run", "job"})
            await runs.until(2)
            wakes.of_process("run-tune-1-1")
            await runs.until(3)
            wakes.of_process("gateway-1")
            wakes.of_events({"version"})
            await runs.settle()
            assert (runs.steps, replicas.steps) == (3, 1)
            wakes.of_events({"replica"})
            await replicas.until(2)
            await runs.until(4)  # a little later
            wakes.of_process("replica-chat-v1-0-1")
            await replicas.until(3)
            wakes.of_events({"a kind that nobody thought of"})
            await runs.until(5)
            await replicas.until(4)
            wakes.all()
            await runs.until(6)
            await replicas.until(5)

    asyncio.run(work())
