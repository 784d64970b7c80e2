"""The daemon's side of the gateway: keeps its workers running, hands them route tables, fetches what they measured."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
import sys
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import httpx

import stoker
from stoker.paths import Home
from stoker.types.keys import ApiKey
from stoker.types.registry import Model
from stoker.types.rollouts import ACTIVE_PHASES, Rollout
from stoker.types.serving import Deployment, Replica
from stokerd.config import GatewayConfig
from stokerd.gateway.handover import path_beside
from stokerd.gateway.sockets import LOOPBACK
from stokerd.gateway.wire import WIRE_VERSION, RouteTable
from stokerd.processes.environment import inherited
from stokerd.processes.states import Alive, Bounds, Command
from stokerd.processes.supervisor import Supervisor
from stokerd.serving.gateway_worker import (
    AWAIT_TABLE_SECONDS,
    PROCESS_PREFIX,
    GatewayWorker,
    Wanted,
    WorkerName,
    is_same,
)
from stokerd.serving.plan import Door, route_table
from stokerd.store.store import Query, Store, Transaction
from stokerd.telemetry.metrics import Metrics

__all__ = ["PROCESS_PREFIX", "GatewayLink", "Traffic"]

_PUSH_SECONDS = 0.5  # the most that one waits for workers that don't answer; the others have it in milliseconds
_GRACE_SECONDS = 3600.0  # a worker finishes what is in flight first; others serve meanwhile
_LEAVE_SECONDS = 45.0  # for one that was taken over from: it lets connections go by and by
_WATCH_SECONDS = 1.0
_HURRY_SECONDS = 0.1
_TOLD_BEFORE = 100  # events back, an end that was told already is to be found


@dataclass(frozen=True, slots=True)
class Traffic:
    """What the gateway sees of one replica.

    ``waited_seconds``: how long the request that waits longest there has waited for its next byte; 0: none waits.
    ``received``: how many pieces of answers ever came from it.
    """

    waited_seconds: float
    received: int


class GatewayLink:
    """Owns the gateway's workers.

    Their settings, and the package's version, are part of their names: after a change, those that still run are former
    ones. They serve on, and follow the table, until the new ones serve, which take over their listening sockets one
    after another; those that don't take part (other address, another language) end when all new ones serve.
    """

    def __init__(
        self, home: Home, config: GatewayConfig, first_byte_timeout: float, store: Store, supervisor: Supervisor,
        metrics: Metrics,
    ) -> None:  # fmt: skip
        self._home = home
        self._config = config
        self._first_byte_timeout = first_byte_timeout
        self._store = store
        self._supervisor = supervisor
        self._metrics = metrics
        self._door = _door(config)
        settings = f"{config!r} {first_byte_timeout} {stoker.__version__} {sys.executable}"
        self._settings = hashlib.sha256(settings.encode()).hexdigest()[:8]
        self._workers = [self._make(WorkerName(index, self._settings)) for index in range(config.workers)]
        self._former: dict[str, GatewayWorker | None] = {}  # by process; None: it speaks another language
        self._served_since: float | None = None  # when all present workers were seen to serve
        self._has_served = False
        self._received: Counter[str] = Counter()
        self._wanted: tuple[int, Wanted] | None = None  # and how much had been written by then
        self._reading = asyncio.Lock()
        self._telling = asyncio.Lock()
        self._refreshing = asyncio.Lock()
        self._pushes: set[asyncio.Task[None]] = set()
        self._listeners: list[Callable[[], None]] = []
        self._tasks: asyncio.TaskGroup | None = None
        self._has_begun = False

    def _make(self, name: WorkerName, *, is_leaving: bool = False) -> GatewayWorker:
        title = "the gateway" if self._config.workers == 1 else f"worker {name.index} of the gateway"
        home = self._home
        return GatewayWorker(
            name, title, home.sockets, self.log_of(name.index), self, self._supervisor, self._metrics,
            is_leaving=is_leaving,
        )  # fmt: skip

    async def close(self) -> None:
        """End the conversation; the gateway goes on."""
        for task in self._pushes:
            task.cancel()
        await asyncio.gather(*self._pushes, *(worker.close() for worker in self._all), return_exceptions=True)

    # What others see.

    @property
    def phase(self) -> str:
        """starting, ready (at least one worker serves), backing-off or failed (none serves, and one ended so)."""
        phases = {worker.phase for worker in self._workers}
        if "ready" in phases or self._is_served_by_former:
            return "ready"
        return next((phase for phase in ("failed", "backing-off") if phase in phases), "starting")

    @property
    def message(self) -> str:
        """Why not all is well; empty: it is."""
        troubles = [w for w in self._workers if w.phase != "ready" or w.message]
        if not troubles:
            return ""
        if len({(w.phase, w.message) for w in self._workers}) == 1:
            said = troubles[0].message
        else:
            said = "; ".join(
                f"worker {w.name.index}{'' if w.phase == 'ready' else f' is {w.phase}'}{w.message and f': {w.message}'}"
                for w in troubles
            )
        serving = sum(worker.phase == "ready" for worker in self._workers)
        if self.phase != "ready" or serving == len(self._workers):
            return said
        former = ", and former ones" if self._is_served_by_former else ""
        return f"{serving} of {len(self._workers)} workers serve{former}; {said}"

    @property
    def _is_served_by_former(self) -> bool:
        """Whether former workers take clients where the present ones are to."""
        port = f":{self._config.port}"
        return any(w is not None and w.phase == "ready" and w.listen.endswith(port) for w in self._former.values())

    @property
    def url(self) -> str:
        """Base URL for OpenAI clients."""
        scheme = "https" if self._config.tls_certificate else "http"
        host = f"[{self._config.host}]" if ":" in self._config.host else self._config.host
        return f"{scheme}://{host}:{self._config.port}/v1"

    def log_of(self, index: int) -> Path:
        """The log of one worker: each has its own, as a log has one writer."""
        return self._home.gateway / (f"log-{index}" if index else "log")

    def log_named(self, name: str) -> Path | None:
        """The log of the worker of that name, 0 to N; ``gateway`` is the first one's. None: there is none."""
        if name == "gateway":
            return self.log_of(0)
        path = self.log_of(int(name)) if name.isascii() and name.isdigit() and len(name) < 4 else None
        return path if path is not None and (int(name) < len(self._workers) or path.exists()) else None

    def on_records(self, listener: Callable[[], None]) -> None:
        """Call *listener* whenever new records were kept, and when a worker is no longer unread."""
        self._listeners.append(listener)

    @property
    def acknowledged(self) -> RouteTable | None:
        """The table that all workers that may serve said they follow; None while they differ, or have not said."""
        tables = [worker.acknowledged for worker in self._serving()]
        first = tables[0] if tables else None
        return first if all(table is first for table in tables) else None

    @property
    def is_unread(self) -> bool:
        """A worker may have measured something that could not be read yet."""
        return not self._has_begun or any(worker.is_unread for worker in self._all)

    async def in_flight(self, address: str) -> int | None:
        """How many requests the replica at *address* has under way; None when a worker doesn't say."""
        counts = await asyncio.gather(*(worker.in_flight(address) for worker in self._serving()))
        known = [count for count in counts if count is not None]
        return sum(known) if counts and len(known) == len(counts) else None

    async def present_traffic(self, address: str, max_age_seconds: float) -> Traffic | None:
        """What the workers see of the replica at *address*; None when none has answered lately.

        They are asked anew unless they told of it, or were asked in vain, within *max_age_seconds*.
        """
        async with self._refreshing:
            workers = [worker for worker in self._serving() if not worker.is_silent]
            await asyncio.gather(*(worker.refresh(max_age_seconds) for worker in workers))
        waits = [waited for worker in self._all if (waited := worker.waited(address)) is not None]
        if not waits:
            return None
        return Traffic(max(waits), self._received[address] + sum(worker.received(address) for worker in self._all))

    async def push(self) -> None:
        """Hand the present table to all workers that don't follow it yet.

        Raises httpx.HTTPError when one of them didn't take it within `_PUSH_SECONDS`, which delays no other; it gets it
        as soon as it answers.
        """
        serving = self._serving()
        if not serving:
            raise httpx.ConnectError("no worker of the gateway runs")
        pushes = {worker: self._begin_push(worker) for worker in serving if not worker.is_silent}
        if pushes:
            await asyncio.wait(pushes.values(), timeout=_PUSH_SECONDS)
        late = [worker for worker in serving if worker not in pushes or not pushes[worker].done()]
        for worker in late:
            worker.suspect()
        for worker, push in pushes.items():
            if worker not in late and (error := push.exception()) is not None and worker.may_serve:
                raise error
        if late:
            raise httpx.ReadTimeout(f"{late[0].title} doesn't answer")

    async def push_soon(self) -> None:
        """Hand the present table over now if the workers take it within a moment; else they get it when they can."""
        with contextlib.suppress(httpx.HTTPError):
            await self.push()

    def _begin_push(self, worker: GatewayWorker) -> asyncio.Task[None]:
        """A push that goes on for as long as it takes, whoever waits for it."""
        task = asyncio.create_task(worker.push())
        self._pushes.add(task)
        task.add_done_callback(partial(self._pushed, worker))
        return task

    def _pushed(self, worker: GatewayWorker, task: asyncio.Task[None]) -> None:
        self._pushes.discard(task)
        if not task.cancelled() and task.exception() is not None:
            worker.poke()  # to see what is the matter

    @property
    def _all(self) -> list[GatewayWorker]:
        return [*self._workers, *(worker for worker in self._former.values() if worker is not None)]

    def _serving(self) -> list[GatewayWorker]:
        return [worker for worker in self._all if worker.may_serve]

    # Keeping them.

    async def run(self) -> None:
        """Keep the workers, and speak with them, until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            self._tasks = tasks
            await asyncio.Event().wait()

    async def step(self) -> float | None:
        """See which workers there are, and have each look after itself."""
        if self._tasks is None:
            return _HURRY_SECONDS
        self._find_former(self._tasks)
        if not self._has_begun:  # not before it was seen whose place they take
            self._has_begun = True
            self._tidy()
            for worker in self._workers:
                worker.begin(self._tasks)
        for worker in self._all:
            worker.poke()
        await self._let_former_go()
        return _WATCH_SECONDS if self._former else None

    def _find_former(self, tasks: asyncio.TaskGroup) -> None:
        present = {worker.process for worker in self._workers}
        for process in self._supervisor.ids():
            if not process.startswith(PROCESS_PREFIX) or process in present or process in self._former:
                continue
            name = WorkerName.parse(process)
            worker = None
            if name is not None and name.wire == WIRE_VERSION:
                worker = self._make(name, is_leaving=True)
                worker.begin(tasks)
            self._former[process] = worker

    async def _let_former_go(self) -> None:
        """Have those end that aren't needed any more."""
        if not all(worker.phase == "ready" for worker in self._workers):
            self._served_since = None
        elif self._served_since is None:
            self._served_since = time.monotonic()
        for process, worker in list(self._former.items()):
            if worker is not None and worker.phase == "gone":
                await worker.close()
                self._received += worker.pieces
                self._bury(process)
            elif not isinstance(self._supervisor.observe(process), Alive):
                if worker is None:
                    self._supervisor.forget(process)
                    self._bury(process)
            elif self._may_go(process, worker):
                self._supervisor.stop(process, _GRACE_SECONDS)

    def _may_go(self, process: str, worker: GatewayWorker | None) -> bool:
        """Whether a former worker is to end now. One that was taken over from does so by itself, and is let."""
        if WorkerName.parse(process) is None:
            return True  # of the first version: it shares its port with nobody
        since = self._served_since
        if since is None:
            return False
        is_left_out = worker is not None and bool(worker.listen) and worker.told_at > since
        is_busy = worker is not None and worker.is_busy
        return is_left_out or (time.monotonic() - since > _LEAVE_SECONDS and not is_busy)

    def _bury(self, process: str) -> None:
        """Nothing is left of it."""
        del self._former[process]
        for path in self._sockets(process):
            path.unlink(missing_ok=True)  # a killed one leaves them

    def _tidy(self) -> None:
        """Remove the sockets of workers that an earlier daemon forgot just before it was killed."""
        processes = [*(worker.process for worker in self._workers), *self._former]
        kept = {path for process in processes for path in self._sockets(process)}
        for path in set(self._home.sockets.glob("gateway*.sock*")) - kept:
            path.unlink(missing_ok=True)

    def _sockets(self, process: str) -> tuple[Path, Path]:
        name = WorkerName.parse(process)
        control = name.control(self._home.sockets) if name else self._home.sockets / "gateway.sock"
        return control, path_beside(control)

    # What its workers need.

    async def wanted(self) -> Wanted:
        """What the rows say; they are read only if something was written since the last time."""
        async with self._reading:
            writes = self._store.writes
            if self._wanted is None or self._wanted[0] != writes:
                table = await self._store.read(partial(_table, door=self._door))
                before = self._wanted[1] if self._wanted else None
                self._wanted = (writes, before if before and is_same(before.table, table) else Wanted(table))
            return self._wanted[1]

    def command(self, worker: GatewayWorker) -> Command | None:
        """How to start a worker: as long as former ones serve, one after another, so that one that can't serve leaves
        the others alone.
        """
        if worker not in self._workers:
            return None
        former = [name for process in self._former if (name := WorkerName.parse(process)) is not None]
        if former and any(w.phase != "ready" for w in self._workers[: worker.name.index]):
            return None
        return self._command(worker, [n for n in former if n.index % len(self._workers) == worker.name.index])

    async def heard(self, worker: GatewayWorker, reason: str, sentence: str, data: dict[str, Any]) -> None:
        """Tell what concerns all."""
        if worker in self._workers:
            async with self._telling:
                await self._tell(worker, reason, sentence, data)
        if self._former:
            for other in self._workers:
                other.poke()  # its turn may have come

    async def _tell(self, worker: GatewayWorker, reason: str, sentence: str, data: dict[str, Any]) -> None:
        if worker.phase == "ready" and not self._has_served:
            reason, sentence = "GatewayReady", f"the gateway serves {self.url}."
        elif worker.phase == "ready" and worker.is_recovering:
            reason, sentence = "GatewayReady", f"{worker.title} serves again."
        if reason:
            data = {**data, "phase": self.phase, "worker": worker.name.index}
            await self._store.write(lambda tx: _record(tx, reason, sentence, data))
        self._has_served = any(each.phase == "ready" for each in self._workers)

    def measured(self) -> None:
        """New records were kept, or it is known now that there were none."""
        for listener in self._listeners:
            listener()

    def _command(self, worker: GatewayWorker, former: list[WorkerName]) -> Command:
        home, config = self._home, self._config
        home.gateway.mkdir(parents=True, exist_ok=True)
        home.sockets.mkdir(parents=True, exist_ok=True)
        argv = [sys.executable, "-m", "stokerd.gateway", "--listen", f"{config.host}:{config.port}"]
        argv += ["--control", str(worker.control)]
        argv += ["--table-file", str(home.gateway / "routes.json"), "--state", str(home.gateway)]
        argv += ["--await-table", f"{AWAIT_TABLE_SECONDS:g}"]
        for name in former:
            argv += ["--take-over", str(path_beside(name.control(home.sockets)))]
        if config.tls_certificate is not None:
            argv += ["--tls-certificate", str(home.root / config.tls_certificate)]
        if config.tls_key is not None:
            argv += ["--tls-key", str(home.root / config.tls_key)]
        argv += ["--limit", f"first_byte_seconds={self._first_byte_timeout:g}"]
        env = {k: v for k, v in inherited(os.environ).items() if not k.startswith(("CUDA_", "VLLM_"))}
        bounds = Bounds(oom_score_adj=0)  # it goes last, with the daemon
        return Command(argv=tuple(argv), cwd=str(home.gateway), env=env, log=str(worker.log), bounds=bounds)


def _record(tx: Transaction, reason: str, sentence: str, data: dict[str, Any]) -> None:
    """Tell of a worker; of an end once, also where a daemon was killed between telling and forgetting it."""
    ended_at = data.get("ended_at")
    told = tx.events(tx.last_event_id() - _TOLD_BEFORE, kind="gateway") if ended_at is not None else ()
    if not any((e.data.get("ended_at"), e.data.get("worker")) == (ended_at, data["worker"]) for e in told):
        tx.record("gateway", "gateway", reason, sentence, **data)


def _door(config: GatewayConfig) -> Door:
    """Whoever can reach only loopback is on this machine already, and needs no key unless the operator says so."""
    is_open = config.keys == "optional" or (config.keys == "auto" and config.host.startswith(("localhost", *LOOPBACK)))
    return Door(config.workers, needs_key=not is_open)


def _table(query: Query, door: Door) -> RouteTable:
    rollouts = {r.name: r for r in query.all(Rollout, phase=ACTIVE_PHASES)}
    models = {m.name: m for m in query.all(Model)}
    deployments, replicas, keys = query.all(Deployment), query.all(Replica), query.all(ApiKey)
    return route_table(query.last_event_id(), deployments, replicas, rollouts, models, keys, door)
