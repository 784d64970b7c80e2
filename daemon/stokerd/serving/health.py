"""Whether a server that was ready still is: what many looks at it come to. Pure.

    from           to             when
    ready          unreachable    for ``stall_timeout`` nothing at all came from it: no answer to any ask, no step, no
                                  byte of anybody's answer
    ready          stalled        its step counter stood still for that long, while a request waited for that long
    unreachable    ready          anything came
    stalled        ready          it made a step, or answered an inference
    both           given up       nothing of the kind for twice ``stall_timeout``

A server that is merely busy does neither: it may leave ``/health`` unanswered for as long as its tokens flow, and may
send nobody anything for as long as it makes steps. A stalled server whose clients have all gone away is not well
again by that: it would hang with the next one.

Only what was looked at counts. A look stands for `MAX_GAP_SECONDS` at most, so nothing is concluded from a time in
which the daemon was away, stopped or starved; and its first look at a server is where the clocks begin.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

MAX_GAP_SECONDS = 15.0
GIVE_UP_FACTOR = 2.0
Condition = Literal["ready", "stalled", "unreachable"]


@dataclass(frozen=True, slots=True)
class Look:
    """What one look saw, at a time on the monotonic clock.

    ``has_answered``: any HTTP answer, whatever its status. ``steps``: its step counter, None when it told none.
    ``waited_seconds``: how long the request that waits longest there has waited for its next byte; 0: none waits, or
    the gateway doesn't say. ``received``: how many pieces of answers the gateway ever got from it, None: unknown.
    """

    at: float
    has_answered: bool
    steps: float | None = None
    waited_seconds: float = 0.0
    received: int | None = None


@dataclass(frozen=True, slots=True)
class Vitals:
    """What all looks came to. ``has_spoken`` and ``has_moved`` (a sign of life, a step) are of the last one."""

    at: float
    steps: float | None
    received: int | None
    waited_seconds: float
    has_spoken: bool
    has_moved: bool = False
    silent_seconds: float = 0.0
    still_seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class Sick:
    """It gets no requests until it is well again. ``seconds``: since the last sign of progress."""

    phase: Literal["stalled", "unreachable"]
    seconds: float
    why: str


@dataclass(frozen=True, slots=True)
class Well:
    """It may have requests again."""


@dataclass(frozen=True, slots=True)
class GivenUp:
    """It is to be ended, and counts as failed."""

    why: str


def take(before: Vitals | None, look: Look, condition: Condition) -> Vitals:
    """Add *look* to what was known *before* of a server that counts as *condition*."""
    if before is None:
        return Vitals(look.at, look.steps, look.received, look.waited_seconds, has_spoken=look.has_answered)
    gap = min(max(look.at - before.at, 0.0), MAX_GAP_SECONDS)
    has_moved = _grew(before.steps, look.steps)
    has_spoken = look.has_answered or has_moved or _grew(before.received, look.received)
    if has_moved or (condition != "stalled" and not look.waited_seconds):
        still = 0.0
    elif condition == "stalled" or look.steps is not None:
        still = before.still_seconds + gap
    else:  # it told no steps this time: that says neither that it makes some nor that it doesn't
        still = before.still_seconds
    return Vitals(
        at=look.at,
        steps=before.steps if look.steps is None else look.steps,
        received=look.received,
        waited_seconds=look.waited_seconds,
        has_spoken=has_spoken,
        has_moved=has_moved,
        silent_seconds=0.0 if has_spoken else before.silent_seconds + gap,
        still_seconds=still,
    )


def diagnose(vitals: Vitals, condition: Condition, stall_timeout: float) -> Sick | Well | GivenUp | None:
    """What changes for a server that counts as *condition*; None when nothing does. *stall_timeout* in seconds."""
    limit = stall_timeout * GIVE_UP_FACTOR
    silence = f"nothing has come from it for {vitals.silent_seconds:.0f} s, not even an answer to a health check"
    standing = f"its step counter has stood still for {vitals.still_seconds:.0f} s"
    match condition:
        case "ready":
            if vitals.silent_seconds >= stall_timeout:
                return Sick("unreachable", vitals.silent_seconds, silence)
            if min(vitals.still_seconds, vitals.waited_seconds) >= stall_timeout:
                waiting = f"while a request has waited {vitals.waited_seconds:.0f} s for its next byte"
                return Sick("stalled", vitals.still_seconds, f"{standing} (at {vitals.steps:g}), {waiting}")
        case "unreachable":
            if vitals.has_spoken:
                return Well()
            if vitals.silent_seconds >= limit:
                return GivenUp(f"unreachable: {silence}")
        case "stalled":
            if vitals.has_moved:
                return Well()
            if vitals.still_seconds >= limit:
                return GivenUp(f"stalled: {standing}, and it answered no inference")
    return None


def look_interval(stall_timeout: float) -> float:
    """Seconds between two looks: often enough for *stall_timeout*, and cheap."""
    return min(max(stall_timeout / 10, 0.1), 2.0)


def _grew(before: float | None, after: float | None) -> bool:
    return before is not None and after is not None and after > before
