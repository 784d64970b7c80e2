"""One request's way to a replica and its answer's way back: attempts, fallback, forwarding, measuring.

A request is tried again only while no byte of an answer has come: on the next replica if a connection is refused, and
once on a fresh connection if a kept one turns out to have been closed by its replica meanwhile. A replica that takes
the request and then dies is not asked again, and no other is: what killed one would kill them all.
"""

from __future__ import annotations

import logging
import time
from time import monotonic

from stokerd.gateway.gateway import Gateway
from stokerd.gateway.http1 import LAST_CHUNK, chunk, error_body, error_event, without_nominated
from stokerd.gateway.measures import Meter, StreamMeter
from stokerd.gateway.request import Request
from stokerd.gateway.routing import order_replicas
from stokerd.gateway.server import Connection
from stokerd.gateway.upstream import UpstreamConnection
from stokerd.gateway.wire import Arm

log = logging.getLogger(__name__)


class Call:
    """What is asked of a replica; a client's exchange and its shadow share one."""

    __slots__ = ("body", "deployment", "head", "path", "started", "table_version")

    def __init__(self, request: Request, path: str, body: bytes | bytearray, deployment: str, table: int) -> None:
        self.path = path
        self.body = body
        self.deployment = deployment
        self.table_version = table
        self.started = request.started
        noted = request.noted
        lines = request.lines
        if b"connection" in noted:
            lines = without_nominated(lines, noted[b"connection"])
        self.head = b"POST %b HTTP/1.1\r\nhost: %b\r\n%bcontent-length: %d\r\n\r\n" % (
            request.target,
            noted.get(b"host") or b"localhost",
            b"".join(lines),
            len(body),
        )


class Exchange:
    """A call, its attempts and its measures. What becomes of the answer is up to the subclass."""

    __slots__ = (
        "_address",
        "_arm",
        "_call",
        "_fallback",
        "_fell_back",
        "_gateway",
        "_has_retried",
        "_heard_at",
        "_is_counted",
        "_is_over",
        "_is_stream",
        "_left",
        "_meter",
        "_sent_at",
        "_status",
        "_upstream",
        "deadline",
    )

    def __init__(self, gateway: Gateway, call: Call, arm: Arm, fallback: Arm | None) -> None:
        self.deadline = 0.0
        self._gateway = gateway
        self._call = call
        self._arm = arm
        self._fallback = fallback
        self._fell_back = False
        self._left: list[str] = []
        self._address = ""
        self._is_counted = False
        self._upstream: UpstreamConnection | None = None
        self._sent_at = 0.0
        self._heard_at = 0.0
        self._has_retried = False
        self._meter: Meter | None = None
        self._status = 0
        self._is_stream = False
        self._is_over = False

    # Attempts.

    def start(self) -> None:
        """Send the call on its way."""
        self._gateway.exchanges.add(self)
        self._left = self._replicas()
        self._try_next()

    def _replicas(self) -> list[str]:
        pool, arm = self._gateway.pool, self._arm
        is_last_resort = self._fallback is None
        turn = int(self._call.started * 1e6)
        return order_replicas(
            arm.addresses, pool.in_flight, pool.ejected_until, monotonic(), turn, is_last_resort=is_last_resort
        )

    def _try_next(self) -> None:
        self._leave()
        if not self._left and self._fallback is not None:
            self._arm, self._fallback, self._fell_back = self._fallback, None, True
            self._left = self._replicas()
        if not self._left:
            self._fail(503, "no_healthy_replica", f"No replica of {self._call.deployment} can be reached now.")
            return
        pool = self._gateway.pool
        self._address = self._left.pop(0)
        self._is_counted = True
        self._heard_at = monotonic()
        pool.begin(self._address)
        upstream = pool.take(self._address)
        if upstream is not None:
            self._send(upstream)
        else:
            self._gateway.spawn(self._connect())

    def _leave(self) -> None:
        if self._is_counted:
            self._is_counted = False
            self._gateway.pool.end(self._address)

    async def _connect(self) -> None:
        pool = self._gateway.pool
        try:
            upstream = await pool.connect(self._address)
        except OSError:
            if not self._is_over:
                self._try_next()
            return
        except Exception:  # a bug of ours must not leave a client waiting
            log.exception("no connection to %s can be made", self._address)
            if not self._is_over:
                self._fail(502, "upstream_failed", f"The replica {self._address} can't be asked: an error inside.")
            return
        if self._is_over:
            pool.put(upstream)
        else:
            self._send(upstream)

    def _send(self, upstream: UpstreamConnection) -> None:
        self._upstream = upstream
        self._sent_at = now = monotonic()
        self.deadline = now + self._gateway.limits.first_byte_seconds
        upstream.send(self, self._call.head, self._call.body)

    # The upstream's side.

    def received(self, upstream: UpstreamConnection, piece: bytes, is_complete: bool) -> None:
        """Measure and forward."""
        now = monotonic()
        meter = self._meter
        if meter is None:
            meter = self._open(upstream)
        if piece:
            meter.feed(piece, now)
        received = self._gateway.pool.received
        received[self._address] = received.get(self._address, 0) + 1
        self._heard_at = now
        self.deadline = now + self._gateway.limits.stall_seconds
        if is_complete:
            self._upstream = None
        self._forward(upstream, piece, is_complete)
        if is_complete and not self._is_over:
            self._finish(now, is_error=self._status >= 400 or meter.has_error)
            self._complete()

    def _open(self, upstream: UpstreamConnection) -> Meter:
        self._status = upstream.status
        noted = upstream.noted
        self._is_stream = noted.get(b"content-type", b"").lower().startswith(b"text/event-stream")
        is_plain = b"content-encoding" not in noted
        self._meter = StreamMeter(self._call.path.encode()) if self._is_stream and is_plain else Meter()
        return self._meter

    def broken(self, upstream: UpstreamConnection, reason: str) -> None:
        """Try again, or give up."""
        self._upstream = None
        if self._is_over:
            return
        is_young = monotonic() - self._sent_at < self._gateway.limits.stale_seconds
        is_stale = upstream.is_reused and not upstream.has_answered and is_young
        if is_stale and not self._has_retried:
            self._has_retried = True
            self.deadline = 0.0
            self._gateway.spawn(self._connect())
            return
        self._fail(502, "upstream_failed", f"The replica {self._address} failed: {reason}.")

    def waits(self) -> tuple[str, float] | None:
        """The replica that it waits for, and since when."""
        return (self._address, self._heard_at) if self._is_counted else None

    def expire(self) -> None:
        """No first or no next byte came in time."""
        self.deadline = 0.0
        self._drop()
        self._fail(504, "upstream_timeout", f"The replica {self._address} did not answer in time.")

    def _drop(self) -> None:
        upstream, self._upstream = self._upstream, None
        if upstream is not None:
            upstream.cancel()

    def _fail(self, status: int, code: str, message: str) -> None:
        raise NotImplementedError

    def _forward(self, upstream: UpstreamConnection, piece: bytes, is_complete: bool) -> None:
        raise NotImplementedError

    def _complete(self) -> None:
        raise NotImplementedError

    # The end.

    def _finish(self, now: float, *, is_error: bool, is_client_gone: bool = False) -> None:
        """Leave the books, with a record of what ended at *now*."""
        self._is_over = True
        self.deadline = 0.0
        self._leave()
        gateway, call, arm, meter = self._gateway, self._call, self._arm, self._meter
        gateway.exchanges.discard(self)
        total = now - call.started
        ttft = gap = prompt = completion = None
        if meter is not None:
            ttft = meter.first - call.started if meter.first is not None else None
            gap = meter.inter_token_seconds
            prompt, completion = meter.tokens()
        gateway.records.add(
            (
                time.time() - total,
                call.deployment,
                arm.name,
                arm.version,
                self._address,
                call.path,
                self._status,
                is_error,
                self._is_stream,
                is_client_gone,
                self._fell_back,
                ttft,
                gap,
                total,
                prompt,
                completion,
                call.table_version,
            )
        )


class ClientExchange(Exchange):
    """The exchange whose answer a client gets."""

    __slots__ = ("_client", "_has_head", "_is_chunked", "_keeps", "_paused_at")

    def __init__(self, gateway: Gateway, call: Call, arm: Arm, fallback: Arm | None, client: Connection) -> None:
        super().__init__(gateway, call, arm, fallback)
        self._client = client
        self._has_head = False
        self._is_chunked = False
        self._keeps = False
        self._paused_at = 0.0

    def _forward(self, upstream: UpstreamConnection, piece: bytes, is_complete: bool) -> None:
        if self._has_head:
            out = chunk(piece) if piece and self._is_chunked else piece
        else:
            out = self._head(upstream)
            if piece:
                out += chunk(piece) if self._is_chunked else piece
        if is_complete and self._is_chunked:
            out += LAST_CHUNK
        if out:
            self._client.send(out)

    def _head(self, upstream: UpstreamConnection) -> bytes:
        """The answer's head: the replica's, framed for this client, and saying which arm answered."""
        self._has_head = True
        client, noted, status, lines = self._client, upstream.noted, upstream.status, upstream.lines
        request = client.request
        is_http11 = request is not None and request.is_http11
        self._keeps = client.keeps
        if b"connection" in noted:
            lines = without_nominated(lines, noted[b"connection"])
        framing = b""
        if status not in (204, 304):
            length = noted.get(b"content-length")
            if length is not None:
                framing = b"content-length: %b\r\n" % length
            elif is_http11:
                self._is_chunked = True
                framing = b"transfer-encoding: chunked\r\n"
            else:
                self._keeps = False
        if not self._keeps:
            framing += b"connection: close\r\n"
        elif not is_http11:
            framing += b"connection: keep-alive\r\n"
        arm = self._arm
        return b"HTTP/1.1 %d %b\r\n%b%bx-stoker-arm: %b\r\nx-stoker-version: %d\r\n\r\n" % (
            status,
            upstream.reason,
            b"".join(lines),
            framing,
            arm.name.encode(),
            arm.version,
        )

    def _complete(self) -> None:
        self._client.done(self._keeps)

    def _fail(self, status: int, code: str, message: str) -> None:
        client = self._client
        if not self._has_head:
            self._status = status
            self._finish(monotonic(), is_error=True)
            extra = (b"retry-after: 1",) if status == 503 else ()
            client.reply(status, error_body(message, "server_error", code), extra=extra)
            return
        self._finish(monotonic(), is_error=True)
        if isinstance(self._meter, StreamMeter):
            event = error_event(message, code)
            client.send(chunk(event) + LAST_CHUNK if self._is_chunked else event)
            client.done(False)
        else:
            client.abort()

    # The client's side.

    def client_gone(self) -> None:
        """Let the replica know at once; the arm is not to blame."""
        if not self._is_over:
            self._drop()
            self._finish(monotonic(), is_error=False, is_client_gone=True)

    def waits(self) -> tuple[str, float] | None:
        """None as well while the client holds it up: then the replica is not the one that is slow."""
        return None if self._paused_at else super().waits()

    def client_paused(self) -> None:
        """Take no more from the replica than the client takes."""
        if self._upstream is not None:
            self._paused_at = monotonic()
            self.deadline = 0.0  # the client's own deadline runs instead
            self._upstream.pause()

    def client_resumed(self) -> None:
        """Go on."""
        if self._upstream is not None:
            now = monotonic()
            if self._paused_at and self._meter is not None:
                self._meter.held(now - self._paused_at)
            self._paused_at = 0.0
            self._heard_at = now
            self.deadline = now + self._gateway.limits.stall_seconds
            self._upstream.resume()


class ShadowExchange(Exchange):
    """A copy, whose answer is read, measured and dropped. It touches no client.

    Args:
        shadows: where it is entered while it goes on.
    """

    __slots__ = ("_shadows",)

    def __init__(self, gateway: Gateway, call: Call, arm: Arm, shadows: set[ShadowExchange]) -> None:
        super().__init__(gateway, call, arm, None)
        self._shadows = shadows
        shadows.add(self)

    @property
    def body_bytes(self) -> int:
        """How much of memory its body holds."""
        return len(self._call.body)

    def _forward(self, upstream: UpstreamConnection, piece: bytes, is_complete: bool) -> None:
        pass

    def _complete(self) -> None:
        self._shadows.discard(self)

    def _fail(self, status: int, code: str, message: str) -> None:
        self._finish(monotonic(), is_error=True)
        self._shadows.discard(self)

    def abandon(self) -> None:
        """The gateway ends: no record."""
        self._is_over = True
        self._drop()
        self._leave()
        self._gateway.exchanges.discard(self)
        self._shadows.discard(self)
