"""Compares what stable and shadow answered to the same requests, in the background: alike, the same, which is better.

Likeness is by embeddings of a deployment, or by words (`stokerd.rollouts.likeness`); a judge is another deployment.
Both are asked directly, at one of their replicas, a few questions at a time. When the embeddings can't be had, pairs
wait for them, up to a bound; when the judge can't, they are compared all the same, and stay unjudged. What has been
found is in memory alone: after a start of the daemon the newest pairs are compared anew.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter, deque
from collections.abc import Awaitable, Callable, Collection, Coroutine, Iterable, Sequence
from dataclasses import dataclass, field
from itertools import count
from time import monotonic
from typing import Any, Literal, TypeVar

import httpx

from stoker.errors import StokerError
from stoker.types.rollouts import Judge, Rollout, RolloutSpec
from stoker.words import span
from stokerd.gateway.wire import ShadowPair
from stokerd.rollouts.likeness import (
    Judged,
    Opinion,
    Unreadable,
    at_sight,
    is_drawn,
    judge_messages,
    judged,
    likeness_of_vectors,
    likeness_of_words,
    opinion,
    shortened,
    vectors,
)
from stokerd.rollouts.verdict import Pair
from stokerd.serving.probe import client_for
from stokerd.telemetry.metrics import Metrics

log = logging.getLogger(__name__)
MOST_PAIRS = 2000
"""Of a step; it is compared no further then, since what was found must not change with what is forgotten."""
QUESTIONS_AT_ONCE = 4
RETRY_SECONDS = 10.0
_READ_CHARACTERS = 32 << 20  # at once, about, of the newest pairs
_SUPPOSED_CHARACTERS = 64 << 10  # of a pair, before any was seen: half of what one may hold
_FEWEST_READ, _MOST_READ = 100, 4000  # few at once would leave out those that come late, which are the long answers
_LATE_SECONDS = 30.0  # pairs come in the order in which answers end: those of earlier requests may still come
_MOST_ATTEMPTS = 3
_EMBEDDING_SECONDS = 30.0
_JUDGE_SECONDS = 120.0
_JUDGE_TOKENS = 512  # one word needs 2; the rest is for models that think aloud first
_Key = tuple[int, int]
T = TypeVar("T")


class _Away(Exception):
    """Nobody answers now; says why, as the end of a sentence."""


class _Absent(_Away):
    """There is nobody who could be asked."""


@dataclass(slots=True)
class _Work:
    """What is known of one rollout's pairs. Times are unix seconds, but ``not_before`` (and the judge's): monotonic."""

    since: float
    found: list[tuple[int, Pair]] = field(default_factory=list)
    waiting: deque[ShadowPair] = field(default_factory=deque)
    known: set[_Key] = field(default_factory=set)
    attempts: Counter[_Key] = field(default_factory=Counter)
    characters: int = 0
    seen: int = 0
    newest: float = 0.0
    longest: float = 0.0
    floor: float = 0.0
    stored: tuple[int, int] | None = None
    not_before: float = 0.0
    judge_not_before: float = 0.0
    problems: dict[str, str] = field(default_factory=dict)
    task: asyncio.Task[None] | None = None

    def begin(self, since: float) -> None:
        """What came before *since* is of an earlier step."""
        if since != self.since:
            self.since = since
            self.found = [(time_ms, pair) for time_ms, pair in self.found if self.is_mine(time_ms)]
            self.waiting = deque(pair for pair in self.waiting if self.is_mine(_key(pair)[0]))

    def is_mine(self, time_ms: int) -> bool:
        return time_ms >= round(self.since * 1000)

    @property
    def read_from(self) -> float:
        """The time of the earliest request whose pair may still come."""
        return max(self.since, self.floor, self.newest - _LATE_SECONDS - 2 * self.longest)

    @property
    def read_limit(self) -> int:
        """How many pairs may be read at once, by the size of those before."""
        mean = self.characters / self.seen if self.seen else _SUPPOSED_CHARACTERS
        return min(max(int(_READ_CHARACTERS / max(mean, 1)), _FEWEST_READ), _MOST_READ)

    def take_in(self, pairs: Sequence[ShadowPair]) -> None:
        """Let those of *pairs* wait that haven't been seen."""
        for pair in pairs:
            self.newest = max(self.newest, pair.time)
            self.longest = max(self.longest, pair.stable.total_seconds, pair.shadow.total_seconds)
            if _key(pair) not in self.known:
                self.known.add(_key(pair))
                self.seen += 1
                self.characters += len(pair.stable.text) + len(pair.shadow.text) + len(pair.question)
                if not pair.stable.is_error:  # else there is nothing that shadow's could be measured by
                    self.waiting.append(pair)
        self.floor = self.read_from  # never earlier again, though longer answers come: what was known is forgotten
        earliest = round(self.floor * 1000)
        self.known = {key for key in self.known if key[0] >= earliest}


@dataclass(frozen=True, slots=True)
class Servers:
    """Who answers for a deployment: servers at *addresses*, which call what it serves *model*."""

    addresses: Sequence[str]
    model: str


class Comparisons:
    """What was found of the kept answers of each rollout.

    Args:
        metrics: where the answers are.
        servers: deployment -> those that are ready, of the version that it serves. May raise `StokerError`.
        on_news: called when more pairs were compared.
        retry_seconds: who didn't answer is asked again after so long.
    """

    def __init__(
        self,
        metrics: Metrics,
        servers: Callable[[str], Awaitable[Servers]],
        on_news: Callable[[], None],
        *,
        retry_seconds: float = RETRY_SECONDS,
    ) -> None:
        self._metrics = metrics
        self._servers = servers
        self._on_news = on_news
        self._retry_seconds = retry_seconds
        self._works: dict[str, _Work] = {}
        self._ending: set[asyncio.Task[None]] = set()
        self._slots = asyncio.Semaphore(QUESTIONS_AT_ONCE)
        self._turns = count()

    async def look(self, rollout: Rollout, since: float) -> Sequence[Pair]:
        """What is known by now of pairs of requests that came at *since* (unix seconds) or later. It never waits.

        It has new ones compared, so look again: after `on_news`, or whenever there may be new ones.
        """
        work = self._works.get(rollout.name)
        if work is None or since < work.since:
            self._drop(rollout.name)
            work = self._works[rollout.name] = _Work(since)
        work.begin(since)
        if (work.task is None or work.task.done()) and self._has_to_do(work):
            work.task = asyncio.create_task(self._compare(rollout, work), name=f"comparisons of {rollout.name}")
        return tuple(pair for _, pair in work.found)

    def problem(self, rollout_name: str) -> str:
        """Why some of the rollout's pairs aren't compared or judged, in a sentence each; empty: all is well."""
        work = self._works.get(rollout_name)
        return " ".join(f"{what}: {why}." for what, why in work.problems.items()) if work else ""

    def keep_only(self, names: Collection[str]) -> None:
        """Forget all rollouts but those of *names*."""
        for name in self._works.keys() - set(names):
            self._drop(name)

    async def close(self) -> None:
        """Stop comparing."""
        self.keep_only(())
        await asyncio.gather(*self._ending, return_exceptions=True)

    def _drop(self, name: str) -> None:
        work = self._works.pop(name, None)
        if work is not None and work.task is not None and not work.task.done():
            self._ending.add(work.task)
            work.task.add_done_callback(self._ending.discard)
            work.task.cancel()

    def _has_to_do(self, work: _Work) -> bool:
        is_new = work.stored != (self._metrics.grown, self._metrics.records_stored)
        return monotonic() >= work.not_before and len(work.found) < MOST_PAIRS and (is_new or bool(work.waiting))

    async def _compare(self, rollout: Rollout, work: _Work) -> None:
        """Read what is new, and compare it, and what waits from before."""
        try:
            if not work.waiting:
                work.stored = self._metrics.grown, self._metrics.records_stored
                work.take_in(await self._metrics.pairs(rollout.name, since=work.read_from, limit=work.read_limit))
                work.problems.pop("kept answers", None)
            is_asked = rollout.spec.embeddings is not None or rollout.spec.judge is not None
            while work.waiting and len(work.found) < MOST_PAIRS:
                size = min(QUESTIONS_AT_ONCE if is_asked else 64, MOST_PAIRS - len(work.found))
                batch = [work.waiting.popleft() for _ in range(min(size, len(work.waiting)))]
                if not await self._compare_batch(rollout.spec, work, batch):
                    break
        except StokerError as error:
            work.problems["kept answers"] = error.message.rstrip(".")
            work.not_before = monotonic() + self._retry_seconds
        except Exception as error:  # it concerns this rollout's answers alone
            log.exception("comparisons of rollout %s", rollout.name)
            work.problems["kept answers"] = f"they can't be compared ({type(error).__name__}; see the daemon's log)"
            work.not_before = monotonic() + self._retry_seconds

    async def _compare_batch(self, spec: RolloutSpec, work: _Work, batch: Sequence[ShadowPair]) -> bool:
        """Compare *batch*, in its order. Says whether to go on: not, while nobody answers."""
        seen = await asyncio.to_thread(_at_sight, batch, by_words=spec.embeddings is None)
        likenesses = await _together(self._likeness(spec, work, *each) for each in zip(batch, seen, strict=True))
        measured = [
            (pair, is_same, likeness)
            for pair, (is_same, _), likeness in zip(batch, seen, likenesses, strict=True)
            if isinstance(likeness, float)
        ]
        opinions = await _together(self._judged(spec, work, pair, is_same) for pair, is_same, _ in measured)
        for (pair, is_same, likeness), said in zip(measured, opinions, strict=True):
            if work.is_mine(_key(pair)[0]):  # another step may have begun meanwhile
                work.found.append((_key(pair)[0], Pair(pair.caller, is_same, likeness, said)))
        if measured:
            self._on_news()
        left = [p for p, likeness in zip(batch, likenesses, strict=True) if likeness == "later"]
        for pair in reversed(left):
            if work.is_mine(_key(pair)[0]) and work.attempts[_key(pair)] < _MOST_ATTEMPTS:
                work.waiting.appendleft(pair)
        if left:
            work.not_before = monotonic() + self._retry_seconds
        return not left

    async def _likeness(
        self, spec: RolloutSpec, work: _Work, pair: ShadowPair, seen: tuple[bool, float | None]
    ) -> float | Literal["later", "never"]:
        """How alike the answers are; *later* or *never* where the embeddings can't be had."""
        name, likeness = spec.embeddings, seen[1]
        if likeness is not None:
            return likeness
        assert name is not None  # else the likeness by words is known
        what = f"embeddings of {name}"
        texts = [shortened(pair.stable.text), shortened(pair.shadow.text)]
        body = {"input": texts, "encoding_format": "float"}
        try:
            found = vectors(await self._ask(name, "/v1/embeddings", body, _EMBEDDING_SECONDS))
            if len(found) != len(texts):
                raise Unreadable(f"it answered {len(found)} embeddings for {len(texts)} texts")
            likeness = likeness_of_vectors(*found)
        except _Away as error:
            work.problems[what] = str(error)
            work.attempts[_key(pair)] += not isinstance(error, _Absent)
            return "later"
        except Unreadable as error:
            work.problems[what] = str(error)
            return "never"
        work.problems.pop(what, None)
        return likeness

    async def _judged(self, spec: RolloutSpec, work: _Work, pair: ShadowPair, is_same: bool) -> Judged | None:
        """What the judge says of shadow's answer; None where it isn't asked, or doesn't say.

        What needs no judge is said for the same share of pairs as it is asked about, and only while it answers, so that
        neither the same nor the failed answers weigh more than others.
        """
        judge = spec.judge
        if judge is None or not is_drawn(judge, pair):
            return None
        what, stable, shadow = f"judge {judge.deployment}", pair.stable.text, pair.shadow.text
        if pair.shadow.is_error or is_same:
            return None if what in work.problems else "same" if is_same else "worse"
        if monotonic() < work.judge_not_before:
            return None
        try:
            stable_first = await self._opinion(judge, pair.question, stable, shadow)
            shadow_first = await self._opinion(judge, pair.question, shadow, stable)
        except _Away as error:
            work.problems[what] = str(error)
            work.judge_not_before = monotonic() + self._retry_seconds
            return None
        except Unreadable as error:
            work.problems[what] = str(error)
            return None
        work.problems.pop(what, None)
        return judged(stable_first, shadow_first)

    async def _opinion(self, judge: Judge, asked: str, first: str, second: str) -> Opinion:
        body = {
            "messages": judge_messages(judge, asked, first, second),
            "temperature": 0,
            "max_tokens": _JUDGE_TOKENS,
        }
        return opinion(await self._ask(judge.deployment, "/v1/chat/completions", body, _JUDGE_SECONDS))

    async def _ask(self, deployment: str, path: str, body: dict[str, Any], seconds: float) -> Any:
        """What a replica of *deployment* answers, read from JSON. Raises `_Away` or `Unreadable`."""
        async with self._slots:
            address, model = await self._server(deployment)
            try:
                async with asyncio.timeout(seconds), client_for(address, timeout=seconds) as client:
                    response = await client.post(path, json={"model": model, **body})
            except (TimeoutError, httpx.TimeoutException) as error:
                raise _Away(f"no answer within {span(seconds)}") from error
            except (httpx.HTTPError, httpx.InvalidURL) as error:
                raise _Away(f"it doesn't answer ({type(error).__name__})") from error
        said = f"it answered HTTP {response.status_code}: {response.text[:200]}"
        if response.status_code >= 500 or response.status_code == 429:
            raise _Away(said)
        if response.status_code != 200:
            raise Unreadable(said)
        try:
            return response.json()
        except (ValueError, RecursionError) as error:
            raise Unreadable("it answered no JSON") from error

    async def _server(self, deployment: str) -> tuple[str, str]:
        """The address of one of its servers, each in turn, and what it calls the model. Raises `_Absent`."""
        try:
            servers = await self._servers(deployment)
        except StokerError as error:
            raise _Absent(error.message.rstrip(".")) from error
        addresses = sorted(servers.addresses)
        if not addresses:
            raise _Absent("no replica of it is ready")
        return addresses[next(self._turns) % len(addresses)], servers.model


async def _together(work: Iterable[Coroutine[Any, Any, T]]) -> list[T]:
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(each) for each in work]
    return [task.result() for task in tasks]


def _at_sight(pairs: Sequence[ShadowPair], *, by_words: bool) -> list[tuple[bool, float | None]]:
    seen = [at_sight(pair) for pair in pairs]
    if not by_words:
        return seen
    return [
        (is_same, likeness_of_words(pair.stable.text, pair.shadow.text) if likeness is None else likeness)
        for pair, (is_same, likeness) in zip(pairs, seen, strict=True)
    ]


def _key(pair: ShadowPair) -> _Key:
    return round(pair.time * 1000), pair.seq
