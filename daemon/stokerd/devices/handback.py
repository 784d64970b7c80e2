"""Devices go back to the others when nothing runs on them any more and the driver says that their memory is free."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Sequence
from enum import Enum

from stokerd.devices.inventory import Inventory
from stokerd.store.store import Store, Transaction

MEMORY_PATIENCE_SECONDS = 60.0  # how long the memory of a dead process's devices may take to come back


class Handback(Enum):
    """What is to be done about devices whose last process has ended."""

    DONE = "they are free"
    WAIT = "some of their memory is not back yet"
    TELL = "it has not come back for too long"


def handback(held_by: str, waited: float) -> Handback:
    """*held_by* says in a sentence what still holds memory there; empty: nothing. *waited*: seconds since the end."""
    if not held_by:
        return Handback.DONE
    return Handback.WAIT if waited < MEMORY_PATIENCE_SECONDS else Handback.TELL


class Handbacks:
    """Sees for each lease of owners of one *kind* whose last process has ended that the memory is back."""

    def __init__(
        self, kind: str, store: Store, inventory: Inventory, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._kind = kind
        self._store = store
        self._inventory = inventory
        self._clock = clock
        self._since: dict[str, float] = {}  # owner to when it was first seen without a process, monotonic

    async def is_done(self, owner: str, devices: Sequence[str]) -> bool:
        """Whether *devices* (UUIDs), which *owner* holds with no process left, may be given to others.

        Memory that isn't back after `MEMORY_PATIENCE_SECONDS` is told, and waited for no longer: whoever still has it
        is not ours, or will not die. Nobody is hurt by that, as what is taken of a device is not given away, and a
        deployment that can't be deleted, or waits for ever for one GPU of eight, would help nobody.
        """
        if not devices:
            return True
        since = self._since.setdefault(owner, self._clock())
        held_by = self._inventory.memory_back(devices, since)
        seen = handback(held_by, self._clock() - since)
        if seen == Handback.WAIT:
            return False
        if seen == Handback.TELL:
            await self._store.write(lambda tx: self._tell(tx, owner, devices, held_by))
        self._since.pop(owner, None)
        return True

    def keep_only(self, owners: Collection[str]) -> None:
        """Forget all others."""
        for name in self._since.keys() - set(owners):
            del self._since[name]

    def runs(self, owner: str) -> None:
        """It has a process (again): what was seen before counts no more."""
        self._since.pop(owner, None)

    def _tell(self, tx: Transaction, owner: str, devices: Sequence[str], held_by: str) -> None:
        sentence = (
            f"{owner} ended {MEMORY_PATIENCE_SECONDS:g} s ago, and the memory of its devices is not all back: "
            f"{held_by.rstrip('.')}; what is taken there is given to nobody else."
        )
        tx.record(self._kind, owner, "DeviceMemoryHeld", sentence, devices=list(devices))
