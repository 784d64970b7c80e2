"""Who holds which device. A lease is a field of its owner's row, so it is exactly as durable as the owner."""

from __future__ import annotations

from collections.abc import Sequence

from stoker.types.host import Device, Lease
from stoker.types.serving import Replica
from stoker.types.training import ACTIVE_PHASES, Run
from stokerd.devices.placement import Request, place, why_not
from stokerd.store.store import Query

__all__ = ["Request", "find", "held"]


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


def find(query: Query, devices: Sequence[Device], request: Request) -> tuple[list[str], str]:
    """Choose the devices of *request* inside a transaction; the caller saves them on their owner in the same one.

    Returns their UUIDs, or an empty list and one sentence why they can't be had now.
    """
    if request.count == 0:
        return [], ""
    leases = held(query)
    chosen = place(devices, leases, request)
    return (chosen, "") if chosen is not None else ([], why_not(devices, leases, request))
