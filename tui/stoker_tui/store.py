"""Keeps a `View` true, without any widget: lists everything, follows events, polls what moves by itself, reconnects.

List, then watch: `Host.last_event_id` is read first, everything is listed, and events after that id say which single
resource to get again. What changes without an event (traffic, devices, metrics of runs) is asked for each second, and
only what the screen in front wants.
"""

from __future__ import annotations

import asyncio
import math
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator
from contextlib import aclosing, contextmanager
from dataclasses import dataclass
from typing import Any, NoReturn, TypeVar, cast

from pydantic import TypeAdapter

from stoker.client import AsyncClient, path_of, read_as
from stoker.errors import DaemonUnreachable, NotFound, StokerError
from stoker.types.base import Resource
from stoker.types.events import Event
from stoker.types.host import Host, Series, TrafficStats
from stoker.types.rollouts import Rollout
from stoker.types.training import ACTIVE_PHASES, MetricPoint, Run
from stoker_tui.clock import Clock
from stoker_tui.model import HISTORY_SECONDS, KINDS, Connected, Curves, Lost, Ref, View

T = TypeVar("T")
R = TypeVar("R", bound=Resource)

POLL_SECONDS = 1.0
HEARTBEAT_SECONDS = 5.0
ANSWER_SECONDS = 5.0
"""A daemon that takes longer to say how its host is counts as gone."""
TRAFFIC_WINDOW_SECONDS = 60
FEED_LENGTH = 200

_TRAFFIC = TypeAdapter(list[TrafficStats])
_SERIES = TypeAdapter(list[Series])
_POINTS = TypeAdapter(list[MetricPoint])

REFUSALS = (StokerError, ValueError, TimeoutError)
"""What a daemon, or one of another version, can make of a question."""


@dataclass(frozen=True)
class Watch:
    """What the screen in front wants to be asked for each second."""

    host: bool = False
    traffic: bool = False
    curves: frozenset[str] = frozenset()
    resources: frozenset[Ref] = frozenset()


def retry_delay(attempt: int) -> float:
    """Seconds to wait before trying to connect again, after *attempt* failures in a row (from 1)."""
    return float(min(0.25 * 2 ** min(attempt - 1, 10), 2.0))


def sentence(error: BaseException) -> tuple[str, str]:
    """What happened and what to do, for people."""
    match error:
        case StokerError():
            return error.message, error.hint
        case TimeoutError():
            return f"the daemon has not answered for {ANSWER_SECONDS:g} s.", "It may be stopped or overloaded."
        case _:
            first = (str(error).splitlines() or [type(error).__name__])[0]
            return f"the daemon's answer was not understood ({first}).", "Is it of another version than this program?"


def owned(stream: AsyncIterator[T]) -> aclosing[AsyncGenerator[T, None]]:
    """Close an iterator of the client, with its connection, when the block is left."""
    return aclosing(cast("AsyncGenerator[T, None]", stream))


class Store:
    """One daemon, followed. *changed* is called after each change of ``view``."""

    def __init__(self, client: AsyncClient, clock: Clock, changed: Callable[[], None]) -> None:
        self.client = client
        self.clock = clock
        self.view = View()
        self.wanted: Callable[[], Watch] = Watch
        self.rounds = 0
        """How often all that is wanted was asked for."""
        self._changed = changed
        self._dirty: dict[Ref, None] = {}
        self._work = asyncio.Event()
        self._hurry = asyncio.Event()
        self._back = asyncio.Event()
        self._beat = 0.0
        self._history_due = 0.0

    def hurry(self) -> None:
        """Ask at once for what is wanted: a screen came to the front."""
        self._hurry.set()

    async def run(self) -> NoReturn:
        """Follow the daemon until cancelled. A daemon that refuses, dies or talks nonsense ends nothing here."""
        attempt = 0
        while True:
            try:
                listed = await self._list()
                attempt = 0
                async with asyncio.TaskGroup() as group:
                    group.create_task(self._follow(listed))
                    group.create_task(self._get_again())
                    group.create_task(self._poll())
            except* REFUSALS as errors:
                attempt += 1
                self._lose(errors, retry_delay(attempt))
            await asyncio.sleep(retry_delay(attempt))

    def _lose(self, errors: BaseExceptionGroup[Any], delay: float) -> None:
        error: BaseException = errors
        while isinstance(error, BaseExceptionGroup):
            error = error.exceptions[0]
        present = self.clock.monotonic()
        since = self.view.link.since if isinstance(self.view.link, Lost) else present
        self.view.link = Lost(since, present + delay, *sentence(error))
        self._back.clear()
        self._history_due = 0.0
        self._changed()

    async def _list(self) -> int:
        """Read everything; return the id of the last event that is in it for sure."""
        host = await self._get_host()
        self.view.problems.clear()
        for kind in KINDS:
            await self._list_kind(kind)
        self.view.link = Connected()
        self._back.set()
        self._hurry.set()
        self._changed()
        return host.last_event_id

    async def _list_kind(self, kind: str) -> None:
        plural = KINDS[kind].plural
        with _noted(self.view, plural):
            self.view.replace(kind, list(await self.client.list(KINDS[kind])))

    async def _get_host(self) -> Host:
        async with asyncio.timeout(ANSWER_SECONDS):
            host = await self.client.host()
        self._beat = self.clock.monotonic()
        self.view.host = host
        present = self.clock.now().timestamp()
        if host.cpu_percent is not None:
            self.view.remember("cpu", present, host.cpu_percent)
        used = [d.utilisation for d in host.devices if d.utilisation is not None]
        if used:
            self.view.remember("gpu", present, sum(used) / len(used))
        return host

    async def _follow(self, listed: int) -> None:
        """Take events: the latest for the feed, those after *listed* also as news of a resource."""
        events = self.view.events
        if events and events[-1].id > listed:
            # Another home than before: its ids began anew, and so did its runs.
            events.clear()
            self.view.curves.clear()
            self._hurry.set()
        seen = events[-1].id if events else 0
        async with owned(self.client.events(max(seen, listed - FEED_LENGTH, 0))) as stream:
            async for event in stream:
                events.append(event)
                if event.id > listed and event.kind in KINDS:
                    self._dirty[event.kind, event.name] = None
                    self._work.set()
                self._changed()

    async def _get_again(self) -> None:
        """Get each resource that an event named; a burst of events about one costs one question."""
        while True:
            await self._work.wait()
            self._work.clear()
            while self._dirty:
                ref = next(iter(self._dirty))
                del self._dirty[ref]
                await self._get(ref)
                self._changed()

    async def _get(self, ref: Ref) -> None:
        kind, name = ref
        with _noted(self.view, KINDS[kind].plural):
            try:
                self.view.put(await self.client.get(KINDS[kind], name))
            except NotFound:
                self.view.remove(kind, name)

    async def _poll(self) -> None:
        while True:
            self._hurry.clear()
            watch = self.wanted()
            if watch.host or self.clock.monotonic() - self._beat >= HEARTBEAT_SECONDS:
                await self._get_host()
                for kind in [k for k in KINDS if KINDS[k].plural in self.view.problems]:
                    await self._list_kind(kind)
            if watch.host and self.clock.monotonic() >= self._history_due:
                await self._get_history()
            if watch.traffic:
                await self._get_traffic()
            for run in sorted(watch.curves):
                await self._get_curves(run)
            for ref in sorted(watch.resources):
                await self._get(ref)
            self.rounds += 1
            self._changed()
            await self._pause()

    async def _pause(self) -> None:
        try:
            async with asyncio.timeout(POLL_SECONDS):
                await self._hurry.wait()
        except TimeoutError:
            return

    async def _get_traffic(self) -> None:
        with _noted(self.view, "traffic"):
            answer = await self.client.request("GET", "/v1/traffic", params={"window": TRAFFIC_WINDOW_SECONDS})
            self.view.traffic = _TRAFFIC.validate_python(answer)

    async def _get_curves(self, name: str) -> None:
        """Read on in a run's metrics. What ended before this question has told all with the answer."""
        curves = self.view.curves.setdefault(name, Curves())
        run = self.view.runs.get(name)
        is_over = run is not None and run.phase not in ACTIVE_PHASES
        with _noted(self.view, "metrics"):
            answer = await self.client.request(
                "GET", path_of(Run.plural, name, "metrics"), params={"after": curves.next}
            )
            points = _POINTS.validate_python(answer["points"])
            curves.add(points)
            curves.next = int(answer["next"])
            curves.complete = is_over and not points

    async def _get_history(self) -> None:
        """What the host did before this program came."""
        present = self.clock.now().timestamp()
        span = {"since": present - HISTORY_SECONDS, "until": present, "max_points": 300}
        with _noted(self.view, "series"):
            for key, name in (("cpu", "host.cpu_percent"), ("gpu", "device.utilisation_percent")):
                answer = await self.client.request("GET", "/v1/series", params={"name": name, **span})
                past = merged(_SERIES.validate_python(answer))
                later = [p for p in self.view.history.get(key, ()) if not past or p[0] > past[-1][0]]
                if past or later:
                    self.view.history[key] = deque([*past, *later])
        self._history_due = self.clock.monotonic() + HEARTBEAT_SECONDS if "series" in self.view.problems else math.inf

    async def story(self, kind: str, name: str) -> AsyncIterator[Event]:
        """The events of one resource from its first one on, each once, whatever becomes of the daemon meanwhile."""
        seen = 0
        while True:
            try:
                async with owned(self.client.events(seen, kind=kind, name=name)) as stream:
                    async for event in stream:
                        seen = event.id
                        yield event
            except REFUSALS:
                pass
            await asyncio.sleep(POLL_SECONDS)
            await self._back.wait()

    async def log(self, kind: str, name: str, is_over: Callable[[], bool]) -> AsyncIterator[bytes]:
        """A log from its first byte that is kept on, each byte once, whatever becomes of the daemon meanwhile.

        Ends when the log was read to its end after *is_over* said that nothing will be written any more. A stream that
        brought something may have ended where bytes were dropped: then more may stand behind that.
        """
        offset = 0
        while True:
            over = is_over()
            try:
                async with self.client.open_log(kind, name, offset=offset, follow=True) as (start, stream):
                    offset = begin = offset if start is None else start
                    async for chunk in stream:
                        offset += len(chunk)
                        yield chunk
                if over:
                    if offset == begin:
                        return
                    continue
            except NotFound:
                if over:
                    return
            except REFUSALS:
                pass
            await asyncio.sleep(POLL_SECONDS)
            await self._back.wait()

    async def cancel(self, run: str) -> Run:
        """Ask for a run's end. Raises `StokerError` when it is refused."""
        return await self._post(Run, Run.plural, run, "cancel")

    async def steer(self, rollout: str, verb: str, step: int | None = None) -> Rollout:
        """Say a verb to a rollout (`stoker.types.rollouts.Verb`), of that *step* (from 0) alone if it is given.

        Raises `StokerError` when it is refused.
        """
        return await self._post(Rollout, Rollout.plural, rollout, verb, step=step)

    async def _post(self, kind: type[R], *path: str, **params: int | None) -> R:
        given = {name: value for name, value in params.items() if value is not None}
        resource = read_as(kind, await self.client.request("POST", path_of(*path), params=given))
        self.view.put(resource)
        self._changed()
        return resource


def merged(series: list[Series]) -> list[tuple[float, float]]:
    """The mean of several series of about the same moments, to the second."""
    by_second: dict[int, list[float]] = {}
    for one in series:
        for moment, value in one.points:
            by_second.setdefault(int(moment), []).append(value)
    return [(float(second), sum(values) / len(values)) for second, values in sorted(by_second.items())]


@contextmanager
def _noted(view: View, what: str) -> Iterator[None]:
    """Keep a refusal as a problem with *what* and go on; but a daemon that is gone ends the round."""
    try:
        yield
    except DaemonUnreachable:
        raise
    except (*REFUSALS, KeyError, TypeError) as error:
        view.problems[what] = " ".join(sentence(error)).strip()
    else:
        view.problems.pop(what, None)
