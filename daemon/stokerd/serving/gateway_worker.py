"""One worker of the gateway: its process, and the daemon's conversation with it."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import re
import time
from collections import Counter
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import httpx

from stoker.errors import Unavailable
from stokerd.backoff import backoff_seconds
from stokerd.gateway.wire import BATCH, WIRE_VERSION, RouteTable, parse_batch, parse_pairs
from stokerd.processes.logs import tail_lines
from stokerd.processes.states import Absent, Alive, Command, Exited, Lost, ending
from stokerd.processes.supervisor import Supervisor
from stokerd.reconciler import Reconciler
from stokerd.serving.asking import ask
from stokerd.serving.probe import client_for
from stokerd.telemetry.metrics import Metrics

log = logging.getLogger(__name__)
PROCESS_PREFIX = "gateway-"
AWAIT_TABLE_SECONDS = 2.0  # so long a new worker takes no client, but waits to hear of the present table
HANG_SECONDS = 15.0
START_SECONDS = 60.0  # as HANG_SECONDS, until it answers for the first time
_WAIT_SECONDS = 60.0  # for records: as long as the gateway lets one wait
_LAST_PAIRS_SECONDS = 30.0  # so long pairs are asked for after the table wants no more
_ASK_SECONDS = 5.0
_REFRESH_SECONDS = 1.0  # the most that one waits to hear of the present traffic
_DRAIN_ASK_SECONDS = 2.0  # it is asked again, and meanwhile all other replicas wait for the answer
_OLD_SECONDS = 5.0  # what it said longer ago is not what is
_CHECK_SECONDS = 15.0  # while all is well: whether it still answers
_HURRY_SECONDS = 0.1
_RETRY_SECONDS = 0.5
_BACKOFF_SECONDS = 0.5
_BACKOFF_CAP_SECONDS = 30.0
_FAILURES_TOLD = 5  # so many in a row, and it is said to have failed; it is tried again all the same
_HEALTHY_SECONDS = 60.0
_HANG_GRACE_SECONDS = 2.0
_NAME = re.compile(rf"{PROCESS_PREFIX}w(\d+)-(\d+)-([0-9a-f]{{8}})")


@dataclass(frozen=True, slots=True)
class WorkerName:
    """Which worker: its place among its kin, the digest of all settings, and the language that it speaks."""

    index: int
    settings: str
    wire: int = WIRE_VERSION

    @property
    def process(self) -> str:
        """The id under which it is supervised."""
        return f"{PROCESS_PREFIX}w{self.wire}-{self.index}-{self.settings}"

    def control(self, sockets: Path) -> Path:
        """Its control socket: of its own, as it may live beside the one that replaces it."""
        return sockets / f"gateway-{self.index}-{self.settings}.sock"

    @staticmethod
    def parse(process: str) -> WorkerName | None:
        """Read it from the id of a process; None for those of the first version, which had no workers."""
        found = _NAME.fullmatch(process)
        return WorkerName(int(found[2]), found[3], int(found[1])) if found else None


class Wanted:
    """The table that all workers are to follow."""

    def __init__(self, table: RouteTable) -> None:
        self.table = table

    @cached_property
    def body(self) -> bytes:
        """As it goes to each worker."""
        return json.dumps(self.table.as_dict()).encode()


def is_same(one: RouteTable, other: RouteTable) -> bool:
    """Whether both say the same, whatever their numbers are."""
    return (one.routes, one.keys, one.needs_key) == (other.routes, other.keys, other.needs_key)


class Owner(Protocol):
    """What a worker needs of the one who has all of them."""

    async def wanted(self) -> Wanted:
        """The present table."""

    def command(self, worker: GatewayWorker) -> Command | None:
        """How to start it; None: not yet, or never again."""

    async def heard(self, worker: GatewayWorker, reason: str, sentence: str, data: dict[str, Any]) -> None:
        """Its phase or message is another; with a *reason*, that is an event."""

    def measured(self) -> None:
        """New records were kept, or it is known now that there were none."""


class GatewayWorker:
    """Owns one process and the conversation with it, from `begin` to `close`.

    ``phase`` is starting, ready, backing-off or failed; ``message`` says why it is not ready. It is never given up:
    *failed* means that it ended again and again, and it is tried again each `_BACKOFF_CAP_SECONDS` (its starts are so
    far apart: one that had served for a while is back at once). One that lives but answers nothing for `HANG_SECONDS`
    is killed, and started again. ``acknowledged`` is the last table that it said it follows; None until it said so in
    this life.

    One that *is_leaving*, since others take its place, is neither started again nor spoken of: its phase is gone then.
    """

    def __init__(
        self, name: WorkerName, title: str, sockets: Path, log_file: Path, owner: Owner, supervisor: Supervisor,
        metrics: Metrics, *, is_leaving: bool = False,
    ) -> None:  # fmt: skip
        self.name = name
        self.title = title
        self.control = name.control(sockets)
        self.log = log_file
        self.phase = "starting"
        self.message = ""
        self.acknowledged: RouteTable | None = None
        self.is_recovering = False
        """It was said to be in trouble."""
        self._is_leaving = is_leaving
        self._owner = owner
        self._supervisor = supervisor
        self._metrics = metrics
        self._client = self._new_client()
        self._pushing = asyncio.Lock()
        self._state: dict[str, Any] = {}
        self._epoch = ""
        self._read_epoch = ""
        self.told_at = self._refreshed_at = -_OLD_SECONDS
        """When it last said what it does (monotonic)."""
        self._before: Counter[str] = Counter()  # pieces that came to earlier lives of it
        self._failures = 0
        self._started_at: float | None = None  # by this daemon
        self._retry_at = 0.0
        self._ready_since: float | None = None
        self._asked_at = time.monotonic()
        self._silent_seconds = 0.0
        self._is_late = False
        self._patience_seconds = HANG_SECONDS
        self._hang = ""
        self._dropped = 0
        self._pairs_until = 0.0
        self._life = Reconciler(f"gateway worker {name.index}", self._step)
        self._pulls = Reconciler(f"records of gateway worker {name.index}", self._pull_records)
        self._pair_pulls = Reconciler(f"pairs of gateway worker {name.index}", self._pull_pairs)
        self._tasks: list[asyncio.Task[None]] = []

    def begin(self, tasks: asyncio.TaskGroup) -> None:
        """Keep it running, and speak with it, from now on."""
        self._tasks = [tasks.create_task(r.run()) for r in (self._life, self._pulls, self._pair_pulls)]

    async def close(self) -> None:
        """End the conversation; the process goes on."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._client.aclose()

    def poke(self) -> None:
        """See at once how it does, and that it follows the present table."""
        self._life.poke()

    def suspect(self) -> None:
        """Somebody waited in vain for its answer: nobody else is to, until there is one."""
        self._is_late = True
        self._life.poke()

    # What it is and does.

    @property
    def process(self) -> str:
        """The id of its process."""
        return self.name.process

    @property
    def is_alive(self) -> bool:
        """It has a process."""
        return isinstance(self._supervisor.observe(self.process), Alive)

    @property
    def may_serve(self) -> bool:
        """It has a process that may have taken requests: one that was just started waits for its table first."""
        waits = self._started_at is not None and time.monotonic() - self._started_at < AWAIT_TABLE_SECONDS
        return self.is_alive and not (waits and not self._epoch)

    @property
    def is_unread(self) -> bool:
        """It may have measured something that is not kept yet: this daemon just came, or its disk is full."""
        return self.may_serve and not (self._epoch and self._epoch == self._read_epoch)

    @property
    def is_silent(self) -> bool:
        """It was asked, and has not answered in time."""
        return self._is_late or self._silent_seconds > 0

    @property
    def listen(self) -> str:
        """Where it takes clients, as it said; empty: nowhere."""
        return str(self._state.get("listen", ""))

    @property
    def is_busy(self) -> bool:
        """It has clients, as it said lately."""
        return time.monotonic() - self.told_at <= _OLD_SECONDS and bool(self._state.get("connections"))

    @property
    def problem(self) -> str:
        """What a person should see to, as it says."""
        return str(self._state.get("problem", ""))

    def waited(self, address: str) -> float | None:
        """How long the request that waits longest at *address* has waited, in seconds; None: it has not said lately."""
        if time.monotonic() - self.told_at > _OLD_SECONDS or "waiting" not in self._state:
            return None
        return float(self._state["waiting"].get(address, 0.0))

    def received(self, address: str) -> int:
        """How many pieces of answers ever came from *address*, as far as is known."""
        return self._before[address] + int(self._state.get("received", {}).get(address, 0))

    @property
    def pieces(self) -> Counter[str]:
        """That, of all addresses."""
        return self._before + Counter(self._state.get("received", {}))

    # Asking and telling.

    async def refresh(self, max_age_seconds: float) -> None:
        """Have it say what it does, unless it did, or was asked in vain, within *max_age_seconds*."""
        moment = time.monotonic()
        if moment - max(self.told_at, self._refreshed_at) < max_age_seconds:
            return
        self._refreshed_at = moment
        try:
            self._notice(await self._ask_state(_REFRESH_SECONDS))
        except httpx.HTTPError:
            self.suspect()

    async def in_flight(self, address: str) -> int | None:
        """How many requests it has under way at *address*; None when it doesn't answer."""
        try:
            state = await self._ask_state(_DRAIN_ASK_SECONDS)
        except httpx.HTTPError:
            return None
        return int(state["in_flight"].get(address, 0))

    async def push(self) -> None:
        """Hand the present table over if it doesn't follow it yet. Raises httpx.HTTPError when it doesn't answer."""
        async with self._pushing:
            wanted = await self._owner.wanted()
            if self._follows(wanted.table):
                self._notice(await self._ask_state(_ASK_SECONDS))
            if not self._follows(wanted.table):
                headers = {"content-type": "application/json"}
                response = await self._client.put("/routes", content=wanted.body, headers=headers)
                response.raise_for_status()
                self._notice(response.json())
            if self.acknowledged is not wanted.table:
                self.acknowledged = wanted.table
                if self._keeps_pairs():
                    self._pair_pulls.poke()

    def _follows(self, table: RouteTable) -> bool:
        mine = self.acknowledged
        return mine is not None and (mine is table or is_same(mine, table))

    def _notice(self, state: dict[str, Any]) -> None:
        """One of another life follows the table of its file, until it is told."""
        if state["epoch"] != self._epoch:
            self._end_epoch()
            self._epoch = str(state["epoch"])
            self._pairs_until = time.monotonic() + _LAST_PAIRS_SECONDS
            self._pulls.poke()
            self._pair_pulls.poke()
        self._state, self.told_at, self._is_late = state, time.monotonic(), False

    def _end_epoch(self) -> None:
        self._before.update(self._state.get("received", {}))
        self._state, self._epoch, self._dropped = {}, "", 0
        self.acknowledged = None

    async def _ask_state(self, seconds: float) -> dict[str, Any]:
        """What it says of itself, in few words for those who ask often. Raises httpx.TransportError."""
        head, _, body = (await ask(f"unix:{self.control}", "/state", seconds) or "").partition("\r\n\r\n")
        try:
            state: dict[str, Any] = json.loads(body if head.startswith("HTTP/1.1 200 ") else "")
        except ValueError:
            raise httpx.ReadError(f"no state was told within {seconds:g} s") from None
        return state

    def _new_client(self) -> httpx.AsyncClient:
        return client_for(f"unix:{self.control}", timeout=_ASK_SECONDS)

    # Its life.

    async def _step(self) -> float | None:
        """See that it runs, and that it follows the present table."""
        match self._supervisor.observe(self.process):
            case Absent() | Exited() | Lost() if self._is_leaving:
                self._end_epoch()
                self._supervisor.forget(self.process)
                await self._say("gone", "")
                return None
            case Absent():
                await self._start()
            case Alive():
                await self._converse()
            case Exited() | Lost() as ended:
                await self._ended(ended)
        return _CHECK_SECONDS if self.phase == "ready" else _HURRY_SECONDS

    async def _start(self) -> None:
        if time.monotonic() < self._retry_at or (command := self._owner.command(self)) is None:
            return
        self._started_at = time.monotonic()
        self._supervisor.start(self.process, command)
        await self._client.aclose()  # with its connections to the one before
        self._client = self._new_client()
        self._heard()
        self._patience_seconds = START_SECONDS

    async def _converse(self) -> None:
        """Hand over the table, and see from the answer, or its absence, how it does."""
        if not self._silent_seconds:
            self._asked_at = time.monotonic()  # nobody had asked since the last answer: that was no silence
        try:
            await self.push()
        except httpx.HTTPStatusError as error:
            self._heard()
            await self._say("starting", f"it refuses its table: {error.response.text[:200]}")
            return
        except httpx.HTTPError as error:
            if await self._answers():
                self._heard()
            if self.phase == "ready" or self._started_at is None:  # one that was just started may take its time
                await self._say("starting", f"it doesn't answer ({type(error).__name__}).")
            await self._end_if_it_hangs()
            return
        self._heard()
        if not self.listen:
            await self._say("starting", "it takes no clients.")
        elif self.phase != "ready" or self.message != self.problem:
            self._ready_since = self._ready_since or time.monotonic()
            await self._say("ready", self.problem)
        elif self._ready_since is not None and time.monotonic() - self._ready_since >= _HEALTHY_SECONDS:
            self._failures = 0

    async def _answers(self) -> bool:
        """Whether it answers anything: a table takes it as long as the machine makes it."""
        try:
            self._notice(await self._ask_state(_ASK_SECONDS))
        except httpx.HTTPError:
            return False
        return True

    def _heard(self) -> None:
        self._asked_at = time.monotonic()
        self._silent_seconds = 0.0
        self._patience_seconds = HANG_SECONDS

    async def _end_if_it_hangs(self) -> None:
        """Silence counts only while this daemon asks: after it was itself away, a worker has done nothing wrong."""
        moment = time.monotonic()
        self._silent_seconds += min(moment - self._asked_at, 3 * _ASK_SECONDS)
        self._asked_at = moment
        if self._silent_seconds < self._patience_seconds:
            return
        if not self._hang:
            hang = f"it lived, but answered nothing for {self._silent_seconds:.0f} s"
            sentence = f"{self.title} hangs: {hang}; it is killed and started again."
            await self._say("starting", hang, "GatewayUnreachable", sentence)
            self._hang = hang
        self._supervisor.stop(self.process, _HANG_GRACE_SECONDS)

    async def _ended(self, ended: Exited | Lost) -> None:
        """Say why it ended, and start it again: after a while, if it was not asked to end."""
        self._end_epoch()
        was_asked = isinstance(ended, Exited) and ended.was_asked
        if not self._hang and (was_asked or (isinstance(ended, Lost) and ended.by_reboot)):
            await self._say("starting", "")  # it went down with the daemon, or the machine: no failure of its own
            self._retry_at = 0.0
        else:
            seconds = await self._failed(self._hang or ending(ended), getattr(ended, "ended_at", None))
            self._retry_at = seconds + (time.monotonic() if self._started_at is None else self._started_at)
            self._failures += 1
        self._hang = ""
        self._silent_seconds = 0.0
        self._ready_since = None
        self._supervisor.forget(self.process)  # when all else is done: what fails until here is done again

    async def _failed(self, why: str, ended_at: float | None) -> float:
        """Say that it failed. Returns how many seconds its next start is to come after its last one."""
        lines = await asyncio.to_thread(tail_lines, self.log, 5)
        why += f"; last line: {lines[-1][:300]}" if lines else ""
        failures = self._failures + 1
        if failures >= _FAILURES_TOLD:
            sentence = (
                f"{self.title} failed {failures} times in a row: {why}; it is tried each {_BACKOFF_CAP_SECONDS:g} s."
            )
            await self._say("failed", why, "GatewayFailed", sentence, log=lines, ended_at=ended_at)
            return _BACKOFF_CAP_SECONDS
        sentence = f"{self.title} ended: {why}; it is started again."
        await self._say("backing-off", why, "GatewayFailed", sentence, log=lines, ended_at=ended_at)
        return backoff_seconds(self.process, failures, _BACKOFF_SECONDS, _BACKOFF_CAP_SECONDS)

    async def _say(self, phase: str, message: str, reason: str = "", sentence: str = "", **data: Any) -> None:
        if (self.phase, self.message) == (phase, message):
            return
        before = self.phase, self.message
        self.phase, self.message = phase, message
        try:
            await self._owner.heard(self, reason, sentence, data)
        except BaseException:  # it is said again
            self.phase, self.message = before
            raise
        self.is_recovering = phase != "ready" and (self.is_recovering or bool(reason))

    # What it measured.

    async def _pull_records(self) -> float | None:
        """Fetch the next records and keep them; the call after that acknowledges them. Returns when to call again.

        Raises `Unavailable` when they can't be kept: the worker keeps them meanwhile, as many as it can.
        """
        if not (epoch := self._epoch):
            return None
        wait = _WAIT_SECONDS if self._read_epoch == epoch else 0.0
        data = await self._fetch("/records", epoch, await self._metrics.last_record(epoch), wait)
        if data is None:
            return _RETRY_SECONDS
        batch = parse_batch(data)
        if batch.epoch == epoch and batch.records:
            try:
                await self._metrics.write_records(epoch, batch.records)
            except Unavailable:
                self._read_epoch = ""
                raise
        was_unread = self._read_epoch != epoch
        if batch.epoch == epoch and len(batch.records) < BATCH:
            self._read_epoch = epoch
        if batch.records or was_unread:
            self._owner.measured()
        if batch.epoch == epoch and batch.dropped > self._dropped:
            log.warning("%s had to drop %d records of requests", self.title, batch.dropped - self._dropped)
            self._dropped = batch.dropped
        return 0.0

    async def _pull_pairs(self) -> float | None:
        """As `_pull_records`, as long as any are kept."""
        moment = time.monotonic()
        if self._keeps_pairs():
            self._pairs_until = moment + _LAST_PAIRS_SECONDS
        wait = min(self._pairs_until - moment, _WAIT_SECONDS)
        if not (epoch := self._epoch) or wait <= 0:
            return None
        data = await self._fetch("/pairs", epoch, await self._metrics.last_pair(epoch), wait)
        if data is None:
            return _RETRY_SECONDS
        batch = parse_pairs(data)
        if batch.epoch == epoch and batch.pairs:
            await self._metrics.write_pairs(epoch, batch.pairs)
        return 0.0

    def _keeps_pairs(self) -> bool:
        return self.acknowledged is not None and any(route.keeps_shadow for route in self.acknowledged.routes)

    async def _fetch(self, path: str, epoch: str, after: int, wait: float) -> dict[str, Any] | None:
        params: dict[str, Any] = {"epoch": epoch, "after": after, "wait": wait, "as": "rows"}
        with contextlib.suppress(httpx.HTTPError):
            response = await self._client.get(path, params=params, timeout=wait + _ASK_SECONDS)
            response.raise_for_status()
            data: dict[str, Any] = response.json()
            return data
        return None
