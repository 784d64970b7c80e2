"""Which replica of an arm gets a request, and which are left alone for a while. Pure: times are handed in (monotonic).

A conversation prefers one replica, whose prefix cache knows it: the highest hash of both (rendezvous hashing), which is
the same in all workers and changes for few conversations when a replica comes or goes. Another one gets the request if
the preferred one has more to do than the least busy one, by more tokens than what its cache is likely to save.

A replica that refuses a connection or dies with a request is left alone at once; one that fails otherwise, after some
failures in a row, and only while at least half of its arm stays. It comes back by a single request that it answers,
and otherwise stays away twice as long as before.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from hashlib import blake2b

from stokerd.gateway.limits import Limits

USUAL_TOKENS = 256
"""What a request without a bound is taken to generate."""
MOST_TOKENS = 1024
"""What one with a larger bound is taken to generate: bounds are guesses that seldom come true."""
SLACK_TOKENS = 1024


class Replica:
    """One server: what it has to do, and how it does."""

    __slots__ = (
        "_away_seconds",
        "_limits",
        "address",
        "away_until",
        "errors",
        "in_flight",
        "prober",
        "received",
        "seed",
        "tokens",
    )

    def __init__(self, address: str, limits: Limits) -> None:
        self.address = address
        self.seed = int.from_bytes(blake2b(address.encode(), digest_size=7).digest(), "big")
        self.in_flight = 0
        self.tokens = 0
        """Of all that is in flight, as `work` estimates it."""
        self.received = 0
        """Pieces of answers that ever came."""
        self.away_until = 0.0
        """0: it is well. Else it is left alone until then, and may be tried by one request at a time afterwards."""
        self.prober: object | None = None
        """Whose request tries it now."""
        self._limits = limits
        self._away_seconds = 0.0
        self.errors = 0
        """In a row."""

    def __repr__(self) -> str:
        return f"<Replica {self.address}>"

    def is_due(self, now: float) -> bool:
        """It has been left alone for long enough, and nobody tries it yet."""
        return 0.0 < self.away_until <= now and self.prober is None

    def succeeded(self) -> bool:
        """It answered. Tells whether it had been away until now."""
        self.errors = 0
        was_away = self.away_until > 0.0
        self.away_until, self.prober = 0.0, None
        return was_away

    def failed(self, now: float) -> bool:
        """It refused a connection, or died. Tells whether it is left alone from now on.

        What fails while it is away was mostly sent before: that says nothing new.
        """
        if now < self.away_until:
            return False
        doubled = min(2 * self._away_seconds, self._limits.eject_most_seconds)
        self._away_seconds = doubled if self.away_until else self._limits.eject_seconds
        self.away_until, self.prober, self.errors = now + self._away_seconds, None, 0
        return True

    def erred(self, now: float, arm: Sequence[Replica]) -> bool:
        """It answered with 5xx, broke an answer off or took too long. Tells whether it is left alone from now on.

        Args:
            arm: all replicas of its arm, itself included.
        """
        self.errors += 1
        if self.away_until:
            return self.failed(now)
        if self.errors < self._limits.eject_errors:
            return False
        away = 1 + sum(1 for other in arm if other.away_until and other is not self)
        return 2 * away <= len(arm) and self.failed(now)


def work(prompt_tokens: int, max_tokens: int | None) -> int:
    """How many tokens a request is likely to cost its replica."""
    return prompt_tokens + (USUAL_TOKENS if max_tokens is None else min(max(max_tokens, 0), MOST_TOKENS))


def choose(
    replicas: Sequence[Replica],
    now: float,
    conversation: int,
    *,
    slack: int,
    bound: int = 0,
    tried: Collection[Replica] = (),
) -> Replica | None:
    """The replica for a request, of those not yet *tried*; None if all are away or have *bound* (0: none) in flight.

    One that is due gets it first, so that it is soon known how it does. With *slack* (tokens) 0, *conversation* only
    decides between equals.
    """
    least = preferred = None
    best = 0
    for replica in replicas:
        if (bound and replica.in_flight >= bound) or replica in tried:
            continue
        if replica.away_until:
            if replica.is_due(now):
                return replica
            continue
        if least is None or replica.tokens < least.tokens:
            least = replica
        score = _score(replica.seed, conversation)
        if preferred is None or score > best:
            preferred, best = replica, score
    if least is None or preferred is None:
        return None
    if preferred.tokens <= least.tokens + slack:
        return preferred
    if slack:
        return least
    equals = [r for r in replicas if r.tokens == least.tokens and not r.away_until and r not in tried]
    equals = [r for r in equals if not bound or r.in_flight < bound]
    return max(equals, key=lambda r: _score(r.seed, conversation))


def _score(seed: int, conversation: int) -> int:
    """A hash of both, by which any two seeds win equally often. That of the mere pair is quicker by 0.03 µs, but one of
    two seeds may win nine times out of ten: Python's hash of a tuple keeps the order of sums."""
    return hash((seed ^ conversation, conversation, seed))


def is_served(replicas: Sequence[Replica], tried: Collection[Replica] = ()) -> bool:
    """Some replica, of those not yet *tried*, is well, whatever it has to do."""
    return any(not replica.away_until and replica not in tried for replica in replicas)


def last_resort(replicas: Sequence[Replica], bound: int, tried: Collection[Replica] = ()) -> Replica | None:
    """Of those that are away, the one that is due first: a try that may fail beats a refusal that is sure."""
    left = [r for r in replicas if r.away_until and r not in tried and not (bound and r.in_flight >= bound)]
    return min(left, key=lambda r: r.away_until, default=None)
