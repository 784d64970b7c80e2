"""The control socket, where the daemon sets the table and fetches records: see `wire`."""

from __future__ import annotations

import asyncio
import math
from pathlib import Path
from time import monotonic
from urllib.parse import parse_qs

import msgspec

from stokerd.gateway import tablefile
from stokerd.gateway.gateway import Gateway, say
from stokerd.gateway.records import Waiter
from stokerd.gateway.request import Request
from stokerd.gateway.server import Connection, Server
from stokerd.gateway.wire import BadTable, GatewayState, RouteTable, parse_table

MAX_WAIT_SECONDS = 60.0


class Control:
    """Handles the daemon's requests. `handle` is what a `Server` wants.

    Args:
        table_file: where the last good table is kept.
        clients: the front's server, for counting.
        listen: the front's address, as bound.
    """

    def __init__(self, gateway: Gateway, table_file: Path, clients: Server, listen: str) -> None:
        self._gateway = gateway
        self._table_file = table_file
        self._clients = clients
        self._listen = listen
        self._problem = ""
        self._saving = asyncio.Lock()

    def handle(self, client: Connection, request: Request) -> None:
        """Answer, or wait for what is to be answered."""
        match request.method, request.path:
            case b"PUT", b"/routes":
                self._put_routes(client, request)
            case b"GET", b"/state":
                client.reply(200, self._state())
            case b"GET", b"/records":
                self._get_records(client, request)
            case _, b"/routes" | b"/state" | b"/records":
                _refuse(client, 405, "method-not-allowed", "This path is not served with this method.")
            case _:
                _refuse(client, 404, "not-found", "The gateway's control socket has no such path.")

    def _put_routes(self, client: Connection, request: Request) -> None:
        try:
            table = parse_table(msgspec.json.decode(request.body))
        except (BadTable, ValueError, RecursionError) as error:
            _refuse(client, 400, "bad-table", f"{error}", "The old table stays.")
            return
        self._gateway.adopt(table)
        self._gateway.spawn(self._save_and_answer(client, table))

    async def _save_and_answer(self, client: Connection, table: RouteTable) -> None:
        """The table already holds, whatever the disk says: a full one must not stop a rollback."""
        async with self._saving:
            if self._gateway.table.source is table:  # else a newer one came while this one waited
                try:
                    await asyncio.to_thread(tablefile.save, self._table_file, table)
                    self._problem = ""
                except OSError as error:
                    self._problem = f"the route table could not be saved: {error}."
                    say(self._problem)
        client.reply(200, self._state())

    def _state(self) -> bytes:
        gateway = self._gateway
        state = GatewayState(
            epoch=gateway.records.epoch,
            table_version=gateway.table.version,
            connections=len(self._clients.connections),
            in_flight=dict(gateway.pool.in_flight),
            waiting=gateway.waiting(monotonic()),
            received=dict(gateway.pool.received),
            listen=self._listen,
            problem=self._problem,
        )
        return msgspec.json.encode(state)

    def _get_records(self, client: Connection, request: Request) -> None:
        query = parse_qs(request.target.partition(b"?")[2].decode("latin-1"))
        records = self._gateway.records
        try:
            after = int(query.get("after", ["0"])[0])
            wait = float(query.get("wait", ["0"])[0])
            if not math.isfinite(wait):
                raise ValueError("wait is not finite")
        except ValueError as error:
            _refuse(client, 400, "invalid", f"after and wait must be numbers: {error}.")
            return
        records.acknowledge(query.get("epoch", [""])[0], after)
        wait = min(max(wait, 0.0), MAX_WAIT_SECONDS)
        client.work = _Poll(records.wait(wait, lambda: client.reply(200, records.batch())))


class _Poll:
    """A reader that waits for records."""

    def __init__(self, waiter: Waiter) -> None:
        self._waiter = waiter

    def client_gone(self) -> None:
        self._waiter.cancel()

    def client_paused(self) -> None:
        pass

    def client_resumed(self) -> None:
        pass


def _refuse(client: Connection, status: int, code: str, message: str, hint: str = "") -> None:
    body = {"code": code, "message": message, "hint": hint, "details": {}}
    client.reply(status, msgspec.json.encode(body))
