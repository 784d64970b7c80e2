"""What all requests share: the table, the connections to replicas, the records, and what goes on now."""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Coroutine
from typing import Any, Protocol

from stokerd.gateway.limits import Limits
from stokerd.gateway.records import Records
from stokerd.gateway.routing import Table
from stokerd.gateway.upstream import Pool
from stokerd.gateway.wire import RouteTable


def say(sentence: str) -> None:
    """Write a line to the gateway's log, which is its stderr."""
    print(f"gateway: {sentence}", file=sys.stderr, flush=True)


class Expiring(Protocol):
    """Something with a deadline (monotonic; 0: none)."""

    deadline: float

    def expire(self) -> None:
        """The deadline has passed."""

    def waits(self) -> tuple[str, float] | None:
        """The replica whose next byte it waits for, and since when (monotonic); None: it waits for its client."""


class Gateway:
    """One gateway's state. Make it inside its running loop.

    Args:
        epoch: names this life of the gateway.
        table: what to serve until another is adopted.
    """

    def __init__(self, epoch: str, table: RouteTable, limits: Limits) -> None:
        self.limits = limits
        self.pool = Pool(limits)
        self.records = Records(epoch, limits.records)
        self.exchanges: set[Expiring] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self.adopt(table)

    def adopt(self, table: RouteTable) -> None:
        """Follow *table* from the next request on. Requests that go on are left in peace."""
        self.table = Table(table)
        self.adopted_at = int(time.time())
        self.pool.know(self.table.addresses())

    def spawn(self, work: Coroutine[Any, Any, None]) -> None:
        """Run a coroutine, owned here until it ends; what it raises is logged by the loop."""
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            loop = task.get_loop()
            loop.call_exception_handler({"message": "a task of the gateway failed", "exception": error, "task": task})

    def sweep(self, now: float) -> None:
        """Let overdue exchanges expire, and old idle connections go."""
        for exchange in [e for e in self.exchanges if 0.0 < e.deadline < now]:
            exchange.expire()
        self.pool.sweep(now)

    def waiting(self, now: float) -> dict[str, float]:
        """For how many seconds the request that waits longest at each replica has waited for the next byte."""
        longest: dict[str, float] = {}
        for exchange in self.exchanges:
            waits = exchange.waits()
            if waits is not None:
                address, since = waits
                longest[address] = max(longest.get(address, 0.0), now - since)
        return longest

    async def close(self) -> None:
        """End all tasks and idle connections."""
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self.pool.close()
