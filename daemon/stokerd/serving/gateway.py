"""The daemon's side of the gateway: keeps its process running, hands it route tables, fetches what it measured."""

from __future__ import annotations

import asyncio
import hashlib
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx

from stoker.paths import Home
from stoker.types.rollouts import ACTIVE_PHASES, Rollout
from stoker.types.serving import Deployment, Replica
from stokerd.config import GatewayConfig
from stokerd.gateway.wire import RouteTable, parse_batch
from stokerd.processes.environment import inherited
from stokerd.processes.logs import tail_lines
from stokerd.processes.states import Absent, Alive, Command, Exited, Lost
from stokerd.processes.supervisor import Supervisor
from stokerd.serving.plan import route_table
from stokerd.serving.probe import client_for
from stokerd.store.store import Query, Store
from stokerd.telemetry.metrics import Metrics

PROCESS_PREFIX = "gateway-"
_GRACE_SECONDS = 35.0  # it finishes what is in flight first
_WAIT_SECONDS = 5.0
_BACKOFF_CAP_SECONDS = 30.0
_HURRY_SECONDS = 0.1


class GatewayLink:
    """Owns the gateway's process and the conversation with it.

    ``phase`` is starting, ready, backing-off; ``message`` says why it is not ready. ``acknowledged`` is the last table
    that the gateway said it follows; None until it said so in this life.
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
        self._client = client_for(self._control, timeout=_WAIT_SECONDS + 5)
        self._pushing = asyncio.Lock()
        # Its settings are part of its name: after a change of them, the gateway that still runs is another one.
        settings = f"{config.host} {config.port} {first_byte_timeout}".encode()
        self._process = f"{PROCESS_PREFIX}{hashlib.sha256(settings).hexdigest()[:8]}"
        self._epoch = ""
        self._failures = 0
        self._retry_at: float = 0.0
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
                if asyncio.get_running_loop().time() >= self._retry_at:
                    self._supervisor.start(self._process, self._command())
            case Alive():
                try:
                    await self.push()
                    if self.phase != "ready":
                        await self._say("ready", "", "GatewayReady", f"the gateway serves {self.url}.")
                    self._failures = 0
                except httpx.HTTPStatusError as error:
                    await self._say("starting", f"it refuses its table: {error.response.text[:200]}")
                except httpx.HTTPError as error:
                    if self.phase == "ready":
                        await self._say("starting", f"it doesn't answer ({type(error).__name__}).")
            case Exited() | Lost() as ended:
                await self._ended(ended)
        return None if self.phase == "ready" else _HURRY_SECONDS

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

    def _notice(self, state: dict[str, Any]) -> None:
        """A gateway of another life follows the table of its file, until it is told."""
        if state["epoch"] != self._epoch:
            self._epoch = str(state["epoch"])
            self.acknowledged = None

    async def in_flight(self, address: str) -> int | None:
        """How many requests the replica at *address* has under way; None when the gateway doesn't answer."""
        try:
            return int((await self._get("/state"))["in_flight"].get(address, 0))
        except httpx.HTTPError:
            return None

    async def pull(self) -> float:
        """Fetch the next records and keep them; the call after that acknowledges them. Returns when to call again.

        Raises `Unavailable` when they can't be kept: the gateway keeps them meanwhile, as many as it can.
        """
        if not self._epoch:
            return _HURRY_SECONDS
        epoch = self._epoch
        after = await self._metrics.last_record(epoch)
        try:
            batch = parse_batch(await self._get("/records", {"epoch": epoch, "after": after, "wait": _WAIT_SECONDS}))
        except httpx.HTTPError:
            return _HURRY_SECONDS
        if batch.epoch == epoch and batch.records:
            await self._metrics.write_records(epoch, batch.records)
            for listener in self._listeners:
                listener()
        return 0.0

    async def _get(self, path: str, params: dict[str, Any] | None = None) -> dict[str, Any]:
        response = await self._client.get(path, params=params)
        response.raise_for_status()
        answer: dict[str, Any] = response.json()
        return answer

    async def _ended(self, ended: Exited | Lost) -> None:
        """It was not asked to end: start it again after a while, and say why it ended."""
        lines = await asyncio.to_thread(tail_lines, self.log, 1)
        why = lines[-1] if lines else str(ended)
        self._supervisor.forget(self._process)
        self._failures += 1
        seconds = min(2.0 ** min(self._failures - 1, 16), _BACKOFF_CAP_SECONDS)
        self._retry_at = asyncio.get_running_loop().time() + seconds
        self.acknowledged = None
        await self._say("backing-off", why, "GatewayFailed", f"the gateway ended: {why}; again in {seconds:g} s.")

    async def _say(self, phase: str, message: str, reason: str = "", sentence: str = "") -> None:
        repeated = (self.phase, self.message) == (phase, message)
        self.phase, self.message = phase, message
        if reason and not repeated:
            await self._store.write(lambda tx: tx.record("gateway", "gateway", reason, sentence, phase=phase))

    def _command(self) -> Command:
        self._home.gateway.mkdir(parents=True, exist_ok=True)
        self._home.sockets.mkdir(parents=True, exist_ok=True)
        argv = [sys.executable, "-m", "stokerd.gateway", "--listen", f"{self._config.host}:{self._config.port}"]
        argv += ["--control", self._control.removeprefix("unix:")]
        argv += ["--table-file", str(self._home.gateway / "routes.json")]
        argv += ["--limit", f"first_byte_seconds={self._first_byte_timeout:g}"]
        env = {k: v for k, v in inherited(os.environ).items() if not k.startswith(("CUDA_", "VLLM_"))}
        return Command(argv=tuple(argv), cwd=str(self._home.gateway), env=env, log=str(self.log))


def _table(query: Query) -> RouteTable:
    rollouts = {r.name: r for r in query.all(Rollout, phase=ACTIVE_PHASES)}
    return route_table(query.last_event_id(), query.all(Deployment), query.all(Replica), rollouts)
