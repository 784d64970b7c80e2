"""Brings replicas forward: pending, starting, ready, and, when no longer wanted, draining, stopping, gone.

Those that are to sleep meanwhile are `sleeping`'s.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

from stoker.errors import StokerError, Unavailable
from stoker.paths import Home
from stoker.types.base import now
from stoker.types.serving import (
    AdapterEngine,
    Asleep,
    BackingOff,
    Deployment,
    Draining,
    Pending,
    Ready,
    Replica,
    ReplicaFailed,
    ReplicaState,
    Starting,
    Stopping,
    Unwell,
    Waking,
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
from stokerd.serving.health import Condition, GivenUp, Look, Sick, Well, diagnose, look_interval
from stokerd.serving.launching import Launcher
from stokerd.serving.looks import ASK_SECONDS, Looks, Patient, look_at
from stokerd.serving.moves import fail, move, recall, rest, retire, rollout_of, tell_health
from stokerd.serving.plan import Change, drained, health, is_let_off, scale, serving_version
from stokerd.serving.probe import answers
from stokerd.serving.sleeping import Sleepers
from stokerd.store.store import Query, Store, Transaction

log = logging.getLogger(__name__)
PROCESS_PREFIX = "replica-"
GRACE_SECONDS = 10.0  # from SIGTERM to SIGKILL: ENGINE_DRAIN_SECONDS, and as long again to take itself down
_PATIENCE_SECONDS = 10.0
_HURRY_SECONDS = 0.2  # while something starts or drains
_LOOK_SECONDS = 1.0  # where nothing tells of what is waited for
_HANDBACK_SECONDS = 0.5  # the driver is asked no sooner who is on a device
_STATE_SECONDS = 1.0  # what the gateway said of a replica's traffic is as good as new
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
        self._looks = Looks(self._tell_news)
        self._sleepers = Sleepers(store, supervisor, inventory, gateway, self._launcher, self._tell_news)
        self._listeners: list[Callable[[], None]] = []
        self._elapsed = Elapsed()
        self._probes: dict[str, asyncio.Task[tuple[bool, str]]] = {}
        self._looked_since: dict[str, float] = {}
        self._log_begins: dict[str, int] = {}

    def on_news(self, listener: Callable[[], None]) -> None:
        """Call *listener* whenever a look at a server that was ready left something to be done by `step`."""
        self._listeners.append(listener)

    def _tell_news(self) -> None:
        for listener in self._listeners:
            listener()

    async def close(self) -> None:
        """Stop asking; the servers go on."""
        await self._looks.close()
        await self._sleepers.close()
        for probe in self._probes.values():
            probe.cancel()
        await asyncio.gather(*self._probes.values(), return_exceptions=True)

    def log_of(self, replica: str) -> Path:
        """The log of a replica's servers, the present one's last."""
        return self._launcher.log_of(replica)

    async def step(self) -> float | None:
        """Compare what there should be with what there is, and take each replica's next step.

        Returns in how many seconds to look again. None where only events can change anything: that a process started
        or ended is told by the supervisor, what a look at a ready server came to by `on_news`, and each change of a
        replica or a deployment is an event.
        """
        replicas, deployments = await self._scaled()
        async with asyncio.TaskGroup() as group:  # side by side: one that answers slowly holds nobody else up
            tasks = [
                group.create_task(self._advance_safely(replica, deployments[replica.deployment]))
                for replica in replicas
            ]
        waits = [task.result() for task in tasks]
        replicas, has_news = await self._store.read(_with_news)
        if has_news:
            await self._store.write(_report)
        if self._sweep(replicas):
            waits.append(_LOOK_SECONDS)
        return min((wait for wait in waits if wait is not None), default=None)

    async def _scaled(self) -> tuple[list[Replica], dict[str, Deployment]]:
        """All replicas, once there are those that should be; and the deployments by name."""

        def read(query: Query) -> tuple[list[Replica], dict[str, Deployment], list[str]]:
            replicas, deployments = _with_servers(query)
            changing = [d.name for d in deployments if not _is_settled(query, d, _of(d, replicas))]
            return replicas, {d.name: d for d in deployments}, changing

        replicas, deployments, changing = await self._store.read(read)
        if changing:
            for name in changing:
                await self._store.write(partial(self._scale, name=name))
            replicas, deployments, _ = await self._store.read(read)
        return replicas, deployments

    @staticmethod
    def _scale(tx: Transaction, name: str) -> None:
        deployment = tx.get(Deployment, name)
        replicas = tx.all(Replica, deployment=name)
        if deployment.deleting and not replicas:
            tx.delete(deployment, "DeploymentDeleted", f"deployment {name} is gone.")
            return
        change = _change(tx, deployment, replicas)
        for version, index in change.create:
            replica = Replica(
                name=f"{name}-v{version}-{index}",
                deployment=name,
                version=version,
                index=index,
                launch_digest=launch_digest(deployment.spec),
            )
            tx.save(replica, "ReplicaCreated", f"{replica.name} is to serve version {version}.")
        retire(tx, replicas, change.retire)
        rest(tx, replicas, change.rest)
        recall(tx, replicas, change.wake)

    async def _advance_safely(self, replica: Replica, deployment: Deployment) -> float | None:
        try:
            if replica.wanted:
                return await self._advance(replica, deployment)
            return await self._wind_down(replica, deployment)
        except Unavailable as error:  # no disk, no file table: nothing is known or decided, so it is tried again
            log.warning("replica %s is held up: %s", replica.name, error)
            return _LOOK_SECONDS
        except StokerError as error:  # it concerns this replica alone
            await self._failed(replica, deployment, str(error))
        except Exception as error:
            log.exception("replica %s", replica.name)
            await self._failed(replica, deployment, f"an error inside Stoker: {error!r}; the daemon's log has more")
        return None

    async def _advance(self, replica: Replica, deployment: Deployment) -> float | None:
        if replica.rests or isinstance(replica.state, Draining | Asleep | Waking):
            return await self._sleepers.step(replica, deployment)
        match replica.state:
            case Pending() | ReplicaFailed() | BackingOff() as state:
                if not await self._is_released(replica):
                    return _HANDBACK_SECONDS  # the server before still ends, or its memory: the next one may need it
                if replica.devices:
                    replica.devices, replica.device_memory = [], None
                    await self._save(replica, state)
                wait = self._until_due(replica, deployment)
                return wait if wait is None or wait > 0 else await self._begin(replica, deployment)
            case Starting(process=process) as state:
                match self._supervisor.observe(process):
                    case Absent():
                        command = await self._launcher.command(replica, deployment)
                        self._log_begins[process] = await asyncio.to_thread(log_end, self.log_of(replica.name))
                        self._supervisor.start(process, command)
                        return _HURRY_SECONDS
                    case Alive():
                        await self._look_for_readiness(replica, deployment, state)
                        return _HURRY_SECONDS
                    case Exited() | Lost() as ended:
                        await self._ended(replica, deployment, ended, "while it started")
            case Ready(process=process) | Unwell(process=process) as state:
                match self._supervisor.observe(process):
                    case Alive(pid=pid):
                        wait = await self._look_after(replica, deployment, state)
                        return _LOOK_SECONDS if pid is None else wait
                    case Exited() | Lost() as ended:
                        await self._ended(replica, deployment, ended, "unasked")
                    case Absent():
                        await self._failed(replica, deployment, "its process is gone", with_log=True)
        return None

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

    def _until_due(self, replica: Replica, deployment: Deployment) -> float | None:
        """Seconds until it is to be started; None: that isn't to be."""
        match replica.state:
            case Pending():
                return 0.0
            case BackingOff(retry_at=retry_at):
                return self._elapsed.until(replica.name, retry_at, deployment.spec.restart.backoff_cap)
        return None

    async def _begin(self, replica: Replica, deployment: Deployment) -> float | None:
        """Take devices, check what can be checked beforehand, want a process, and start it."""
        request = leases.Request(deployment.spec.devices, deployment.spec.device_memory)
        if request.count:  # found out before anything is started: it may wait here for days
            _, why = await self._store.read(
                lambda q: leases.find(q, self._inventory.devices(), request, deployment.name)
            )
            if why:
                await self._wait(replica, why)
                return _LOOK_SECONDS
        problem = await self._launcher.problem(replica, deployment)
        if problem:
            await self._failed(replica, deployment, problem)
            return None
        address = self._launcher.address(replica, deployment)

        def save(tx: Transaction) -> Replica | None:
            current = tx.find(Replica, replica.name)
            if current is None or current.state != replica.state or not current.wanted:
                return None
            devices, why = leases.find(tx, self._inventory.devices(), request, deployment.name)
            if why:
                return None  # somebody else was faster; the next step says so
            current.starts += 1
            current.devices = devices
            current.device_memory = request.memory if devices else None
            current.address = address
            current.state = Starting(process=f"{PROCESS_PREFIX}{replica.name}-{current.starts}", since=now())
            tx.save(current, "ReplicaStarting", f"{replica.name} starts (start number {current.starts}).")
            return current

        begun = await self._store.write(save)
        return _LOOK_SECONDS if begun is None else await self._advance_safely(begun, deployment)

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
            replica.start_seconds = seconds
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

    async def _look_after(self, replica: Replica, deployment: Deployment, state: Ready | Unwell) -> float | None:
        """See that it still serves: `health` says what its looks come to."""
        process, spec, condition = state.process, deployment.spec, state.phase
        wait: float | None = None
        if replica.failures and isinstance(state, Ready):
            wait = spec.restart.healthy_after - self._elapsed.since(process, state.since)
            if wait <= 0:
                wait, replica.failures = None, 0
                await self._save(replica, state)
        vitals = self._looks.vitals(
            process, Patient(condition, spec.stall_timeout, partial(self._look, replica, deployment))
        )
        if condition == "stalled":
            if self._inference(process, replica, deployment)[0]:
                await self._recovered(replica, state)
                return None
            wait = _LOOK_SECONDS  # no look tells what the inference came to
        if vitals is None:
            return wait
        match diagnose(vitals, condition, spec.stall_timeout):
            case Sick(phase=phase, seconds=seconds, why=why):
                self._looks.counts_as(process, phase)
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
        return wait

    async def _look(self, replica: Replica, deployment: Deployment, condition: Condition) -> Look:
        """Look at the server of *replica* once, with what the gateway sees of it now."""
        freshness = min(look_interval(deployment.spec.stall_timeout), _STATE_SECONDS)
        traffic = partial(self._gateway.present_traffic, replica.address, freshness)
        return await look_at(replica.address, self._launcher.engine(deployment), condition, traffic, ASK_SECONDS)

    async def _recovered(self, replica: Replica, state: Ready | Unwell) -> None:
        seconds = self._elapsed.since(state.process, state.since)
        self._looks.begin_anew(state.process)
        self._looks.counts_as(state.process, "ready")
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
        await fail(self._store, replica, deployment.spec.restart, why, log=lines)

    async def _wind_down(self, replica: Replica, deployment: Deployment) -> float | None:
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
                return _HURRY_SECONDS
            case Starting(process=process) | Asleep(process=process) | Waking(process=process):
                await self._stop(replica, process, f"{replica.name} stops.")
            case Stopping(process=process):
                if isinstance(self._supervisor.observe(process), Alive):
                    self._supervisor.stop(process, GRACE_SECONDS)  # asked again and again, in case its shim hangs
                    return _LOOK_SECONDS
                return await self._delete_when_released(replica)
            case Pending() | BackingOff() | ReplicaFailed():
                return await self._delete_when_released(replica)
        return None

    async def _stop(self, replica: Replica, process: str, said: str) -> None:
        await self._save(replica, Stopping(process=process, since=now()), "ReplicaStopping", said)

    async def _delete_when_released(self, replica: Replica) -> float | None:
        if not await self._is_released(replica):
            return _HANDBACK_SECONDS
        self._launcher.tidy(replica)
        await self._store.write(lambda tx: tx.delete(replica, "ReplicaStopped", f"{replica.name} is gone."))
        return None

    async def _save(
        self, replica: Replica, state: ReplicaState, reason: str = "", message: str = "", **data: Any
    ) -> None:
        await move(self._store, replica, state, reason, message, **data)

    def _sweep(self, replicas: list[Replica]) -> bool:
        """End and forget processes that no replica speaks of any more. Says whether there were any."""
        kept = {getattr(r.state, "process", "") for r in replicas}
        for process in set(self._probes) - kept:
            self._probes.pop(process).cancel()
        for process in set(self._looked_since) - kept:
            del self._looked_since[process]
        for process in set(self._log_begins) - kept:
            del self._log_begins[process]
        self._looks.keep_only({r.state.process for r in replicas if r.wanted and isinstance(r.state, Ready | Unwell)})
        self._handbacks.keep_only({r.name for r in replicas})
        self._sleepers.keep_only(kept)
        return self._supervisor.sweep(PROCESS_PREFIX, kept, GRACE_SECONDS)


def _with_servers(query: Query) -> tuple[list[Replica], list[Deployment]]:
    """All replicas and deployments but those of adapters, which are on servers of others."""
    deployments = [d for d in query.all(Deployment) if not isinstance(d.spec.engine, AdapterEngine)]
    return [r for r in query.all(Replica) if not r.host], deployments


def _of(deployment: Deployment, replicas: Sequence[Replica]) -> list[Replica]:
    return [r for r in replicas if r.deployment == deployment.name]


def _with_news(query: Query) -> tuple[list[Replica], bool]:
    """All replicas, and whether there is something for `_report`."""
    replicas, deployments = _with_servers(query)
    return replicas, any(_news(query, deployment, replicas) for deployment in deployments)


def _change(query: Query, deployment: Deployment, replicas: Sequence[Replica]) -> Change:
    """What is to change of its *replicas*."""
    return scale(deployment, rollout_of(query, deployment), replicas)


def _is_settled(query: Query, deployment: Deployment, replicas: Sequence[Replica]) -> bool:
    """Whether its *replicas* are those that should be; without any, one that is being deleted is not."""
    if deployment.deleting and not replicas:
        return False
    return _change(query, deployment, replicas) == Change((), ())


def _news(query: Query, deployment: Deployment, replicas: Sequence[Replica]) -> tuple[str, str] | None:
    """Its phase and message, where they are others than were last told."""
    version = serving_version(deployment, rollout_of(query, deployment))
    found = health(deployment, _of(deployment, replicas), version)
    return None if found == (deployment.phase, deployment.message) else found


def _report(tx: Transaction) -> None:
    """Sum up each deployment's health, with an event when it changes."""
    replicas, deployments = _with_servers(tx)
    for deployment in deployments:
        if (news := _news(tx, deployment, replicas)) is not None:
            tell_health(tx, deployment, *news)
