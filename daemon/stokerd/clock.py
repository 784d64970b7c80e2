"""Intervals that survive both a daemon's restart and a clock that is set.

Moments are kept as UTC, which is all that outlives a reboot. Within one life of the daemon the time that has passed
is counted by the monotonic clock: somebody who sets the clock neither ends a step early nor freezes a wait.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from datetime import datetime

from stoker.errors import StokerError
from stoker.types.base import now

log = logging.getLogger(__name__)
JUMP_SECONDS = 2.0  # NTP slews what is less
_WATCH_SECONDS = 1.0
_KEPT = 4096


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
        first, waited = self._look(key, moment)
        return waited >= min(-first, longest_seconds)

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
    while True:
        await asyncio.sleep(_WATCH_SECONDS)
        present = _offset()
        if abs(present - offset) > JUMP_SECONDS:
            try:
                await on_set(present - offset)
            except StokerError as error:
                log.warning("the clock was set by %.0f s, which can't be acted on yet: %s", present - offset, error)
                continue
        offset = present


def _offset() -> float:
    return time.time() - time.clock_gettime(time.CLOCK_BOOTTIME)
