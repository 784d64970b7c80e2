"""What all requests share: the table, the connections to replicas, who waits for one, records, and what goes on now."""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Coroutine, Sequence
from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING, Any, Protocol

from stokerd.gateway import balance
from stokerd.gateway.balance import Replica
from stokerd.gateway.callers import Callers
from stokerd.gateway.fairqueue import crowded_out
from stokerd.gateway.keys import Keyring
from stokerd.gateway.ledger import Ledger
from stokerd.gateway.limits import Limits
from stokerd.gateway.records import Records
from stokerd.gateway.routing import ArmPlan, Plan, Table
from stokerd.gateway.shadows import Pairs
from stokerd.gateway.upstream import Pool
from stokerd.gateway.wire import RouteTable

if TYPE_CHECKING:
    from stokerd.gateway.client_exchange import ClientExchange
    from stokerd.gateway.shadow_exchange import ShadowExchange


def say(sentence: str) -> None:
    """Write a line to the gateway's log, which is its stderr."""
    print(f"gateway: {sentence}", file=sys.stderr, flush=True)


class Expiring(Protocol):
    """Something with a deadline (monotonic; 0: none)."""

    deadline: float

    def expire(self) -> None:
        """The deadline has passed."""

    def break_off(self) -> None:
        """Nobody can wait for it any longer: the gateway ends."""

    def waits(self) -> tuple[str, float] | None:
        """The replica whose next byte it waits for, and since when (monotonic); None: it waits for its client."""


class Gateway:
    """One gateway's state. Make it inside its running loop.

    Args:
        epoch: names this life of the gateway.
        table: what to serve until another is adopted.
        state: the folder of what all workers share, over their restarts; None: this one shares nothing.
    """

    def __init__(self, epoch: str, table: RouteTable, limits: Limits, state: Path | None = None) -> None:
        self.limits = limits
        self.pool = Pool(limits)
        self.records = Records(epoch, limits.records)
        self.pairs = Pairs(epoch)
        self.callers = Callers(state)
        self.exchanges: set[Expiring] = set()
        self.shadows: set[ShadowExchange] = set()
        self._ledger = Ledger(state)
        self.crowded: set[Plan] = set()
        """Where requests wait."""
        self._is_serving = False
        self._tasks: set[asyncio.Task[None]] = set()
        self._follow(table)
        self.keyring = Keyring(table.keys, table.needs_key, self._ledger)

    def adopt(self, table: RouteTable) -> None:
        """Follow *table* from the next request on. Requests that go on are left in peace; those that wait follow it."""
        waiting = [exchange for plan in self.crowded for arm in plan.arms for exchange in arm.waiting]
        self.crowded.clear()
        old = self.table.source
        self._follow(table)
        if (old.keys, old.needs_key) != (table.keys, table.needs_key):
            self.keyring = Keyring(table.keys, table.needs_key, self._ledger)
        for exchange in waiting:
            exchange.resume()

    def _follow(self, table: RouteTable) -> None:
        self.table = Table(table, self.pool.replica)
        self.adopted_at = int(time.time())
        self.pool.know(self.table.addresses())
        if table.version:  # none is no reason to forget anybody: the daemon sends the next one
            self.callers.keep_only({plan.salt for plan in self.table.plans})

    @property
    def problem(self) -> str:
        """What of the shared state needs a person; empty: nothing."""
        return self.callers.problem or self._ledger.problem

    # Waiting for a replica.

    def enqueue(self, plan: Plan, arm: ArmPlan, who: object, exchange: ClientExchange) -> ClientExchange | None:
        """Let an exchange wait for a replica of *arm*; gives the one that has to leave for it, which may be itself."""
        room = plan.queue - plan.waiting()
        leaving = None
        if room <= 0:
            leaving = crowded_out([a.waiting for a in plan.arms], who, exchange) if plan.queue else exchange
        if leaving is not exchange:
            arm.waiting.put(who, exchange)
            self.crowded.add(plan)
        return leaving

    def look_again(self) -> None:
        """A replica may have room again: soon, let those that wait have it."""
        if self.crowded and not self._is_serving:
            self._is_serving = True
            asyncio.get_running_loop().call_soon(self._serve)

    def _serve(self) -> None:
        """Let those go on for whom there is room. Arms and deployments may share a replica: the one goes first whose
        next request has waited longest, so that none of them waits for the others.
        """
        self._is_serving = False
        now = monotonic()
        lines = [(plan, arm) for plan in self.crowded for arm in plan.arms if arm.waiting]
        for _ in range(sum(len(arm.waiting) for _, arm in lines)):
            lines = [
                (plan, arm)
                for plan, arm in lines
                if arm.waiting and balance.choose(arm.replicas, now, 0, slack=0, bound=plan.in_flight) is not None
            ]
            if not lines:
                break
            _, arm = min(lines, key=lambda line: line[1].waiting.first().waiting_since)
            arm.waiting.take().resume()
        self.crowded = {plan for plan in self.crowded if plan.waiting()}

    def replica_away(self) -> None:
        """Arms may have lost their last replica: what waits there goes elsewhere, or is held for a bounded time."""
        for plan in list(self.crowded):
            for arm in plan.arms:
                if not balance.is_served(arm.replicas):
                    for exchange in [e for e in arm.waiting if not e.is_held]:
                        exchange.resume()

    def break_off_shadow(self, replicas: Sequence[Replica]) -> bool:
        """End a copy that takes a place at one of these; whether there was one."""
        for shadow in self.shadows:
            if shadow.replica in replicas:
                shadow.abandon()
                return True
        return False

    # What goes on.

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

    def break_off(self) -> None:
        """End all requests: the process ends, and can wait for them no longer."""
        for exchange in list(self.exchanges):
            exchange.break_off()

    def sweep(self, now: float) -> None:
        """Let overdue exchanges expire, and old idle connections go."""
        for exchange in [e for e in self.exchanges if 0.0 < e.deadline < now]:
            if 0.0 < exchange.deadline < now:  # still: what expired before it may have changed that
                exchange.expire()
        self.pool.sweep(now)
        self.look_again()

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
        self.callers.close()
        self._ledger.close()
