"""The control socket: one per home, mode 0660; who calls is known from the kernel."""

from __future__ import annotations

import asyncio
import socket
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import uvicorn
from fastapi import APIRouter, FastAPI
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

import stoker
from stoker.errors import Unavailable
from stoker.paths import MAX_SOCKET_PATH
from stokerd.api import errors

SOCKET_MODE = 0o660


class _Protocol(HttpToolsProtocol):
    """Puts the caller's user id, as the kernel tells it, where ASGI has the client's address: ``uid:0``."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        peer = transport.get_extra_info("socket").getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
        pid, uid, _gid = struct.unpack("iII", peer)
        self.client = (f"uid:{uid}", pid)


class Server(uvicorn.Server):
    """uvicorn, without its own ideas of signals, and asleep while nobody calls: the daemon ends it, by `end`."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self._ending = asyncio.Event()

    def end(self) -> None:
        """Let ``serve`` return, once what is being answered is."""
        self.should_exit = True
        self._ending.set()

    async def main_loop(self) -> None:
        """Wait for the end. uvicorn's own looks ten times a second whether it was asked to, and what the date is."""
        await self.on_tick(0)  # sets the headers that all answers have
        await self._ending.wait()

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leave signals to the daemon."""
        yield


def build(routers: list[APIRouter]) -> FastAPI:
    """The application, described at ``/openapi.json``."""
    app = FastAPI(title="Stoker", version=stoker.__version__, docs_url=None, redoc_url=None)
    errors.install(app)
    for router in routers:
        app.include_router(router)
    return app


def server_for(app: FastAPI) -> Server:
    """A server that is started with the socket of `listen`."""
    config = uvicorn.Config(
        app,
        http=_Protocol,
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        date_header=False,  # it would be that of the start: see main_loop
        timeout_graceful_shutdown=3,
    )
    return Server(config)


def listen(path: Path, handed: socket.socket | None = None) -> socket.socket:
    """Listen on *path*; a stale socket file is taken over (the home's lock was taken before). Raises `Unavailable`.

    *handed*: one that listens there already, from systemd; it is taken instead.
    """
    longest = path.parent / "s" / "0123456789ab.sock"  # those of replicas are named so
    if len(str(longest).encode()) > MAX_SOCKET_PATH:
        raise Unavailable(
            f"sockets in {path.parent} would have paths over the {MAX_SOCKET_PATH} bytes that the kernel takes.",
            "Choose a home with a shorter path.",
            code="path-too-long",
        )
    if handed is not None:
        return _checked(handed, path)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        if path.exists() and not path.is_socket():
            raise FileExistsError(17, "something else than a socket is there", str(path))
        path.unlink(missing_ok=True)
        listener.bind(str(path))
        path.chmod(SOCKET_MODE)
        listener.listen(128)
    except OSError as error:
        listener.close()
        raise Unavailable(
            f"the socket {path} can't be made: {error.strerror or error}.",
            "See who has it and that this user may write in its folder.",
            code="socket-taken",
        ) from error
    return listener


def _checked(handed: socket.socket, path: Path) -> socket.socket:
    there = str(handed.getsockname())
    if there != str(path):
        raise Unavailable(
            f"systemd listens on {there}, but the socket of this home is {path}.",
            f"Set ListenStream={path} in stokerd.socket, where `stoker` looks for it.",
            code="wrong-activation",
        )
    return handed
