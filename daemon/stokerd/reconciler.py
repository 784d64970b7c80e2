"""The one loop that every part runs in: look at what is wanted and what is, take a step, look again."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable

log = logging.getLogger(__name__)


Step = Callable[[], Awaitable[float | None]]
MIN_GAP_SECONDS = 0.02  # between two steps, however often it is poked


class Reconciler:
    """Runs *step* each *interval_seconds*, at once when poked, and when the step itself asked for it.

    Never two steps at a time. A step returns in how many seconds it wants to look again, or None when there is no
    hurry. One that raises is logged (once for the same error in a row) and tried again at the next turn, so that
    neither one broken resource nor a full disk ends the daemon.
    """

    def __init__(
        self, name: str, step: Callable[[], Awaitable[float | None]], *, interval_seconds: float = 1.0
    ) -> None:
        self._name = name
        self._step = step
        self._interval = interval_seconds
        self._poked = asyncio.Event()
        self._last_error = ""

    def poke(self) -> None:
        """Don't wait for the next turn. Call it in the loop's thread."""
        self._poked.set()

    async def run(self) -> None:
        """Go on until cancelled."""
        while True:
            self._poked.clear()
            again = await self._take_step()
            await asyncio.sleep(MIN_GAP_SECONDS)
            wait = self._interval if again is None else min(again, self._interval)
            try:
                await asyncio.wait_for(self._poked.wait(), wait)
            except TimeoutError:
                continue

    async def _take_step(self) -> float | None:
        try:
            again = await self._step()
        except Exception as error:
            if repr(error) != self._last_error:
                self._last_error = repr(error)
                log.exception("%s: a step failed; it is tried again each %g s", self._name, self._interval)
            return None
        self._last_error = ""
        return again


async def watch_loop(limit_seconds: float = 0.1) -> None:
    """Log whenever something held the event loop for longer than the limit."""
    while True:
        before = time.monotonic()
        await asyncio.sleep(limit_seconds)
        held = time.monotonic() - before - limit_seconds
        if held > limit_seconds:
            log.warning("the event loop was held for %.0f ms", held * 1000)
