"""The upstream leg: connections to replicas, kept and counted.

One connection carries one request at a time. httptools checks the answer's framing; its body is handed on decoded, and
framed anew for the client, so that nothing a replica sends after an answer's end can be taken for another answer.
"""

from __future__ import annotations

import asyncio
import logging
import re
from time import monotonic
from typing import Protocol, cast

import httptools

from stokerd.gateway.balance import Replica
from stokerd.gateway.heads import Heads
from stokerd.gateway.http1 import HOP_BY_HOP, without_nominated
from stokerd.gateway.limits import Limits
from stokerd.gateway.outbox import Outbox
from stokerd.gateway.wire import split_address

log = logging.getLogger(__name__)
_NOTED = HOP_BY_HOP | {b"content-length", b"content-type", b"content-encoding"}
_NOT_FORWARDED = HOP_BY_HOP | {b"content-length"}
_BACKLOG_SECONDS = 0.01
_IS_TEXT = re.compile(rb"[\t -~\xa1-\xff]*").fullmatch


class Sink(Protocol):
    """Who gets an answer. Nothing is called after `UpstreamConnection.cancel`, ``is_complete`` or `broken`."""

    def received(
        self, upstream: UpstreamConnection, head: AnswerHead, piece: bytes, is_complete: bool, now: float
    ) -> None:
        """The head is there, and *now* the next *piece* of the body; either may be all there is."""

    def broken(self, upstream: UpstreamConnection, reason: str) -> None:
        """The connection or the answer broke off."""


class AnswerHead:
    """The head of an answer, but for its length: ``lines`` is its status line, and the headers to forward."""

    __slots__ = ("has_length", "is_encoded", "is_events", "keeps", "lines", "status")

    def __init__(self, status: int, reason: bytes, lines: list[bytes], noted: dict[bytes, bytes]) -> None:
        if reason != b"OK" and not _IS_TEXT(reason):
            reason = b""
        if b"connection" in noted:
            lines = without_nominated(lines, noted[b"connection"])
        self.status = status
        self.lines = b"HTTP/1.1 %d %b\r\n%b" % (status, reason, b"".join(lines))
        self.has_length = b"content-length" in noted
        self.is_events = noted.get(b"content-type", b"").lower().startswith(b"text/event-stream")
        self.is_encoded = b"content-encoding" in noted
        self.keeps = False
        """Its server lets the connection be used again. Known when the answer is complete."""


class UpstreamConnection(asyncio.Protocol):
    """One connection to a replica, with the head of the answer that it is receiving."""

    __slots__ = (
        "_has_read",
        "_head_size",
        "_is_complete",
        "_is_interim",
        "_is_odd",
        "_is_unreadable",
        "_lines",
        "_noted",
        "_parser",
        "_parts",
        "_pool",
        "_reason",
        "_sink",
        "_transport",
        "address",
        "has_answered",
        "head",
        "idle_since",
        "is_reused",
        "length",
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
        self.head: AnswerHead | None = None
        self.length = -1
        """Of the body; -1: only its end tells."""
        self.has_answered = False
        self._has_read = self._is_complete = self._is_interim = self._is_odd = self._is_unreadable = False
        self._reason = b""
        self._lines: list[bytes] = []
        """Header lines to forward, with their line ends."""
        self._noted: dict[bytes, bytes] = {}
        """Headers that say something to the gateway, by lower-case name."""
        self._head_size = 0
        self._parts: list[bytes] = []

    # The side of whoever sends a request.

    def send(self, sink: Sink, head: bytes, body: bytes | bytearray) -> None:
        """Send a request; its answer goes to *sink*."""
        if self._has_read:
            self._begin()
        else:
            self.head, self.has_answered = None, False
        self._sink = sink
        if len(body) < 65536:
            self._pool.outbox.write(self._transport, head + body)
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
        if self._sink is None:
            self._transport.abort()  # an answer to nothing, or more than one: not to be trusted with another request
            return
        is_first = not self.has_answered
        if is_first:
            self.has_answered = True
            known = self._pool.heads.find(data)
            if known is not None:
                self.head, end = known
                self.length = len(data) - end
                self._hand_on(data[end:], True)
                return
        self._has_read = True
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserCallbackError:
            raise
        except (httptools.HttpParserError, httptools.HttpParserUpgrade) as error:
            if not self._is_complete:
                self._break(f"it sent what is not HTTP: {error}")
                return
            self._is_odd = True
        if self._is_unreadable:
            self._break("its answer has a transfer coding other than chunked")
            return
        if not self._parts and not self._is_complete:
            # Bytes that are no body: an unfinished head, trailers, chunk extensions. The parser keeps what it has of an
            # unfinished line, and says nothing of it.
            self._head_size += len(data)
            if self._head_size > self._pool.limits.upstream_header_bytes:
                self._break("its header is too large")
                return
        if self.head is None:
            return
        if is_first and self._is_complete and self._is_plain(self.head):
            self._pool.heads.learn(data, self._noted[b"content-length"], self.head)
        parts = self._parts
        piece = parts[0] if len(parts) == 1 else b"".join(parts)
        if parts:
            self._parts = []
            self._head_size = 0
        self._hand_on(piece, self._is_complete)

    def _is_plain(self, head: AnswerHead) -> bool:
        """Its head was all that came before its body, and means the same wherever it comes again.

        Not so one of a status that has no body: whatever its length says, what follows it is no body.
        """
        may_have_body = head.status not in (204, 304)
        return head.has_length and head.keeps and may_have_body and not self._is_odd and not self._is_interim

    def _hand_on(self, piece: bytes, is_complete: bool) -> None:
        sink, head, now = self._sink, self.head, monotonic()
        if sink is None or head is None:
            return
        if is_complete:
            self._sink = None
            if head.keeps and not self._is_odd and not self._transport.get_write_buffer_size():
                self._pool.put(self, now)
            else:
                self._transport.abort()
        try:
            sink.received(self, head, piece, is_complete, now)
        except Exception:  # a bug of ours must not leave a client waiting
            log.exception("an answer of %s can't be handed on", self.address)
            self._sink = None
            self._transport.abort()
            sink.broken(self, "an error inside the gateway; its log has more")

    def _break(self, reason: str) -> None:
        sink, self._sink = self._sink, None
        self._transport.abort()
        if sink is not None:
            sink.broken(self, reason)

    def connection_lost(self, exc: Exception | None) -> None:
        """The replica closed: the end of an answer without a length, else a broken one."""
        self._pool.forget(self)
        sink, head, self._sink = self._sink, self.head, None
        if sink is None:
            return
        if head is not None and exc is None and not head.has_length and b"transfer-encoding" not in self._noted:
            sink.received(self, head, b"", True, monotonic())
        else:
            sink.broken(self, "it closed the connection" if exc is None else f"the connection failed: {exc}")

    # The parser's side. An interim answer (1xx) is a whole message to it, and nothing to us.

    def on_message_begin(self) -> None:
        """A second answer to one request is odd."""
        if self._is_complete:
            self._is_odd = True

    def on_status(self, reason: bytes) -> None:
        """The reason phrase, or a part of it."""
        if not self._is_complete:
            self._reason += reason

    def on_header(self, name: bytes, value: bytes) -> None:
        """Sort a header out. Those after the body (trailers) are dropped."""
        if self.head is not None or self._is_complete:
            return
        lower = name.lower()
        if lower in _NOTED:
            noted = self._noted
            noted[lower] = noted[lower] + b"," + value if lower in noted else value
            if lower in _NOT_FORWARDED:
                return
        self._lines.append(b"%b: %b\r\n" % (name, value))

    def on_headers_complete(self) -> None:
        """The head is whole."""
        if self._is_complete:
            return
        status, noted = self._parser.get_status_code(), self._noted
        if status >= 200:
            self.head = AnswerHead(status, self._reason, self._lines, noted)
            self.length = int(noted.get(b"content-length", -1))
            self._is_unreadable = noted.get(b"transfer-encoding", b"chunked").lower() != b"chunked"
        else:
            self._is_interim = True
            self._reason = b""
            self._lines.clear()
            noted.clear()

    def on_body(self, data: bytes) -> None:
        """A piece of the body."""
        if not self._is_complete:
            self._parts.append(data)

    def on_message_complete(self) -> None:
        """The answer is whole, unless it was interim."""
        if self.head is not None and not self._is_complete:
            self._is_complete = True
            self.head.keeps = self._parser.should_keep_alive()  # true to the message only in here


class Pool:
    """Connections to replicas that wait for a request, and what is known of the replicas."""

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self.heads: Heads[AnswerHead] = Heads()
        self.outbox = Outbox()
        self._idle: dict[str, list[UpstreamConnection]] = {}
        self._replicas: dict[str, Replica] = {}
        self._known: set[str] = set()

    def replica(self, address: str) -> Replica:
        """What is known of the server at *address*."""
        replica = self._replicas.get(address)
        if replica is None:
            replica = self._replicas[address] = Replica(address, self.limits)
        return replica

    @property
    def in_flight(self) -> dict[str, int]:
        """Requests in flight, by address."""
        return {address: replica.in_flight for address, replica in self._replicas.items() if replica.in_flight}

    @property
    def received(self) -> dict[str, int]:
        """Pieces of answers that ever came, by address; of those that are known or in flight."""
        return {address: replica.received for address, replica in self._replicas.items() if replica.received}

    def know(self, addresses: set[str]) -> None:
        """Keep idle connections to these addresses alone."""
        self._known = addresses
        self._forget_unknown()
        for address in self._idle.keys() - addresses:
            for upstream in self._idle.pop(address):
                upstream.close()

    def _forget_unknown(self) -> None:
        for address in [a for a, r in self._replicas.items() if not r.in_flight and a not in self._known]:
            del self._replicas[address]

    def take(self, address: str) -> UpstreamConnection | None:
        """An idle connection, the most recently used: the others may then grow old and go."""
        idle = self._idle.get(address)
        while idle:
            upstream = idle.pop()
            if upstream.is_usable:
                upstream.is_reused = True
                return upstream
        return None

    def put(self, upstream: UpstreamConnection, now: float) -> None:
        """Keep a connection for later."""
        if upstream.address not in self._known:
            upstream.close()
            return
        upstream.idle_since = now
        self._idle.setdefault(upstream.address, []).append(upstream)

    def forget(self, upstream: UpstreamConnection) -> None:
        """It is closed."""
        idle = self._idle.get(upstream.address)
        if idle and upstream in idle:
            idle.remove(upstream)

    async def connect(self, address: str) -> UpstreamConnection:
        """Open a connection. Raises `OSError` or `TimeoutError`."""
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
        """Close what was idle for too long, and forget replicas that are gone."""
        oldest = now - self.limits.upstream_idle_seconds
        for address, idle in list(self._idle.items()):
            while idle and idle[0].idle_since < oldest:
                idle.pop(0).close()
            if not idle:
                del self._idle[address]
        self._forget_unknown()

    def close(self) -> None:
        """Close all idle connections."""
        self.know(set())
