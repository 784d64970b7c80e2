"""The client leg: HTTP/1.1 connections, parsed by httptools, with the limits that keep them in bounds.

Both the front and the control socket use it. A connection serves one request at a time: what a client sends ahead
(pipelining) waits, and past some of it reading stops until its turn comes. httptools' llhttp refuses by itself: both
lengths at once, lengths that are doubled, signed, listed or too large, unknown transfer codings, folded headers, bare
LF, CR or NUL, blanks before a colon, and data after ``Connection: close``. What it lets pass and isn't served is
refused by `request.check_head`.
"""

from __future__ import annotations

import asyncio
import socket
from collections import deque
from collections.abc import Callable
from time import monotonic
from typing import Protocol, cast

import httptools

from stokerd.gateway.heads import Heads
from stokerd.gateway.http1 import answer_head, error_body
from stokerd.gateway.limits import Limits
from stokerd.gateway.outbox import Outbox
from stokerd.gateway.request import FORWARDED_TOO, NOTED, Refusal, Request, check_head, is_plain

_CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"
JSON = b"application/json"


class Work(Protocol):
    """What goes on for a request whose answer takes time."""

    def client_gone(self) -> None:
        """Nobody waits for the answer any more."""

    def client_paused(self) -> None:
        """The client takes no more for now."""

    def client_resumed(self) -> None:
        """The client takes more."""


class Connection(asyncio.Protocol):
    """One client's connection. Handlers answer by `reply`, or set `work`, `send` pieces and end with `done`."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self._limits = server.limits
        self._outbox = server.outbox
        self._parser = httptools.HttpRequestParser(self)
        self._queue: deque[Request] = deque()
        self._incoming: Request | None = None
        self._in_head = False
        self._head_size = self._raw_size = 0
        self._has_grown = self._is_upgrade = False
        self._refusal: Refusal | None = None
        self._now = 0.0
        self._is_closing = False
        self._is_advancing = False
        self._ahead = 0  # bytes that came while a request was being answered
        self.request: Request | None = None
        """The request that is being answered."""
        self.work: Work | None = None
        self.is_paused = False
        """The client takes no more for now."""
        self.deadline = 0.0
        """When `expire` is due (monotonic); 0: never."""

    # The handler's side.

    def send(self, data: bytes) -> None:
        """Send the next bytes of the answer."""
        if not self._is_closing:
            self._outbox.write(self._transport, data)

    def done(self, keeps: bool) -> None:
        """The answer is complete; with *keeps* the connection may serve the next request."""
        self.work = None
        self.request = None
        self._next_in_turn()
        if keeps:
            if self._queue or self._refusal is not None or self._is_advancing:
                self._advance()
            elif not self.is_paused and not self._is_closing:
                self._await_more()
        else:
            self.close()

    def reply(
        self,
        status: int,
        body: bytes,
        *,
        content_type: bytes = JSON,
        extra: tuple[bytes, ...] = (),
        close: bool = False,
    ) -> None:
        """Answer at once. *extra* are whole header lines."""
        request = self.request
        is_http11 = request.is_http11 if request else True
        keeps = self.keeps and not close
        head = answer_head(status, len(body), content_type, extra, is_http11=is_http11, keeps=keeps)
        self.send(head if request is not None and request.method == b"HEAD" else head + body)
        self.done(keeps)

    @property
    def keeps(self) -> bool:
        """The connection may be used again after the present answer."""
        return self.request is not None and self.request.keeps and not self._server.is_draining

    def close(self, *, was_idle: bool = False) -> None:
        """Close when everything is sent, or when the client doesn't take it in time.

        With TLS it lasts until the client closes, too, which one that *was_idle* may never do.
        """
        if not self._is_closing:
            self._is_closing = True
            self.deadline = monotonic() + (self._limits.linger_seconds if was_idle else self._limits.stall_seconds)
            self._outbox.flush()
            self._transport.close()

    def abort(self) -> None:
        """Close at once: the client sees an answer that is cut off."""
        self._is_closing = True
        self._transport.abort()

    # The server's side.

    @property
    def is_idle(self) -> bool:
        """Nothing is being read or answered."""
        return self.request is None and self._incoming is None and not self._queue and self._refusal is None

    def expire(self) -> None:
        """The deadline has passed."""
        self.deadline = 0.0
        if self._is_closing or self.is_paused:
            self.abort()
        elif self._incoming is not None:
            self._refuse(408, "request_timeout", "The request did not come in time.")
            self._advance()
        else:
            self.close(was_idle=True)

    # The transport's side.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """A client is there."""
        self._transport = cast(asyncio.Transport, transport)
        sock = transport.get_extra_info("socket")
        if sock is not None and sock.family != socket.AF_UNIX:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        connections = self._server.connections
        connections.add(self)
        self.deadline = monotonic() + self._limits.header_seconds
        if len(connections) > self._limits.connections:
            self._refuse(503, "too_many_connections", "The gateway has as many connections as it takes.")
            self._advance()

    def data_received(self, data: bytes) -> None:
        """Parse; then serve what is whole."""
        if self._is_closing or self._refusal is not None:
            return  # lingering: see _end
        self._now = monotonic()
        is_between = self.request is None and self._incoming is None and not self._queue
        heads = self._server.heads
        if is_between and len(data) <= self._limits.body_bytes and (known := heads.find(data)) is not None:
            template, end = known
            request = template.again(self._now, data[end:])
            if not self.is_paused:
                self.request = request
                self.deadline = 0.0
                self._server.handle(self, request)
                return
            self._queue.append(request)
        else:
            self._has_grown = False
            self._feed(data)
            if is_between and self._incoming is None and len(self._queue) == 1 and is_plain(self._queue[0]):
                first = self._queue[0]
                heads.learn(data, first.noted.get(b"content-length", b""), first.template())
        if self._incoming is not None and not self._has_grown:
            # Bytes that are no body: an unfinished head, trailers, chunk extensions. The parser keeps what it has of
            # an unfinished line, and says nothing of it.
            self._raw_size += len(data)
            if self._raw_size > self._limits.header_bytes:
                self._refuse(431, "header_too_large", "The request's header is too large.")
        if self.request is None:
            self._advance()
            if not self._queue or self._is_closing:
                return
        # Sent ahead: its turn comes. Of much, the rest waits outside; of less one reads on, to see the client leave.
        self._ahead += len(data)
        if self._ahead > self._limits.ahead_bytes:
            self._transport.pause_reading()

    def _feed(self, data: bytes) -> None:
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade as error:
            self._go_on_without_upgrade(data[error.args[0] :])
        except httptools.HttpParserCallbackError:
            raise
        except httptools.HttpParserError as error:
            last = self._queue[-1] if self._queue else self.request
            if last is None or last.keeps:  # else these are bytes after a request that closes: nothing to anyone
                self._refuse(400, "bad_request", f"This is not HTTP/1.1 as it should be: {error}.")

    def _go_on_without_upgrade(self, rest: bytes) -> None:
        """Ignore an offer to upgrade, as a server may. llhttp stops at it, so it gets the head without the offer.

        Java's HTTP client makes this offer (to HTTP/2) with each first request, and its body follows all the same.
        """
        request, self._is_upgrade = self._incoming, False
        if request is None or self._refusal is not None:
            return
        if request.method == b"CONNECT":
            self._refuse(405, "method_not_allowed", "CONNECT is not served here.")
            return
        noted = {name: value for name, value in request.noted.items() if name not in (b"upgrade", b"connection")}
        kept = [b"%b: %b\r\n" % item for item in noted.items() if item[0] not in FORWARDED_TOO]
        start = b"%b %b HTTP/1.%d\r\n" % (request.method, request.target, request.is_http11)
        self._parser = httptools.HttpRequestParser(self)
        self._feed(b"".join((start, *kept, *request.lines, b"\r\n", rest)))

    def pause_writing(self) -> None:
        """The client reads too slowly."""
        self.is_paused = True
        if not self._is_closing:
            self.deadline = monotonic() + self._limits.stall_seconds
        if self.work is not None:
            self.work.client_paused()

    def resume_writing(self) -> None:
        """It has caught up."""
        self.is_paused = False
        if not self._is_closing:
            self.deadline = 0.0
        if self.work is not None:
            self.work.client_resumed()
        else:
            self._next_in_turn()
            self._advance()

    def connection_lost(self, exc: Exception | None) -> None:
        """The client is gone, or we closed."""
        self._is_closing = True
        self.deadline = 0.0
        self._server.lost(self)
        work, self.work = self.work, None
        if work is not None:
            work.client_gone()

    # Serving, in order.

    def _advance(self) -> None:
        if self._is_advancing:
            return
        self._is_advancing = True
        while self.request is None and not self.is_paused and not self._is_closing:
            if self._queue:
                self.request = self._queue.popleft()
                self.deadline = 0.0
                self._server.handle(self, self.request)
            elif self._refusal is not None:
                self._end(self._refusal)
            else:
                self._await_more()
                break
        self._is_advancing = False

    def _next_in_turn(self) -> None:
        """What is still coming was sent ahead, and its time runs from now on: until now it could not be served."""
        if self._incoming is not None:
            self._incoming.started = monotonic()

    def _await_more(self) -> None:
        incoming, now = self._incoming, monotonic()
        self._ahead = 0
        if not self._transport.is_reading():
            self._transport.resume_reading()
        if incoming is None:
            self.deadline = now + self._limits.idle_seconds
            if self._server.is_draining:
                self.close()
        elif self._in_head:
            self.deadline = incoming.started + self._limits.header_seconds
        elif self._has_grown or not self.deadline:
            self.deadline = now + self._limits.body_seconds

    def _refuse(self, status: int, code: str, message: str) -> None:
        """Remember to answer with an error and close, after what came before has been answered."""
        if self._refusal is None:
            self._refusal = Refusal(status, code, message)

    def _end(self, refusal: Refusal) -> None:
        """Answer and close, but read on for a moment: closing with bytes unread would make the kernel reset the
        connection, and the client might never see the answer."""
        body = error_body(
            str(refusal), "invalid_request_error" if refusal.status < 500 else "server_error", refusal.code
        )
        self.send(answer_head(refusal.status, len(body), JSON, (), is_http11=True, keeps=False) + body)
        self._is_closing = True
        self._incoming = None
        self.deadline = monotonic() + self._limits.linger_seconds
        if not self._transport.is_closing():
            self._outbox.flush()
            if self._transport.can_write_eof():
                self._transport.write_eof()
                self._transport.resume_reading()
            else:  # TLS, which reads on until the client closes, too
                self._transport.close()

    # The parser's side.

    def on_message_begin(self) -> None:
        """The first byte of a request."""
        self._incoming = Request(self._now)
        self._in_head = True
        self._has_grown = True  # what came with it may be other requests: counting begins with the next bytes
        self._head_size = self._raw_size = 0

    def on_url(self, url: bytes) -> None:
        """The target, or a part of it."""
        if self._incoming is not None:
            self._incoming.target += url

    def on_header(self, name: bytes, value: bytes) -> None:
        """Sort a header out. Those after the body (trailers) are counted and dropped."""
        incoming = self._incoming
        self._head_size += len(name) + len(value) + 4
        if self._head_size > self._limits.header_bytes:
            self._refuse(431, "header_too_large", "The request's header is too large.")
            return
        if incoming is None or not self._in_head:
            return
        lower = name.lower()
        if lower in NOTED:
            noted = incoming.noted
            noted[lower] = noted[lower] + b"," + value if lower in noted else value.strip()
            if lower not in FORWARDED_TOO:
                return
        incoming.lines.append(b"%b: %b\r\n" % (name, value))

    def on_headers_complete(self) -> None:
        """The head is whole: see whether it can be served at all."""
        self._in_head = False
        incoming = self._incoming
        if incoming is None or self._refusal is not None:
            return
        incoming.method = self._parser.get_method()
        version = self._parser.get_http_version()
        incoming.is_http11 = version == "1.1"
        try:
            length = check_head(incoming, version, self._limits)
        except Refusal as refusal:
            self._refusal = refusal
            return
        self._is_upgrade = self._parser.should_upgrade()
        if b"expect" in incoming.noted and length and self.request is None and not self._queue and not self._is_upgrade:
            self.send(_CONTINUE)

    def on_body(self, data: bytes) -> None:
        """A piece of the body."""
        incoming = self._incoming
        self._has_grown = True
        if incoming is None or self._refusal is not None:
            return
        body = incoming.body
        if not body:
            incoming.body = data
        else:
            if type(body) is not bytearray:  # one growing buffer: a list of tiny pieces would cost 40 times their size
                incoming.body = body = bytearray(body)
            body += data
        if len(incoming.body) > self._limits.body_bytes:
            self._refuse(413, "body_too_large", f"The body is larger than {self._limits.body_bytes} bytes.")

    def on_message_complete(self) -> None:
        """The request is whole."""
        incoming = self._incoming
        if incoming is None or self._refusal is not None or self._is_upgrade:
            return
        incoming.keeps = self._parser.should_keep_alive()
        if self.request is not None or self._queue:
            incoming.started = self._now  # it waits for its turn by the client's own choice
        self._queue.append(incoming)
        self._incoming = None


class Server:
    """All connections of one listener, and who handles their requests."""

    def __init__(self, handle: Callable[[Connection, Request], None], limits: Limits) -> None:
        self.handle = handle
        self.limits = limits
        self.connections: set[Connection] = set()
        self.heads: Heads[Request] = Heads()
        self.outbox = Outbox()
        self.is_draining = False
        self.is_empty = asyncio.Event()
        self.is_empty.set()

    def connect(self) -> Connection:
        """A protocol for a new connection."""
        self.is_empty.clear()
        return Connection(self)

    def lost(self, connection: Connection) -> None:
        """A connection has ended."""
        self.connections.discard(connection)
        if not self.connections:
            self.is_empty.set()

    def sweep(self, now: float) -> None:
        """Let what is overdue expire."""
        for connection in [c for c in self.connections if 0.0 < c.deadline < now]:
            if 0.0 < connection.deadline < now:  # still: what expired before it may have changed that
                connection.expire()

    def drain(self) -> None:
        """Close what is idle now, and the others after their present answers."""
        self.is_draining = True
        for connection in [c for c in self.connections if c.is_idle]:
            connection.close(was_idle=True)

    def abort(self) -> None:
        """Close everything at once."""
        for connection in list(self.connections):
            connection.abort()
