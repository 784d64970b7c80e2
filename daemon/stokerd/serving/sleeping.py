"""Puts servers to sleep, whose devices another version needs, and wakes them: seconds, where a start takes minutes.

    from           to           when
    ready          draining     it rests: `plan.scale` says which replicas do
    draining       asleep       nothing is in flight there, the server says that it sleeps, and the driver that the
                                memory is free; from then on it holds no lease
    draining       waking       it rests no more; it may have fallen asleep meanwhile
    asleep         waking       it rests no more, and its devices are free: it has them again
    waking         ready        it says that it is awake, and answered an inference
    waking         draining     it rests again
    each of them   let go       it rests, and its process ended, or can't be put to sleep: it is stopped and forgotten,
                                and replaced when its version serves again
    each of them   pending      the same of one that rests no more, or doesn't wake up, or somebody else took its
                                devices and there are others: it is started anew

Whoever is told twice to sleep, or to wake up, does nothing the second time: so a daemon that was killed at any moment
says it again.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Collection, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal

import httpx

from stoker.types.base import now
from stoker.types.host import Device
from stoker.types.serving import Asleep, Deployment, Draining, Pending, Ready, Replica, Waking
from stokerd.clock import Elapsed
from stokerd.devices import leases
from stokerd.devices.inventory import Inventory
from stokerd.devices.placement import gib
from stokerd.processes.states import Absent, Alive, Exited, Lost, ending
from stokerd.processes.supervisor import Supervisor
from stokerd.serving.engines.base import Probe, SleepPaths
from stokerd.serving.gateway import GatewayLink
from stokerd.serving.launching import Launcher
from stokerd.serving.moves import move
from stokerd.serving.plan import drained
from stokerd.serving.probe import answers, client_for
from stokerd.store.store import Store, Transaction

SLEEP_SECONDS = 120.0  # 140 GB of weights go to the host's memory in about a minute
WAKE_SECONDS = 120.0
MEMORY_PATIENCE_SECONDS = 10.0  # the server has given it back when it says that it sleeps; figures come each second
FREED_SHARE = 0.75
"""Of what was leased of a device, so much must be free in the sleep. The rest is of the CUDA context and graphs and of
the buffers of NCCL, which a sleeping vLLM keeps: 1 to 2 GiB of a device."""
_HURRY_SECONDS = 0.2
_LOOK_SECONDS = 1.0

Verb = Literal["sleep", "wake"]


@dataclass(frozen=True, slots=True)
class _Outcome:
    """How it ended, in a sentence without a full stop; empty: as it should. ``at``: when, on the monotonic clock."""

    problem: str
    at: float


@dataclass(frozen=True, slots=True)
class _Errand:
    verb: Verb
    task: asyncio.Task[_Outcome]


class Sleepers:
    """Takes the next step of each replica that is to sleep, sleeps, or comes from it.

    *on_news* is called whenever a server has answered to what it was told, so that there is something to be done.
    """

    def __init__(
        self,
        store: Store,
        supervisor: Supervisor,
        inventory: Inventory,
        gateway: GatewayLink,
        launcher: Launcher,
        on_news: Callable[[], None],
    ) -> None:
        self._store = store
        self._supervisor = supervisor
        self._inventory = inventory
        self._gateway = gateway
        self._launcher = launcher
        self._on_news = on_news
        self._elapsed = Elapsed()
        self._errands: dict[str, _Errand] = {}

    async def step(self, replica: Replica, deployment: Deployment) -> float | None:
        """Returns in how many seconds to look again; None: an event tells when."""
        match replica.state:
            case Ready(process=process) if replica.rests:
                await move(self._store, replica, Draining(process=process, since=now()))
                return _HURRY_SECONDS
            case Draining() | Asleep() | Waking() as state:
                observed = self._supervisor.observe(state.process)
                if not isinstance(observed, Alive):
                    await self._give_up(replica, _how_it_ended(observed))
                    return None
                if replica.rests:
                    return await self._to_bed(replica, deployment, state, is_seen=observed.pid is not None)
                return await self._out_of_bed(replica, deployment, state)
        return _LOOK_SECONDS  # it fell ill just now: `plan.scale` lets it go

    def keep_only(self, processes: Collection[str]) -> None:
        """Forget all others."""
        for process in self._errands.keys() - set(processes):
            self._errands.pop(process).task.cancel()

    async def close(self) -> None:
        """End what is under way; the servers do what they were told."""
        tasks = [errand.task for errand in self._errands.values()]
        self.keep_only(())
        await asyncio.gather(*tasks, return_exceptions=True)

    # To sleep.

    async def _to_bed(
        self, replica: Replica, deployment: Deployment, state: Draining | Asleep | Waking, *, is_seen: bool
    ) -> float | None:
        match state:
            case Asleep():
                return None if is_seen else _LOOK_SECONDS
            case Waking(process=process):
                await move(self._store, replica, Draining(process=process, since=now()))
                return _HURRY_SECONDS
            case Draining():
                return await self._put_to_sleep(replica, deployment, state)

    async def _put_to_sleep(self, replica: Replica, deployment: Deployment, state: Draining) -> float | None:
        process, paths = state.process, self._launcher.engine(deployment).sleep_paths
        if paths is None:
            await self._give_up(replica, "its engine can't sleep")
            return None
        if not self._is_about(process, "sleep"):
            flight = await self._gateway.in_flight(replica.address)
            waited = self._elapsed.since(process, state.since)
            if not drained(replica, self._gateway.acknowledged, flight, deployment.spec.drain_timeout, waited):
                return _HURRY_SECONDS
        outcome = self._told(process, "sleep", partial(put_to_sleep, replica.address, paths))
        if outcome is None:
            return _LOOK_SECONDS
        if outcome.problem:
            await self._give_up(replica, f"it could not be put to sleep: {outcome.problem}")
            return None
        held = memory_held(self._inventory.devices(), replica.devices, replica.device_memory)
        if held:
            if time.monotonic() - outcome.at < MEMORY_PATIENCE_SECONDS:
                return _LOOK_SECONDS
            await self._give_up(replica, f"it sleeps, and {held}")
            return None
        self._errands.pop(process, None)
        asleep = Asleep(process=process, since=now(), devices=replica.devices, device_memory=replica.device_memory)
        replica.devices, replica.device_memory = [], None
        seconds = self._elapsed.since(process, state.since)
        await move(self._store, replica, asleep, "ReplicaAsleep", f"{replica.name} sleeps, after {seconds:.1f} s.")
        return None

    # And back.

    async def _out_of_bed(
        self, replica: Replica, deployment: Deployment, state: Draining | Asleep | Waking
    ) -> float | None:
        match state:
            case Draining(process=process):
                waking = Waking(process=process, since=now())
                await move(self._store, replica, waking, "ReplicaWaking", f"{replica.name} is to serve after all.")
                return _HURRY_SECONDS
            case Asleep():
                return await self._take_devices(replica, state)
            case Waking():
                return await self._wake(replica, deployment, state)

    async def _take_devices(self, replica: Replica, state: Asleep) -> float | None:
        """Have the devices that its process is bound to leased to it again, and no others."""
        devices = self._inventory.devices()
        request = leases.Request(len(state.devices), state.device_memory)

        def save(tx: Transaction) -> str:
            """Why it can't be; "" : it is so, or somebody else moved it meanwhile."""
            current = tx.find(Replica, replica.name)
            if current is None or current.state != state or not current.wanted or current.rests:
                return ""
            chosen, why = leases.find(tx, devices, request, replica.deployment, state.devices)
            are_seen = {device.uuid for device in devices}.issuperset(state.devices)
            if not why:
                current.devices, current.device_memory = chosen, state.device_memory
                current.state = Waking(process=state.process, since=now())
                tx.save(current, "ReplicaWaking", f"{replica.name} wakes up.")
            elif are_seen and leases.find(tx, devices, request, replica.deployment)[0]:
                said = f"{replica.name} is started anew, on other devices: others have those it sleeps on."
                current.state = Pending()
                tx.save(current, "ReplicaRestarting", said)
                why = ""
            return why

        why = await self._store.write(save)
        if not why:
            return _HURRY_SECONDS
        if why != state.message:
            waiting = state.model_copy(update={"message": why})
            await move(self._store, replica, waiting, "ReplicaWaiting", f"{replica.name} waits, asleep: {why}")
        return _LOOK_SECONDS

    async def _wake(self, replica: Replica, deployment: Deployment, state: Waking) -> float | None:
        process, engine = state.process, self._launcher.engine(deployment)
        if engine.sleep_paths is None:
            await self._give_up(replica, "its engine can't wake up")
            return None
        wake = partial(wake_up, replica.address, engine.sleep_paths, engine.probes(deployment.name))
        outcome = self._told(process, "wake", wake)
        if outcome is None:
            return _LOOK_SECONDS
        if outcome.problem:
            await self._give_up(replica, f"it did not wake up: {outcome.problem}")
            return None
        self._errands.pop(process, None)
        seconds = self._elapsed.since(process, state.since)
        said = f"{replica.name} is awake, and answered after {seconds:.1f} s."
        await move(self._store, replica, Ready(process=process, since=now()), "ReplicaAwake", said)
        await self._gateway.push_soon()  # requests are held for it
        return None

    # Both.

    def _is_about(self, process: str, verb: Verb) -> bool:
        errand = self._errands.get(process)
        return errand is not None and errand.verb == verb

    def _told(self, process: str, verb: Verb, tell: Callable[[], Awaitable[str]]) -> _Outcome | None:
        """What came of telling it so; None as long as that is under way. One that is to do the opposite of what it is
        about does that first: told at the same time, it might end in either.
        """
        errand = self._errands.get(process)
        if errand is not None and errand.verb == verb:
            return errand.task.result() if errand.task.done() else None
        if errand is None or errand.task.done():
            task = asyncio.create_task(_outcome(tell), name=f"{verb} {process}")
            task.add_done_callback(lambda _: self._on_news())
            self._errands[process] = _Errand(verb, task)
        return None

    async def _give_up(self, replica: Replica, why: str) -> None:
        """Fall back to stop and start. Its process, whatever is left of it, is ended as any other's."""
        self._errands.pop(getattr(replica.state, "process", ""), None)
        why = why.rstrip(".")

        def save(tx: Transaction) -> None:
            current = tx.find(Replica, replica.name)
            if current is None or current.state != replica.state:
                return
            if current.rests:
                current.wanted = False
                said = f"{replica.name} is stopped rather than asleep, and started when it is to serve again: {why}."
                tx.save(current, "ReplicaRetired", said)
            else:
                current.state = Pending()
                tx.save(current, "ReplicaRestarting", f"{replica.name} is started anew: {why}.")

        await self._store.write(save)


def memory_held(devices: Sequence[Device], uuids: Collection[str], memory: int | None) -> str:
    """Which of the devices in *uuids* have not got the memory back that a sleeping server had leased, in a sentence
    without a full stop. Empty: none, as far as the driver tells. Pure.

    *memory*: bytes that it had of each; None: the whole of them.
    """
    unseen = set(uuids) - {device.uuid for device in devices}
    held = [f"the driver has not told of {len(unseen)} of its GPUs yet"] if unseen else []
    for device in devices:
        if device.uuid not in uuids or device.memory_used is None or not device.memory_total:
            continue
        leased = min(memory or device.memory_total, device.memory_total)
        free = device.memory_total - device.memory_used
        if free < FREED_SHARE * leased:
            held.append(f"GPU {device.index} has only {gib(free)} free of the {gib(leased)} that it had")
    return "; ".join(held)


async def put_to_sleep(address: str, paths: SleepPaths) -> str:
    """Tell the server at *address* to give its devices' memory back. Returns what came instead; empty: it sleeps."""

    async def tell(client: httpx.AsyncClient) -> str:
        refusal = await _post(client, paths.sleep)
        return refusal or ("" if await _is_sleeping(client, paths) else "it says that it is awake")

    return await _ask(address, SLEEP_SECONDS, tell)


async def wake_up(address: str, paths: SleepPaths, probes: Sequence[Probe]) -> str:
    """Wake the server at *address*, and ask it for an inference. Returns what came instead; empty: it serves."""

    async def tell(client: httpx.AsyncClient) -> str:
        refusal = await _post(client, paths.wake)
        if refusal:
            return refusal
        if await _is_sleeping(client, paths):
            return "it says that it sleeps still"
        is_answered, said = await answers(address, probes)
        return "" if is_answered else said

    return await _ask(address, WAKE_SECONDS, tell)


async def _ask(address: str, seconds: float, tell: Callable[[httpx.AsyncClient], Awaitable[str]]) -> str:
    try:
        async with asyncio.timeout(seconds), client_for(address, timeout=seconds) as client:
            return await tell(client)
    except TimeoutError:
        return f"no answer within {seconds:g} s"
    except (httpx.HTTPError, httpx.InvalidURL, ValueError, KeyError, TypeError) as error:
        return f"no proper answer ({error!r})"


async def _post(client: httpx.AsyncClient, path: str) -> str:
    response = await client.post(path)
    if response.status_code == 200:
        return ""
    return f"{path} answered HTTP {response.status_code}: {' '.join(response.text[:200].split())}"


async def _is_sleeping(client: httpx.AsyncClient, paths: SleepPaths) -> bool:
    response = await client.get(paths.is_sleeping)
    response.raise_for_status()
    return bool(response.json()["is_sleeping"])


async def _outcome(tell: Callable[[], Awaitable[str]]) -> _Outcome:
    return _Outcome(await tell(), time.monotonic())


def _how_it_ended(observed: Absent | Exited | Lost) -> str:
    return "its process is gone" if isinstance(observed, Absent) else ending(observed)
