"""Writes under load are held back until everything that came in at once has been read, and then go out together.

A write wakes whoever waits for it. One that goes out while the next request is still being read wakes a process that
has one thing to do and sleeps again at once, and waking it costs as much as all the rest of a request. Written together
they find it awake: a third less CPU at 32 connections. Without load, nothing is held back.
"""

from __future__ import annotations

import asyncio
from time import monotonic

_SPAN_SECONDS = 0.001
_MANY = 16
"""So many writes within the span are load."""
_FEW = 2
"""Fewer at once are none."""
_MOST_BYTES = 1 << 16
"""More is not held back: whoever takes nothing must be noticed at once, which transports do."""


class Outbox:
    """What waits to be written, to any transport. Bytes for one transport stay in order."""

    __slots__ = ("_count", "_is_busy", "_room", "_since", "_waiting")

    def __init__(self) -> None:
        self._waiting: list[tuple[asyncio.Transport, bytes]] = []
        self._room = _MOST_BYTES
        self._is_busy = False
        self._since = 0.0
        self._count = 0

    def write(self, transport: asyncio.Transport, data: bytes) -> None:
        """Write now, or at the end of the loop's present turn."""
        waiting = self._waiting
        if self._is_busy:
            if not waiting:
                asyncio.get_running_loop().call_soon(self._flush_all)
            waiting.append((transport, data))
            self._room -= len(data)
            if self._room < 0:
                self.flush()
            return
        transport.write(data)
        self._count += 1
        if self._count >= _MANY:
            now = monotonic()
            self._is_busy = now - self._since < _SPAN_SECONDS
            self._since, self._count = now, 0

    def flush(self) -> None:
        """Write all now, before something is done that must come after it."""
        waiting, self._waiting, self._room = self._waiting, [], _MOST_BYTES
        for transport, data in waiting:
            if not transport.is_closing():
                transport.write(data)

    def _flush_all(self) -> None:
        if len(self._waiting) < _FEW:
            self._is_busy = False
        self.flush()
