"""Looks at servers that were ready, all side by side: no step of a reconciler waits for one."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Collection

from stokerd.gateway.wire import BadTable, split_address
from stokerd.serving.engines.base import Engine
from stokerd.serving.gateway import Traffic
from stokerd.serving.health import Condition, Look, Vitals, take

log = logging.getLogger(__name__)
ASK_SECONDS = 5.0  # a slow answer is one, too
MAX_BYTES = 8 << 20


class Looks:
    """What is known of each server's health, by process id, in this life of the daemon."""

    def __init__(self) -> None:
        self._tasks: dict[str, asyncio.Task[Look]] = {}
        self._vitals: dict[str, Vitals] = {}
        self._due: dict[str, float] = {}

    def vitals(
        self, process: str, condition: Condition, interval_seconds: float, look: Callable[[], asyncio.Task[Look]]
    ) -> Vitals | None:
        """What the looks at *process* came to so far; None before the first. Has *look* made when it is time."""
        task = self._tasks.get(process)
        if task is not None and task.done():
            del self._tasks[process]
            if (error := task.exception()) is None:
                self._vitals[process] = take(self._vitals.get(process), task.result(), condition)
            else:  # a bug of ours says nothing of the server
                log.error("could not look at %s", process, exc_info=error)
            self._due[process] = time.monotonic() + interval_seconds
        if process not in self._tasks and time.monotonic() >= self._due.get(process, 0.0):
            self._tasks[process] = look()
        return self._vitals.get(process)

    def begin_anew(self, process: str) -> None:
        """What was seen of *process* before counts no more."""
        self._vitals.pop(process, None)

    def keep_only(self, processes: Collection[str]) -> None:
        """Forget all others."""
        for process in self._tasks.keys() - set(processes):
            self._tasks.pop(process).cancel()
        for process in self._due.keys() - set(processes):
            del self._due[process]
            self._vitals.pop(process, None)

    async def close(self) -> None:
        """End the looks under way."""
        tasks = list(self._tasks.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def look_at(
    address: str, engine: Engine, condition: Condition, traffic: Callable[[], Traffic | None], ask_seconds: float
) -> Look:
    """Look at the server at *address* once. Its metrics cost it something, so they are asked only when it has work."""
    before = traffic()
    is_busy = condition == "stalled" or (before is not None and before.waited_seconds > 0)
    paths = [engine.health_path]
    if is_busy and engine.metrics_path is not None:
        paths.append(engine.metrics_path)
    answers = await asyncio.gather(*(ask(address, path, ask_seconds) for path in paths))
    after = traffic()
    return Look(
        at=time.monotonic(),
        has_answered=any(answer is not None for answer in answers),
        steps=engine.steps(answers[1]) if len(answers) > 1 and answers[1] is not None else None,
        waited_seconds=after.waited_seconds if after else 0.0,
        received=after.received if after else None,
    )


async def ask(address: str, path: str, seconds: float) -> str | None:
    """GET *path* and return what came, head and all; None when no HTTP answer began within *seconds*.

    HTTP/1.0, so that the answer ends with its connection. By hand: a client of httpx, made for each look at each of
    many servers, would be most of what an idle daemon does.
    """
    data = bytearray()
    try:
        async with asyncio.timeout(seconds):
            place = split_address(address)
            if isinstance(place, str):
                reader, writer = await asyncio.open_unix_connection(place)
            else:
                reader, writer = await asyncio.open_connection(*place)
            try:
                writer.write(f"GET {path} HTTP/1.0\r\nHost: localhost\r\n\r\n".encode())
                while len(data) < MAX_BYTES and (piece := await reader.read(1 << 16)):
                    data += piece
            finally:
                writer.transport.abort()
    except (OSError, BadTable):  # TimeoutError is one of the former; what has come until then counts
        pass
    return data.decode(errors="replace") if data.startswith(b"HTTP/") else None
