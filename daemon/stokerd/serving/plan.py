"""Which replicas there should be, what their next state is, and where traffic goes. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta

from stoker.types.keys import ApiKey
from stoker.types.registry import Model
from stoker.types.rollouts import (
    FINAL_PHASES,
    Aborted,
    Promoted,
    Promoting,
    Returning,
    RolledBack,
    RollingBack,
    Rollout,
)
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
    Starting,
    Unwell,
    Waking,
)
from stoker.types.supervision import Restart
from stokerd.backoff import backoff_seconds
from stokerd.gateway.wire import Arm, Key, Route, RouteTable, Target
from stokerd.processes.states import Exited, Lost
from stokerd.rollouts.machine import split
from stokerd.serving.engines import can_sleep, launch_digest


@dataclass(frozen=True, slots=True)
class Change:
    """Replicas to make (version, index), and names of those that are no longer wanted, are to rest, or rest no more."""

    create: tuple[tuple[int, int], ...]
    retire: tuple[str, ...]
    rest: tuple[str, ...] = ()
    wake: tuple[str, ...] = ()


def wanted_versions(deployment: Deployment, rollout: Rollout | None) -> list[int]:
    """The versions that must have replicas now: what is served, what a rollout brings or returns to, what stands by."""
    if deployment.deleting:
        return []
    if rollout is None or rollout.phase in FINAL_PHASES:
        stands_by = deployment.warm is not None and not deployment.warm.rests
        return [deployment.version, *([deployment.warm.version] if deployment.warm and stands_by else [])]
    if rollout.phase == "rolling-back":
        return [rollout.from_version]
    if rollout.is_swap:
        return [serving_version(deployment, rollout)]
    return [rollout.from_version, rollout.to_version]


def serving_version(deployment: Deployment, rollout: Rollout | None) -> int:
    """The version on whose replicas it depends how the deployment does."""
    if rollout is None:
        return deployment.version
    match rollout.state:
        case Promoted() | RolledBack() | Aborted():
            return deployment.version
        case Promoting():
            return rollout.to_version
        case Returning():
            return rollout.from_version if rollout.is_swap else rollout.to_version
        case RollingBack():
            return rollout.from_version
        case _:
            return rollout.to_version if rollout.is_swap else rollout.from_version


def resting_version(deployment: Deployment, rollout: Rollout | None) -> int | None:
    """The version whose replicas sleep rather than be stopped: the one that a swap took out of service."""
    if deployment.deleting or not can_sleep(deployment.spec):
        return None
    if rollout is None or rollout.phase in FINAL_PHASES:
        return deployment.warm.version if deployment.warm and deployment.warm.rests else None
    is_out = rollout.is_swap and serving_version(deployment, rollout) == rollout.to_version
    return rollout.from_version if is_out else None


def scale(deployment: Deployment, rollout: Rollout | None, replicas: Sequence[Replica]) -> Change:
    """Compare the replicas of *deployment* with those that it should have.

    Replicas made for another spec of the engine stay until as many new ones are ready. In a swap, those of the other
    version must be gone first, or asleep. Only what serves can be put to sleep: all others of a resting version are
    let go, and none is made for it.
    """
    create: list[tuple[int, int]] = []
    digest = launch_digest(deployment.spec)
    count = deployment.spec.replicas
    versions, resting = wanted_versions(deployment, rollout), resting_version(deployment, rollout)
    able = [r for r in replicas if r.wanted and r.version == resting and r.launch_digest == digest and _may_rest(r)]
    rests = [r.name for r in sorted(able, key=lambda r: r.index)[:count]]
    retire = [r.name for r in replicas if r.wanted and r.version not in versions and r.name not in rests]
    for version in versions:
        used = {r.index for r in replicas if r.version == version}
        mine = [r for r in replicas if r.version == version and r.wanted]
        current = sorted((r for r in mine if r.launch_digest == digest), key=lambda r: r.index)
        free = (i for i in range(len(used) + count) if i not in used)
        create += [(version, next(free)) for _ in range(count - len(current))]
        retire += [r.name for r in current[count:]]
        if sum(isinstance(r.state, Ready) for r in current) >= count:
            retire += [r.name for r in mine if r.launch_digest != digest]
    rest = [r.name for r in able if r.name in rests and not r.rests]
    wake = [r.name for r in replicas if r.wanted and r.rests and r.version in versions and r.name not in retire]
    is_swap = rollout is not None and rollout.is_swap
    if is_swap and any(r.version not in versions and not isinstance(r.state, Asleep) for r in replicas):
        create, wake = [], []
    return Change(tuple(create), tuple(retire), tuple(rest), tuple(wake))


def _may_rest(replica: Replica) -> bool:
    return isinstance(replica.state, Ready | Draining | Asleep | Waking)


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


def adapter_name(deployment: str, version: int) -> str:
    """What a server calls an adapter that it has loaded for *deployment*."""
    return f"{deployment}-v{version}"


def health(
    deployment: Deployment, replicas: Sequence[Replica], version: int, count: int | None = None
) -> tuple[str, str]:
    """Phase and message of a deployment of *replicas*, of which *count* (as its spec says) should serve *version*."""
    count = deployment.spec.replicas if count is None else count
    if deployment.deleting:
        return "deleting", ""
    stable = [r for r in replicas if r.version == version and r.wanted]
    ready = sum(isinstance(r.state, Ready) for r in stable)
    troubles = [(r.name, r.state.message) for r in stable if isinstance(r.state, Unwell | BackingOff | ReplicaFailed)]
    message = "; ".join(f"{name}: {said}" for name, said in troubles)
    said = (r.state.message for r in stable if isinstance(r.state, Pending | Starting | Asleep))
    waiting = next(filter(None, said), "")
    if ready >= count:  # a changed engine's replicas may still be on their way, or unable to start
        return "ready", message or waiting
    if ready or any(isinstance(r.state, Unwell) for r in stable):
        return "degraded", message or f"{ready} of {count} replicas are ready"
    if stable and all(isinstance(r.state, ReplicaFailed) for r in stable):
        return "failed", message
    return "starting", message or waiting


@dataclass(frozen=True, slots=True)
class Door:
    """What the table must know of the gateway: how many ``workers`` share each bound, and whether it ``needs_key``."""

    workers: int = 1
    needs_key: bool = False


def route_table(
    version: int,
    deployments: Sequence[Deployment],
    replicas: Sequence[Replica],
    rollouts: Mapping[str, Rollout],
    models: Mapping[str, Model],
    keys: Sequence[ApiKey],
    door: Door,
) -> RouteTable:
    """The table that the gateway should follow. *rollouts* has the active ones, and *models* all, by name."""
    routes = []
    for deployment in deployments:
        if not deployment.deleting:
            model = models.get(deployment.spec.model)
            words = tuple(sorted(model.aliases.items())) if model else ()
            routes.append(route(deployment, replicas, rollouts.get(deployment.rollout or ""), words, door.workers))
    return RouteTable(version, tuple(routes), tuple(_key(key) for key in keys), door.needs_key)


def route(
    deployment: Deployment,
    replicas: Sequence[Replica],
    rollout: Rollout | None,
    words: tuple[tuple[str, int], ...] = (),
    workers: int = 1,
) -> Route:
    """The part of the table for one deployment. Arms keep their weight while none of their replicas is ready: the
    gateway sends what is meant for them to stable, and what is meant for stable to the version that stands by.

    Args:
        words: the aliases of its model, with the versions that they mean.
        workers: each gets its share, rounded up, of what may be under way or waiting.
    """
    spec = deployment.spec
    is_adapter = isinstance(spec.engine, AdapterEngine)

    def addresses(version: int) -> tuple[str, ...]:
        mine = [r for r in replicas if r.deployment == deployment.name and r.version == version]
        return tuple(sorted(r.address for r in mine if isinstance(r.state, Ready) and r.wanted and not r.rests))

    def arm(name: str, version: int, weight: float) -> Arm:
        model = adapter_name(deployment.name, version) if is_adapter else ""
        return Arm(name, version, weight, addresses(version), model)

    warm = deployment.warm
    former = (arm("former", warm.version, 0),) if warm is not None and not warm.rests else ()
    plain = Route(
        deployment.name,
        deployment.name,
        (arm("stable", deployment.version, 100), *former),
        aliases=tuple(spec.aliases),
        versions=words,
        hold_seconds=spec.hold_timeout,
        in_flight=-(-spec.max_in_flight // workers),
        queue=-(-spec.max_queue // workers),
    )
    if rollout is None or rollout.phase in FINAL_PHASES:
        return plain
    divided = split(rollout.spec, rollout.state, is_swap=rollout.is_swap)
    arms = [arm("stable", rollout.from_version, divided.stable)]
    if divided.exposes:
        arms.append(arm("candidate", rollout.to_version, divided.candidate))
    is_targeted = divided.exposes and divided.stable > 0
    targets = tuple(Target("candidate", t.header.lower(), t.value, t.key) for t in rollout.spec.targets)
    return replace(
        plain,
        salt=rollout.name,
        arms=tuple(arms),
        shadow=arm("shadow", rollout.to_version, divided.shadow) if divided.shadow else None,
        targets=targets if is_targeted else (),
        max_callers=divided.max_callers,
        keeps_shadow=rollout.spec.keep_answers,
        stage=getattr(rollout.state, "began", 0),
        hold_seconds=spec.longest_hold if rollout.is_swap else spec.hold_timeout,
    )


def is_same_split(route: Route, wanted: Route) -> bool:
    """Whether both send the same requests to the same versions."""

    def parts(of: Route) -> object:
        arms = [*of.arms, *([of.shadow] if of.shadow else [])]
        return of.salt, [(a.name, a.version, a.weight) for a in arms], of.targets, of.max_callers

    return parts(route) == parts(wanted)


def _key(key: ApiKey) -> Key:
    return Key(key.name, key.digest, tuple(key.models), key.requests_per_minute, key.tokens_per_minute, key.in_flight)


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
