"""The control socket, where the daemon sets the table and fetches what was measured: see `wire`."""

from __future__ import annotations

import asyncio
import contextlib
import math
from pathlib import Path
from time import monotonic
from urllib.parse import parse_qs

import msgspec

from stokerd.gateway import tablefile
from stokerd.gateway.gateway import Gateway, say
from stokerd.gateway.records import Buffer
from stokerd.gateway.request import Request
from stokerd.gateway.server import Connection, Server
from stokerd.gateway.tls import Certificate
from stokerd.gateway.wire import BadTable, GatewayState, RouteTable, parse_table

MAX_WAIT_SECONDS = 60.0
KEEP_SECONDS = 0.05
"""How long the answer to a new table waits for the disk: it must not hold up a rollback, which follows it already."""
_SAVE_AGAIN_SECONDS = 5.0
_READER_SECONDS = 1.0  # a reader who was here so lately comes back
_LOOK_SECONDS = 0.02


class Control:
    """Handles the daemon's requests. `handle` is what a `Server` wants.

    ``is_told`` is set when the daemon has set a table; ``listen`` is where clients are taken, empty while none are.

    Args:
        table_file: where the last good table is kept.
        clients: the front's server, for counting.
        certificate: what clients are shown, if anything.
    """

    def __init__(
        self, gateway: Gateway, table_file: Path, clients: Server, certificate: Certificate | None = None
    ) -> None:
        self._gateway = gateway
        self._table_file = table_file
        self._clients = clients
        self._certificate = certificate
        self._problem = ""
        self._saving = asyncio.Lock()
        self._is_return = False
        self._saved_at = 0.0
        self._sources = {b"/records": _Source(gateway.records), b"/pairs": _Source(gateway.pairs)}
        self._is_listening = asyncio.Event()
        self.is_told = asyncio.Event()
        self.listen = ""

    def handle(self, client: Connection, request: Request) -> None:
        """Answer, or wait for what is to be answered."""
        source = self._sources.get(request.path)
        match request.method, request.path:
            case b"PUT", b"/routes":
                self._put_routes(client, request)
            case b"GET", b"/state":
                client.reply(200, self._state())
            case b"GET", _ if source is not None:
                _read(source, client, request)
            case _, b"/routes" | b"/state" | b"/records" | b"/pairs":
                _refuse(client, 405, "method-not-allowed", "This path is not served with this method.")
            case _:
                _refuse(client, 404, "not-found", "The gateway's control socket has no such path.")

    def takes_clients(self, listen: str) -> None:
        """From now on they are taken at that HOST:PORT."""
        self.listen = listen
        self._is_listening.set()

    def takes_none(self) -> None:
        """From now on no client is taken any more."""
        self.listen = ""

    async def hand_in(self, seconds: float, *, awaits_reader: bool) -> None:
        """Give who reads what was measured so long for taking the rest of it.

        *awaits_reader*: also one who was here once, and may come again.
        """
        deadline = monotonic() + seconds

        def has_to_wait() -> bool:
            return any(s.is_wanted or (awaits_reader and s.is_left) for s in self._sources.values())

        while monotonic() < deadline and has_to_wait():  # noqa: ASYNC110 (time, too)
            await asyncio.sleep(_LOOK_SECONDS)

    def sweep(self, now: float) -> None:
        """Try again to keep a table that could not be saved."""
        if self._problem and now - self._saved_at > _SAVE_AGAIN_SECONDS and not self._saving.locked():
            self._gateway.spawn(self._save(self._gateway.table.source))

    # The table.

    def _put_routes(self, client: Connection, request: Request) -> None:
        try:
            table = parse_table(msgspec.json.decode(request.body))
        except (BadTable, ValueError, RecursionError) as error:
            _refuse(client, 400, "bad-table", f"{error}", "The old table stays.")
            return
        self._is_return |= table.version < self._gateway.table.source.version
        self._gateway.adopt(table)
        self.is_told.set()
        saved = asyncio.Event()
        self._gateway.spawn(self._save(table, saved))
        self._gateway.spawn(self._answer(client, saved))

    async def _save(self, table: RouteTable, saved: asyncio.Event | None = None) -> None:
        """The table already holds, whatever the disk says: a full one must not stop a rollback."""
        async with self._saving:
            if self._gateway.table.source is table:  # else a newer one came while this one waited
                self._saved_at = monotonic()
                try:
                    await asyncio.to_thread(tablefile.save, self._table_file, table, is_return=self._is_return)
                    self._problem, self._is_return = "", False
                except OSError as error:
                    problem = f"the route table could not be saved: {error}."
                    if problem != self._problem:
                        say(problem)
                    self._problem = problem
        if saved is not None:
            saved.set()

    async def _answer(self, client: Connection, saved: asyncio.Event) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(KEEP_SECONDS):
                await saved.wait()
                await self._is_listening.wait()
        client.reply(200, self._state())

    def _state(self) -> bytes:
        gateway = self._gateway
        problems = (self._problem, gateway.problem, self._certificate.problem if self._certificate else "")
        state = GatewayState(
            epoch=gateway.records.epoch,
            table_version=gateway.table.version,
            connections=len(self._clients.connections),
            in_flight=dict(gateway.pool.in_flight),
            waiting=gateway.waiting(monotonic()),
            received=dict(gateway.pool.received),
            listen=self.listen,
            problem=" ".join(problem for problem in problems if problem),
        )
        return msgspec.json.encode(state)


class _Source:
    """What is read by somebody who acknowledges it with the next request."""

    def __init__(self, buffer: Buffer) -> None:
        self.buffer = buffer
        self.readers = 0
        self.read_at = -math.inf

    @property
    def is_left(self) -> bool:
        """There is something to read, and somebody who read once."""
        return len(self.buffer) > 0 and self.read_at > 0

    @property
    def is_wanted(self) -> bool:
        """There is something to read, and somebody who reads."""
        return len(self.buffer) > 0 and (self.readers > 0 or monotonic() - self.read_at < _READER_SECONDS)


class _Poll:
    """A reader that waits for something to read."""

    def __init__(self, source: _Source, client: Connection, seconds: float, *, as_rows: bool) -> None:
        self._source = source
        self._client = client
        self._as_rows = as_rows
        source.readers += 1
        self._waiter = source.buffer.wait(seconds, self._reply)

    def _reply(self) -> None:
        self._leave()
        self._client.reply(200, self._source.buffer.batch(as_rows=self._as_rows))

    def _leave(self) -> None:
        self._source.readers -= 1
        self._source.read_at = monotonic()

    def client_gone(self) -> None:
        self._waiter.cancel()
        self._leave()

    def client_paused(self) -> None:
        pass

    def client_resumed(self) -> None:
        pass


def _read(source: _Source, client: Connection, request: Request) -> None:
    query = parse_qs(request.target.partition(b"?")[2].decode("latin-1"))
    try:
        after = int(query.get("after", ["0"])[0])
        wait = float(query.get("wait", ["0"])[0])
        if not math.isfinite(wait):
            raise ValueError("wait is not finite")
    except ValueError as error:
        _refuse(client, 400, "invalid", f"after and wait must be numbers: {error}.")
        return
    source.buffer.acknowledge(query.get("epoch", [""])[0], after)
    as_rows = query.get("as", [""])[0] == "rows"
    client.work = _Poll(source, client, min(max(wait, 0.0), MAX_WAIT_SECONDS), as_rows=as_rows)


def _refuse(client: Connection, status: int, code: str, message: str, hint: str = "") -> None:
    body = {"code": code, "message": message, "hint": hint, "details": {}}
    client.reply(status, msgspec.json.encode(body))
