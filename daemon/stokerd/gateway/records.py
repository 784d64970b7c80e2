"""Bounded buffers of what was measured, kept until the daemon says that it has it."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from itertools import islice
from typing import Any

import msgspec

from stokerd.gateway.wire import BATCH, RECORD_FIELDS

GATHER_SECONDS = 0.1
"""How long a reader that waits is left waiting after the first row, so that it gets many at once."""
HURRY_SECONDS = 0.02
"""The same after a row that somebody may have to act on."""
_encode = msgspec.json.Encoder().encode


class Buffer:
    """Rows that begin with their ``seq``, counted from 1, and wait for a reader. What a row is, its subclass knows.

    Args:
        epoch: names this life of the gateway.
    """

    def __init__(self, epoch: str) -> None:
        self.epoch = epoch
        self.dropped = 0
        self._last = 0
        self._last_urgent = 0
        self._rows: deque[Any] = deque()
        self._waiters: set[Waiter] = set()

    def __len__(self) -> int:
        return len(self._rows)

    def acknowledge(self, epoch: str, after: int) -> None:
        """Forget what a reader of this *epoch* has: the rows up to *after*."""
        if epoch == self.epoch:
            while self._rows and self._rows[0][0] <= after:
                self._forget()

    def _forget(self) -> None:
        self._rows.popleft()

    def wait(self, seconds: float, answer: Callable[[], None]) -> Waiter:
        """Call *answer* once, when there is something to read or *seconds* have passed."""
        waiter = Waiter(self._waiters, answer)
        waiter.wake(self.patience if self._rows else seconds)
        return waiter

    @property
    def fills_batch(self) -> bool:
        """There is as much as a reader gets at once."""
        return len(self._rows) >= BATCH

    @property
    def patience(self) -> float:
        """How many seconds whoever waits is left waiting, now that there are rows."""
        if self.fills_batch:
            return 0.0
        return HURRY_SECONDS if self._last_urgent >= self._rows[0][0] else GATHER_SECONDS

    def _wake(self) -> None:
        for waiter in self._waiters:
            waiter.wake(self.patience)

    def batch(self, *, as_rows: bool = False) -> bytes:
        """The oldest rows kept, in JSON; *as_rows*: in the short form, if there is one."""
        raise NotImplementedError


class Records(Buffer):
    """Rows (a `Record`'s values in order, less ``seq``) are put in; batches come out.

    Each is written as JSON when it is put in, as a rule after its answer has gone out: then nobody waits. Many at once
    would hold up requests while a reader is answered.

    Args:
        bound: most rows kept; beyond it the oldest is dropped, and counted.
    """

    def __init__(self, epoch: str, bound: int) -> None:
        super().__init__(epoch)
        self._bound = bound

    def add(self, row: tuple[Any, ...], *, is_urgent: bool = False) -> None:
        """Keep a row. Rows and not `Record`s: making one costs as much as all the rest of a request's accounting."""
        rows = self._rows
        if len(rows) >= self._bound:
            rows.popleft()
            self.dropped += 1
        encoded = _encode(row)
        self._last += 1
        rows.append((self._last, encoded))
        if is_urgent:
            self._last_urgent = self._last
            self._wake()
        elif len(rows) in (1, BATCH):  # whoever began to wait with others here has been woken
            self._wake()

    def batch(self, *, as_rows: bool = False) -> bytes:
        """The oldest rows kept, at most `BATCH`, as a `RecordBatch` in JSON. *as_rows*: without their fields' names."""
        found = [row for _, row in islice(self._rows, BATCH)]
        first = self._rows[0][0] if found else 0
        head = {"epoch": self.epoch, "dropped": self.dropped}
        if as_rows:
            return b'%b,"rows":[%b]}' % (_encode(head | {"first": first})[:-1], b",".join(found))
        records = [
            dict(zip(RECORD_FIELDS, (seq, *msgspec.json.decode(row)), strict=True))
            for seq, row in enumerate(found, first)
        ]
        return _encode(head | {"records": records})


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
