"""Which arm answers a request: plain functions of the table, the caller and what is known of callers before."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from hashlib import blake2b
from random import random
from typing import TYPE_CHECKING

from stokerd.gateway.balance import Replica
from stokerd.gateway.call import Call
from stokerd.gateway.callers import Callers
from stokerd.gateway.fairqueue import FairQueue
from stokerd.gateway.wire import Arm, Route, RouteTable

if TYPE_CHECKING:
    from stokerd.gateway.client_exchange import ClientExchange


class ArmPlan:
    """An arm, made ready: its replicas, what they call its model, and who waits for one of them."""

    __slots__ = ("headers", "model", "name", "replicas", "version", "waiting", "weight")

    def __init__(self, arm: Arm, deployment: str, replica_of: Callable[[str], Replica]) -> None:
        self.name = arm.name
        self.version = arm.version
        self.weight = arm.weight
        self.model = arm.model or deployment
        self.replicas = tuple(map(replica_of, arm.addresses))
        self.headers = b"x-stoker-arm: %b\r\nx-stoker-version: %d\r\n" % (arm.name.encode(), arm.version)
        self.waiting: FairQueue[ClientExchange] = FairQueue()


class Plan:
    """A route, made ready: ``shares`` holds for each arm with weight the upper end of its part of [0, 1).

    Arms other than stable come first, so that a caller who once was on the candidate stays on it when its weight grows.
    ``names`` are the deployment's and its aliases.
    """

    __slots__ = (
        "_targets",
        "_words",
        "arms",
        "by_version",
        "deployment",
        "former",
        "hold_seconds",
        "in_flight",
        "keeps_shadow",
        "max_callers",
        "names",
        "queue",
        "salt",
        "shadow",
        "shares",
        "stable",
    )

    def __init__(self, route: Route, replica_of: Callable[[str], Replica]) -> None:
        def ready(arm: Arm) -> ArmPlan:
            return ArmPlan(arm, route.deployment, replica_of)

        self.deployment = route.deployment
        self.names = (route.deployment, *route.aliases)
        self.salt = route.salt.encode()
        self.max_callers = route.max_callers
        self.hold_seconds = route.hold_seconds
        self.in_flight = route.in_flight
        self.queue = route.queue
        self.keeps_shadow = route.keeps_shadow
        self.stable = ready(next(arm for arm in route.arms if arm.name == "stable"))
        self.shadow = ready(route.shadow) if route.shadow is not None else None
        others = sorted((arm for arm in route.arms if arm.name != "stable"), key=lambda arm: arm.name)
        self.arms = (*map(ready, others), self.stable)
        total = sum(arm.weight for arm in self.arms)
        shares: list[tuple[float, ArmPlan]] = []
        sum_so_far = 0.0
        for arm in self.arms:
            if arm.weight > 0:
                sum_so_far += arm.weight
                shares.append((sum_so_far / total, arm))
        self.shares = tuple(shares)
        self.by_version = {arm.version: arm for arm in (*([self.shadow] if self.shadow else []), *self.arms)}
        self._words = dict(route.versions)
        by_name = {arm.name: arm for arm in self.arms}
        self.former = by_name.get("former")
        self._targets = tuple(
            (target.key, target.header.encode() + b":", target.value.encode(), by_name[target.arm])
            for target in route.targets
            if target.arm in by_name
        )

    def version(self, word: str) -> ArmPlan | None:
        """The arm of a version: by number, or by a name that versions have; None if it isn't served."""
        version = self._words.get(word)
        if version is None:
            if not (word.isascii() and word.isdigit() and len(word) < 10):
                return None
            version = int(word)
        return self.by_version.get(version)

    def fallback(self, arm: ArmPlan) -> ArmPlan | None:
        """The arm that answers for *arm* where that has no replica which can: stable, and for stable the former one."""
        return self.former if arm is self.stable else self.stable

    def waiting(self) -> int:
        """How many requests wait, for any arm."""
        return sum(len(arm.waiting) for arm in self.arms)

    def assign(self, call: Call, callers: Callers) -> ArmPlan:
        """The arm of a caller: by name if targeted, else by a hash that stays the same for the rollout.

        Anonymous callers are told apart by their conversations. Where callers are counted they stay with stable.
        """
        sender = call.sender
        if call.is_known_by_head and sender.plan is self and sender.arm is not None:
            return sender.arm
        arm = self._targeted(call) if self._targets else None
        if arm is None:
            arm = self._drawn(call)
            if self.max_callers and arm is not self.stable:
                caller = call.caller
                if not caller or not callers.admit(self.salt, caller, self.max_callers):
                    return self.stable  # not remembered: that he can't be noted now may pass
        if call.is_known_by_head:
            sender.plan, sender.arm = self, arm
        return arm

    def _drawn(self, call: Call) -> ArmPlan:
        if len(self.shares) > 1:
            who = call.caller or call.conversation
            share = share_of(self.salt, who) if who else random()
            for upper, arm in self.shares:
                if share < upper:
                    return arm
        return self.shares[0][1] if len(self.shares) == 1 else self.stable

    def _targeted(self, call: Call) -> ArmPlan | None:
        for key, header, value, arm in self._targets:
            if key:
                if call.key is not None and call.key.id == key:
                    return arm
                continue
            size = len(header)
            for line in call.lines:
                if line[:size].lower() == header and (not value or line[size:].strip() == value):
                    return arm
        return None


class Table:
    """A route table, made ready for look-ups by the name in a request's ``model``.

    Args:
        replica_of: gives what is known of the server at an address, the same one for tables to come.
    """

    __slots__ = ("_by_name", "names", "plans", "source", "version")

    def __init__(self, source: RouteTable, replica_of: Callable[[str], Replica]) -> None:
        self.source = source
        self.version = source.version
        self.plans = tuple(Plan(route, replica_of) for route in source.routes)
        self._by_name: dict[str, tuple[Plan, ArmPlan | None]] = {
            name: (plan, None) for plan in self.plans for name in plan.names
        }
        self.names = tuple(sorted(self._by_name))

    def find(self, model: str) -> tuple[Plan, ArmPlan | None] | None:
        """The plan for a deployment's name or alias, for ``name@version`` also the version's arm; None if unknown."""
        found = self._by_name.get(model)
        if found is not None:
            return found
        name, _, word = model.rpartition("@")
        found = self._by_name.get(name)
        if found is None:
            return None
        arm = found[0].version(word)
        return (found[0], arm) if arm is not None else None

    def addresses(self) -> set[str]:
        """Every address that the table names."""
        arms = [a for route in self.source.routes for a in (*route.arms, *((route.shadow,) if route.shadow else ()))]
        return {address for arm in arms for address in arm.addresses}


@lru_cache(maxsize=8192)
def share_of(salt: bytes, key: bytes) -> float:
    """Where a caller stands in [0, 1): uniform over callers, the same for ever for one salt."""
    return int.from_bytes(blake2b(salt + b"\0" + key, digest_size=6).digest(), "big") / 2**48
