"""How a replica's server is started: where it listens, what it is to load, what it may take."""

from __future__ import annotations

import asyncio
import hashlib
import os
import socket
from pathlib import Path

from stoker.paths import Home
from stoker.types.registry import Version
from stoker.types.serving import Deployment, Replica
from stokerd.devices.inventory import Inventory
from stokerd.processes.environment import inherited
from stokerd.processes.states import Bounds, Command
from stokerd.serving.engines import engine_of
from stokerd.serving.engines.base import Engine, Launch
from stokerd.store.store import Store

OOM_SCORE_ADJ = 400
"""When the machine is out of memory, replicas go after the training runs, and before the gateway and the daemon."""


class Launcher:
    """Makes commands. ``python`` is the configured interpreter that has vllm."""

    def __init__(self, home: Home, store: Store, inventory: Inventory, python: str) -> None:
        self._home = home
        self._store = store
        self._inventory = inventory
        self._python = python

    def engine(self, deployment: Deployment) -> Engine:
        """The adapter of what serves *deployment*."""
        return engine_of(deployment.spec, self._python)

    def log_of(self, replica: str) -> Path:
        """The log of a replica's servers, the present one's last."""
        return self._home.replicas / replica / "log"

    async def problem(self, replica: Replica, deployment: Deployment) -> str:
        """What can be seen beforehand to go wrong, in one sentence; empty when nothing is."""
        folder = await self._weights(replica, deployment)
        if not folder.is_dir():
            return f"the model's folder {folder} is missing."
        return await asyncio.to_thread(self.engine(deployment).problem)

    def address(self, replica: Replica, deployment: Deployment) -> str:
        """Where the next server of *replica* is to listen."""
        if self.engine(deployment).needs_port():
            return f"127.0.0.1:{_free_port()}"
        return f"unix:{self._socket(replica.name)}"

    async def command(self, replica: Replica, deployment: Deployment) -> Command:
        """The process to start for *replica*, with the devices and address saved in it. Makes room for its socket."""
        engine = self.engine(deployment)
        path = self._socket(replica.name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.unlink(missing_ok=True)  # one left by a killed server makes vLLM fail after its whole start
        log_path = self.log_of(replica.name)
        log_path.parent.mkdir(parents=True, exist_ok=True)
        limits = deployment.spec.limits
        launch = Launch(
            deployment=deployment.name,
            version=replica.version,
            model=await self._weights(replica, deployment),
            socket=path,
            port=None if replica.address.startswith("unix:") else int(replica.address.rpartition(":")[2]),
            devices=tuple(replica.devices),
            log=log_path,
            inherited=inherited(os.environ),
            memory_share=self._memory_share(replica),
            options=await asyncio.to_thread(engine.options),
            bounds=Bounds(
                memory_bytes=limits.memory,
                processes=limits.processes,
                cpu_weight=limits.cpu_weight,
                oom_score_adj=OOM_SCORE_ADJ,
            ),
        )
        return engine.command(launch)

    def tidy(self, replica: Replica) -> None:
        """Remove what a server that has ended leaves lying about."""
        self._socket(replica.name).unlink(missing_ok=True)

    def _memory_share(self, replica: Replica) -> float | None:
        """Its part of the smallest of its devices; None when it has whole ones."""
        totals = [d.memory_total for d in self._inventory.devices() if d.uuid in replica.devices and d.memory_total]
        if replica.device_memory is None or not totals:
            return None
        return min(1.0, replica.device_memory / min(totals))

    async def _weights(self, replica: Replica, deployment: Deployment) -> Path:
        name = f"{deployment.spec.model}@{replica.version}"
        return Path((await self._store.read(lambda q: q.get(Version, name))).folder)

    def _socket(self, name: str) -> Path:
        """Short, since the kernel takes 107 bytes."""
        return self._home.sockets / f"{hashlib.sha256(name.encode()).hexdigest()[:12]}.sock"


def _free_port() -> int:
    """A free port of loopback; if another program takes it meanwhile, the start fails and is tried again."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
