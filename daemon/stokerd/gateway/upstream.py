"""The upstream leg: connections to replicas, kept and counted.

One connection carries one request at a time. httptools checks the answer's framing; its body is handed on decoded, and
framed anew for the client, so that nothing a replica sends after an answer's end can be taken for another answer.
"""

from __future__ import annotations

import asyncio
import logging
from time import monotonic
from typing import Protocol, cast

import httptools

from stokerd.gateway.http1 import HOP_BY_HOP
from stokerd.gateway.limits import Limits
from stokerd.gateway.wire import split_address

log = logging.getLogger(__name__)
_NOTED = HOP_BY_HOP | {b"content-length", b"content-type", b"content-encoding"}
_NOT_FORWARDED = HOP_BY_HOP | {b"content-length"}
_BACKLOG_SECONDS = 0.01


class Sink(Protocol):
    """Who gets an answer. Nothing is called after `UpstreamConnection.cancel`, ``is_complete`` or `broken`."""

    def received(self, upstream: UpstreamConnection, piece: bytes, is_complete: bool) -> None:
        """The head is there (`upstream` tells it), and the next *piece* of the body; either may be all there is."""

    def broken(self, upstream: UpstreamConnection, reason: str) -> None:
        """The connection or the answer broke off."""


class UpstreamConnection(asyncio.Protocol):
    """One connection to a replica, with the head of the answer that it is receiving."""

    __slots__ = (
        "_head_size",
        "_is_complete",
        "_is_surplus",
        "_keeps",
        "_parser",
        "_parts",
        "_pool",
        "_sink",
        "_transport",
        "address",
        "has_answered",
        "has_head",
        "idle_since",
        "is_reused",
        "lines",
        "noted",
        "reason",
        "status",
    )

    def __init__(self, pool: Pool, address: str) -> None:
        self.address = address
        self.idle_since = 0.0
        self.is_reused = False
        """It has carried a request before: the replica may have closed it just as this one was sent."""
        self._pool = pool
        self._sink: Sink | None = None
        self._begin()

    def _begin(self) -> None:
        self.status = 0
        self.reason = b""
        self.lines: list[bytes] = []
        """Header lines to forward, with their line ends."""
        self.noted: dict[bytes, bytes] = {}
        """Headers that say something to the gateway, by lower-case name."""
        self.has_head = self.has_answered = self._is_complete = self._is_surplus = self._keeps = False
        self._head_size = 0
        self._parts: list[bytes] = []

    # The side of whoever sends a request.

    def send(self, sink: Sink, head: bytes, body: bytes | bytearray) -> None:
        """Send a request; its answer goes to *sink*."""
        self._begin()
        self._sink = sink
        if len(body) < 65536:
            self._transport.write(head + body)
        else:
            self._transport.writelines((head, body))

    def cancel(self) -> None:
        """Break the request off, so that the replica notices at once."""
        self._sink = None
        self._transport.abort()

    def pause(self) -> None:
        """Take no more of the answer for now."""
        self._transport.pause_reading()

    def resume(self) -> None:
        """Take more."""
        self._transport.resume_reading()

    @property
    def is_usable(self) -> bool:
        """It may carry another request."""
        return not self._transport.is_closing()

    def close(self) -> None:
        """Close an idle connection."""
        self._transport.abort()

    # The transport's side.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Ready to send."""
        self._transport = cast(asyncio.Transport, transport)
        self._parser = httptools.HttpResponseParser(self)

    def data_received(self, data: bytes) -> None:
        """Parse, and hand on what there is, once for each read."""
        sink = self._sink
        if sink is None:
            self._transport.abort()  # an answer to nothing, or more than one: not to be trusted with another request
            return
        self.has_answered = True
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserCallbackError:
            raise
        except (httptools.HttpParserError, httptools.HttpParserUpgrade) as error:
            if not self._is_complete:
                self._break(f"it sent what is not HTTP: {error}")
                return
            self._is_surplus = True
        if not self.has_head:
            self._head_size += len(data)
            if self._head_size > self._pool.limits.upstream_header_bytes:
                self._break("its header is too large")
            return
        parts = self._parts
        piece = parts[0] if len(parts) == 1 else b"".join(parts)
        if parts:
            self._parts = []
        is_complete = self._is_complete
        if is_complete:
            self._sink = None
            self._give_back()
        try:
            sink.received(self, piece, is_complete)
        except Exception:  # a bug of ours must not leave a client waiting
            log.exception("an answer of %s can't be handed on", self.address)
            self._sink = None
            self._transport.abort()
            sink.broken(self, "an error inside the gateway; its log has more")

    def _give_back(self) -> None:
        may_stay = self._keeps and not self._is_surplus and not self._transport.is_closing()
        if may_stay and self._transport.get_write_buffer_size() == 0:
            self._pool.put(self)
        else:
            self._transport.abort()

    def _break(self, reason: str) -> None:
        sink, self._sink = self._sink, None
        self._transport.abort()
        if sink is not None:
            sink.broken(self, reason)

    def connection_lost(self, exc: Exception | None) -> None:
        """The replica closed: the end of an answer without a length, else a broken one."""
        self._pool.forget(self)
        sink, self._sink = self._sink, None
        if sink is None:
            return
        if self.has_head and exc is None and not self.noted.keys() & {b"content-length", b"transfer-encoding"}:
            sink.received(self, b"", True)
        else:
            sink.broken(self, "it closed the connection" if exc is None else f"the connection failed: {exc}")

    # The parser's side. An interim answer (1xx) is a whole message to it, and nothing to us.

    def on_message_begin(self) -> None:
        """A second answer to one request is surplus."""
        if self._is_complete:
            self._is_surplus = True

    def on_status(self, reason: bytes) -> None:
        """The reason phrase, or a part of it."""
        if not self._is_complete:
            self.reason += reason

    def on_header(self, name: bytes, value: bytes) -> None:
        """Sort a header out. Those after the body (trailers) are dropped."""
        if self.has_head or self._is_complete:
            return
        lower = name.lower()
        if lower in _NOTED:
            noted = self.noted
            noted[lower] = noted[lower] + b"," + value if lower in noted else value
            if lower in _NOT_FORWARDED:
                return
        self.lines.append(b"%b: %b\r\n" % (name, value))

    def on_headers_complete(self) -> None:
        """The head is whole."""
        if self._is_complete:
            return
        status = self._parser.get_status_code()
        if status >= 200:
            self.status = status
            self.has_head = True
        else:
            self.reason = b""
            self.lines.clear()
            self.noted.clear()

    def on_body(self, data: bytes) -> None:
        """A piece of the body."""
        if not self._is_complete:
            self._parts.append(data)

    def on_message_complete(self) -> None:
        """The answer is whole, unless it was interim."""
        if self.has_head and not self._is_complete:
            self._is_complete = True
            self._keeps = self._parser.should_keep_alive()  # true to the message only in here


class Pool:
    """Idle connections by address, requests in flight by address, and which addresses are to be left alone a while."""

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self.in_flight: dict[str, int] = {}
        self.received: dict[str, int] = {}
        """Pieces of answers that ever came, by address; of those that are known or in flight."""
        self.ejected_until: dict[str, float] = {}
        self._idle: dict[str, list[UpstreamConnection]] = {}
        self._known: set[str] = set()

    def know(self, addresses: set[str]) -> None:
        """Keep idle connections to these addresses alone."""
        self._known = addresses
        for address in self.received.keys() - addresses - self.in_flight.keys():
            del self.received[address]
        for address in self._idle.keys() - addresses:
            for upstream in self._idle.pop(address):
                upstream.close()

    def begin(self, address: str) -> None:
        """Count a request in."""
        self.in_flight[address] = self.in_flight.get(address, 0) + 1

    def end(self, address: str) -> None:
        """Count it out."""
        left = self.in_flight[address] - 1
        if left:
            self.in_flight[address] = left
        else:
            del self.in_flight[address]

    def take(self, address: str) -> UpstreamConnection | None:
        """An idle connection, the most recently used: the others may then grow old and go."""
        idle = self._idle.get(address)
        while idle:
            upstream = idle.pop()
            if upstream.is_usable:
                upstream.is_reused = True
                return upstream
        return None

    def put(self, upstream: UpstreamConnection) -> None:
        """Keep a connection for later."""
        if upstream.address not in self._known:
            upstream.close()
            return
        upstream.idle_since = monotonic()
        self._idle.setdefault(upstream.address, []).append(upstream)

    def forget(self, upstream: UpstreamConnection) -> None:
        """It is closed."""
        idle = self._idle.get(upstream.address)
        if idle and upstream in idle:
            idle.remove(upstream)

    def eject(self, address: str) -> None:
        """Skip an address that refused a connection for a while."""
        self.ejected_until[address] = monotonic() + self.limits.eject_seconds

    async def connect(self, address: str) -> UpstreamConnection:
        """Open a connection. Raises `OSError` or `TimeoutError`, after having ejected the address."""
        try:
            async with asyncio.timeout(self.limits.connect_seconds):
                while True:
                    try:
                        upstream = await self._open(address)
                        break
                    except BlockingIOError:
                        # A Unix socket whose backlog is full says so, where TCP would silently try again.
                        await asyncio.sleep(_BACKLOG_SECONDS)
            if not upstream.is_usable:
                raise ConnectionResetError("it was closed as soon as it was opened")
        except OSError:
            self.eject(address)
            raise
        self.ejected_until.pop(address, None)
        return upstream

    async def _open(self, address: str) -> UpstreamConnection:
        loop = asyncio.get_running_loop()
        place = split_address(address)
        if isinstance(place, str):
            _, upstream = await loop.create_unix_connection(lambda: UpstreamConnection(self, address), place)
        else:
            _, upstream = await loop.create_connection(lambda: UpstreamConnection(self, address), *place)
        return upstream

    def sweep(self, now: float) -> None:
        """Close what was idle for too long, and let ejected addresses back in."""
        oldest = now - self.limits.upstream_idle_seconds
        for address, idle in list(self._idle.items()):
            while idle and idle[0].idle_since < oldest:
                idle.pop(0).close()
            if not idle:
                del self._idle[address]
        for address in [a for a, until in self.ejected_until.items() if until <= now]:
            del self.ejected_until[address]

    def close(self) -> None:
        """Close all idle connections."""
        self.know(set())
