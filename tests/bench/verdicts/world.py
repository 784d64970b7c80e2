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
from collections.abc import Iterator
from itertools import count as count_up
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


class Visit(NamedTuple):
    """A request of a rollout, and what either version answers to it: whichever is asked, or both (shadow).

    ``place``: where the caller lies among all, 0 to 1; the candidate answers those below its share. ``luck``: the same
    of the request, for a shadow's share.
    """

    seconds: float
    place: float
    luck: float
    stable: Request
    candidate: Request


class _Person(NamedTuple):
    """A caller's own ways: of latencies to the first token and between tokens (logarithms), of length, of failing."""

    name: str
    calls: int
    patience: float
    length: float
    talk: float
    fails: float


def requests(seed: int, count: int, share: float, effect: Effect) -> list[Request]:
    """So many requests in order of time, *share* of the callers being the candidate's."""
    dice = random.Random(seed)
    uniform = dice.random
    load = _Load(dice, max(1, count // REQUESTS_A_MINUTE))
    found: list[tuple[float, Request]] = []
    number = 0
    while len(found) < count:
        number += 1
        is_candidate = uniform() < share
        person = _person(dice, f"{number:x}")
        mine = effect if is_candidate else None
        has_collapsed = is_candidate and uniform() < effect.collapsed
        place = uniform()
        for _ in range(person.calls):
            place += dice.expovariate(100.0)
            at = load.cell(place % 1.0) / _GRID
            request = _answer(dice, person, load, at, mine, has_collapsed=has_collapsed)
            found.append((at + 1e-9 * len(found), request))
    dice.shuffle(found)  # who is cut off at the end is drawn, too
    return [request for _, request in sorted(found[:count], key=lambda item: item[0])]


def visits(seed: int, effect: Effect) -> Iterator[Visit]:
    """The requests of a deployment from some moment on, hour by hour, without end. Callers stay for an hour at most."""
    begins = random.Random(seed).random()
    for hour in count_up():
        dice = random.Random(f"{seed} {hour}")
        uniform = dice.random
        load = _Load(dice, 60)
        found: list[Visit] = []
        number = 0
        while len(found) < 60 * REQUESTS_A_MINUTE:
            number += 1
            person = _person(dice, f"{hour}-{number:x}")
            place, has_collapsed = uniform(), uniform() < effect.collapsed
            moment = uniform()
            for _ in range(person.calls):
                moment += dice.expovariate(100.0)
                at = load.moment(moment % 1.0)
                answers = (
                    _answer(dice, person, load, at, mine, has_collapsed=has_collapsed) for mine in (None, effect)
                )
                found.append(Visit(3600 * (hour + at - begins), place, uniform(), *answers))
        dice.shuffle(found)
        for visit in sorted(found[: 60 * REQUESTS_A_MINUTE]):
            if visit.seconds >= 0:
                yield visit


class _Load:
    """How it goes up and down over a rollout (or an hour), and latencies with it."""

    def __init__(self, dice: random.Random, minutes: int) -> None:
        self._minutes = minutes
        self._phase = dice.random()
        self._odd_minutes = [math.exp(dice.gauss(0, 0.15)) for _ in range(minutes + 1)]

    def cell(self, arrived: float) -> int:
        """By which point of the grid that share of all requests came."""
        return bisect_left(_CLOCK, arrived)

    def moment(self, arrived: float) -> float:
        """When it had come, 0 to 1."""
        cell = max(1, self.cell(arrived))
        before, after = _CLOCK[cell - 1], _CLOCK[cell]
        return (cell - 1 + (arrived - before) / (after - before)) / _GRID

    def minute(self, at: float) -> int:
        """Which one *at* (0 to 1) is in."""
        return min(self._minutes, int(at * self._minutes))

    def busy(self, at: float) -> float:
        """Factor of latencies."""
        return math.exp(0.5 * _SWING * math.sin(2 * math.pi * (at + self._phase))) * self._odd_minutes[self.minute(at)]


def _person(dice: random.Random, name: str) -> _Person:
    calls = min(400, int(2 * dice.paretovariate(1.2)))
    patience, length, talk = dice.gauss(0, 0.5), dice.gauss(0, 0.15), dice.gauss(0, 0.6)
    fails = min(0.5, 0.004 * math.exp(dice.gauss(0, 1.3)))  # 1 % on average, most of it of few callers
    return _Person(name, calls, patience, length, talk, fails)


def _answer(
    dice: random.Random, person: _Person, load: _Load, at: float, effect: Effect | None, *, has_collapsed: bool
) -> Request:
    """Of the candidate with its *effect*, or of stable."""
    slower, fails = person.length, person.fails
    if effect is not None:
        slower += math.log(effect.slower * (5.0 if has_collapsed else 1.0))
        fails += effect.errors + (0.5 if has_collapsed else 0.0)
    busy = load.busy(at)
    noise = dice.gauss(0, 0.25)
    if dice.random() < 0.05:
        noise += math.log(dice.paretovariate(1.5))
    if effect is not None and noise > 0:
        noise *= effect.tail
    inter_token = 0.02 * busy * math.exp(slower + noise)
    ttft = 0.2 * busy * busy * math.exp(person.patience + dice.gauss(0, 0.5))
    tokens = 1 + int(120 * math.exp(person.talk + dice.gauss(0, 0.7)))
    is_error, total = dice.random() < fails, ttft + tokens * inter_token
    is_candidate = effect is not None
    return Request(load.minute(at), is_candidate, person.name, is_error, ttft, inter_token, total, tokens)


def _arrived(at: float) -> float:
    """Share of all requests that came until *at*, 0 to 1, of the rollout: as load goes up and down."""
    return at + _SWING * (1 - math.cos(2 * math.pi * at)) / (2 * math.pi)


_CLOCK = [_arrived(i / _GRID) for i in range(_GRID + 1)]
