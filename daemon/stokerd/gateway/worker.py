"""One process of the gateway, from its start to its last answer."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import secrets
import signal
from collections.abc import Coroutine
from dataclasses import dataclass, field
from pathlib import Path
from time import monotonic
from typing import Any, Protocol

from stokerd.gateway import handover, sockets, tablefile
from stokerd.gateway.control import Control
from stokerd.gateway.front import Front
from stokerd.gateway.gateway import Gateway, say
from stokerd.gateway.limits import Limits
from stokerd.gateway.server import Server
from stokerd.gateway.sockets import LOOPBACK, Claim, place_of
from stokerd.gateway.tls import Certificate
from stokerd.gateway.wire import RouteTable

log = logging.getLogger(__name__)
LINGER_SECONDS = 10.0
"""After another worker has taken over, idle clients may send one request more on their connection for so long."""
HANDSHAKE_SECONDS = 1.0  # the least of that where connections may still be shaking hands
HAND_IN_SECONDS = 2.0
"""How long a worker that was told to end waits for somebody to read what it measured."""
TAKEN_HAND_IN_SECONDS = 120.0
"""The same after another worker has taken over: then there is a daemon, though it may be away for a moment."""


@dataclass(frozen=True, slots=True)
class Options:
    """What the command line says."""

    host: str
    port: int
    control: Path
    table_file: Path
    state: Path
    take_over: tuple[Path, ...] = ()
    await_table_seconds: float = 0.0
    certificate: Certificate | None = None
    limits: Limits = field(default_factory=Limits)

    @property
    def place(self) -> str:
        """HOST:PORT as told."""
        return f"{self.host}:{self.port}"


class Swept(Protocol):
    """Something that has things to do by the time alone."""

    def sweep(self, now: float) -> None:
        """Do what is due."""


class Places:
    """Where a worker listens: taken over from older workers, or its own. Raises `Unavailable`.

    Nobody connects there before `Worker` says so: sockets of its own don't listen yet, others are still served.
    """

    def __init__(self, options: Options) -> None:
        found = [taken for path in options.take_over if (taken := handover.take(path, options.place)) is not None]
        self.taken = found
        self.sockets = [sock for taken in found for sock in taken.sockets]
        if not self.sockets:
            claim = Claim(options.state, options.port)
            self.sockets = [sockets.take_address(options.host, options.port, claim)]
        self.claim = Claim(options.state, self.sockets[0].getsockname()[1])
        self.control = sockets.take_path(options.control)
        self.hand = sockets.take_path(handover.path_beside(options.control))

    def listen(self) -> None:
        """Have those of its own take connections. Raises `Unavailable`."""
        if not self.taken:
            sockets.listen(self.sockets[0], self.claim)
        with contextlib.suppress(OSError):  # without it, a worker that is started later says that the port is taken
            self.claim.take()

    def leave(self) -> None:
        """Listen no more."""
        for sock in self.sockets:
            sock.close()
        self.claim.release()


class Worker:
    """Serves until a signal comes or another worker takes over; then answers what is in flight, and ends."""

    def __init__(self, options: Options, places: Places) -> None:
        self._options = options
        self._places = places
        self._signals: asyncio.Queue[int] = asyncio.Queue()
        self._is_taken = asyncio.Event()
        self._gateway = Gateway(secrets.token_hex(8), _load_table(options.table_file), options.limits, options.state)
        self._front = Front(self._gateway)
        self._clients = Server(self._front.handle, options.limits)
        self._control = Control(self._gateway, options.table_file, self._clients, options.certificate)
        self._daemon = Server(self._control.handle, options.limits)
        self._giver = handover.Giver(places.hand, options.place, on_given=self._is_taken.set)
        self._listeners: list[asyncio.Server] = []

    async def run(self) -> None:
        """Serve, drain, end. Raises `Unavailable` when its place is taken at the last moment."""
        loop = asyncio.get_running_loop()
        limits = self._options.limits
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._signals.put_nowait, number)
        control = await loop.create_unix_server(self._daemon.connect, sock=self._places.control)
        swept: list[Swept] = [self._gateway, self._clients, self._daemon, self._control]
        if self._options.certificate is not None:
            swept.append(self._options.certificate)
        tasks = [loop.create_task(_sweep(swept, limits.sweep_seconds)), loop.create_task(self._giver.run())]
        try:
            if not await self._is_asked_to_end(self._options.await_table_seconds, self._control.is_told.wait()):
                await self._open()
                await self._is_asked_to_end(None, self._is_taken.wait())
            await self._drain()
        finally:
            control.close()
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            for server in (self._clients, self._daemon):
                server.abort()
            await self._gateway.close()
        say("stopped")

    async def _open(self) -> None:
        """Take clients, and let go those workers that had them before."""
        options, places = self._options, self._places
        places.listen()
        context = options.certificate.context if options.certificate else None
        loop = asyncio.get_running_loop()
        for sock in places.sockets:
            self._listeners.append(
                await loop.create_server(
                    self._clients.connect,
                    sock=sock.dup(),
                    backlog=sockets.BACKLOG,
                    ssl=context,
                    ssl_handshake_timeout=options.limits.header_seconds if context else None,
                    ssl_shutdown_timeout=options.limits.stall_seconds if context else None,
                )
            )
        for taken in places.taken:
            taken.confirm()
        listen = place_of(places.sockets[0])
        self._control.takes_clients(listen)
        self._giver.offer(places.sockets)
        gc.collect()
        gc.freeze()  # what is here now stays: the collector needn't look at it again while streams wait
        table = self._gateway.table
        host = places.sockets[0].getsockname()[0]
        if not host.startswith(LOOPBACK) and not table.source.needs_key:
            say(f"warning: {listen} can be reached from other machines, and no key is asked for.")
        scheme = "https" if context else "http"
        from_others = " taken over" if places.taken else ""
        say(f"serving {scheme}://{listen}{from_others}, control {options.control}, route table {table.version}")

    async def _drain(self) -> None:
        """Take no new connection, and let requests end."""
        limits = self._options.limits
        self._control.takes_none()
        self._giver.offer(())
        for listener in self._listeners:
            listener.close()
        self._places.leave()
        if self._is_taken.is_set():
            say(f"another worker takes over: {len(self._clients.connections)} connections are left")
            # Who has a connection may be sending on it just now: it is answered, and told that it was the last.
            self._clients.is_draining = True
            linger = self._are_gone(HANDSHAKE_SECONDS if self._options.certificate else 0.0)
            await self._is_asked_to_end(LINGER_SECONDS, linger)
        say(f"draining: {len(self._gateway.exchanges)} requests in flight")
        self._front.abandon_shadows()
        self._clients.drain()
        await self._is_asked_to_end(limits.drain_seconds, self._are_gone())
        if self._gateway.exchanges:
            self._gateway.break_off()
            await self._is_asked_to_end(limits.linger_seconds, self._are_gone())
        is_taken = self._is_taken.is_set()
        seconds = TAKEN_HAND_IN_SECONDS if is_taken else HAND_IN_SECONDS
        await self._is_asked_to_end(seconds, self._control.hand_in(seconds, awaits_reader=is_taken))

    async def _are_gone(self, at_least_seconds: float = 0.0) -> None:
        """All connections are. Those that still shake hands aren't counted: for them it waits *at least* so long."""
        await asyncio.sleep(at_least_seconds)
        while self._clients.connections:
            await self._clients.is_empty.wait()

    async def _is_asked_to_end(self, seconds: float | None, event: Coroutine[Any, Any, Any]) -> bool:
        """Wait for *event*, for a signal, or for so long; says whether it was the signal."""
        tasks = [asyncio.ensure_future(event), asyncio.ensure_future(self._signals.get())]
        await asyncio.wait(tasks, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
        is_asked = tasks[1].done()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        return is_asked


def _load_table(path: Path) -> RouteTable:
    try:
        table = tablefile.load(path)
    except (OSError, ValueError, RecursionError) as error:
        say(f"the route table in {path} can't be read ({error}); it serves nothing until the daemon sends another.")
        table = None
    return table or RouteTable(version=0)


async def _sweep(swept: list[Swept], every_seconds: float) -> None:
    while True:
        await asyncio.sleep(every_seconds)
        now = monotonic()
        for part in swept:
            try:
                part.sweep(now)
            except Exception:  # a bug of ours must not take their deadlines from all others
                log.exception("a sweep failed")
