"""Who holds which device. A lease is a field of its owner's row, so it is exactly as durable as the owner."""

from __future__ import annotations

from collections.abc import Sequence

from stoker.types.host import Device
from stoker.types.serving import Replica
from stoker.types.training import ACTIVE_PHASES, Run
from stokerd.devices.placement import place
from stokerd.store.store import Query


def taken(query: Query) -> dict[str, str]:
    """Which device (by UUID) is held by whom (``run/NAME``, ``replica/NAME``)."""
    owners: dict[str, str] = {}
    for run in query.all(Run, phase=ACTIVE_PHASES):
        owners |= dict.fromkeys(run.devices, f"run/{run.name}")
    for replica in query.all(Replica):
        owners |= dict.fromkeys(replica.devices, f"replica/{replica.name}")
    return owners


def find(query: Query, devices: Sequence[Device], count: int) -> tuple[list[str], str]:
    """Choose *count* free devices inside a transaction; the caller saves them on their owner in the same one.

    Returns their UUIDs, or an empty list and one sentence why they can't be had now.
    """
    if count == 0:
        return [], ""
    if len(devices) < count:
        return [], f"it needs {count} GPU(s); this host has {len(devices)}."
    owners = taken(query)
    chosen = place(devices, owners, count)
    if chosen is not None:
        return chosen, ""
    holders = ", ".join(sorted(set(owners.values()))) or "nobody, but some are out of order"
    return [], f"it needs {count} GPU(s); too few are free (held by {holders})."
