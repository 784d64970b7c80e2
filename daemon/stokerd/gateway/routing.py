"""Which arm answers a request, and which of its replicas: plain functions of the table, the caller and the counts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from hashlib import blake2b

from stokerd.gateway.wire import Arm, Route, RouteTable

# Clients must send some API key, and people write these where none is needed. Taken as a caller's name, one of them
# would put all of a site's traffic on one arm.
PLACEHOLDER_KEYS = frozenset({b"", b"-", b"empty", b"none", b"null", b"dummy", b"no-key", b"not-needed", b"unused"})


class Plan:
    """A route, made ready: ``shares`` holds for each arm with weight the upper end of its part of [0, 1).

    Arms other than stable come first, so that a caller who once was on the candidate stays on it when its weight grows.
    """

    __slots__ = ("by_version", "deployment", "salt", "shadow", "shares", "stable")

    def __init__(self, route: Route) -> None:
        self.deployment = route.deployment
        self.salt = route.salt.encode()
        self.stable = next(arm for arm in route.arms if arm.name == "stable")
        self.shadow = route.shadow
        ordered = [*sorted((a for a in route.arms if a is not self.stable), key=lambda a: a.name), self.stable]
        total = sum(arm.weight for arm in ordered)
        shares: list[tuple[float, Arm]] = []
        sum_so_far = 0.0
        for arm in ordered:
            if arm.weight > 0:
                sum_so_far += arm.weight
                shares.append((sum_so_far / total, arm))
        self.shares = tuple(shares)
        candidates = [*([route.shadow] if route.shadow else []), *ordered]
        self.by_version = {arm.version: arm for arm in candidates}


class Table:
    """A route table, made ready for look-ups by the name in a request's ``model``."""

    __slots__ = ("names", "plans", "source", "version")

    def __init__(self, source: RouteTable) -> None:
        self.source = source
        self.version = source.version
        self.plans = {route.deployment: Plan(route) for route in source.routes}
        self.names = tuple(sorted(self.plans))

    def find(self, model: str) -> tuple[Plan, Arm | None] | None:
        """The plan for a deployment's name, for ``name@version`` also the arm with this version; None if unknown."""
        plan = self.plans.get(model)
        if plan is not None:
            return plan, None
        name, _, version = model.rpartition("@")
        plan = self.plans.get(name)
        if plan is None or not (version.isascii() and version.isdigit() and len(version) < 10):
            return None
        arm = plan.by_version.get(int(version))
        return (plan, arm) if arm is not None else None

    def addresses(self) -> set[str]:
        """Every address that the table names."""
        arms = [a for route in self.source.routes for a in (*route.arms, *((route.shadow,) if route.shadow else ()))]
        return {address for arm in arms for address in arm.addresses}


def caller_key(session: bytes | None, user: str | None, authorization: bytes | None) -> bytes | None:
    """What a caller is known by: its session header, else the body's ``user``, else its bearer key; None: anonymous."""
    if session:
        return session
    if user:
        return user.encode("utf-8", "surrogatepass")
    if authorization and authorization[:7].lower() == b"bearer ":
        key = authorization[7:].strip()
        if key.lower() not in PLACEHOLDER_KEYS:
            return key
    return None


def share_of(salt: bytes, key: bytes) -> float:
    """Where a caller stands in [0, 1): uniform over callers, the same for ever for one salt."""
    return int.from_bytes(blake2b(salt + b"\0" + key, digest_size=6).digest(), "big") / 2**48


def pick_arm(plan: Plan, share: float) -> Arm:
    """The arm that a caller at *share* of [0, 1) belongs to; stable if no arm has weight."""
    for upper, arm in plan.shares:
        if share < upper:
            return arm
    return plan.stable


def order_replicas(
    addresses: Sequence[str],
    in_flight: Mapping[str, int],
    ejected_until: Mapping[str, float],
    now: float,
    turn: int,
    *,
    is_last_resort: bool,
) -> list[str]:
    """Addresses in the order to try: least in flight first, equals taking turns by *turn*.

    Ejected ones (until a time on the clock of *now*) are left out; with *is_last_resort* they come last instead: a try
    that may fail beats a refusal that is sure.
    """
    if len(addresses) == 1 and not ejected_until:
        return list(addresses)
    start = turn % len(addresses) if addresses else 0
    rotated = [*addresses[start:], *addresses[:start]]
    healthy = [a for a in rotated if ejected_until.get(a, 0.0) <= now]
    healthy.sort(key=lambda a: in_flight.get(a, 0))
    if is_last_resort:
        healthy += [a for a in rotated if ejected_until.get(a, 0.0) > now]
    return healthy
