"""Listening sockets go from a worker to the one that replaces it, so that no connection is refused or reset.

A socket that is passed on (SCM_RIGHTS) keeps its queue: whoever has connected and was not accepted yet is served by
the new worker. Binding a second one and closing the first would reset those. The old worker takes connections until
the new one says that it does.

What is said: the old one sends a line of JSON (``{"place": HOST:PORT as it was told}``) with the sockets; the new one
answers ``serving`` when it serves, and hangs up.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
from collections.abc import Callable, Sequence
from pathlib import Path

SUFFIX = ".hand"
ASK_SECONDS = 2.0
GIVE_SECONDS = 10.0
_SERVING = b"serving\n"
_MAX_SOCKETS = 64
_MAX_BYTES = 4096


def path_beside(control: Path) -> Path:
    """Where the worker with that control socket hands over."""
    return control.with_name(control.name + SUFFIX)


class Taken:
    """Listening sockets of an older worker, which goes on until `confirm`."""

    def __init__(self, giver: socket.socket, sockets: list[socket.socket]) -> None:
        self._giver = giver
        self.sockets = sockets

    def confirm(self) -> None:
        """They are served here now."""
        with self._giver, contextlib.suppress(OSError):
            self._giver.sendall(_SERVING)


def take(path: Path, place: str) -> Taken | None:
    """Ask the worker at *path* for its listening sockets. Blocks for at most `ASK_SECONDS`.

    None when it doesn't answer, has none, or serves another *place*: then this one has to find its own.
    """
    giver = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        giver.settimeout(ASK_SECONDS)
        giver.connect(str(path))
        data, fds, _, _ = socket.recv_fds(giver, _MAX_BYTES, _MAX_SOCKETS)
        sockets = [socket.socket(fileno=fd) for fd in fds]
        said = json.loads(data)
        if sockets and said["place"] == place:
            for sock in sockets:
                sock.setblocking(False)
            return Taken(giver, sockets)
        for sock in sockets:
            sock.close()
    except (OSError, ValueError, KeyError, TypeError):
        pass
    giver.close()
    return None


class Giver:
    """Hands the sockets of this worker over to whoever asks for them, and says once that it was done.

    Args:
        listener: a Unix socket where one asks.
        place: HOST:PORT as this worker was told.
        on_given: called when another worker serves the sockets.
    """

    def __init__(self, listener: socket.socket, place: str, on_given: Callable[[], None]) -> None:
        self._listener = listener
        self._place = place
        self._on_given = on_given
        self._sockets: Sequence[socket.socket] = ()

    def offer(self, sockets: Sequence[socket.socket]) -> None:
        """These may be taken; none: there is nothing to take (any more)."""
        self._sockets = sockets

    async def run(self) -> None:
        """Go on until cancelled."""
        loop = asyncio.get_running_loop()
        with self._listener:
            while True:
                try:
                    taker, _ = await loop.sock_accept(self._listener)
                except OSError:  # too many open files: whoever asks finds another way
                    await asyncio.sleep(ASK_SECONDS)
                    continue
                with taker, contextlib.suppress(OSError, TimeoutError):
                    async with asyncio.timeout(GIVE_SECONDS):
                        await self._give(taker)

    async def _give(self, taker: socket.socket) -> None:
        fds = [sock.fileno() for sock in self._sockets]
        socket.send_fds(taker, [json.dumps({"place": self._place}).encode()], fds)
        loop = asyncio.get_running_loop()
        said = b""
        while not said.endswith(_SERVING) and (piece := await loop.sock_recv(taker, _MAX_BYTES)):
            said += piece
        if said == _SERVING and fds:
            self._sockets = ()
            self._on_given()
