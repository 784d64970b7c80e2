"""Where the candidate of a rollout would run, and how the rollout would go: said before anything starts. Pure.

All replicas of the candidate must find a place at once: a rollout that waits for its second half holds devices for
nothing. Where there is too little room, what is on its way out counts as gone: replicas that drain, and a version that
stands by for an earlier rollout, which ends with the next one.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from stoker.types.host import Device, Lease
from stoker.types.rollouts import RolloutPlan, RolloutSpec, ShadowStep
from stoker.types.serving import AdapterEngine, Asleep, Deployment, Ready, Replica
from stoker.words import span
from stokerd.devices.placement import Leases, Request, gib, place, why_not
from stokerd.rollouts.pace import LateTraffic, Pace
from stokerd.serving.engines import can_sleep, launch_digest

__all__ = ["LateTraffic", "fit"]

Placement = Literal["beside", "share", "adapter", "swap"]


def fit(
    spec: RolloutSpec,
    deployment: Deployment,
    replicas: Sequence[Replica],
    to_version: int,
    devices: Sequence[Device],
    leases: Leases,
    traffic: LateTraffic,
    others: Sequence[Replica] = (),
) -> RolloutPlan:
    """Plan the rollout *spec* of *deployment*, from the version that it serves to *to_version*.

    Args:
        replicas: the deployment's own, of any version.
        devices: the host's.
        leases: who holds what of them.
        others: replicas of other deployments; an adapter's servers are among them.
    """
    host = _Host(spec, deployment, (*replicas, *others), to_version, devices, leases, traffic)
    chosen = host.find()
    is_swap = chosen.placement == "swap"
    stable, count = f"v{deployment.version}", deployment.spec.replicas
    pace = Pace(spec, traffic, stable=stable, replicas=count, is_swap=is_swap)
    steps = pace.steps()
    start = 0.0 if chosen.is_standing else traffic.start_seconds or 0.0
    known = [step.seconds for step in steps if step.seconds is not None]
    return RolloutPlan(
        deployment=deployment.name,
        from_version=deployment.version,
        to_version=to_version,
        fits=chosen.fits,
        placement=chosen.placement,
        says=chosen.says,
        devices=list(chosen.devices),
        steps=steps,
        seconds=start + sum(known) if chosen.fits and len(known) == len(steps) else None,
        requests_per_hour=traffic.requests_per_hour,
        callers=traffic.callers,
        way_back=_way_back(spec, deployment, to_version, chosen, traffic),
        warnings=[*host.warnings(chosen), *pace.warnings()],
    )


@dataclass(frozen=True, slots=True)
class _Place:
    """Where it would run.

    ``devices``: of its first replica. ``waits_for``: replicas that must be gone before. ``is_standing``: its own are
    there already.
    """

    fits: bool
    placement: Placement
    says: str
    devices: Sequence[str] = ()
    waits_for: Sequence[str] = ()
    is_standing: bool = False


@dataclass(frozen=True, slots=True)
class _Room:
    """The devices of each replica that is to be made, and the replicas that must be gone before."""

    chosen: Sequence[Sequence[str]]
    waits_for: Sequence[str] = ()

    @property
    def first(self) -> Sequence[str]:
        return self.chosen[0] if self.chosen else ()

    @property
    def everything(self) -> set[str]:
        return {uuid for uuids in self.chosen for uuid in uuids}


class _Host:
    """What the candidate finds on this host."""

    def __init__(
        self,
        spec: RolloutSpec,
        deployment: Deployment,
        replicas: Sequence[Replica],
        to_version: int,
        devices: Sequence[Device],
        leases: Leases,
        traffic: LateTraffic,
    ) -> None:
        self._spec, self._served, self._traffic = spec, deployment.spec, traffic
        self._old, self._new = f"v{deployment.version}", f"v{to_version}"
        self._phase, self._message = deployment.phase, deployment.message
        self._devices = devices
        self._request = Request(self._served.devices, self._served.device_memory)
        own = [r for r in replicas if r.deployment == deployment.name]
        digest = launch_digest(self._served)
        self._replicas = replicas
        self._stable = [r for r in own if r.version == deployment.version]
        standing = [r for r in own if r.version == to_version and r.wanted and r.launch_digest == digest]
        may_wake = spec.placement == "swap"  # beside stable, it would need devices that are free now
        self._standing = [r for r in standing if may_wake or not isinstance(r.state, Asleep)]
        self._missing = max(self._served.replicas - len(self._standing), 0)
        kept = (deployment.version, to_version)
        self._leaving = [
            r for r in replicas if not r.wanted or (r.deployment == deployment.name and r.version not in kept)
        ]
        self._leases = leases
        self._held = {uuid for r in self._stable for uuid in r.devices}

    def find(self) -> _Place:
        """Where there is room for it, as far as the spec lets it choose."""
        if isinstance(self._served.engine, AdapterEngine):
            return self._as_adapter(self._served.engine.base)
        return self._as_swap() if self._spec.placement == "swap" else self._beside()

    def warnings(self, chosen: _Place) -> Iterator[str]:
        """What the place brings with it."""
        if self._phase != "ready":
            said = f": {self._message}" if self._message else ""
            yield f"{self._old} is {self._phase}{said}. What {self._new} is compared with isn't as usual."
        if chosen.waits_for:
            yield f"{self._new} starts when {', '.join(chosen.waits_for)} has gone, whose devices it needs."
        match chosen.placement:
            case "swap" if chosen.fits:
                yield from self._warnings_of_swap()
            case "share":
                yield f"{self._new} and {self._old} slow each other down on {self._names(self._held)}."
            case "adapter":
                yield f"{self._new} and {self._old} slow each other down: the same servers answer for both."
        heaviest = max((s.percent for s in self._spec.steps if isinstance(s, ShadowStep)), default=0.0)
        if heaviest and chosen.fits and chosen.placement in ("share", "adapter"):
            yield f"Shadow adds {heaviest:g} % to the work of what {self._old} runs on."
        elif heaviest and chosen.fits and chosen.placement == "beside" and not self._request.count:
            yield f"Shadow adds {heaviest:g} % to the work of this host's CPU."

    def _warnings_of_swap(self) -> Iterator[str]:
        if can_sleep(self._served) and self._request.count:
            yield (
                f"{self._old} keeps its weights in this host's memory while it sleeps, and 1 to 2 GiB of each of its "
                f"devices: without room for them, {self._new} doesn't start, and {self._old} wakes up again."
            )
        if self._find_devices(self._leases) is not None and self._request.count:
            yield f"There is room beside {self._old}: with `placement: beside`, it would serve meanwhile."
        if any(guard.is_compared and guard.metric != "score" for guard in self._spec.guards):
            yield (
                f"{self._old} never answers at the same time as {self._new}: guards against stable can't tell a worse "
                "version from a worse hour. Guards with `against: nothing` can be trusted."
            )
        waiting = self._traffic.requests_per_hour * (self._traffic.start_seconds or 0.0) / 3600
        if waiting > self._served.max_queue:
            most = f"at most {self._served.max_queue} wait (max_queue)"
            yield f"About {waiting:.0f} requests will come while {self._new} starts; {most}, the others get 429."

    def _as_adapter(self, base: str) -> _Place:
        if self._spec.placement == "swap":
            says = "an adapter is loaded beside others: there is nothing to swap. Leave `placement: swap` out."
            return _Place(False, "adapter", says)
        servers = [r for r in self._replicas if r.deployment == base and r.wanted and isinstance(r.state, Ready)]
        if not servers:
            says = f"{self._new} can't be loaded: no server of {base} is ready."
            return _Place(False, "adapter", says)
        count = f"the {len(servers)} servers" if len(servers) > 1 else "the server"
        says = f"{self._new} is loaded beside {self._old} into {count} of {base}."
        on_all = {s.name for s in servers} <= {r.host for r in self._standing if isinstance(r.state, Ready)}
        return _Place(True, "adapter", says, servers[0].devices, is_standing=on_all)

    def _beside(self) -> _Place:
        if not self._missing:
            return self._as_it_stands()
        if not self._request.count:
            more = f", with {self._missing} more servers" if self._missing > 1 else ""
            return _Place(True, "beside", f"{self._new} runs beside {self._old} on this host's CPU{more}.")
        found = self._find_room(self._leases)
        if found is None:
            says = f"{self._new} doesn't fit beside {self._old}: {self._cause(self._leases)}{self._offer_of_swap()}"
            return _Place(False, "beside", says)
        names = self._names(found.everything)
        each = f", with {gib(self._request.memory)} of each" if self._request.memory is not None else ""
        if self._held & found.everything:
            says = f"{self._new} runs beside {self._old} on the same devices ({names}){each}."
            return _Place(True, "share", says, found.first, found.waits_for)
        says = f"{self._new} runs beside {self._old} on {names}{each}."
        return _Place(True, "beside", says, found.first, found.waits_for)

    def _as_it_stands(self) -> _Place:
        held = {uuid for r in self._standing for uuid in r.devices}
        says = f"{self._new} stands by already" + (f", on {self._names(held)}." if held else ".")
        is_ready = all(isinstance(r.state, Ready) for r in self._standing)
        placement: Placement = "share" if held & self._held else "beside"
        return _Place(True, placement, says, self._standing[0].devices, is_standing=is_ready)

    def _as_swap(self) -> _Place:
        alone = _without(self._leases, self._stable)
        found = self._find_room(alone)
        if found is None:
            says = f"{self._new} doesn't fit even in the place of {self._old}: {self._cause(alone)}"
            return _Place(False, "swap", says)
        standing = [uuid for r in self._standing for uuid in _devices_of(r)]
        names = self._names(found.everything.union(standing)) or "this host's CPU"
        wakes = not self._missing and all(isinstance(r.state, Asleep) for r in self._standing)
        comes = f"wakes up on {names}" if wakes else f"starts on {names}{self._about()}"
        says = f"{self._old} {self._goes()}, then {self._new} {comes}; meanwhile requests are held"
        says += f", each for at most {span(self._served.longest_hold)}."
        first = found.first or (_devices_of(self._standing[0]) if self._standing else ())
        return _Place(True, "swap", says, first, found.waits_for, is_standing=wakes)

    def _goes(self) -> str:
        return "is put to sleep" if can_sleep(self._served) else "stops"

    def _find_room(self, leases: Leases) -> _Room | None:
        """Room for the replicas that are missing, now or when others have gone; None: for too few of them."""
        if (chosen := self._find_devices(leases)) is not None:
            return _Room(chosen)
        if (chosen := self._find_devices(_without(leases, self._leaving))) is not None:
            needed = {uuid for uuids in chosen for uuid in uuids}
            return _Room(chosen, [r.name for r in self._leaving if needed.intersection(r.devices)])
        return None

    def _find_devices(self, leases: Leases) -> list[list[str]] | None:
        held = {uuid: list(found) for uuid, found in leases.items()}
        chosen: list[list[str]] = []
        for _ in range(self._missing):
            uuids = place(self._devices, held, self._request)
            if uuids is None:
                return None
            chosen.append(uuids)
            for uuid in uuids:
                held.setdefault(uuid, []).append(Lease(owner="", memory=self._request.memory))
        return chosen

    def _cause(self, leases: Leases) -> str:
        request = self._request
        if request.memory is None:
            return why_not(self._devices, leases, Request(request.count * self._missing))
        count = f"not all of its {self._missing} replicas find a place: " if self._missing > 1 else ""
        return count + why_not(self._devices, leases, request)

    def _offer_of_swap(self) -> str:
        if self._find_room(_without(self._leases, self._stable)) is None:
            return ""
        return (
            f" `placement: swap` would work: {self._old} {self._goes()} first, and all requests are held until "
            f"{self._new} is ready{self._about()}."
        )

    def _about(self) -> str:
        return f", in about {span(self._traffic.start_seconds)}" if self._traffic.start_seconds is not None else ""

    def _names(self, uuids: set[str]) -> str:
        known = sorted(d.index for d in self._devices if d.uuid in uuids)
        return ", ".join(f"GPU {index}" for index in known)


def _devices_of(replica: Replica) -> Sequence[str]:
    """Those that it holds; of one that sleeps, those that it wakes up on."""
    return replica.state.devices if isinstance(replica.state, Asleep) else replica.devices


def _without(leases: Leases, replicas: Sequence[Replica]) -> Leases:
    owners = {f"replica/{r.name}" for r in replicas}
    return {uuid: [lease for lease in held if lease.owner not in owners] for uuid, held in leases.items()}


def _way_back(spec: RolloutSpec, deployment: Deployment, to_version: int, chosen: _Place, traffic: LateTraffic) -> str:
    old, new = f"v{deployment.version}", f"v{to_version}"
    about = f" (about {span(traffic.start_seconds)})" if traffic.start_seconds is not None else ""
    if chosen.placement == "swap" and can_sleep(deployment.spec):
        later = (
            f"; for {span(spec.keep_warm)} after promotion, too: then {old} has to start first{about}."
            if spec.keep_warm
            else f"; after promotion, {old} has to start first{about}."
        )
        return f"{new} stops and {old} wakes up in its place within seconds, with requests held meanwhile{later}"
    if chosen.placement == "swap":
        return f"{new} stops and {old} starts in its place{about}, with requests held meanwhile; after promotion, too."
    stays = "weights stay loaded" if chosen.placement == "adapter" else "replicas stay"
    later = (
        f", and for {span(spec.keep_warm)} after promotion"
        if spec.keep_warm
        else f"; after promotion, {old} has to start first{about}"
    )
    return f"At once: the gateway sends all requests to {old} again, whose {stays} as they are{later}."
