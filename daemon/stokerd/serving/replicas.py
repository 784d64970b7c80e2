"""Brings replicas forward: pending, starting, ready, and, when no longer wanted, draining, stopping, gone."""

from __future__ import annotations

import asyncio
import hashlib
import logging
import os
import socket
import time
from functools import partial
from pathlib import Path

from stoker.errors import StokerError, Unavailable
from stoker.paths import Home
from stoker.types.base import now
from stoker.types.registry import Version
from stoker.types.rollouts import Rollout
from stoker.types.serving import (
    BackingOff,
    Deployment,
    Draining,
    Pending,
    Ready,
    Replica,
    ReplicaFailed,
    Starting,
    Stopping,
)
from stokerd.devices import leases
from stokerd.devices.inventory import Inventory
from stokerd.processes.environment import inherited
from stokerd.processes.logs import tail_lines
from stokerd.processes.states import Absent, Alive, Command, Exited, Lost, ending
from stokerd.processes.supervisor import Supervisor
from stokerd.serving.engines import engine_of, launch_digest
from stokerd.serving.engines.base import Launch
from stokerd.serving.gateway import GatewayLink
from stokerd.serving.plan import HEALTHY_SECONDS, after_failure, drained, health, scale
from stokerd.serving.probe import answers
from stokerd.store.store import Store, Transaction

log = logging.getLogger(__name__)
PROCESS_PREFIX = "replica-"
GRACE_SECONDS = 10.0
_PATIENCE_SECONDS = 10.0
_HURRY_SECONDS = 0.2  # while something starts or drains


class Replicas:
    """The reconciler of deployments and their replicas. ``python`` is the configured interpreter that has vllm."""

    def __init__(
        self, home: Home, store: Store, supervisor: Supervisor, inventory: Inventory, gateway: GatewayLink, python: str
    ) -> None:
        self._home = home
        self._store = store
        self._supervisor = supervisor
        self._inventory = inventory
        self._gateway = gateway
        self._python = python
        self._probes: dict[str, asyncio.Task[tuple[bool, str]]] = {}
        self._looked_since: dict[str, float] = {}

    async def close(self) -> None:
        """Stop asking; the servers go on."""
        for probe in self._probes.values():
            probe.cancel()
        await asyncio.gather(*self._probes.values(), return_exceptions=True)

    def log_of(self, replica: str) -> Path:
        """The log of a replica's servers, the present one's last."""
        return self._home.root / "replicas" / replica / "log"

    async def step(self) -> float | None:
        """Compare what there should be with what there is, and take each replica's next step."""
        for deployment in await self._store.read(lambda q: q.all(Deployment)):
            await self._store.write(partial(self._scale, name=deployment.name))
        replicas, deployments = await self._store.read(
            lambda q: (q.all(Replica), {d.name: d for d in q.all(Deployment)})
        )
        async with asyncio.TaskGroup() as group:  # side by side: one that answers slowly holds nobody else up
            for replica in replicas:
                group.create_task(self._advance_safely(replica, deployments[replica.deployment]))
        await self._store.write(_report)
        self._sweep({getattr(r.state, "process", "") for r in replicas})
        return _HURRY_SECONDS if any(isinstance(r.state, Starting | Draining) for r in replicas) else None

    @staticmethod
    def _scale(tx: Transaction, name: str) -> None:
        deployment = tx.get(Deployment, name)
        rollout = tx.find(Rollout, deployment.rollout) if deployment.rollout else None
        replicas = tx.all(Replica, deployment=name)
        if deployment.deleting and not replicas:
            tx.delete(deployment, "DeploymentDeleted", f"deployment {name} is gone.")
            return
        change = scale(deployment, rollout, replicas)
        for version, index in change.create:
            replica = Replica(
                name=f"{name}-v{version}-{index}",
                deployment=name,
                version=version,
                index=index,
                launch_digest=launch_digest(deployment.spec),
            )
            tx.save(replica, "ReplicaCreated", f"{replica.name} is to serve version {version}.")
        for replica in replicas:
            if replica.name in change.retire:
                replica.wanted = False
                tx.save(replica, "ReplicaRetired", f"{replica.name} is no longer wanted.")

    async def _advance_safely(self, replica: Replica, deployment: Deployment) -> None:
        try:
            if replica.wanted:
                await self._advance(replica, deployment)
            else:
                await self._wind_down(replica, deployment)
        except Unavailable as error:  # no disk, no file table: nothing is known or decided, so it is tried again
            log.warning("replica %s is held up: %s", replica.name, error)
        except StokerError as error:  # it concerns this replica alone
            await self._failed(replica, deployment, str(error))
        except Exception as error:
            log.exception("replica %s", replica.name)
            await self._failed(replica, deployment, f"an error inside Stoker: {error!r}; the daemon's log has more")

    async def _advance(self, replica: Replica, deployment: Deployment) -> None:
        if replica.devices and isinstance(replica.state, Pending | BackingOff | ReplicaFailed):
            await self._give_devices_back(replica)
        match replica.state:
            case Pending():
                await self._begin(replica, deployment)
            case BackingOff(retry_at=retry_at):
                if retry_at <= now():
                    await self._begin(replica, deployment)
            case Starting(process=process):
                match self._supervisor.observe(process):
                    case Absent():
                        self._supervisor.start(process, await self._command(replica, deployment))
                    case Alive():
                        await self._look_for_readiness(replica, deployment, replica.state)
                    case Exited(was_asked=True) | Lost(by_reboot=True):
                        await self._again(replica)
                    case Exited() | Lost() as ended:
                        await self._failed(replica, deployment, f"{ending(ended)} while it started", with_log=True)
            case Ready(process=process, since=since):
                match self._supervisor.observe(process):
                    case Alive():
                        if replica.failures and (now() - since).total_seconds() > HEALTHY_SECONDS:
                            replica.failures = 0
                            await self._save(replica, replica.state)
                    case Exited(was_asked=True) | Lost(by_reboot=True):
                        await self._again(replica)
                    case Exited() | Lost() as ended:
                        await self._failed(replica, deployment, f"{ending(ended)} unasked", with_log=True)
                    case Absent():
                        await self._failed(replica, deployment, "its process is gone", with_log=True)

    def _lives(self, replica: Replica) -> bool:
        """Whether some server of *replica*, of now or before, is still there."""
        mine = [p for p in self._supervisor.ids() if p.rpartition("-")[0] == f"{PROCESS_PREFIX}{replica.name}"]
        return any(isinstance(self._supervisor.observe(p), Alive) for p in mine)

    async def _give_devices_back(self, replica: Replica) -> None:
        """A lease ends when its last process has, not before."""
        if not self._lives(replica):
            replica.devices = []
            await self._save(replica, replica.state)

    async def _again(self, replica: Replica) -> None:
        """Its server went down with the daemon (as an ephemeral one ends all) or the machine: no failure of its own."""
        await self._save(replica, Pending(), "ReplicaRestarting", f"{replica.name} is started again.")

    async def _begin(self, replica: Replica, deployment: Deployment) -> None:
        """Check what can be checked beforehand, take devices, and want a process."""
        if self._lives(replica):
            return  # the server before still ends; it may hold memory that the next one needs
        folder = Path((await self._store.read(lambda q: q.get(Version, _version_name(replica, deployment)))).folder)
        problem = "" if folder.is_dir() else f"the model's folder {folder} is missing."
        engine = engine_of(deployment.spec, self._python)
        problem = problem or await asyncio.to_thread(engine.problem)
        if problem:
            await self._failed(replica, deployment, problem)
            return
        address = f"127.0.0.1:{_free_port()}" if engine.needs_port() else f"unix:{self._socket(replica.name)}"

        def save(tx: Transaction) -> None:
            current = tx.find(Replica, replica.name)
            if current is None or current.state != replica.state or not current.wanted:
                return
            devices, why = leases.find(tx, self._inventory.devices(), deployment.spec.devices)
            if why:
                if current.state != Pending(message=why):
                    current.state = Pending(message=why)
                    tx.save(current, "ReplicaWaiting", f"{replica.name} waits: {why}")
                return
            current.starts += 1
            current.devices = devices
            current.address = address
            current.state = Starting(process=f"{PROCESS_PREFIX}{replica.name}-{current.starts}", since=now())
            tx.save(current, "ReplicaStarting", f"{replica.name} starts (start number {current.starts}).")

        await self._store.write(save)

    def _socket(self, name: str) -> Path:
        """Short, since the kernel takes 107 bytes."""
        return self._home.sockets / f"{hashlib.sha256(name.encode()).hexdigest()[:12]}.sock"

    async def _command(self, replica: Replica, deployment: Deployment) -> Command:
        folder = (await self._store.read(lambda q: q.get(Version, _version_name(replica, deployment)))).folder
        path = self._socket(replica.name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.unlink(missing_ok=True)  # one left by a killed server makes vLLM fail after its whole start
        log_path = self.log_of(replica.name)
        log_path.parent.mkdir(parents=True, exist_ok=True)
        port = None if replica.address.startswith("unix:") else int(replica.address.rpartition(":")[2])
        launch = Launch(
            deployment=deployment.name,
            version=replica.version,
            model=Path(folder),
            socket=path,
            port=port,
            devices=tuple(replica.devices),
            log=log_path,
            inherited=inherited(os.environ),
        )
        return engine_of(deployment.spec, self._python).command(launch)

    async def _look_for_readiness(self, replica: Replica, deployment: Deployment, state: Starting) -> None:
        """Take what the last probe said, and have one under way: no step waits for an inference."""
        probe = self._probes.pop(state.process, None)
        if probe is not None and not probe.done():
            self._probes[state.process] = probe
        is_ready, said = probe.result() if probe is not None and probe.done() else (False, "no answer yet")
        seconds = (now() - state.since).total_seconds()
        if is_ready:
            ready = Ready(process=state.process, since=now())
            await self._save(replica, ready, "ReplicaReady", f"{replica.name} answered after {seconds:.1f} s.")
            return
        # The daemon, or the whole machine, may have been away for longer than that: look for a while first.
        looked = time.monotonic() - self._looked_since.setdefault(state.process, time.monotonic())
        if seconds > deployment.spec.start_timeout and looked > min(deployment.spec.start_timeout, _PATIENCE_SECONDS):
            why = f"not ready within {deployment.spec.start_timeout:g} s ({said})"
            await self._failed(replica, deployment, why, with_log=True)
            return
        if state.process not in self._probes:
            probes = engine_of(deployment.spec, self._python).probes(deployment.name)
            self._probes[state.process] = asyncio.create_task(answers(replica.address, probes))
        lines = await asyncio.to_thread(tail_lines, self.log_of(replica.name), 1)
        message = lines[-1][:200] if lines else said
        if message != state.message:
            await self._save(replica, state.model_copy(update={"message": message}))

    async def _failed(self, replica: Replica, deployment: Deployment, why: str, *, with_log: bool = False) -> None:
        """Count the failure and back off, or give up. Whatever is left of the process is ended by the sweep."""
        lines = await asyncio.to_thread(tail_lines, self.log_of(replica.name), 5) if with_log else []
        if lines:
            why = f"{why.rstrip('.')}; last line: {lines[-1][:300]}"
        before = replica.model_copy()
        replica.failures += 1
        state = after_failure(replica, deployment.spec.restart.limit, why, now())
        reason = "ReplicaFailed" if isinstance(state, ReplicaFailed) else "ReplicaBackingOff"
        await self._save(replica, state, reason, f"{replica.name}: {why}", before=before, log=lines)

    async def _wind_down(self, replica: Replica, deployment: Deployment) -> None:
        match replica.state:
            case Ready(process=process):
                await self._save(
                    replica, Draining(process=process, since=now()), "ReplicaDraining", f"{replica.name} drains."
                )
            case Draining(process=process):
                flight = await self._gateway.in_flight(replica.address)
                if not isinstance(self._supervisor.observe(process), Alive) or drained(
                    replica, self._gateway.acknowledged, flight, deployment.spec.drain_timeout, now()
                ):
                    stopping = Stopping(process=process, since=now())
                    await self._save(
                        replica, stopping, "ReplicaStopping", f"{replica.name} stops; {flight or 0} in flight."
                    )
            case Starting(process=process):
                await self._save(
                    replica, Stopping(process=process, since=now()), "ReplicaStopping", f"{replica.name} stops."
                )
            case Stopping(process=process):
                if isinstance(self._supervisor.observe(process), Alive):
                    self._supervisor.stop(process, GRACE_SECONDS)
                else:
                    await self._delete(replica)
            case Pending() | BackingOff() | ReplicaFailed():
                await self._delete(replica)

    async def _delete(self, replica: Replica) -> None:
        self._socket(replica.name).unlink(missing_ok=True)
        await self._store.write(lambda tx: tx.delete(replica, "ReplicaStopped", f"{replica.name} is gone."))

    async def _save(
        self,
        replica: Replica,
        state: object,
        reason: str = "",
        message: str = "",
        *,
        before: Replica | None = None,
        **data: object,
    ) -> None:
        """Move *replica* to *state*, unless somebody else moved it meanwhile."""
        expected = (before or replica).state

        def save(tx: Transaction) -> None:
            current = tx.find(Replica, replica.name)
            if current is None or current.state != expected:
                return
            saved = replica.model_copy(update={"state": state, "wanted": current.wanted})
            tx.save(saved, reason, message, **data)

        await self._store.write(save)

    def _sweep(self, kept: set[str]) -> None:
        """End and forget processes that no replica speaks of any more."""
        for process in set(self._probes) - kept:
            self._probes.pop(process).cancel()
        for process in set(self._looked_since) - kept:
            del self._looked_since[process]
        self._supervisor.sweep(PROCESS_PREFIX, kept, GRACE_SECONDS)


def _report(tx: Transaction) -> None:
    """Sum up each deployment's health, with an event when it changes."""
    for deployment in tx.all(Deployment):
        phase, message = health(deployment, tx.all(Replica, deployment=deployment.name))
        if (deployment.phase, deployment.message) != (phase, message):
            reason = f"Deployment{phase.capitalize()}" if deployment.phase != phase else ""
            deployment.phase, deployment.message = phase, message  # type: ignore[assignment]
            tx.save(deployment, reason, f"deployment {deployment.name} is {phase}{': ' + message if message else ''}.")


def _version_name(replica: Replica, deployment: Deployment) -> str:
    return f"{deployment.spec.model}@{replica.version}"


def _free_port() -> int:
    """A free port of loopback; if another program takes it meanwhile, the start fails and is tried again."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
