"""How a whole rollout ends: the product's own steps, states, evidence, trips and judging, over simulated requests.

Nothing of the product is copied: `machine.advance` leads, `Evidence` sorts the records and trips, `Judging` judges,
with alpha spent as it does. What is left out are servers (all are ready), the gateway (a new share holds at once,
callers are drawn for arms by where they lie among all) and people: what is held stays so.

The product looks each second, and here comes one request a second on average. Until a step may pass, this looks after
each fifth request; then after each of the next thirty, later whenever there are 3 % more. Trips are asked after each.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta
from typing import Literal, NamedTuple, cast

from tests.bench.verdicts.world import Effect, Request, Visit, visits

from stoker.types.guards import Guard
from stoker.types.rollouts import (
    Paused,
    Preparing,
    Promoted,
    Rollout,
    RolloutSpec,
    RolloutState,
    Step,
    Stepping,
    Verdict,
)
from stokerd.gateway.wire import Record
from stokerd.rollouts import machine
from stokerd.rollouts.comparisons import Comparisons
from stokerd.rollouts.evidence import Evidence
from stokerd.rollouts.judging import Judging
from stokerd.store.store import Store
from stokerd.telemetry.metrics import Metrics

FROM, TO = 6, 7
_BEGAN = datetime(2026, 1, 1, tzinfo=UTC)
_FIRST_LOOKS = 30


class Ending(NamedTuple):
    """What became of a rollout, after how many seconds, and in which step (from 0; None: after the last).

    It is *promoted* if it still is at the end of the time in which the old version stands by. It was rolled back by
    its *guards*, or by a *trip*; or it is *held*: starved, until somebody decides.
    """

    what: Literal["promoted", "guards", "trip", "held"]
    step: int | None
    seconds: float


def rollout_spec(guards: Sequence[Guard], steps: Sequence[Step] = ()) -> RolloutSpec:
    """With the default steps, unless others are given."""
    spec = RolloutSpec(kind="rollout", name="r", deployment="chat", to=TO, guards=list(guards))
    return spec.model_copy(update={"steps": list(steps)}) if steps else spec


def ending(seed: int, *, spec: RolloutSpec, effect: Effect) -> Ending:
    """Of one rollout of a candidate with that *effect*."""
    return asyncio.run(_ending(seed, spec, effect))


def tripped(found: Sequence[Request]) -> int | None:
    """After how many requests of a canary step a hard trip would have come; None: none would."""
    return asyncio.run(_tripped(found))


async def _tripped(found: Sequence[Request]) -> int | None:
    state = Stepping(step=1, since=_BEGAN, began=1)
    rollout = _rollout(rollout_spec(()), state)
    stored, evidence = _Stored(), Evidence(rollout)
    metrics = cast(Metrics, stored)
    await evidence.update(metrics, rollout, ())
    for seen, request in enumerate(found, 1):
        if request.is_candidate:
            stored.store([_record(0.0, request, "candidate", TO, 1)])
            await evidence.update(metrics, rollout, ())
            if evidence.trip():
                return seen
    return None


def _rollout(spec: RolloutSpec, state: RolloutState) -> Rollout:
    return Rollout(name="r", spec=spec, deployment="chat", from_version=FROM, to_version=TO, state=state, began=1)


class _Stored:
    """The records of `Metrics`, of which only the newest are ever asked for."""

    def __init__(self) -> None:
        self.records_stored = 0
        self.newest: list[Record] = []

    def store(self, records: list[Record]) -> None:
        self.newest = records
        self.records_stored += len(records)

    def recent(self, after: int) -> list[Record]:
        return self.newest if after < self.records_stored else []

    async def all_records(self, *_: object, **__: object) -> tuple[list[Record], int]:
        return [], self.records_stored


class _NoComparisons:
    """Of a rollout that keeps no answers."""

    def problem(self, name: str) -> str:
        return ""


class _Looks:
    """When it is time to judge: see the module."""

    def __init__(self) -> None:
        self._seen = self._ripe = 0
        self._next = 5

    def is_due(self, *, may_pass: bool) -> bool:
        """Whether it is, one request later."""
        self._seen += 1
        self._ripe += may_pass
        if self._ripe != 1 and self._seen < self._next:
            return False
        every = 5 if not may_pass else 1 if self._ripe <= _FIRST_LOOKS else max(1, int(0.03 * self._seen))
        self._next = self._seen + every
        return True


async def _ending(seed: int, spec: RolloutSpec, effect: Effect) -> Ending:
    rollout = _rollout(spec, Preparing(since=_BEGAN))
    stored, evidence = _Stored(), Evidence(rollout)
    metrics = cast(Metrics, stored)
    judging = Judging(cast(Store, None), metrics, cast(Comparisons, _NoComparisons()))
    await evidence.update(metrics, rollout, ())  # from now on it asks for the newest alone
    event, began, looks = 1, 0.0, _Looks()
    for visit in visits(seed, effect):
        now, state = _BEGAN + timedelta(seconds=visit.seconds), rollout.state
        seconds = visit.seconds - began
        stored.store(list(_records(visit, rollout, event)))
        await evidence.update(metrics, rollout, ())
        verdict: Verdict | None = None
        step = machine.step_of(spec, state) if isinstance(state, Stepping) else None
        if step is not None:
            tested, least = evidence.tested, getattr(step, "min_requests", 0)
            may_pass = tested.requests >= least and seconds >= getattr(step, "min_duration", 0.0)
            if looks.is_due(may_pass=may_pass) or seconds >= getattr(step, "max_duration", 0.0):
                verdict = await judging.judge(rollout, evidence, now.timestamp() - seconds)
        trip = evidence.trip()
        facts = machine.Facts(
            now,
            seconds,
            candidate_ready=True,
            step_requests=evidence.tested.requests,
            step_callers=evidence.tested.callers,
            verdict=verdict,
            trip=trip,
            routed=True,
            next_event=event + 1,
        )
        following = machine.advance(spec, state, facts)
        at = state.step if isinstance(state, Stepping) else None
        if following is None:
            if isinstance(state, Promoted) and seconds >= spec.keep_warm:
                return Ending("promoted", None, visit.seconds)
            continue
        if isinstance(following, Paused):
            return Ending("held", at, visit.seconds)
        if following.phase == "rolling-back":
            return Ending("trip" if trip else "guards", at, visit.seconds)
        rollout.state = following
        event, began, looks = event + 1, visit.seconds, _Looks()
    raise AssertionError("requests never end")


def _records(visit: Visit, rollout: Rollout, table: int) -> Iterator[Record]:
    """Who answered, by that table of the gateway."""
    split = machine.split(rollout.spec, rollout.state)
    if isinstance(rollout.state, Promoted):
        yield _record(visit.seconds, visit.candidate, "stable", TO, table)
    elif 100 * visit.place < split.candidate:
        yield _record(visit.seconds, visit.candidate, "candidate", TO, table)
    else:
        yield _record(visit.seconds, visit.stable, "stable", FROM, table)
        if 100 * visit.luck < split.shadow:
            yield _record(visit.seconds, visit.candidate, "shadow", TO, table)


def _record(seconds: float, answer: Request, arm: str, version: int, table: int) -> Record:
    return Record(
        seq=0,
        time=_BEGAN.timestamp() + seconds,
        deployment="chat",
        arm=arm,
        version=version,
        address="unix:replica",
        path="",
        status=500 if answer.is_error else 200,
        is_error=answer.is_error,
        is_stream=True,
        client_gone=False,
        fell_back=False,
        ttft_seconds=answer.ttft_seconds,
        inter_token_seconds=answer.inter_token_seconds,
        total_seconds=answer.total_seconds,
        prompt_tokens=None,
        completion_tokens=answer.completion_tokens,
        table_version=table,
        finish_reason="" if answer.is_error else answer.finish_reason,
        caller=answer.caller,
    )
