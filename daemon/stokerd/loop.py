"""The daemon's event loop: one that says when something held it."""

from __future__ import annotations

import asyncio
import logging
import selectors
import time

log = logging.getLogger(__name__)
HELD_SECONDS = 0.1


class WatchedLoop(asyncio.SelectorEventLoop):
    """A loop that logs, once `watch_loop` was called in it, whenever it was held for longer than `HELD_SECONDS`."""

    def __init__(self) -> None:
        self.waits = Waits()
        super().__init__(self.waits)


class Waits(selectors.DefaultSelector):
    """Takes the time from the end of one wait to the beginning of the next: in between, the loop runs what is due.

    A task that wakes now and then to see whether it is late would tell as much, but wake an idle daemon for nothing.
    """

    is_watched = False
    _woke_at: float | None = None

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        """Wait as the loop says."""
        if self._woke_at is not None:
            held = time.monotonic() - self._woke_at
            if held > HELD_SECONDS:
                log.warning("the event loop was held for %.0f ms", held * 1000)
        ready = super().select(timeout)
        if self.is_watched:
            self._woke_at = time.monotonic()
        return ready


def watch_loop() -> None:
    """Log from the next turn on when the running loop, a `WatchedLoop`, is held. A start may take its time."""
    loop = asyncio.get_running_loop()
    if isinstance(loop, WatchedLoop):
        loop.waits.is_watched = True
