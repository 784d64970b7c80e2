"""Brings adapters forward: LoRA weights that are loaded, at run time, into servers of another deployment.

An adapter's replica has no process of its own: it is a row that says on which server (``host``) the weights are to be,
and which life of that server (its process) has them now. A server that starts again has forgotten them: they are loaded
once more. Unloading breaks nothing off: vLLM lets requests that have begun finish.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import httpx

from stoker.errors import StokerError, Unavailable
from stoker.types.base import now
from stoker.types.registry import Version
from stoker.types.rollouts import Rollout
from stoker.types.serving import (
    AdapterEngine,
    BackingOff,
    Deployment,
    Draining,
    Pending,
    Ready,
    Replica,
    ReplicaFailed,
    Starting,
    Unwell,
)
from stokerd.clock import Elapsed
from stokerd.gateway.wire import RouteTable
from stokerd.serving.engines.base import Probe, probe_body
from stokerd.serving.gateway import GatewayLink
from stokerd.serving.moves import fail, move, retire, rollout_of, tell_health
from stokerd.serving.plan import adapter_name, health, serving_version, wanted_versions
from stokerd.serving.probe import answers, client_for
from stokerd.store.store import Query, Store, Transaction

log = logging.getLogger(__name__)
_HURRY_SECONDS = 0.2
_UNLOAD_SECONDS = 10.0
_CONFIG = "adapter_config.json"


@dataclass(frozen=True, slots=True)
class Change:
    """Replicas to make (version, host), and names of those that are no longer wanted."""

    create: tuple[tuple[int, Replica], ...]
    retire: tuple[str, ...]


def has_process(host: Replica | None) -> bool:
    """Whether there is a server to load something into, be it well or not."""
    return host is not None and isinstance(host.state, Ready | Unwell)


def spread(
    deployment: Deployment,
    rollout: Rollout | None,
    base: Deployment | None,
    hosts: Sequence[Replica],
    replicas: Sequence[Replica],
) -> Change:
    """Compare an adapter's *replicas* with those that it should have: one on each server of its *base*.

    They belong on servers of the version that the base serves: a candidate of the base must not get this deployment's
    callers as well. On others they stay until one of them is ready where it belongs.
    """
    create: list[tuple[int, Replica]] = []
    versions = wanted_versions(deployment, rollout)
    retire = [r.name for r in replicas if r.wanted and r.version not in versions]
    proper = [h for h in hosts if base is not None and h.version == base.version and h.wanted]
    names, present = {h.name for h in proper}, {h.name for h in hosts}
    for version in versions:
        mine = [r for r in replicas if r.version == version]
        placed = {r.host for r in mine}
        create += [(version, h) for h in proper if h.name not in placed and has_process(h)]
        is_there = any(r.host in names and isinstance(r.state, Ready) for r in mine)
        retire += [r.name for r in mine if r.wanted and r.host not in names and (is_there or r.host not in present)]
    return Change(tuple(create), tuple(retire))


def is_routed(table: RouteTable | None, replica: Replica) -> bool:
    """Whether requests may still be sent to *replica*; unknown (no table acknowledged yet) counts as yes."""
    if table is None:
        return True
    name = adapter_name(replica.deployment, replica.version)
    arms = [a for r in table.routes for a in (*r.arms, *([r.shadow] if r.shadow else []))]
    return any(a.model == name and replica.address in a.addresses for a in arms)


class Adapters:
    """The reconciler of deployments whose engine is an adapter."""

    def __init__(self, store: Store, gateway: GatewayLink) -> None:
        self._store = store
        self._gateway = gateway
        self._elapsed = Elapsed()
        self._loads: dict[str, asyncio.Task[str]] = {}
        self._listeners: list[Callable[[], None]] = []

    def on_news(self, listener: Callable[[], None]) -> None:
        """Call *listener* whenever a load came to an end."""
        self._listeners.append(listener)

    async def close(self) -> None:
        """Stop loading; what is loaded stays."""
        for load in self._loads.values():
            load.cancel()
        await asyncio.gather(*self._loads.values(), return_exceptions=True)

    async def step(self) -> float | None:
        """Compare what there should be with what there is, and take each replica's next step.

        Returns in how many seconds to look again; None where only events can change anything.
        """
        if await self._store.read(_is_unsettled):
            await self._store.write(_spread)
        deployments, replicas = await self._store.read(lambda q: (_adapters(q), q.all(Replica)))
        hosts = {r.name: r for r in replicas if not r.host}
        replicas = [r for r in replicas if r.deployment in deployments]
        async with asyncio.TaskGroup() as group:
            tasks = [
                group.create_task(self._advance_safely(r, deployments[r.deployment], hosts.get(r.host)))
                for r in replicas
            ]
        for name in self._loads.keys() - {r.name for r in replicas}:
            self._loads.pop(name).cancel()
        if await self._store.read(_news):
            await self._store.write(_report)
        return min((wait for task in tasks if (wait := task.result()) is not None), default=None)

    async def _advance_safely(self, replica: Replica, deployment: Deployment, host: Replica | None) -> float | None:
        try:
            if replica.wanted and host is not None:
                return await self._advance(replica, deployment, host)
            return await self._wind_down(replica, deployment, host)
        except Unavailable as error:
            log.warning("replica %s is held up: %s", replica.name, error)
            return 1.0
        except StokerError as error:
            await fail(self._store, replica, deployment.spec.restart, str(error))
        except Exception as error:
            log.exception("replica %s", replica.name)
            await fail(
                self._store,
                replica,
                deployment.spec.restart,
                f"an error inside Stoker: {error!r}; the daemon's log has more",
            )
        return None

    async def _advance(self, replica: Replica, deployment: Deployment, host: Replica) -> float | None:
        """Take the next step of one that is wanted. Its server's process is how it knows what that server has."""
        if not isinstance(host.state, Ready):
            if not isinstance(replica.state, Pending | ReplicaFailed):
                waiting = Pending(message=f"its server {host.name} is {host.phase}")
                await move(self._store, replica, waiting, "ReplicaWaiting", f"{replica.name} waits: {waiting.message}.")
            return None
        process = host.state.process
        match replica.state:
            case Pending():
                return await self._begin(replica, process)
            case BackingOff(retry_at=retry_at):
                wait = self._elapsed.until(replica.name, retry_at, deployment.spec.restart.backoff_cap)
                return wait if wait > 0 else await self._begin(replica, process)
            case Starting(process=of) | Ready(process=of) if of != process:
                return await self._anew(replica)
            case Starting():
                return await self._look_at_load(replica, deployment, host)
            case Ready(since=since):
                if replica.failures:
                    wait = deployment.spec.restart.healthy_after - self._elapsed.since(process + replica.name, since)
                    if wait > 0:
                        return wait
                    replica.failures = 0
                    await move(self._store, replica, replica.state)
        return None

    async def _anew(self, replica: Replica) -> float | None:
        """Its server is another one than before, which has none of it."""
        if (load := self._loads.pop(replica.name, None)) is not None:
            load.cancel()
        await move(
            self._store, replica, Pending(), "ReplicaRestarting", f"{replica.name}: its server was started again."
        )
        return 0.0

    async def _begin(self, replica: Replica, process: str) -> float | None:
        replica.starts += 1
        said = f"{replica.name} is loaded into {replica.host}."
        await move(self._store, replica, Starting(process=process, since=now()), "ReplicaStarting", said)
        return 0.0

    async def _look_at_load(self, replica: Replica, deployment: Deployment, host: Replica) -> float | None:
        load = self._loads.get(replica.name)
        if load is None:  # it begins, or an earlier daemon began: vLLM loads the same once more in place
            version = await self._store.read(lambda q: q.get(Version, f"{deployment.spec.model}@{replica.version}"))
            load = asyncio.create_task(
                _load(host.address, replica, Path(version.folder), deployment.spec.start_timeout), name=replica.name
            )
            load.add_done_callback(lambda _: self._tell_news())
            self._loads[replica.name] = load
            return None
        if not load.done():
            return None
        del self._loads[replica.name]
        problem = load.result()
        if problem:
            await fail(self._store, replica, deployment.spec.restart, problem)
            return 0.0
        assert isinstance(replica.state, Starting)
        replica.address = host.address
        replica.start_seconds = (now() - replica.state.since).total_seconds()
        ready = Ready(process=replica.state.process, since=now())
        await move(self._store, replica, ready, "ReplicaReady", f"{replica.name} answers from {host.name}.")
        await self._gateway.push_soon()
        return None

    def _tell_news(self) -> None:
        for listener in self._listeners:
            listener()

    async def _wind_down(self, replica: Replica, deployment: Deployment, host: Replica | None) -> float | None:
        """Get no new requests, then be unloaded: requests that have begun are not broken off by that."""
        if isinstance(replica.state, Ready) and host is not None:
            draining = Draining(process=replica.state.process, since=now())
            await move(self._store, replica, draining, "ReplicaDraining", f"{replica.name} gets no more requests.")
            return 0.0
        if isinstance(replica.state, Draining) and has_process(host) and is_routed(self._gateway.acknowledged, replica):
            drained = self._elapsed.since(f"{replica.name} drains", replica.state.since)
            if drained < deployment.spec.drain_timeout:  # a gateway that is away can't hold it for ever
                return _HURRY_SECONDS
        if has_process(host) and isinstance(replica.state, Draining | Starting):
            assert host is not None
            problem = await _unload(host.address, replica)
            if problem:
                log.warning("replica %s could not be unloaded from %s: %s", replica.name, replica.host, problem)
        await self._store.write(lambda tx: tx.delete(replica, "ReplicaStopped", f"{replica.name} is gone."))
        return None


def _adapters(query: Query) -> dict[str, Deployment]:
    """The deployments that are adapters, by name."""
    return {d.name: d for d in query.all(Deployment) if isinstance(d.spec.engine, AdapterEngine)}


def _around(query: Query, deployment: Deployment) -> tuple[Deployment | None, list[Replica]]:
    """The deployment that *deployment* is an adapter of, and its replicas."""
    assert isinstance(deployment.spec.engine, AdapterEngine)
    base = deployment.spec.engine.base
    return query.find(Deployment, base), query.all(Replica, deployment=base)


def _change(query: Query, deployment: Deployment, replicas: Sequence[Replica]) -> Change:
    return spread(deployment, rollout_of(query, deployment), *_around(query, deployment), replicas)


def _is_unsettled(query: Query) -> bool:
    """Whether `_spread` has something to do."""
    for deployment in _adapters(query).values():
        replicas = query.all(Replica, deployment=deployment.name)
        if (deployment.deleting and not replicas) or _change(query, deployment, replicas) != Change((), ()):
            return True
    return False


def _spread(tx: Transaction) -> None:
    """Have the replicas that there should be; an adapter that is to be deleted goes when it has none left."""
    for deployment in _adapters(tx).values():
        replicas = tx.all(Replica, deployment=deployment.name)
        if deployment.deleting and not replicas:
            tx.delete(deployment, "DeploymentDeleted", f"deployment {deployment.name} is gone.")
            continue
        change = _change(tx, deployment, replicas)
        for version, host in change.create:
            name = f"{adapter_name(deployment.name, version)}-on-{host.name}"
            replica = Replica(
                name=name,
                deployment=deployment.name,
                version=version,
                index=host.index,
                host=host.name,
                address=host.address,
            )
            tx.save(replica, "ReplicaCreated", f"{name} is to serve version {version} from {host.name}.")
        retire(tx, replicas, change.retire)


def _news(query: Query) -> dict[str, tuple[str, str]]:
    """Phase and message of each adapter whose health is another than was last told."""
    found = {}
    for deployment in _adapters(query).values():
        base, hosts = _around(query, deployment)
        count = sum(base is not None and h.version == base.version and has_process(h) for h in hosts)
        version = serving_version(deployment, rollout_of(query, deployment))
        phase, message = health(deployment, query.all(Replica, deployment=deployment.name), version, max(count, 1))
        if not count and phase == "starting" and base is not None:
            message = f"no server of {base.name} is ready"
        if (phase, message) != (deployment.phase, deployment.message):
            found[deployment.name] = phase, message
    return found


def _report(tx: Transaction) -> None:
    """Sum up each adapter's health, with an event when it changes."""
    for name, (phase, message) in _news(tx).items():
        tell_health(tx, tx.get(Deployment, name), phase, message)


async def _load(address: str, replica: Replica, folder: Path, timeout: float) -> str:
    """Load it and have it answer once. Returns what went wrong, in one sentence; empty when nothing did."""
    if not (folder / _CONFIG).is_file():
        return f"{folder} has no {_CONFIG}: it holds no LoRA adapter."
    name = adapter_name(replica.deployment, replica.version)
    body = {"lora_name": name, "lora_path": str(folder), "load_inplace": True}
    try:
        async with asyncio.timeout(timeout), client_for(address, timeout=timeout) as client:
            response = await client.post("/v1/load_lora_adapter", json=body)
            if response.status_code != 200:
                return f"its server answered HTTP {response.status_code} to its load: {_said(response)}"
            is_answered, said = await answers(
                address, [Probe(p, probe_body(p, name)) for p in ("/v1/completions", "/v1/embeddings")]
            )
            return "" if is_answered else f"it was loaded, but doesn't answer: {said}"
    except (httpx.HTTPError, TimeoutError) as error:
        return f"its server could not load it ({type(error).__name__})"


async def _unload(address: str, replica: Replica) -> str:
    """Unload it. Returns what went wrong; empty when nothing did, or it was not there."""
    body = {"lora_name": adapter_name(replica.deployment, replica.version)}
    try:
        async with client_for(address, timeout=_UNLOAD_SECONDS) as client:
            response = await client.post("/v1/unload_lora_adapter", json=body)
    except httpx.HTTPError as error:
        return repr(error)
    return "" if response.status_code in (200, 404) else _said(response)


def _said(response: httpx.Response) -> str:
    """What an error of vLLM says, without its JSON around it."""
    try:
        return str(response.json()["error"]["message"])[:300]
    except (ValueError, KeyError, TypeError):
        return response.text[:300]
