"""The bounded buffer of what was measured, kept until the daemon says that it has it."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from dataclasses import fields
from itertools import islice
from typing import Any

import msgspec

from stokerd.gateway.wire import Record

FIELDS = tuple(field.name for field in fields(Record))
BATCH = 1_000
GATHER_SECONDS = 0.02
"""How long a reader that waits is left waiting after the first record, so that it gets many at once."""


class Records:
    """Rows (a `Record`'s values in order, less ``seq``) are put in; batches come out. ``seq`` counts from 1.

    Args:
        epoch: names this life of the gateway.
        bound: most rows kept; beyond it the oldest is dropped, and counted.
    """

    def __init__(self, epoch: str, bound: int) -> None:
        self.epoch = epoch
        self.dropped = 0
        self._bound = bound
        self._last = 0
        self._rows: deque[tuple[Any, ...]] = deque()
        self._waiters: set[Waiter] = set()

    def __len__(self) -> int:
        return len(self._rows)

    def add(self, row: tuple[Any, ...]) -> None:
        """Keep a row. Rows and not `Record`s: making one costs as much as all the rest of a request's accounting."""
        if len(self._rows) >= self._bound:
            self._rows.popleft()
            self.dropped += 1
        self._last += 1
        self._rows.append((self._last, *row))
        if self._waiters:
            for waiter in self._waiters:
                waiter.wake(GATHER_SECONDS)

    def acknowledge(self, epoch: str, after: int) -> None:
        """Forget what a reader of this *epoch* has: the rows up to *after*."""
        if epoch == self.epoch:
            while self._rows and self._rows[0][0] <= after:
                self._rows.popleft()

    def batch(self) -> bytes:
        """The oldest rows kept, at most `BATCH`, as a `RecordBatch` in JSON."""
        records = [dict(zip(FIELDS, row, strict=True)) for row in islice(self._rows, BATCH)]
        return msgspec.json.encode({"epoch": self.epoch, "records": records, "dropped": self.dropped})

    def wait(self, seconds: float, answer: Callable[[], None]) -> Waiter:
        """Call *answer* once, when there is something to read or *seconds* have passed."""
        waiter = Waiter(self._waiters, answer)
        waiter.wake(seconds if not self._rows else GATHER_SECONDS if len(self._rows) < BATCH else 0.0)
        return waiter


class Waiter:
    """One reader that waits; it may give up with `cancel`."""

    def __init__(self, waiters: set[Waiter], answer: Callable[[], None]) -> None:
        self._loop = asyncio.get_running_loop()
        self._waiters = waiters
        self._answer = answer
        self._handle: asyncio.TimerHandle | None = None
        waiters.add(self)

    def wake(self, seconds: float) -> None:
        """Answer in *seconds*, or earlier if that was agreed before."""
        when = self._loop.time() + seconds
        if self._handle is not None:
            if self._handle.when() <= when:
                return
            self._handle.cancel()
        self._handle = self._loop.call_later(seconds, self._fire)

    def _fire(self) -> None:
        self.cancel()
        self._answer()

    def cancel(self) -> None:
        """Give up; nothing is answered any more."""
        self._waiters.discard(self)
        if self._handle is not None:
            self._handle.cancel()
            self._handle = None
