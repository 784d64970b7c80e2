"""The daemon's side of the gateway: keeps its process running, hands it route tables, fetches what it measured."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from stoker.paths import Home
from stoker.types.rollouts import ACTIVE_PHASES, Rollout
from stoker.types.serving import Deployment, Replica
from stokerd.backoff import backoff_seconds
from stokerd.config import GatewayConfig
from stokerd.gateway.wire import WIRE_VERSION, RouteTable, parse_batch
from stokerd.processes.environment import inherited
from stokerd.processes.logs import tail_lines
from stokerd.processes.states import Absent, Alive, Bounds, Command, Exited, Lost, ending
from stokerd.processes.supervisor import Supervisor
from stokerd.serving.plan import route_table
from stokerd.serving.probe import client_for
from stokerd.store.store import Query, Store
from stokerd.telemetry.metrics import Metrics

_PUSH_SECONDS = 1.0
PROCESS_PREFIX = "gateway-"
_GRACE_SECONDS = 35.0  # it finishes what is in flight first
_WAIT_SECONDS = 5.0
_ASK_SECONDS = 5.0
_DRAIN_ASK_SECONDS = 2.0  # it is asked again, and meanwhile all other replicas wait for the answer
_BACKOFF_SECONDS = 0.5
_BACKOFF_CAP_SECONDS = 30.0
_FAILURES_TOLD = 5  # so many in a row, and it is said to have failed; it is tried again all the same
_HEALTHY_SECONDS = 60.0
HANG_SECONDS = 15.0
START_SECONDS = 60.0  # as HANG_SECONDS, until it answers for the first time
_HANG_GRACE_SECONDS = 2.0
_OLD_SECONDS = 5.0  # what the gateway said longer ago is not what is
_HURRY_SECONDS = 0.1


@dataclass(frozen=True, slots=True)
class Traffic:
    """What the gateway sees of one replica.

    ``waited_seconds``: how long the request that waits longest there has waited for its next byte; 0: none waits.
    ``received``: how many pieces of answers ever came from it.
    """

    waited_seconds: float
    received: int


class GatewayLink:
    """Owns the gateway's process and the conversation with it.

    ``phase`` is starting, ready, backing-off or failed; ``message`` says why it is not ready. A front door is never
    given up: *failed* means that it ended again and again, and it is tried again each `_BACKOFF_CAP_SECONDS` (its
    starts are so far apart: one that had served for a while is back at once). One that lives but answers nothing for
    `HANG_SECONDS` is killed, and started again. ``acknowledged`` is the last table that the gateway said it follows;
    None until it said so in this life.
    """

    def __init__(
        self, home: Home, config: GatewayConfig, first_byte_timeout: float, store: Store, supervisor: Supervisor,
        metrics: Metrics,
    ) -> None:  # fmt: skip
        self.phase = "starting"
        self.message = ""
        self.acknowledged: RouteTable | None = None
        self._home = home
        self._config = config
        self._first_byte_timeout = first_byte_timeout
        self._store = store
        self._supervisor = supervisor
        self._metrics = metrics
        self._control = f"unix:{home.sockets / 'gateway.sock'}"
        self._client = client_for(self._control, timeout=_ASK_SECONDS)
        self._pushing = asyncio.Lock()
        # Its settings are part of its name: after a change of them, the gateway that still runs is another one. So is
        # one that speaks another language than this daemon (the first one's name had no version).
        settings = f"{config.host} {config.port} {first_byte_timeout}".encode()
        wire = f"w{WIRE_VERSION}-" if WIRE_VERSION > 1 else ""
        self._process = f"{PROCESS_PREFIX}{wire}{hashlib.sha256(settings).hexdigest()[:8]}"
        self._epoch = ""
        self._failures = 0
        self._started_at = time.monotonic()
        self._retry_at: float = 0.0
        self._ready_since: float | None = None
        self._state: dict[str, Any] = {}
        self._told_at = 0.0
        self._asked_at: float | None = None
        self._silent_seconds = 0.0
        self._patience_seconds = HANG_SECONDS
        self._hang = ""
        self._listeners: list[Callable[[], None]] = []

    @property
    def log(self) -> Path:
        """The gateway's own log."""
        return self._home.gateway / "log"

    @property
    def url(self) -> str:
        """Base URL for OpenAI clients."""
        return f"http://{self._config.host}:{self._config.port}/v1"

    def on_records(self, listener: Callable[[], None]) -> None:
        """Call *listener* whenever new records were kept."""
        self._listeners.append(listener)

    async def close(self) -> None:
        """End the conversation; the gateway goes on."""
        await self._client.aclose()

    async def step(self) -> float | None:
        """See that the process runs, and that it follows the present table."""
        if self._supervisor.sweep(PROCESS_PREFIX, {self._process}, _GRACE_SECONDS):
            await self._say("starting", "the gateway of earlier settings still ends.")
            return _HURRY_SECONDS
        match self._supervisor.observe(self._process):
            case Absent():
                if time.monotonic() >= self._retry_at:
                    self._supervisor.start(self._process, self._command())
                    self._started_at = time.monotonic()
                    self._heard()
                    self._patience_seconds = START_SECONDS
            case Alive():
                await self._converse()
            case Exited() | Lost() as ended:
                await self._ended(ended)
        return None if self.phase == "ready" else _HURRY_SECONDS

    async def _converse(self) -> None:
        """Hand over the table, and see from the answer, or its absence, how the gateway does."""
        try:
            await self.push()
        except httpx.HTTPStatusError as error:
            self._heard()
            await self._say("starting", f"it refuses its table: {error.response.text[:200]}")
            return
        except httpx.HTTPError as error:
            if await self._is_alive():
                self._heard()
            if self.phase == "ready":
                await self._say("starting", f"it doesn't answer ({type(error).__name__}).")
            await self._end_if_it_hangs()
            return
        self._heard()
        if self.phase != "ready":
            self._ready_since = time.monotonic()
            await self._say("ready", "", "GatewayReady", f"the gateway serves {self.url}.")
        elif self._ready_since is not None and time.monotonic() - self._ready_since >= _HEALTHY_SECONDS:
            self._failures = 0

    async def _is_alive(self) -> bool:
        """Whether it answers anything: a table takes it as long as the disk takes to keep it."""
        try:
            self._notice(await self._get("/state"))
        except httpx.HTTPStatusError:
            return True
        except httpx.HTTPError:
            return False
        return True

    def _heard(self) -> None:
        self._asked_at = time.monotonic()
        self._silent_seconds = 0.0
        self._patience_seconds = HANG_SECONDS

    async def _end_if_it_hangs(self) -> None:
        """Silence counts only while this daemon asks: after it was itself away, a gateway has done nothing wrong."""
        moment = time.monotonic()
        if self._asked_at is not None:
            self._silent_seconds += min(moment - self._asked_at, 3 * _ASK_SECONDS)
        self._asked_at = moment
        if self._silent_seconds < self._patience_seconds:
            return
        if not self._hang:
            hang = f"it lived, but answered nothing for {self._silent_seconds:.0f} s"
            sentence = f"the gateway hangs: {hang}; it is killed and started again."
            await self._say("starting", hang, "GatewayUnreachable", sentence)
            self._hang = hang
        self._supervisor.stop(self._process, _HANG_GRACE_SECONDS)

    async def push(self) -> RouteTable:
        """Hand the present table over if the gateway doesn't follow it yet. Returns what it follows now.

        Raises httpx.TransportError when the gateway doesn't answer.
        """
        async with self._pushing:
            table = await self._store.read(_table)
            if self.acknowledged is not None and self.acknowledged.routes == table.routes:
                self._notice(await self._get("/state"))
            if self.acknowledged is None or self.acknowledged.routes != table.routes:
                response = await self._client.put("/routes", json=table.as_dict())
                response.raise_for_status()
                self._notice(response.json())
                self.acknowledged = table
            return self.acknowledged

    def traffic(self, address: str) -> Traffic | None:
        """What the gateway sees of the replica at *address*; None when it has not answered lately."""
        if time.monotonic() - self._told_at > _OLD_SECONDS or "waiting" not in self._state:
            return None
        waited, received = self._state["waiting"].get(address, 0.0), self._state["received"].get(address, 0)
        return Traffic(float(waited), int(received))

    async def push_soon(self) -> None:
        """Hand the present table over now if the gateway takes it within a second; else `step` does it when it can."""
        with contextlib.suppress(httpx.HTTPError, TimeoutError):
            await asyncio.wait_for(self.push(), _PUSH_SECONDS)

    def _notice(self, state: dict[str, Any]) -> None:
        """A gateway of another life follows the table of its file, until it is told."""
        self._state, self._told_at = state, time.monotonic()
        if state["epoch"] != self._epoch:
            self._epoch = str(state["epoch"])
            self.acknowledged = None

    async def in_flight(self, address: str) -> int | None:
        """How many requests the replica at *address* has under way; None when the gateway doesn't answer."""
        try:
            state = await self._get("/state", timeout=_DRAIN_ASK_SECONDS)
        except httpx.HTTPError:
            return None
        return int(state["in_flight"].get(address, 0))

    async def pull(self) -> float:
        """Fetch the next records and keep them; the call after that acknowledges them. Returns when to call again.

        Raises `Unavailable` when they can't be kept: the gateway keeps them meanwhile, as many as it can.
        """
        if not self._epoch:
            return _HURRY_SECONDS
        epoch = self._epoch
        after = await self._metrics.last_record(epoch)
        try:
            asked = {"epoch": epoch, "after": after, "wait": _WAIT_SECONDS}
            batch = parse_batch(await self._get("/records", asked, timeout=_WAIT_SECONDS + _ASK_SECONDS))
        except httpx.HTTPError:
            return _HURRY_SECONDS
        if batch.epoch == epoch and batch.records:
            await self._metrics.write_records(epoch, batch.records)
            for listener in self._listeners:
                listener()
        return 0.0

    async def _get(
        self, path: str, params: dict[str, Any] | None = None, *, timeout: float = _ASK_SECONDS
    ) -> dict[str, Any]:
        response = await self._client.get(path, params=params, timeout=timeout)
        response.raise_for_status()
        answer: dict[str, Any] = response.json()
        return answer

    async def _ended(self, ended: Exited | Lost) -> None:
        """Say why it ended, and start it again: after a while, if it was not asked to end."""
        self.acknowledged = None
        self._state = {}
        was_asked = isinstance(ended, Exited) and ended.was_asked
        if not self._hang and (was_asked or (isinstance(ended, Lost) and ended.by_reboot)):
            await self._say("starting", "")  # it went down with the daemon, or the machine: no failure of its own
            self._retry_at = 0.0
        else:
            self._retry_at = self._started_at + await self._failed(self._hang or ending(ended))
            self._failures += 1
        self._hang = ""
        self._ready_since = None
        self._supervisor.forget(self._process)  # when all else is done: what fails until here is done again

    async def _failed(self, why: str) -> float:
        """Say that it failed. Returns how many seconds its next start is to come after its last one."""
        lines = await asyncio.to_thread(tail_lines, self.log, 5)
        why += f"; last line: {lines[-1][:300]}" if lines else ""
        failures = self._failures + 1
        if failures >= _FAILURES_TOLD:
            sentence = (
                f"the gateway failed {failures} times in a row: {why}; it is tried each {_BACKOFF_CAP_SECONDS:g} s."
            )
            await self._say("failed", why, "GatewayFailed", sentence, log=lines)
            return _BACKOFF_CAP_SECONDS
        await self._say(
            "backing-off", why, "GatewayFailed", f"the gateway ended: {why}; it is started again.", log=lines
        )
        return backoff_seconds("gateway", failures, _BACKOFF_SECONDS, _BACKOFF_CAP_SECONDS)

    async def _say(self, phase: str, message: str, reason: str = "", sentence: str = "", **data: Any) -> None:
        if reason and (self.phase, self.message) != (phase, message):
            await self._store.write(lambda tx: tx.record("gateway", "gateway", reason, sentence, phase=phase, **data))
        self.phase, self.message = phase, message

    def _command(self) -> Command:
        self._home.gateway.mkdir(parents=True, exist_ok=True)
        self._home.sockets.mkdir(parents=True, exist_ok=True)
        argv = [sys.executable, "-m", "stokerd.gateway", "--listen", f"{self._config.host}:{self._config.port}"]
        argv += ["--control", self._control.removeprefix("unix:")]
        argv += ["--table-file", str(self._home.gateway / "routes.json")]
        argv += ["--limit", f"first_byte_seconds={self._first_byte_timeout:g}"]
        env = {k: v for k, v in inherited(os.environ).items() if not k.startswith(("CUDA_", "VLLM_"))}
        bounds = Bounds(oom_score_adj=0)  # it goes last, with the daemon
        return Command(argv=tuple(argv), cwd=str(self._home.gateway), env=env, log=str(self.log), bounds=bounds)


def _table(query: Query) -> RouteTable:
    rollouts = {r.name: r for r in query.all(Rollout, phase=ACTIVE_PHASES)}
    return route_table(query.last_event_id(), query.all(Deployment), query.all(Replica), rollouts)
