"""Which GPUs a run or a replica gets: pure decisions on the inventory and on who holds what.

A lease is no record of its own: it follows from its owner, which names the UUIDs that it was given. *leases* is that,
turned round: UUID to the leases on it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

from stoker.types.host import Device, DeviceProcess, Lease

Leases = Mapping[str, Sequence[Lease]]
"""UUID to the leases on it."""

EXACT_SETS = 2000
"""Up to so many sets of GPUs are all compared (10 ms); of more, only those that grow greedily from each GPU."""


@dataclass(frozen=True, slots=True)
class Request:
    """What is asked for: *count* devices, whole, or *memory* bytes of each."""

    count: int
    memory: int | None = None


def place(devices: Sequence[Device], leases: Leases, request: Request) -> list[str] | None:
    """Choose the devices of *request*; None when too few can be had now. Returns their UUIDs, by index.

    A whole device is one that is well, that nobody leases and that no foreign process uses. Among sets of those, the
    one that has the most pairs joined by NVLink wins, then the one that cuts the fewest links to what stays free, then
    the lowest indices.

    A share may lie beside other shares, but on an exclusive device it lies alone. It goes, first, to devices that are
    shared already, to the one that it fills best, so that whole ones stay free; then to free ones; then to free
    exclusive ones; and only then beside a foreign process, whose memory counts as taken.
    """
    if request.count <= 0:
        return []
    if request.memory is None:
        return _whole([d for d in devices if is_free(d, leases.get(d.uuid, ()))], request.count)
    return _shares(devices, leases, request.count, request.memory)


def is_free(device: Device, leases: Sequence[Lease]) -> bool:
    """Whether it may be given whole."""
    return device.error is None and not leases and not device.foreign


def room(device: Device, leases: Sequence[Lease]) -> int:
    """How many bytes of it a further share may have. Never negative; the whole of it counts as free until leased."""
    whole_or_alone = any(lease.memory is None for lease in leases) or (
        device.mode == "exclusive" and bool(leases or device.foreign)
    )
    if device.error is not None or whole_or_alone:
        return 0
    leased = sum(lease.memory or 0 for lease in leases)
    return max(0, device.memory_total - leased - _foreign_memory(device))


def why_not(devices: Sequence[Device], leases: Leases, request: Request) -> str:
    """Say in one sentence why `place` found too few. It stays the same while the reasons do: no changing figures."""
    if request.memory is None:
        wanted, fitting = f"it needs {request.count} GPU(s)", len(devices)
    else:
        wanted = f"it needs {gib(request.memory)} on {request.count} GPU(s)"
        fitting = sum(d.memory_total >= request.memory for d in devices)
    if len(devices) < request.count:
        return f"{wanted}; this host has {len(devices)}."
    if fitting < request.count:
        return f"{wanted}; only {fitting} of this host's {len(devices)} are that large."
    known = {d.uuid for d in devices}
    owners = sorted({lease.owner for uuid, held in leases.items() if uuid in known for lease in held})
    causes = [f"held by {', '.join(owners)}"] if owners else []
    for device in sorted(devices, key=lambda d: d.index):
        if device.error is not None:
            causes.append(f"GPU {device.index} is out of order")
        causes += [f"GPU {device.index} is used by {describe(process)}" for process in device.foreign]
    return f"{wanted}; too few are free ({'; '.join(causes) or 'they are looked at again'})."


def describe(process: DeviceProcess) -> str:
    """A process that is not ours, as people are told of it; without its memory, which changes."""
    if process.name:
        return f"process {process.pid} ({process.name}), which is not of Stoker"
    return f"process {process.pid}, which has ended, but its memory is not back"


def gib(count: int) -> str:
    """*count* bytes, as people are told of it."""
    return f"{count / 2**30:.4g} GiB"


def _whole(free: Sequence[Device], count: int) -> list[str] | None:
    if len(free) < count:
        return None
    free = sorted(free, key=lambda d: d.index)
    links = _Links(free)
    positions = range(len(free))
    sets: Iterable[tuple[int, ...]] = (
        combinations(positions, count)
        if math.comb(len(free), count) <= EXACT_SETS
        else [links.grown(seed, count) for seed in positions]
    )
    best = min(sets, key=lambda chosen: (*links.score(chosen), chosen))
    return [free[p].uuid for p in best]


class _Links:
    """Which of *devices*, by position, are joined by NVLink."""

    def __init__(self, devices: Sequence[Device]) -> None:
        self._peers = [
            {p for p, other in enumerate(devices) if p != me and (other.uuid in d.links or d.uuid in other.links)}
            for me, d in enumerate(devices)
        ]

    def score(self, chosen: tuple[int, ...]) -> tuple[int, int]:
        """How bad the set is: the less inside, the worse; then the more links it cuts, the worse."""
        members = set(chosen)
        inside = sum(len(self._peers[p] & members) for p in chosen) // 2
        return -inside, sum(len(self._peers[p] - members) for p in chosen)

    def grown(self, seed: int, count: int) -> tuple[int, ...]:
        """*count* positions from *seed* on, each the one that has the most links to those before it."""
        chosen = {seed}
        while len(chosen) < count:
            rest = [p for p in range(len(self._peers)) if p not in chosen]
            chosen.add(max(rest, key=lambda p: (len(self._peers[p] & chosen), -p)))
        return tuple(sorted(chosen))


def _shares(devices: Sequence[Device], leases: Leases, count: int, memory: int) -> list[str] | None:
    fitting = []
    for device in devices:
        held = leases.get(device.uuid, ())
        left = room(device, held) - memory
        if left >= 0:
            fitting.append((_rank(device, held), left, device.index, device))
    if len(fitting) < count:
        return None
    chosen = [device for *_, device in sorted(fitting, key=lambda f: f[:3])[:count]]
    return [d.uuid for d in sorted(chosen, key=lambda d: d.index)]


def _rank(device: Device, leases: Sequence[Lease]) -> int:
    """How much is lost for others by a share on it; see `place`."""
    if device.foreign:
        return 3
    if leases:
        return 0
    return 1 if device.mode == "shared" else 2


def _foreign_memory(device: Device) -> int:
    """What processes that are not ours use of it, in bytes; where the driver doesn't tell that, all that is used."""
    known = 0
    for process in device.foreign:
        if process.memory is None:
            return device.memory_total if device.memory_used is None else device.memory_used
        known += process.memory
    return known
