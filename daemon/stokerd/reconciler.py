"""The one loop that every part runs in: look at what is wanted and what is, take a step, look again."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Awaitable, Callable

log = logging.getLogger(__name__)


Step = Callable[[], Awaitable[float | None]]
BACKSTOP_SECONDS = 300.0  # what nobody poked for is found by then; a daemon with nothing to do sleeps as long
LONGEST_WAIT_SECONDS = 60.0  # the loop's timers stand still while the machine is suspended, and what they wait for not
RETRY_SECONDS = 1.0  # after a step that failed
MIN_GAP_SECONDS = 0.02  # from the beginning of a step to that of the next, however often it is poked
SOON_SECONDS = 0.1


class Reconciler:
    """Runs *step* at the start, when poked, and when the step itself asked for it; and each *interval_seconds*.

    Never two steps at a time; a poke during one has another follow. A step returns in how many seconds something may
    be due by the time alone, or None when only a poke can change anything: all that is to be noticed quickly must do
    one or the other. One that raises is logged (once for the same error in a row) and tried again each
    `RETRY_SECONDS`, so that neither one broken resource nor a full disk ends the daemon.
    """

    def __init__(self, name: str, step: Step, *, interval_seconds: float = BACKSTOP_SECONDS) -> None:
        self._name = name
        self._step = step
        self._interval = interval_seconds
        self._poked = asyncio.Event()
        self._soon: asyncio.TimerHandle | None = None
        self._last_error = ""

    def poke(self) -> None:
        """Don't wait for the next turn. Call it in the loop's thread."""
        if self._soon is not None:
            self._soon.cancel()
            self._soon = None
        self._poked.set()

    def poke_soon(self) -> None:
        """As `poke`, but leave the CPU to those who are in a hurry first. Call it in the loop's thread."""
        if self._soon is None:
            self._soon = asyncio.get_running_loop().call_later(SOON_SECONDS, self.poke)

    async def run(self) -> None:
        """Go on until cancelled."""
        while True:
            self._poked.clear()
            began = time.monotonic()
            wait = await self._take_step()
            await asyncio.sleep(began + MIN_GAP_SECONDS - time.monotonic())
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(wait):
                    await self._poked.wait()

    async def _take_step(self) -> float:
        """Returns after how many seconds the next one is to be taken, if nobody pokes."""
        try:
            again = await self._step()
        except Exception as error:
            if repr(error) != self._last_error:
                self._last_error = repr(error)
                log.exception("%s: a step failed; it is tried again each %g s", self._name, RETRY_SECONDS)
            return RETRY_SECONDS
        self._last_error = ""
        return self._interval if again is None else min(again, self._interval, LONGEST_WAIT_SECONDS)
