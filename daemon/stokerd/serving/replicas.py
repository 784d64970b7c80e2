"""Brings replicas forward: pending, starting, ready, and, when no longer wanted, draining, stopping, gone."""

from __future__ import annotations

import asyncio
import logging
import time
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

from stoker.errors import StokerError, Unavailable
from stoker.paths import Home
from stoker.types.base import now
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
    Unwell,
)
from stokerd.clock import Elapsed
from stokerd.devices import leases
from stokerd.devices.handback import Handbacks
from stokerd.devices.inventory import Inventory
from stokerd.processes.logs import log_end, tail_lines
from stokerd.processes.states import Absent, Alive, Exited, Lost, ending
from stokerd.processes.supervisor import Supervisor
from stokerd.serving.engines import launch_digest
from stokerd.serving.gateway import GatewayLink
from stokerd.serving.health import GivenUp, Sick, Well, diagnose, look_interval
from stokerd.serving.launching import Launcher
from stokerd.serving.looks import ASK_SECONDS, Looks, look_at
from stokerd.serving.plan import after_failure, drained, health, is_let_off, scale
from stokerd.serving.probe import answers
from stokerd.store.store import Store, Transaction

log = logging.getLogger(__name__)
PROCESS_PREFIX = "replica-"
GRACE_SECONDS = 10.0  # from SIGTERM to SIGKILL: ENGINE_DRAIN_SECONDS, and as long again to take itself down
_PATIENCE_SECONDS = 10.0
_HURRY_SECONDS = 0.2  # while something starts or drains
_PROGRESS_LINES = 20
_LAST_WORDS = 5


class Replicas:
    """The reconciler of deployments and their replicas. ``python`` is the configured interpreter that has vllm."""

    def __init__(
        self, home: Home, store: Store, supervisor: Supervisor, inventory: Inventory, gateway: GatewayLink, python: str
    ) -> None:
        self._store = store
        self._supervisor = supervisor
        self._inventory = inventory
        self._gateway = gateway
        self._launcher = Launcher(home, store, inventory, python)
        self._handbacks = Handbacks("replica", store, inventory)
        self._looks = Looks()
        self._elapsed = Elapsed()
        self._probes: dict[str, asyncio.Task[tuple[bool, str]]] = {}
        self._looked_since: dict[str, float] = {}
        self._log_begins: dict[str, int] = {}

    async def close(self) -> None:
        """Stop asking; the servers go on."""
        await self._looks.close()
        for probe in self._probes.values():
            probe.cancel()
        await asyncio.gather(*self._probes.values(), return_exceptions=True)

    def log_of(self, replica: str) -> Path:
        """The log of a replica's servers, the present one's last."""
        return self._launcher.log_of(replica)

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
        self._sweep(replicas)
        return _next_look(replicas)

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
        match replica.state:
            case Pending() | ReplicaFailed() | BackingOff() as state:
                if not await self._is_released(replica):
                    return  # the server before still ends, or its memory: the next one may need it
                if replica.devices:
                    replica.devices, replica.device_memory = [], None
                    await self._save(replica, state)
                if self._is_due(replica, deployment):
                    await self._begin(replica, deployment)
            case Starting(process=process) as state:
                match self._supervisor.observe(process):
                    case Absent():
                        command = await self._launcher.command(replica, deployment)
                        self._log_begins[process] = await asyncio.to_thread(log_end, self.log_of(replica.name))
                        self._supervisor.start(process, command)
                    case Alive():
                        await self._look_for_readiness(replica, deployment, state)
                    case Exited() | Lost() as ended:
                        await self._ended(replica, deployment, ended, "while it started")
            case Ready(process=process) | Unwell(process=process) as state:
                match self._supervisor.observe(process):
                    case Alive():
                        await self._look_after(replica, deployment, state)
                    case Exited() | Lost() as ended:
                        await self._ended(replica, deployment, ended, "unasked")
                    case Absent():
                        await self._failed(replica, deployment, "its process is gone", with_log=True)

    # Starting.

    def _lives(self, replica: Replica) -> bool:
        """Whether some server of *replica*, of now or before, is still there."""
        mine = [p for p in self._supervisor.ids() if p.rpartition("-")[0] == f"{PROCESS_PREFIX}{replica.name}"]
        return any(isinstance(self._supervisor.observe(p), Alive) for p in mine)

    async def _is_released(self, replica: Replica) -> bool:
        """Whether nothing of *replica* runs any more, and its devices are free: a lease ends then, and not before."""
        if self._lives(replica):
            self._handbacks.runs(replica.name)
            return False
        return await self._handbacks.is_done(replica.name, replica.devices)

    def _is_due(self, replica: Replica, deployment: Deployment) -> bool:
        match replica.state:
            case Pending():
                return True
            case BackingOff(retry_at=retry_at):
                return self._elapsed.has_come(replica.name, retry_at, deployment.spec.restart.backoff_cap)
        return False

    async def _begin(self, replica: Replica, deployment: Deployment) -> None:
        """Take devices, check what can be checked beforehand, and want a process."""
        request = leases.Request(deployment.spec.devices, deployment.spec.device_memory)
        _, why = await self._store.read(lambda q: leases.find(q, self._inventory.devices(), request))
        if why:  # found out before anything is started: it may wait here for days
            await self._wait(replica, why)
            return
        problem = await self._launcher.problem(replica, deployment)
        if problem:
            await self._failed(replica, deployment, problem)
            return
        address = self._launcher.address(replica, deployment)

        def save(tx: Transaction) -> None:
            current = tx.find(Replica, replica.name)
            if current is None or current.state != replica.state or not current.wanted:
                return
            devices, why = leases.find(tx, self._inventory.devices(), request)
            if why:
                return  # somebody else was faster; the next step says so
            current.starts += 1
            current.devices = devices
            current.device_memory = request.memory if devices else None
            current.address = address
            current.state = Starting(process=f"{PROCESS_PREFIX}{replica.name}-{current.starts}", since=now())
            tx.save(current, "ReplicaStarting", f"{replica.name} starts (start number {current.starts}).")

        await self._store.write(save)

    async def _wait(self, replica: Replica, why: str) -> None:
        waiting = Pending(message=why)
        if replica.state != waiting:
            await self._save(replica, waiting, "ReplicaWaiting", f"{replica.name} waits: {why}")

    async def _look_for_readiness(self, replica: Replica, deployment: Deployment, state: Starting) -> None:
        """Ready means that an inference was answered; until then, say how far it is, and for how long it may try."""
        is_ready, said = self._inference(state.process, replica, deployment)
        seconds = self._elapsed.since(state.process, state.since)
        if is_ready:
            ready = Ready(process=state.process, since=now())
            await self._save(replica, ready, "ReplicaReady", f"{replica.name} answered after {seconds:.1f} s.")
            await self._gateway.push_soon()  # a deployment that says "ready" should be served
            return
        # The daemon, or the whole machine, may have been away for longer than that: look for a while first.
        looked = time.monotonic() - self._looked_since.setdefault(state.process, time.monotonic())
        timeout = deployment.spec.start_timeout
        if seconds > timeout and looked > min(timeout, _PATIENCE_SECONDS):
            await self._failed(replica, deployment, f"not ready within {timeout:g} s ({said})", with_log=True)
            return
        lines = await self._said(replica, state.process, _PROGRESS_LINES)
        message = self._launcher.engine(deployment).progress(lines)[:200] or said
        if message != state.message:
            await self._save(replica, state.model_copy(update={"message": message}))

    async def _said(self, replica: Replica, process: str, count: int) -> list[str]:
        """The last lines of *process*, and not those of the server before it, which the log has too."""
        begin = self._log_begins.get(process, 0)  # not known of one that an earlier daemon started
        return await asyncio.to_thread(tail_lines, self.log_of(replica.name), count, since=begin)

    def _inference(self, process: str, replica: Replica, deployment: Deployment) -> tuple[bool, str]:
        """What the last real inference came to; one is kept under way until one is answered. No step waits for it."""
        probe = self._probes.get(process)
        is_answered, said = probe.result() if probe is not None and probe.done() else (False, "no answer yet")
        if is_answered:
            del self._probes[process]
        elif probe is None or probe.done():
            probes = self._launcher.engine(deployment).probes(deployment.name)
            self._probes[process] = asyncio.create_task(answers(replica.address, probes))
        return is_answered, said

    # Being ready.

    async def _look_after(self, replica: Replica, deployment: Deployment, state: Ready | Unwell) -> None:
        """See that it still serves: `health` says what its looks come to."""
        process, engine, spec = state.process, self._launcher.engine(deployment), deployment.spec
        is_healthy = isinstance(state, Ready) and self._elapsed.since(process, state.since) > spec.restart.healthy_after
        if replica.failures and is_healthy:
            replica.failures = 0
            await self._save(replica, state)
        condition = state.phase
        traffic = partial(self._gateway.traffic, replica.address)
        vitals = self._looks.vitals(
            process,
            condition,
            look_interval(spec.stall_timeout),
            lambda: asyncio.create_task(look_at(replica.address, engine, condition, traffic, ASK_SECONDS)),
        )
        if condition == "stalled" and self._inference(process, replica, deployment)[0]:
            await self._recovered(replica, state)
            return
        if vitals is None:
            return
        match diagnose(vitals, condition, spec.stall_timeout):
            case Sick(phase=phase, seconds=seconds, why=why):
                unwell = Unwell(
                    phase=phase,
                    process=process,
                    since=now() - timedelta(seconds=seconds),
                    ready_since=state.since if isinstance(state, Ready) else state.ready_since,
                    message=why,
                )
                said = f"{replica.name} gets no more requests: {why}."
                evidence: dict[str, Any] = {"steps": vitals.steps, "waited_seconds": vitals.waited_seconds}
                await self._save(replica, unwell, f"Replica{phase.capitalize()}", said, seconds=seconds, **evidence)
            case Well():
                await self._recovered(replica, state)
            case GivenUp(why=why):
                await self._failed(replica, deployment, why, with_log=True)

    async def _recovered(self, replica: Replica, state: Ready | Unwell) -> None:
        seconds = self._elapsed.since(state.process, state.since)
        self._looks.begin_anew(state.process)
        if (probe := self._probes.pop(state.process, None)) is not None:
            probe.cancel()
        ready = Ready(process=state.process, since=now())
        said = f"{replica.name} serves again, after it was {state.phase} for {seconds:.0f} s."
        await self._save(replica, ready, "ReplicaRecovered", said)
        await self._gateway.push_soon()

    # Ends.

    async def _ended(self, replica: Replica, deployment: Deployment, ended: Exited | Lost, when: str) -> None:
        """A server ends by itself only when something is wrong, whatever its exit code says."""
        if (isinstance(ended, Exited) and ended.was_asked) or (isinstance(ended, Lost) and ended.by_reboot):
            # It went down with the daemon (as an ephemeral one ends all) or the machine: no failure of its own.
            await self._save(replica, Pending(), "ReplicaRestarting", f"{replica.name} is started again.")
            return
        if isinstance(replica.state, Ready):
            seconds = self._elapsed.since(replica.state.process, replica.state.since)
            if is_let_off(deployment.spec.restart, ended, seconds):
                said = f"{replica.name} is started again: {ending(ended)}, and is to run always."
                await self._save(replica, Pending(), "ReplicaRestarting", said)
                return
        await self._failed(replica, deployment, f"{ending(ended)} {when}", with_log=True)

    async def _failed(self, replica: Replica, deployment: Deployment, why: str, *, with_log: bool = False) -> None:
        """Count the failure and back off, or give up. Whatever is left of the process is ended by the sweep."""
        process = getattr(replica.state, "process", "")
        lines = await self._said(replica, process, _LAST_WORDS) if with_log else []
        if lines:
            why = f"{why.rstrip('.')}; last line: {lines[-1][:300]}"
        before = replica.model_copy()
        replica.failures += 1
        state = after_failure(replica, deployment.spec.restart, why, now())
        reason = "ReplicaFailed" if isinstance(state, ReplicaFailed) else "ReplicaBackingOff"
        await self._save(replica, state, reason, f"{replica.name}: {state.message}", before=before, log=lines)

    async def _wind_down(self, replica: Replica, deployment: Deployment) -> None:
        match replica.state:
            case Ready(process=process) | Unwell(process=process):
                draining = Draining(process=process, since=now())
                await self._save(replica, draining, "ReplicaDraining", f"{replica.name} drains.")
            case Draining(process=process, since=since):
                flight = await self._gateway.in_flight(replica.address)
                waited = self._elapsed.since(process, since)
                if not isinstance(self._supervisor.observe(process), Alive) or drained(
                    replica, self._gateway.acknowledged, flight, deployment.spec.drain_timeout, waited
                ):
                    await self._stop(replica, process, f"{replica.name} stops; {flight or 0} in flight.")
            case Starting(process=process):
                await self._stop(replica, process, f"{replica.name} stops.")
            case Stopping(process=process):
                if isinstance(self._supervisor.observe(process), Alive):
                    self._supervisor.stop(process, GRACE_SECONDS)
                elif await self._is_released(replica):
                    await self._delete(replica)
            case Pending() | BackingOff() | ReplicaFailed():
                if await self._is_released(replica):
                    await self._delete(replica)

    async def _stop(self, replica: Replica, process: str, said: str) -> None:
        await self._save(replica, Stopping(process=process, since=now()), "ReplicaStopping", said)

    async def _delete(self, replica: Replica) -> None:
        self._launcher.tidy(replica)
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

    def _sweep(self, replicas: list[Replica]) -> None:
        """End and forget processes that no replica speaks of any more."""
        kept = {getattr(r.state, "process", "") for r in replicas}
        for process in set(self._probes) - kept:
            self._probes.pop(process).cancel()
        for process in set(self._looked_since) - kept:
            del self._looked_since[process]
        for process in set(self._log_begins) - kept:
            del self._log_begins[process]
        self._looks.keep_only(kept)
        self._handbacks.keep_only({r.name for r in replicas})
        self._supervisor.sweep(PROCESS_PREFIX, kept, GRACE_SECONDS)


def _next_look(replicas: list[Replica]) -> float | None:
    """In how many seconds something may be due; None: no hurry."""
    moment = now()
    waits = [_HURRY_SECONDS for r in replicas if isinstance(r.state, Starting | Draining)]
    waits += [(r.state.retry_at - moment).total_seconds() for r in replicas if isinstance(r.state, BackingOff)]
    return max(min(waits), _HURRY_SECONDS) if waits else None


def _report(tx: Transaction) -> None:
    """Sum up each deployment's health, with an event when it changes."""
    for deployment in tx.all(Deployment):
        phase, message = health(deployment, tx.all(Replica, deployment=deployment.name))
        if (deployment.phase, deployment.message) != (phase, message):
            reason = f"Deployment{phase.capitalize()}" if deployment.phase != phase else ""
            deployment.phase, deployment.message = phase, message  # type: ignore[assignment]
            tx.save(deployment, reason, f"deployment {deployment.name} is {phase}{': ' + message if message else ''}.")
