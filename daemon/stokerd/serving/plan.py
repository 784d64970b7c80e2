"""Which replicas there should be, what their next state is, and where traffic goes. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from stoker.types.rollouts import FINAL_PHASES, Rollout
from stoker.types.serving import (
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
from stoker.types.supervision import Restart
from stokerd.backoff import backoff_seconds
from stokerd.gateway.wire import Arm, Route, RouteTable
from stokerd.processes.states import Exited, Lost
from stokerd.rollouts.machine import weights
from stokerd.serving.engines import launch_digest


@dataclass(frozen=True, slots=True)
class Change:
    """Replicas to make (version, index), and names of those that are no longer wanted."""

    create: tuple[tuple[int, int], ...]
    retire: tuple[str, ...]


def wanted_versions(deployment: Deployment, rollout: Rollout | None) -> list[int]:
    """The versions that must have replicas now: what is served, and what a rollout brings."""
    if deployment.deleting:
        return []
    versions = [deployment.version]
    if rollout is not None and rollout.phase not in FINAL_PHASES and rollout.phase != "rolling-back":
        versions.append(rollout.to_version)
    return versions


def scale(deployment: Deployment, rollout: Rollout | None, replicas: Sequence[Replica]) -> Change:
    """Compare the replicas of *deployment* with those that it should have.

    Replicas made for another spec of the engine stay until as many new ones are ready.
    """
    create: list[tuple[int, int]] = []
    retire = [r.name for r in replicas if r.wanted and r.version not in wanted_versions(deployment, rollout)]
    digest = launch_digest(deployment.spec)
    count = deployment.spec.replicas
    for version in wanted_versions(deployment, rollout):
        used = {r.index for r in replicas if r.version == version}
        mine = [r for r in replicas if r.version == version and r.wanted]
        current = sorted((r for r in mine if r.launch_digest == digest), key=lambda r: r.index)
        free = (i for i in range(len(used) + count) if i not in used)
        create += [(version, next(free)) for _ in range(count - len(current))]
        retire += [r.name for r in current[count:]]
        if sum(isinstance(r.state, Ready) for r in current) >= count:
            retire += [r.name for r in mine if r.launch_digest != digest]
    return Change(tuple(create), tuple(retire))


def after_failure(replica: Replica, restart: Restart, why: str, moment: datetime) -> BackingOff | ReplicaFailed:
    """Wait twice as long each time, and give up as *restart* says. ``replica.failures`` counts this failure too."""
    if restart.policy == "never":
        return ReplicaFailed(since=moment, message=f"{why} (it is not started again: restart.policy is never)")
    if replica.failures > restart.limit:
        return ReplicaFailed(since=moment, message=f"{why} (given up after {replica.failures} failures in a row)")
    seconds = backoff_seconds(replica.name, replica.failures, restart.backoff, restart.backoff_cap)
    return BackingOff(retry_at=moment + timedelta(seconds=seconds), message=why)


def is_let_off(restart: Restart, ended: Exited | Lost, healthy_seconds: float) -> bool:
    """Whether a server that *ended* unasked, after *healthy_seconds* of being ready, is started at once, uncounted."""
    is_clean = isinstance(ended, Exited) and ended.exit_code == 0 and not ended.message
    return restart.policy == "always" and is_clean and healthy_seconds >= restart.healthy_after


def health(deployment: Deployment, replicas: Sequence[Replica]) -> tuple[str, str]:
    """Phase and message of a deployment whose stable version has *replicas*."""
    if deployment.deleting:
        return "deleting", ""
    stable = [r for r in replicas if r.version == deployment.version and r.wanted]
    ready = sum(isinstance(r.state, Ready) for r in stable)
    troubles = [(r.name, r.state.message) for r in stable if isinstance(r.state, Unwell | BackingOff | ReplicaFailed)]
    message = "; ".join(f"{name}: {said}" for name, said in troubles)
    waiting = next((r.state.message for r in stable if isinstance(r.state, Pending | Starting) and r.state.message), "")
    if ready >= deployment.spec.replicas:  # a changed engine's replicas may still be on their way, or unable to start
        return "ready", message or waiting
    if ready or any(isinstance(r.state, Unwell) for r in stable):
        return "degraded", message or f"{ready} of {deployment.spec.replicas} replicas are ready"
    if stable and all(isinstance(r.state, ReplicaFailed) for r in stable):
        return "failed", message
    return "starting", message or waiting


def route_table(
    version: int, deployments: Sequence[Deployment], replicas: Sequence[Replica], rollouts: Mapping[str, Rollout]
) -> RouteTable:
    """The table that the gateway should follow. *rollouts* has the active ones by name."""
    return RouteTable(
        version, tuple(route(d, replicas, rollouts.get(d.rollout or "")) for d in deployments if not d.deleting)
    )


def route(deployment: Deployment, replicas: Sequence[Replica], rollout: Rollout | None) -> Route:
    """The part of the table for one deployment. Arms keep their weight while none of their replicas is ready: the
    gateway sends what is meant for them to stable."""

    def addresses(version: int) -> tuple[str, ...]:
        mine = [r for r in replicas if r.deployment == deployment.name and r.version == version]
        return tuple(sorted(r.address for r in mine if isinstance(r.state, Ready) and r.wanted))

    def arm(name: str, version: int, weight: float) -> Arm:
        return Arm(name, version, weight, addresses(version))

    if rollout is None or rollout.phase in FINAL_PHASES:
        return Route(deployment.name, deployment.name, (arm("stable", deployment.version, 100),))
    stable, candidate, shadow = weights(rollout.spec, rollout.state)
    arms = [arm("stable", rollout.from_version, stable)]
    if candidate:
        arms.append(arm("candidate", rollout.to_version, candidate))
    return Route(
        deployment.name, rollout.name, tuple(arms), arm("shadow", rollout.to_version, shadow) if shadow else None
    )


def in_route(table: RouteTable | None, address: str) -> bool:
    """Whether requests may still be sent to *address*; unknown (no table acknowledged yet) counts as yes."""
    if table is None:
        return True
    arms = [a for r in table.routes for a in (*r.arms, *([r.shadow] if r.shadow else []))]
    return any(address in a.addresses for a in arms)


def drained(replica: Replica, table: RouteTable | None, in_flight: int | None, timeout: float, waited: float) -> bool:
    """Whether a draining replica may be stopped: it gets nothing new and nothing is left, or its time is over.

    *in_flight* is None when the gateway doesn't say. *timeout* and *waited*, since it began to drain, in seconds.
    """
    if not isinstance(replica.state, Draining):
        return False
    if waited >= timeout:
        return True
    return not in_route(table, replica.address) and in_flight == 0
