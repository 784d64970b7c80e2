"""Devices go back to the others when nothing runs on them any more and the driver says that their memory is free."""

from __future__ import annotations

import time
from collections.abc import Collection

from stoker.types.serving import Replica
from stokerd.devices.inventory import Inventory
from stokerd.serving.plan import MEMORY_PATIENCE_SECONDS, Handback, handback
from stokerd.store.store import Store, Transaction


class Handbacks:
    """Sees for each replica whose last process has ended that the memory of its devices is back."""

    def __init__(self, store: Store, inventory: Inventory) -> None:
        self._store = store
        self._inventory = inventory
        self._since: dict[str, float] = {}  # replica to when it was first seen without a process, monotonic

    async def is_done(self, replica: Replica) -> bool:
        """Whether the devices that *replica* holds, with no process left, may be given to others.

        Memory that isn't back after `MEMORY_PATIENCE_SECONDS` is told, and waited for no longer: whoever still has it
        is not ours, or will not die. Nobody is hurt by that, as what is taken of a device is not given away, and a
        deployment that can't be deleted, or waits for ever for one GPU of eight, would help nobody.
        """
        if not replica.devices:
            return True
        since = self._since.setdefault(replica.name, time.monotonic())
        held_by = self._inventory.memory_back(replica.devices, since)
        seen = handback(held_by, time.monotonic() - since)
        if seen == Handback.WAIT:
            return False
        if seen == Handback.TELL:
            await self._store.write(lambda tx: self._tell(tx, replica, held_by))
        self._since.pop(replica.name, None)
        return True

    def keep_only(self, replicas: Collection[str]) -> None:
        """Forget all others."""
        for name in self._since.keys() - set(replicas):
            del self._since[name]

    def runs(self, replica: Replica) -> None:
        """It has a process (again): what was seen before counts no more."""
        self._since.pop(replica.name, None)

    @staticmethod
    def _tell(tx: Transaction, replica: Replica, held_by: str) -> None:
        sentence = (
            f"{replica.name} ended {MEMORY_PATIENCE_SECONDS:g} s ago, and the memory of its devices is not all back: "
            f"{held_by.rstrip('.')}; what is taken there is given to nobody else."
        )
        tx.record("replica", replica.name, "DeviceMemoryHeld", sentence, devices=replica.devices)
