"""Who holds which device. A lease is a field of its owner's row, so it is exactly as durable as the owner.

Between the two versions of a swap nobody holds what the next one needs. It is kept for the rollout all the same: room
for as many replicas as are missing, wherever it is then. That follows from the rollout, and is no lease of its own.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence

from stoker.types import rollouts
from stoker.types.host import Device, Lease
from stoker.types.rollouts import Rollout
from stoker.types.serving import Asleep, Deployment, Replica, ReplicaFailed
from stoker.types.training import ACTIVE_PHASES, Run
from stokerd.devices.placement import Request, place, why_not
from stokerd.store.store import Query

__all__ = ["Request", "find", "held", "taken", "waiting"]


def held(query: Query) -> dict[str, list[Lease]]:
    """Which device (by UUID) is leased by whom (``run/NAME``, ``replica/NAME``), and how much of it; by owner."""
    leases: dict[str, list[Lease]] = {}

    def add(uuids: Sequence[str], lease: Lease) -> None:
        for uuid in uuids:
            leases.setdefault(uuid, []).append(lease)

    for replica in sorted(query.all(Replica), key=lambda r: r.name):
        add(replica.devices, Lease(owner=f"replica/{replica.name}", memory=replica.device_memory))
    for run in sorted(query.all(Run, phase=ACTIVE_PHASES), key=lambda r: r.name):
        add(run.devices, Lease(owner=f"run/{run.name}", memory=run.spec.device_memory))
    return leases


def taken(query: Query, devices: Sequence[Device], deployment: str = "") -> dict[str, list[Lease]]:
    """What is `held`, and what is kept for swaps (``rollout/NAME``).

    *deployment*: whose replica asks. Nothing is kept from it for its own swap, nor for those that began later.
    """
    leases = held(query)
    _keep_rooms(query, devices, leases, deployment)
    return leases


def waiting(query: Query, devices: Sequence[Device]) -> list[str]:
    """The swaps between their versions for which there is no room now, by name."""
    return _keep_rooms(query, devices, held(query))


def find(
    query: Query,
    devices: Sequence[Device],
    request: Request,
    deployment: str = "",
    among: Collection[str] | None = None,
) -> tuple[list[str], str]:
    """Choose the devices of *request* inside a transaction; the caller saves them on their owner in the same one.

    Returns their UUIDs, or an empty list and one sentence why they can't be had now. *deployment*: whose replica asks;
    *among*: the UUIDs to choose from, where it can't be any.
    """
    if request.count == 0:
        return [], ""
    leases = taken(query, devices, deployment)
    possible = [device for device in devices if among is None or device.uuid in among]
    chosen = place(possible, leases, request)
    return (chosen, "") if chosen is not None else ([], why_not(possible, leases, request))


def _keep_rooms(
    query: Query, devices: Sequence[Device], leases: dict[str, list[Lease]], deployment: str = ""
) -> list[str]:
    """Add the rooms of swaps to *leases*, the oldest first, up to that of *deployment*. Returns who gets none."""
    lacking = []
    for rollout in query.all(Rollout, phase=rollouts.ACTIVE_PHASES):
        if not rollout.is_swap:
            continue
        if rollout.deployment == deployment:
            break  # two that waited for each other would wait for ever
        for among, request in _missing(query, rollout.deployment):
            possible = [device for device in devices if device.uuid in among] if among else devices
            found = place(possible, leases, request)
            if found is None:
                lacking.append(rollout.name)
                break
            for uuid in found:
                leases.setdefault(uuid, []).append(Lease(owner=f"rollout/{rollout.name}", memory=request.memory))
    return lacking


def _missing(query: Query, deployment: str) -> Iterator[tuple[Sequence[str], Request]]:
    """What each replica needs that a swap has still to bring: first those that wake up where they sleep."""
    spec = query.get(Deployment, deployment).spec
    replicas = query.all(Replica, deployment=deployment)
    accounted = [r for r in replicas if r.devices or (r.wanted and isinstance(r.state, ReplicaFailed))]
    count = spec.replicas - len(accounted)
    for replica in replicas:
        if count > 0 and isinstance(replica.state, Asleep) and replica.wanted and not replica.rests:
            yield replica.state.devices, Request(len(replica.state.devices), replica.state.device_memory)
            count -= 1
    for _ in range(count):
        yield (), Request(spec.devices, spec.device_memory)
