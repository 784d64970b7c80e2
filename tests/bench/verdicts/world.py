"""Requests as they come to a deployment: of callers who differ, at hours that differ, with heavy tails.

- Callers come and go. The number of requests of one has a heavy tail (Pareto, shape 1.2: most 2 to 4, some hundreds).
- Each is slow or quick, talkative or not, and apt to fail in its own way (random effects), whichever arm answers it.
- The arm is drawn by caller.
- Load goes up and down by a factor of 5 over the rollout, and all latencies of both arms with it, by a factor of 2;
  single minutes are slower or quicker, too.
- Single latencies are log-normal, and one in twenty has a stall on top, of a Pareto distribution.
"""

from __future__ import annotations

import math
import random
from bisect import bisect_left
from typing import NamedTuple

REQUESTS_A_MINUTE = 60  # on average, of both arms
_SWING = 0.7  # of load, around 1
_GRID = 512


class Request(NamedTuple):
    """What a sample reads of `stokerd.gateway.wire.Record`, and which arm and minute it belongs to."""

    minute: int
    is_candidate: bool
    caller: str
    is_error: bool
    ttft_seconds: float
    inter_token_seconds: float
    total_seconds: float
    completion_tokens: int
    client_gone: bool = False
    is_stream: bool = True
    finish_reason: str = "stop"
    max_gap_seconds: float | None = None


class Effect(NamedTuple):
    """What is wrong with the candidate."""

    name: str
    slower: float = 1.0
    """Inter-token latency times it."""
    errors: float = 0.0
    """Added to the chance to fail."""
    tail: float = 1.0
    """Inter-token latencies above the median are so many times farther from it, in the logarithm."""
    collapsed: float = 0.0
    """Of this share of callers half the answers fail, and the others have five times the inter-token latency."""


def requests(seed: int, count: int, share: float, effect: Effect) -> list[Request]:
    """So many requests in order of time, *share* of the callers being the candidate's."""
    dice = random.Random(seed)
    gauss, uniform = dice.gauss, dice.random
    phase = uniform()
    clock = [_arrived(i / _GRID) for i in range(_GRID + 1)]
    minutes = max(1, count // REQUESTS_A_MINUTE)
    odd_minutes = [math.exp(gauss(0, 0.15)) for _ in range(minutes + 1)]
    found: list[tuple[float, Request]] = []
    number = 0
    while len(found) < count:
        number += 1
        caller = f"{number:x}"
        is_candidate = uniform() < share
        calls = min(400, int(2 * dice.paretovariate(1.2)))
        patience, length, talk = gauss(0, 0.5), gauss(0, 0.15), gauss(0, 0.6)
        fails = min(0.5, 0.004 * math.exp(gauss(0, 1.3)))  # 1 % on average, most of it of few callers
        slower = length
        has_collapsed = is_candidate and uniform() < effect.collapsed
        if is_candidate:
            slower += math.log(effect.slower * (5.0 if has_collapsed else 1.0))
            fails += effect.errors + (0.5 if has_collapsed else 0.0)
        place = uniform()
        for _ in range(calls):
            place += dice.expovariate(100.0)
            at = bisect_left(clock, place % 1.0) / _GRID
            minute = min(minutes, int(at * minutes))
            busy = math.exp(0.5 * _SWING * math.sin(2 * math.pi * (at + phase))) * odd_minutes[minute]
            noise = gauss(0, 0.25)
            if uniform() < 0.05:
                noise += math.log(dice.paretovariate(1.5))
            if is_candidate and noise > 0:
                noise *= effect.tail
            inter_token = 0.02 * busy * math.exp(slower + noise)
            ttft = 0.2 * busy * busy * math.exp(patience + gauss(0, 0.5))
            tokens = 1 + int(120 * math.exp(talk + gauss(0, 0.7)))
            request = Request(
                minute, is_candidate, caller, uniform() < fails, ttft, inter_token, ttft + tokens * inter_token, tokens
            )
            found.append((at + 1e-9 * len(found), request))
    dice.shuffle(found)  # who is cut off at the end is drawn, too
    return [request for _, request in sorted(found[:count], key=lambda item: item[0])]


def _arrived(at: float) -> float:
    """Share of all requests that came until *at*, 0 to 1, of the rollout: as load goes up and down."""
    return at + _SWING * (1 - math.cos(2 * math.pi * at)) / (2 * math.pi)
