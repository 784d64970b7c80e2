"""Intervals that survive both a daemon's restart and a clock that is set.

Moments are kept as UTC, which is all that outlives a reboot. Within one life of the daemon the time that has passed
is counted by the monotonic clock: somebody who sets the clock neither ends a step early nor freezes a wait.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import logging
import os
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from datetime import datetime
from typing import Self

from stoker.errors import StokerError
from stoker.types.base import now

log = logging.getLogger(__name__)
JUMP_SECONDS = 2.0  # NTP slews what is less
_OFTEN_SECONDS = 1.0
_SELDOM_SECONDS = 10.0  # beside the alarm: what NTP slews must not add up until it looks as if the clock had been set
_KEPT = 4096
_ABSTIME, _CANCEL_ON_SET = 1, 2  # TFD_TIMER_*, of <sys/timerfd.h>
_FAR_SECONDS = 1 << 33  # in the 23rd century; the kernel counts in nanoseconds of 63 bits
_LIBC = ctypes.CDLL(None, use_errno=True)


class Elapsed:
    """How long it is since, or until, moments that are kept in rows. One for each part that asks.

    Args:
        monotonic: seconds that only grow, suspension of the machine included.
        wall: the present, in UTC.
    """

    def __init__(
        self,
        monotonic: Callable[[], float] = lambda: time.clock_gettime(time.CLOCK_BOOTTIME),
        wall: Callable[[], datetime] = now,
    ) -> None:
        self._monotonic = monotonic
        self._wall = wall
        self._first_looks: OrderedDict[tuple[str, datetime], tuple[float, float]] = OrderedDict()

    def since(self, key: str, moment: datetime) -> float:
        """Seconds since *moment*, of the thing *key*; never less than 0."""
        first, waited = self._look(key, moment)
        return max(first, 0.0) + waited

    def has_come(self, key: str, moment: datetime, longest_seconds: float) -> bool:
        """Whether *moment* has come. From the first look on, *longest_seconds* is the most that one waits for it."""
        return self.until(key, moment, longest_seconds) <= 0

    def until(self, key: str, moment: datetime, longest_seconds: float) -> float:
        """Seconds until `has_come` says yes; 0 or less: it does."""
        first, waited = self._look(key, moment)
        return min(-first, longest_seconds) - waited

    def _look(self, key: str, moment: datetime) -> tuple[float, float]:
        """Seconds that *moment* lay back at the first look, and seconds since that look."""
        present = self._monotonic()
        known = self._first_looks.get((key, moment))
        if known is None:
            known = ((self._wall() - moment).total_seconds(), present)
            self._first_looks[key, moment] = known
            if len(self._first_looks) > _KEPT:
                self._first_looks.popitem(last=False)
        else:
            self._first_looks.move_to_end((key, moment))
        return known[0], present - known[1]


async def watch_clock(on_set: Callable[[float], Awaitable[None]]) -> None:
    """Call *on_set* with how many seconds forward (or back, negative) the clock was set, whenever it was.

    When that fails for want of the disk it is called again, with the same.
    """
    offset = _offset()
    with ClockAlarm() as alarm:
        pause = _OFTEN_SECONDS
        while True:
            await alarm.wait(pause)
            pause = _SELDOM_SECONDS if alarm.is_set and not _may_have_own_clock() else _OFTEN_SECONDS
            present = _offset()
            if abs(present - offset) > JUMP_SECONDS:
                try:
                    await on_set(present - offset)
                except StokerError as error:
                    log.warning("the clock was set by %.0f s, which can't be acted on yet: %s", present - offset, error)
                    pause = _OFTEN_SECONDS
                    continue
            offset = present


class ClockAlarm:
    """The kernel's word that the clock was set: a timer of the far future, which is cancelled when somebody does that.

    It doesn't wake for a clock that NTP slews. ``is_set`` is False where the kernel has no such timer (some sandboxes).
    """

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._rung = asyncio.Event()
        self._fd = -1

    @property
    def is_set(self) -> bool:
        """Whether it will ring."""
        return self._fd >= 0

    def __enter__(self) -> Self:
        self._fd = _LIBC.timerfd_create(time.CLOCK_REALTIME, os.O_CLOEXEC | os.O_NONBLOCK)
        if self._fd >= 0:
            self._loop.add_reader(self._fd, self._ring)
            self._arm()
        return self

    def __exit__(self, *_: object) -> None:
        self._silence()

    async def wait(self, longest_seconds: float) -> None:
        """Return when it has rung since the last call, or when so many seconds have passed."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(longest_seconds):
                await self._rung.wait()
        self._rung.clear()

    def _ring(self) -> None:
        with contextlib.suppress(OSError):  # ECANCELED is what it is here for
            os.read(self._fd, 8)
        self._rung.set()
        self._arm()

    def _arm(self) -> None:
        far = (ctypes.c_long * 4)(0, 0, _FAR_SECONDS, 0)  # itimerspec: no interval, then seconds and nanoseconds
        if _LIBC.timerfd_settime(self._fd, _ABSTIME | _CANCEL_ON_SET, far, None) < 0:
            log.warning("the kernel can't tell when the clock is set: %s", os.strerror(ctypes.get_errno()))
            self._silence()

    def _silence(self) -> None:
        if self._fd >= 0:
            self._loop.remove_reader(self._fd)
            os.close(self._fd)
            self._fd = -1


def _may_have_own_clock() -> bool:
    """Whether a library may give this process another clock than the kernel's (libfaketime): no alarm tells of that."""
    return "LD_PRELOAD" in os.environ


def _offset() -> float:
    return time.time() - time.clock_gettime(time.CLOCK_BOOTTIME)
