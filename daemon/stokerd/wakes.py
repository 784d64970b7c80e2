"""Who is to look again when something has happened: a table of what each part depends on."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from stokerd.reconciler import Reconciler

_NOBODYS = frozenset({"version", "dataset", "dataset-version", "job"})
"""Kinds of events that no part waits for: what needs such a thing can't be made before it is there."""


@dataclass(frozen=True, slots=True)
class _Part:
    reconciler: Reconciler
    at_once: frozenset[str]
    soon: frozenset[str]
    processes: str | None


class Wakes:
    """Pokes the reconcilers that a change concerns, and leaves the others asleep."""

    def __init__(self) -> None:
        self._parts: list[_Part] = []

    def add(
        self,
        reconciler: Reconciler,
        *,
        at_once: Collection[str],
        soon: Collection[str] = (),
        processes: str | None = None,
    ) -> None:
        """Have *reconciler* poked *at_once* by events of some kinds, a little later (*soon*) by some others, and by
        what happens to *processes* whose id begins so.
        """
        self._parts.append(_Part(reconciler, frozenset(at_once), frozenset(soon), processes))

    def all(self) -> None:
        """Everybody is to look."""
        for part in self._parts:
            part.reconciler.poke()

    def of_events(self, kinds: Collection[str]) -> None:
        """Events of these *kinds* were recorded. A kind that nobody has named concerns everybody."""
        concerning = set(kinds) - _NOBODYS
        named = {kind for part in self._parts for kind in part.at_once | part.soon}
        if not concerning <= named:
            self.all()
            return
        for part in self._parts:
            if concerning & part.at_once:
                part.reconciler.poke()
            elif concerning & part.soon:
                part.reconciler.poke_soon()

    def of_process(self, process: str) -> None:
        """Something happened to that *process*, by its id."""
        for part in self._parts:
            if part.processes is not None and process.startswith(part.processes):
                part.reconciler.poke()
