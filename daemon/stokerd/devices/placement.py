"""Which GPUs a run or a replica gets: pure decisions on the inventory and on who holds what.

A lease is no record of its own: it follows from its owner, which names the UUIDs that it was given. *taken* is that,
turned round: UUID to owner.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from stoker.types.host import Device


def place(devices: Sequence[Device], taken: Mapping[str, str], count: int) -> list[str] | None:
    """Choose *count* whole GPUs that are free and healthy, the lowest index first; None when there are too few.

    Returns their UUIDs; an empty list when none is asked for.
    """
    free = sorted((d for d in devices if d.error is None and d.uuid not in taken), key=lambda d: d.index)
    return [d.uuid for d in free[: max(count, 0)]] if len(free) >= count else None
