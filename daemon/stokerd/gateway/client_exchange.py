"""The exchange whose answer a client gets: waiting for a replica, forwarding, breaking off.

One that finds all replicas of its arm busy waits for its turn; one that finds no replica at all is held for a bounded
time, and asks the table anew when another one comes.
"""

from __future__ import annotations

from time import monotonic

from stokerd.gateway.call import Call
from stokerd.gateway.exchange import Exchange
from stokerd.gateway.gateway import Gateway
from stokerd.gateway.http1 import LAST_CHUNK, chunk, error_body, error_event
from stokerd.gateway.keys import Keyring
from stokerd.gateway.measures import StreamMeter
from stokerd.gateway.routing import ArmPlan, Plan
from stokerd.gateway.server import Connection
from stokerd.gateway.upstream import AnswerHead, UpstreamConnection

_RETRY_SECONDS = 1
_MOST_RETRY_SECONDS = 30


class ClientExchange(Exchange):
    """The exchange whose answer a client gets."""

    __slots__ = (
        "_busy_until",
        "_client",
        "_has_head",
        "_held_until",
        "_is_chunked",
        "_keeps",
        "_line",
        "_paused_at",
        "_queued_at",
        "_waiting_since",
        "is_held",
    )

    def __init__(
        self, gateway: Gateway, call: Call, plan: Plan, arm: ArmPlan, fallback: ArmPlan | None, client: Connection,
        keyring: Keyring,
    ) -> None:  # fmt: skip
        super().__init__(gateway, call, plan, arm, fallback, keyring)
        self.is_held = False
        """It waits because there is no replica at all."""
        self._client = client
        self._has_head = False
        self._is_chunked = False
        self._keeps = False
        self._paused_at = 0.0
        self._queued_at = 0.0
        self._waiting_since = 0.0
        self._busy_until = 0.0
        self._held_until = 0.0
        self._line: ArmPlan | None = None

    # Waiting.

    @property
    def _who(self) -> object:
        key = self._call.key
        return key.id if key is not None else self._call.caller

    def _all_busy(self, now: float) -> None:
        if not self._busy_until:
            self._busy_until = now + self._gateway.limits.first_byte_seconds
        self._wait(now, self._busy_until)

    def _none_there(self, now: float) -> None:
        hold = self._plan.hold_seconds
        if hold and not self._held_until:
            self._held_until = now + hold
        if now < self._held_until:
            self.is_held = True
            self._wait(now, self._held_until)
        elif self._failure:
            self._fail(502, "upstream_failed", self._failure)
        else:
            self._fail(503, "no_healthy_replica", f"No replica of {self._plan.deployment} can be reached now.")

    def _wait(self, now: float, until: float) -> None:
        self._queued_at = now
        if not self._waiting_since:
            self._waiting_since = now
        self.deadline = until
        self._line = self._arm
        leaving = self._gateway.enqueue(self._plan, self._arm, self._who, self)
        if leaving is not None:
            leaving.crowded_out(now)

    def crowded_out(self, now: float) -> None:
        """There is no room to wait in."""
        line = self._line
        waited = now - line.waiting.first().waiting_since if line is not None and line.waiting else 0.0
        seconds = min(max(_RETRY_SECONDS, round(waited)), _MOST_RETRY_SECONDS)
        self._stop_waiting()
        message = f"Too many requests wait for {self._plan.deployment}. Try again in {seconds} s."
        self._fail(429, "too_many_waiting", message, seconds)

    @property
    def waiting_since(self) -> float:
        """When it began to wait for the first time (monotonic)."""
        return self._waiting_since

    def _stop_waiting(self) -> None:
        line, self._line = self._line, None
        if line is not None:
            line.waiting.discard(self._who, self)
            self._queued_seconds += monotonic() - self._queued_at
            self.is_held = False
            self.deadline = 0.0

    def resume(self) -> None:
        """It is its turn, or its place to wait is no more."""
        self._stop_waiting()
        self._tried = ()
        if not self._is_over and (self._table is self._gateway.table or self._rerouted()):
            self._next(monotonic())

    def _rerouted(self) -> bool:
        gateway = self._gateway
        self._table = table = gateway.table
        if self.side is not None:  # it may be another rollout now
            self.side.drop()
            self.side = None
        found = table.find(self._call.model)
        if found is None:
            message = f"The model {self._plan.deployment} has just been taken away."
            self._fail(404, "model_not_found", message)
            return False
        self._plan, pinned = found
        self._arm = arm = pinned or self._plan.assign(self._call, gateway.callers)
        self._fallback = self._plan.fallback(arm) if pinned is None else None
        self._fell_back = False
        return True

    def expire(self) -> None:
        """It waited for too long, for a replica or its answer."""
        if self._line is None:
            super().expire()
            return
        is_held, seconds = self.is_held, monotonic() - self._waiting_since
        self._stop_waiting()
        if is_held:
            self._fail(503, "no_healthy_replica", f"No replica of {self._plan.deployment} came in {seconds:.0f} s.")
        else:
            self._fail(503, "busy", f"All replicas of {self._plan.deployment} stayed busy for {seconds:.0f} s.")

    # The answer.

    def _forward(self, upstream: UpstreamConnection, head: AnswerHead, piece: bytes, is_complete: bool) -> None:
        if self._has_head:
            out = chunk(piece) if piece and self._is_chunked else piece
        else:
            out = self._answer_head(head, upstream.length)
            if piece:
                out += chunk(piece) if self._is_chunked else piece
        if is_complete and self._is_chunked:
            out += LAST_CHUNK
        if out:
            self._client.send(out)

    def _answer_head(self, head: AnswerHead, length: int) -> bytes:
        """The answer's head: the replica's, framed for this client, and saying which arm answered."""
        self._has_head = True
        client = self._client
        request = client.request
        is_http11 = request is not None and request.is_http11
        self._keeps = client.keeps
        framing = b""
        if head.status not in (204, 304):
            if length >= 0:
                framing = b"content-length: %d\r\n" % length
            elif is_http11:
                self._is_chunked = True
                framing = b"transfer-encoding: chunked\r\n"
            else:
                self._keeps = False
        if not self._keeps:
            framing += b"connection: close\r\n"
        elif not is_http11:
            framing += b"connection: keep-alive\r\n"
        return b"%b%b%b\r\n" % (head.lines, framing, self._arm.headers)

    def _complete(self) -> None:
        self._client.done(self._keeps)

    def _fail(self, status: int, code: str, message: str, retry_seconds: int = _RETRY_SECONDS) -> None:
        client, endpoint = self._client, self._call.endpoint
        if not self._has_head:
            self._status = status
            self._finish(monotonic(), is_error=True)
            extra = (b"retry-after: %d" % retry_seconds,) if status in (429, 503) else ()
            kind = "requests" if status == 429 else "invalid_request_error" if status < 500 else "server_error"
            client.reply(status, error_body(message, kind, code, shape=endpoint.shape), extra=extra)
            return
        self._finish(monotonic(), is_error=True)
        if isinstance(self._meter, StreamMeter):
            event = error_event(message, code, shape=endpoint.shape, path=endpoint.path)
            client.send(chunk(event) + LAST_CHUNK if self._is_chunked else event)
            client.done(False)
        else:
            client.abort()

    # The client's side.

    def break_off(self) -> None:
        """Tell the client."""
        self._stop_waiting()
        super().break_off()

    def client_gone(self) -> None:
        """Let the replica know at once; the arm is not to blame."""
        if not self._is_over:
            self._drop()
            self._stop_waiting()
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
