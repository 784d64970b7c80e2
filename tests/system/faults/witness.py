"""A watcher of the events that never looks away: through all lives of the daemon, resuming from the last id it saw."""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

from stoker.client import Client
from stoker.errors import Conflict, StokerError
from stoker.types.events import Event

RETRY_SECONDS = 0.02


class Witness:
    """Follows the socket in a thread. Close it when no daemon lives any more: a quiet stream can't be left sooner."""

    def __init__(self, socket: Path) -> None:
        self._socket = socket
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._follow, name="witness", daemon=True)
        self._actions: list[tuple[str, str, Callable[[], object]]] = []
        self.events: list[Event] = []
        self.problems: list[str] = []

    def start(self) -> None:
        self._thread.start()

    def close(self) -> None:
        self._over.set()
        self._thread.join()

    def on(self, reason: str, name: str, action: Callable[[], object]) -> None:
        """Do *action* once, at the next event with that reason about that resource, within a millisecond or so."""
        self._actions.append((reason, name, action))

    def _follow(self) -> None:
        with Client(self._socket) as client:
            while not self._over.is_set():
                try:
                    with closing(client.events(self.events[-1].id if self.events else 0)) as stream:
                        for event in stream:
                            self._take(event)
                except Conflict as error:
                    self.problems.append(f"an event that was seen is lost: {error}")
                    return
                except StokerError:
                    self._over.wait(RETRY_SECONDS)

    def _take(self, event: Event) -> None:
        self.events.append(event)
        for entry in self._actions:
            if entry[:2] == (event.reason, event.name):
                self._actions.remove(entry)
                entry[2]()
                return
