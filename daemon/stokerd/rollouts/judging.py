"""What the guards say of the present step of a rollout, from its requests and from whatever else they look at."""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from stoker.types.base import now
from stoker.types.registry import Evaluation
from stoker.types.rollouts import (
    ArmStats,
    Distribution,
    Guard,
    GuardReading,
    PromoteStep,
    Rollout,
    Starved,
    Verdict,
)
from stoker.types.serving import Deployment, Replica
from stokerd.rollouts.comparisons import Comparisons
from stokerd.rollouts.evidence import Evidence, by_name, state_key
from stokerd.rollouts.sample import Sample, distributions
from stokerd.rollouts.verdict import Findings, count_statistical, judge_all, judge_contention, overall
from stokerd.store.store import Query, Store
from stokerd.telemetry.metrics import Metrics

ALPHA = 0.05  # chance, over a whole rollout and however often it is looked at, that a guard fails without a cause
_RETURNS = 0.2  # part of it that is kept for steps that are judged anew: held, or resumed
_MOST_MOMENTS = 4096  # of a series are judged: more than an hour of each second, and then each second one of them
_KNOWN_SECONDS = 600.0  # a series that was measured in so long is one that there is


@dataclass(frozen=True, slots=True)
class _Judged:
    """What came of one look, and what it looked at."""

    key: object
    readings: list[GuardReading]
    contention: list[GuardReading]
    arms: dict[str, ArmStats]
    distributions: dict[str, Distribution]


class Judging:
    """Judges rollouts; anew only when there is something new."""

    def __init__(self, store: Store, metrics: Metrics, comparisons: Comparisons) -> None:
        self._store = store
        self._metrics = metrics
        self._comparisons = comparisons
        self._judged: dict[str, _Judged] = {}

    def keep_only(self, names: Collection[str]) -> None:
        """Forget all other rollouts."""
        for name in self._judged.keys() - set(names):
            del self._judged[name]
        self._comparisons.keep_only(set(names))

    async def judge(self, rollout: Rollout, evidence: Evidence, since: float) -> Verdict:
        """One verdict of all guards; their readings, and the arms' numbers, go into *rollout*. Raises `Unavailable`.

        *since*: unix time at which the step began, as the clock goes now: pairs and series are told by it.
        """
        is_compared = rollout.is_swap or _shares_devices(rollout)
        baseline = await evidence.look_back(self._metrics, rollout) if is_compared else None
        stable = baseline if rollout.is_swap and baseline is not None else evidence.stable
        guards = [g for g in rollout.spec.guards if _applies(g, evidence, stable)]
        findings = await self._findings(rollout, guards, since)
        problem = self._comparisons.problem(rollout.name)
        key = (state_key(rollout), stable.requests, evidence.tested.requests, findings, problem)
        judged = self._judged.get(rollout.name)
        if judged is None or judged.key != key:
            possible = [g for g in rollout.spec.guards if not g.needs_answers or evidence.tested_arm == "shadow"]
            part = count_statistical(guards) / max(count_statistical(possible), 1)
            alpha = part * share_of_alpha(rollout)  # each has its share from the start, whatever there is to judge

            def look() -> _Judged:
                readings = judge_all(guards, stable, evidence.tested, alpha, findings)
                suffers = baseline is not None and not rollout.is_swap
                samples = by_name({"stable": stable, evidence.tested_arm or "candidate": evidence.tested})
                return _Judged(
                    key,
                    [with_problem(reading, problem) for reading in readings],
                    judge_contention(guards, baseline, evidence.stable, ALPHA) if suffers and baseline else [],
                    {name: sample.stats() for name, sample in samples.items()},
                    distributions(samples),
                )

            self._judged[rollout.name] = judged = await asyncio.to_thread(look)
        rollout.readings, rollout.contention = judged.readings, judged.contention
        rollout.arms, rollout.distributions = judged.arms, judged.distributions
        return overall(judged.readings)

    async def _findings(self, rollout: Rollout, guards: Sequence[Guard], since: float) -> Findings:
        """What guards judge besides requests."""
        pairs = await self._comparisons.look(rollout, since) if rollout.spec.keep_answers else ()
        named = {g.name for g in guards if g.metric == "score"}
        scores = await self._store.read(lambda q: _scores(q, rollout, named)) if named else {}
        series: dict[str, Sequence[float]] = {}
        known: list[str] = []
        wanted = {g.name for g in guards if g.metric == "series"}
        devices = await self._store.read(lambda q: _devices(q, rollout)) if wanted else set()
        until = now().timestamp()
        for name in wanted:
            found = await self._metrics.moments(name, since=since, until=until, most=_MOST_MOMENTS, devices=devices)
            if found:
                series[name] = found
        if wanted - series.keys():
            everything = await self._metrics.series("*", since=until - _KNOWN_SECONDS, until=until, max_points=1)
            known = sorted({each.name for each in everything})
        return Findings(pairs=tuple(pairs), scores=scores, series=series, known_series=known)


def share_of_alpha(rollout: Rollout) -> float:
    """The chance of a false alarm that the present state may have: over all states of a rollout, at most `ALPHA`.

    Each step has the same when it is first on. The k-th time that one is judged anew, as it is held or resumed, gets
    1 / (k (k + 1)) of `_RETURNS`: however often that happens, it is never all of it.
    """
    step = getattr(rollout.state, "step", 0)
    visits = rollout.visits
    if step < len(visits) and visits[step] > 1:
        times = sum(max(0, each - 1) for each in visits)
        return ALPHA * _RETURNS / (times * (times + 1))
    steps = sum(not isinstance(s, PromoteStep) for s in rollout.spec.steps)
    return ALPHA * (1 - _RETURNS) / max(steps, 1)


def _applies(guard: Guard, evidence: Evidence, stable: Sample) -> bool:
    """Whether there can be anything for *guard* in the present step."""
    if guard.needs_answers:
        return evidence.tested_arm == "shadow"
    if not guard.if_measured:
        return True
    samples = (stable, evidence.tested)
    return any(guard.metric not in sample.measurements or sample.measurements[guard.metric] for sample in samples)


def with_problem(reading: GuardReading, problem: str) -> GuardReading:
    """Say why answers aren't compared (sentences, or nothing) where a guard waits for them."""
    if not problem or not reading.guard.needs_answers or not isinstance(reading.verdict, Starved):
        return reading
    starved = Starved(reason=f"{reading.verdict.reason}: {problem.removesuffix('.')}")
    return reading.model_copy(update={"verdict": starved})


def _shares_devices(rollout: Rollout) -> bool:
    """Whether the candidate takes from stable what stable had for itself: on a host without GPUs they share its CPU."""
    plan = rollout.plan
    return plan is not None and (
        plan.placement in ("share", "adapter") or (plan.placement == "beside" and not plan.devices)
    )


def _devices(query: Query, rollout: Rollout) -> set[str]:
    """UUIDs of what the candidate holds; an adapter has those of the servers that loaded it."""
    replicas = {r.name: r for r in query.all(Replica)}
    mine = [r for r in replicas.values() if (r.deployment, r.version) == (rollout.deployment, rollout.to_version)]
    return {uuid for r in mine for uuid in (replicas.get(r.host, r) if r.host else r).devices}


def _scores(query: Query, rollout: Rollout, names: set[str]) -> dict[str, tuple[float | None, float | None]]:
    """The evaluations of both versions by name: stable's and the candidate's."""
    model = query.get(Deployment, rollout.deployment).spec.model

    def score(version: int, name: str) -> float | None:
        found = query.find(Evaluation, f"{model}@{version}:{name}")
        return found.score if found is not None else None

    return {name: (score(rollout.from_version, name), score(rollout.to_version, name)) for name in names}
