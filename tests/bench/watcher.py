"""Sees a daemon's events as they come, with the moment of each."""

from __future__ import annotations

import json
import re
import socket
import threading
import time
from pathlib import Path
from typing import Any

from tests.harness import DEADLINE

_EVENT = re.compile(rb"data: (\{.*\})\n\n")


class Watcher:
    """One connection to ``/v1/events``, read by a thread. Use it as a context manager.

    By hand and not by a client, so that no more lies between the kernel and the clock than must.
    """

    def __init__(self, path: Path, after: int) -> None:
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.connect(str(path))
        self._socket.sendall(f"GET /v1/events?after={after} HTTP/1.1\r\nHost: stoker\r\n\r\n".encode())
        self._seen: list[tuple[float, dict[str, Any]]] = []
        self._more = threading.Condition()
        self._thread = threading.Thread(target=self._read, name="watcher")

    def __enter__(self) -> Watcher:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.shutdown(socket.SHUT_RDWR)
        self._thread.join(DEADLINE)
        self._socket.close()

    def wait(self, reason: str, name: str, since: float) -> float:
        """When the first event of that reason about *name* came after *since*; seconds of CLOCK_MONOTONIC."""

        def look() -> float | None:
            fits = (m for m, e in self._seen if m > since and (e["reason"], e["name"]) == (reason, name))
            return next(fits, None)

        with self._more:
            found = self._more.wait_for(look, DEADLINE)
        if found is None:
            told = [(e["reason"], e["name"]) for _, e in self._seen[-10:]]
            raise AssertionError(f"no {reason} of {name} came; the last were {told}")
        return found

    def _read(self) -> None:
        rest = b""
        while data := self._socket.recv(1 << 16):
            now = time.monotonic()
            rest += data
            with self._more:
                for found in _EVENT.finditer(rest):
                    self._seen.append((now, json.loads(found[1])))
                self._more.notify_all()
            rest = rest[rest.rfind(b"\n\n") + 2 :] if b"\n\n" in rest else rest
