"""Looks at servers that were ready, each at its own pace: no step of a reconciler waits for one, or is taken for one
that found nothing new.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Collection
from dataclasses import dataclass, replace

from stokerd.serving.asking import ask
from stokerd.serving.engines.base import Engine
from stokerd.serving.gateway import Traffic
from stokerd.serving.health import Condition, Look, Vitals, diagnose, look_interval, take

log = logging.getLogger(__name__)
ASK_SECONDS = 5.0  # a slow answer is one, too


@dataclass(frozen=True, slots=True)
class Patient:
    """A server that is looked at.

    ``condition`` is what it counts as, ``stall_timeout`` (seconds) says how long it may do nothing, ``look`` looks at
    it once.
    """

    condition: Condition
    stall_timeout: float
    look: Callable[[Condition], Awaitable[Look]]


class Looks:
    """What is known of each server's health, by process id, in this life of the daemon.

    *on_news* is called after each look that leaves a server's condition to be changed.
    """

    def __init__(self, on_news: Callable[[], None]) -> None:
        self._on_news = on_news
        self._patients: dict[str, Patient] = {}
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._vitals: dict[str, Vitals] = {}

    def vitals(self, process: str, patient: Patient) -> Vitals | None:
        """What the looks at *process* came to so far; None before the first. From now on it is looked at as that
        *patient*: at once, and then each `look_interval`.
        """
        self._patients[process] = patient
        if process not in self._tasks:
            self._tasks[process] = asyncio.create_task(self._look_again_and_again(process))
        return self._vitals.get(process)

    def counts_as(self, process: str, condition: Condition) -> None:
        """Its condition has changed: the next look is taken for that."""
        self._patients[process] = replace(self._patients[process], condition=condition)

    def begin_anew(self, process: str) -> None:
        """What was seen of *process* before counts no more."""
        self._vitals.pop(process, None)

    def keep_only(self, processes: Collection[str]) -> None:
        """Forget all others."""
        for process in self._tasks.keys() - set(processes):
            self._tasks.pop(process).cancel()
            del self._patients[process]
            self._vitals.pop(process, None)

    async def close(self) -> None:
        """End the looks under way."""
        tasks = list(self._tasks.values())
        self.keep_only(())
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _look_again_and_again(self, process: str) -> None:
        while True:
            patient = self._patients[process]
            try:
                look = await patient.look(patient.condition)
            except Exception:  # a bug of ours says nothing of the server
                log.exception("could not look at %s", process)
            else:
                self._take(process, look)
            await asyncio.sleep(look_interval(self._patients[process].stall_timeout))

    def _take(self, process: str, look: Look) -> None:
        patient = self._patients[process]  # it may have become another one meanwhile
        vitals = take(self._vitals.get(process), look, patient.condition)
        self._vitals[process] = vitals
        if diagnose(vitals, patient.condition, patient.stall_timeout) is not None:
            self._on_news()


async def look_at(
    address: str,
    engine: Engine,
    condition: Condition,
    traffic: Callable[[], Awaitable[Traffic | None]],
    ask_seconds: float,
) -> Look:
    """Look at the server at *address* once. Its metrics cost it something, so they are asked only when it has work.

    *traffic* says what the gateway sees of it, before and after: it may take ``ask_seconds`` to answer, or not to.
    """
    before = await traffic()
    is_busy = condition == "stalled" or (before is not None and before.waited_seconds > 0)
    paths = [engine.health_path]
    if is_busy and engine.metrics_path is not None:
        paths.append(engine.metrics_path)
    answers = await asyncio.gather(*(ask(address, path, ask_seconds) for path in paths))
    after = await traffic()
    return Look(
        at=time.monotonic(),
        has_answered=any(answer is not None for answer in answers),
        steps=engine.steps(answers[1]) if len(answers) > 1 and answers[1] is not None else None,
        waited_seconds=after.waited_seconds if after else 0.0,
        received=after.received if after else None,
    )
