"""One request's way to a replica, and what its answer amounts to: attempts, fallback, measuring.

A request is tried again only while no byte of an answer has come: on the next replica if a connection is refused; on a
fresh connection if a kept one turns out to have been closed by its replica meanwhile; and on another replica if one
dies with it, but only once: what kills one engine after another must not kill all. What becomes of the answer, and of a
request that finds no replica, is up to `client_exchange` and `shadow_exchange`.
"""

from __future__ import annotations

import errno
import logging
import time
from time import monotonic

from stokerd.gateway import balance
from stokerd.gateway.balance import SLACK_TOKENS, Replica
from stokerd.gateway.bodies import BadBody
from stokerd.gateway.call import Call
from stokerd.gateway.gateway import Gateway
from stokerd.gateway.keys import Keyring
from stokerd.gateway.measures import Meter, StreamMeter
from stokerd.gateway.routing import ArmPlan, Plan
from stokerd.gateway.shadows import Side
from stokerd.gateway.upstream import AnswerHead, UpstreamConnection

log = logging.getLogger(__name__)
_MOST_DEATHS = 2


class Exchange:
    """A call, its attempts and its measures. What becomes of the answer is up to the subclass.

    Args:
        fallback: the arm that answers where *arm* has no replica that can.
        keyring: where the call's key was admitted; None: it is not to be settled.
    """

    __slots__ = (
        "_arm",
        "_body",
        "_call",
        "_deaths",
        "_failure",
        "_fallback",
        "_fell_back",
        "_gateway",
        "_head",
        "_heard_at",
        "_is_over",
        "_is_stale",
        "_is_stream",
        "_keyring",
        "_lost_version",
        "_meter",
        "_plan",
        "_queued_seconds",
        "_sent_at",
        "_served_by",
        "_status",
        "_table",
        "_tried",
        "_upstream",
        "deadline",
        "replica",
        "side",
    )

    def __init__(
        self,
        gateway: Gateway,
        call: Call,
        plan: Plan,
        arm: ArmPlan,
        fallback: ArmPlan | None,
        keyring: Keyring | None,
    ) -> None:
        self.deadline = 0.0
        self.replica: Replica | None = None
        """Where it takes a place now."""
        self.side: Side | None = None
        """Its side of a pair of answers that is kept for comparison."""
        self._gateway = gateway
        self._table = gateway.table
        self._call = call
        self._keyring = keyring
        self._plan = plan
        self._arm = arm
        self._fallback = fallback
        self._fell_back = False
        self._lost_version = 0
        self._served_by = ""
        self._tried: tuple[Replica, ...] = ()
        self._head = b""
        self._body: bytes | bytearray = b""
        self._failure = ""
        self._deaths = 0
        self._is_stale = False
        self._upstream: UpstreamConnection | None = None
        self._sent_at = 0.0
        self._heard_at = 0.0
        self._queued_seconds = 0.0
        self._meter: Meter | None = None
        self._status = 0
        self._is_stream = False
        self._is_over = False

    # Attempts.

    def start(self) -> None:
        """Send the call on its way."""
        gateway = self._gateway
        gateway.exchanges.add(self)
        self._next(monotonic(), self._arm.waiting if gateway.crowded else None)  # who came before goes before

    def _next(self, now: float, others: object = None) -> None:
        """Find a replica that has not been tried yet, or wait for one; with *others* waiting, after them."""
        tried, bound = self._tried, self._plan.in_flight
        while True:
            arm = self._arm
            replicas = arm.replicas
            replica = None if others else self._choose(replicas, now, bound)
            if replica is not None:
                break
            if balance.is_served(replicas, tried):
                if self._gateway.shadows and not others and self._gateway.break_off_shadow(replicas):
                    continue
                self._all_busy(now)
                return
            if self._fallback is None:
                replica = None if others else balance.last_resort(replicas, bound, tried)
                break
            if self._deaths:
                self._lost_version = arm.version
            self._arm, self._fallback, self._fell_back = self._fallback, None, True
            others = others and self._arm.waiting
        if replica is None:
            self._none_there(now)
        else:
            self._go(replica, now)

    def _choose(self, replicas: tuple[Replica, ...], now: float, bound: int) -> Replica | None:
        if len(replicas) == 1:
            replica = replicas[0]
            is_free = not replica.away_until and not self._tried and not (bound and replica.in_flight >= bound)
            return replica if is_free else balance.choose(replicas, now, 0, slack=0, bound=bound, tried=self._tried)
        call = self._call
        affinity = call.affinity
        if affinity:
            slack = SLACK_TOKENS + 2 * call.prompt_tokens
        else:
            affinity, slack = int(call.started * 1e6), 0
        return balance.choose(replicas, now, affinity, slack=slack, bound=bound, tried=self._tried)

    def _go(self, replica: Replica, now: float) -> None:
        """Take a place at *replica*, and send it the call."""
        self.replica = replica
        self._served_by = replica.address
        self._heard_at = now
        self.deadline = 0.0
        replica.in_flight += 1
        replica.tokens += self._call.tokens
        if replica.away_until:
            replica.prober = self
        try:
            self._head, self._body = self._call.addressed_to(self._arm.model)
        except BadBody as error:
            self._fail(400, "invalid_body", str(error))
            return
        upstream = self._gateway.pool.take(replica.address)
        if upstream is not None:
            self._send(upstream, now)
        else:
            self._gateway.spawn(self._connect(replica))

    def _leave(self) -> None:
        """Give the place at the replica back."""
        replica = self.replica
        if replica is not None:
            self.replica = None
            replica.in_flight -= 1
            replica.tokens -= self._call.tokens
            if replica.prober is self:
                replica.prober = None
            if self._gateway.crowded:
                self._gateway.look_again()

    async def _connect(self, replica: Replica) -> None:
        pool = self._gateway.pool
        try:
            upstream = await pool.connect(replica.address)
        except OSError as error:
            if self._is_over:
                return
            if error.errno in (errno.EMFILE, errno.ENFILE):  # no fault of the replica's
                self._fail(503, "gateway_overloaded", "The gateway has as many connections as it may have open.")
            else:
                self._lost(replica, f"it can't be reached: {error.strerror or type(error).__name__}", self._is_stale)
            return
        except Exception:  # a bug of ours must not leave a client waiting
            log.exception("no connection to %s can be made", replica.address)
            if not self._is_over:
                self._fail(502, "upstream_failed", f"The replica {replica.address} can't be asked: an error inside.")
            return
        if self._is_over:
            pool.put(upstream, monotonic())
        else:
            self._send(upstream, monotonic())

    def _send(self, upstream: UpstreamConnection, now: float) -> None:
        self._upstream = upstream
        self._sent_at = now
        self.deadline = now + self._gateway.limits.first_byte_seconds
        upstream.send(self, self._head, self._body)

    def _lost(self, replica: Replica, reason: str, is_death: bool) -> None:
        """*replica* refused the call, or died with it: go on with the next one."""
        now = monotonic()
        is_away = replica.failed(now)
        self._leave()
        if is_away:
            self._gateway.replica_away()
        self._tried += (replica,)
        self._is_stale = False
        self.deadline = 0.0
        if is_death:
            self._deaths += 1
            self._failure = f"The replica {replica.address} failed: {reason}."
        if self._deaths >= _MOST_DEATHS:
            self._fail(502, "upstream_failed", self._failure)
        elif self._table is self._gateway.table or self._rerouted():
            self._next(now)

    def _erred(self) -> None:
        replica = self.replica
        if replica is not None and replica.erred(monotonic(), self._arm.replicas):
            self._gateway.replica_away()

    # The upstream's side.

    def received(
        self, upstream: UpstreamConnection, head: AnswerHead, piece: bytes, is_complete: bool, now: float
    ) -> None:
        """Forward and measure."""
        replica = self.replica
        if replica is not None:
            replica.received += 1
        meter = self._meter
        if meter is None:
            self._open(head)
        self._heard_at = now
        self.deadline = now + self._gateway.limits.stall_seconds
        if is_complete:
            self._upstream = None
        self._forward(upstream, head, piece, is_complete)
        if meter is None:
            if is_complete and piece and not head.is_events:
                self._meter = meter = Meter.of(piece, now)
            else:
                is_metered = head.is_events and not head.is_encoded
                self._meter = meter = StreamMeter(self._call.endpoint.path.encode()) if is_metered else Meter()
                if piece:
                    meter.feed(piece, now)
        elif piece:
            meter.feed(piece, now)
        if piece and self.side is not None:
            self.side.feed(piece, self._is_stream)
        if is_complete and not self._is_over:
            self._finish(now, is_error=self._status >= 400 or meter.has_error)
            self._complete()

    def _open(self, head: AnswerHead) -> None:
        """The answer has begun, so it can't be asked for again: what was sent needn't be kept."""
        self._head = self._body = self._call.body = b""
        self._status = head.status
        replica = self.replica
        if self._status >= 500:
            self._erred()
        elif replica is not None and (replica.away_until or replica.errors) and replica.succeeded():
            self._gateway.look_again()
        self._is_stream = head.is_events

    def broken(self, upstream: UpstreamConnection, reason: str) -> None:
        """Try again, or give up."""
        self._upstream = None
        replica = self.replica
        if self._is_over or replica is None:
            return
        if upstream.has_answered:
            self._erred()
            self._fail(502, "upstream_failed", f"The replica {replica.address} failed: {reason}.")
        elif upstream.is_reused and not self._is_stale and self._is_young():
            self._is_stale = True
            self.deadline = 0.0
            self._gateway.spawn(self._connect(replica))
        else:
            self._lost(replica, reason, True)

    def _is_young(self) -> bool:
        return monotonic() - self._sent_at < self._gateway.limits.stale_seconds

    def waits(self) -> tuple[str, float] | None:
        """The replica that it waits for, and since when."""
        return (self.replica.address, self._heard_at) if self.replica is not None else None

    def expire(self) -> None:
        """No first or no next byte came in time."""
        self.deadline = 0.0
        self._drop()
        self._erred()
        self._fail(504, "upstream_timeout", f"The replica {self._served_by} did not answer in time.")

    def break_off(self) -> None:
        """The gateway ends, and can wait for it no longer."""
        self.deadline = 0.0
        self._drop()
        self._fail(503, "gateway_restarting", "The gateway restarts, and could not wait for this answer. Ask again.")

    def _drop(self) -> None:
        upstream, self._upstream = self._upstream, None
        if upstream is not None:
            upstream.cancel()

    def _rerouted(self) -> bool:
        """There is another table meanwhile: follow it. False: it has no place for this call, which has ended."""
        raise NotImplementedError

    def _all_busy(self, now: float) -> None:
        """All replicas have as much as they may have at once."""
        raise NotImplementedError

    def _none_there(self, now: float) -> None:
        """No replica can be reached, or is left to be tried."""
        raise NotImplementedError

    def _fail(self, status: int, code: str, message: str) -> None:
        raise NotImplementedError

    def _forward(self, upstream: UpstreamConnection, head: AnswerHead, piece: bytes, is_complete: bool) -> None:
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
        key = call.key
        gateway.exchanges.discard(self)
        total = now - call.started
        ttft = gap = longest = prompt = completion = None
        reason, size = "", 0
        if meter is not None:
            ttft = meter.first - call.started if meter.first is not None else None
            gap = meter.inter_token_seconds
            longest = meter.max_gap_seconds
            prompt, completion, reason = meter.told()
            size = meter.size
        gateway.records.add(
            (
                time.time() - total,
                self._plan.deployment,
                arm.name,
                arm.version,
                self._served_by,
                call.endpoint.path,
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
                self._table.version,
                longest,
                reason,
                call.body_bytes,
                size,
                call.caller_name,
                key.id if key is not None else "",
                self._queued_seconds,
                call.trace,
                self._lost_version,
                call.model not in self._plan.names,
            ),
            is_urgent=is_error,
        )
        side = self.side
        if side is not None:
            if is_client_gone:
                side.drop()
            else:
                side.close(
                    version=arm.version,
                    status=self._status,
                    is_error=is_error,
                    finish_reason=reason,
                    ttft_seconds=ttft,
                    total_seconds=total,
                    completion_tokens=completion,
                )
        if self._keyring is not None and key is not None:
            if prompt is None and 0 < self._status < 300:
                prompt = call.prompt_tokens  # the engine was not asked to tell: an estimate must do
            self._keyring.settle(key, (prompt or 0) + (completion or 0), now)
