"""The exchange of a copy, whose answer nobody gets. It never waits: where there is no room, it isn't sent."""

from __future__ import annotations

from time import monotonic

from stokerd.gateway.call import Call
from stokerd.gateway.exchange import Exchange
from stokerd.gateway.gateway import Gateway
from stokerd.gateway.routing import ArmPlan, Plan
from stokerd.gateway.shadows import Side
from stokerd.gateway.upstream import AnswerHead, UpstreamConnection


class ShadowExchange(Exchange):
    """A copy, whose answer is read, measured, and kept for comparison or dropped. It touches no client."""

    __slots__ = ()

    def __init__(self, gateway: Gateway, call: Call, plan: Plan, arm: ArmPlan, side: Side | None) -> None:
        super().__init__(gateway, call, plan, arm, None, None)
        self.side = side
        gateway.shadows.add(self)

    @property
    def body_bytes(self) -> int:
        """How much of memory its body holds."""
        return len(self._call.body)

    def _rerouted(self) -> bool:
        self.abandon()
        return False

    def _all_busy(self, now: float) -> None:
        self.abandon()

    def _none_there(self, now: float) -> None:
        self._fail(0, "", "")

    def _forward(self, upstream: UpstreamConnection, head: AnswerHead, piece: bytes, is_complete: bool) -> None:
        pass

    def _complete(self) -> None:
        self._gateway.shadows.discard(self)

    def _fail(self, status: int, code: str, message: str) -> None:
        self._finish(monotonic(), is_error=True)
        self._gateway.shadows.discard(self)

    def break_off(self) -> None:
        """Nobody waits for it."""
        self.abandon()

    def abandon(self) -> None:
        """End it without a record: something more important needs its place, or the gateway ends."""
        self._is_over = True
        self._drop()
        self._leave()
        self._gateway.exchanges.discard(self)
        self._gateway.shadows.discard(self)
        if self.side is not None:
            self.side.drop()
