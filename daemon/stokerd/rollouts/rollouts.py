"""Brings rollouts forward: gathers the facts, lets `machine` decide, keeps the decision, moves the traffic."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from functools import partial

import httpx

from stoker.errors import StokerError, Unavailable
from stoker.types.base import now
from stoker.types.rollouts import (
    ACTIVE_PHASES,
    FINAL_PHASES,
    ArmStats,
    GuardReading,
    Paused,
    Promoted,
    RollingBack,
    Rollout,
    RolloutState,
    Stepping,
    Verb,
    Verdict,
)
from stoker.types.serving import BackingOff, Deployment, Replica, ReplicaFailed, Unwell
from stokerd.clock import JUMP_SECONDS, Elapsed
from stokerd.rollouts import decisions, machine
from stokerd.rollouts.apply import failed_gates
from stokerd.rollouts.decisions import ready_count, wanted_count
from stokerd.rollouts.evidence import Evidence
from stokerd.rollouts.judging import Judging
from stokerd.rollouts.tidings import is_news, is_told, tell_traffic
from stokerd.serving.gateway import GatewayLink
from stokerd.serving.plan import is_same_split, route
from stokerd.store.store import Query, Store, Transaction
from stokerd.telemetry.metrics import Metrics

log = logging.getLogger(__name__)
_LOOK_SECONDS = 1.0  # its steps have durations, and that the gateway follows a table is no event
_TELL_SECONDS = 10.0  # at first, with few requests, guards change their minds with each
_SAVE_SECONDS = 0.5  # numbers that say nothing new are kept not more often than people can read them


class Rollouts:
    """The reconciler of rollouts, and what the API does with them.

    ``is_active``: whether there was a rollout that is under way, or whose old version stands by, when it last looked.
    """

    def __init__(self, store: Store, gateway: GatewayLink, metrics: Metrics, judging: Judging) -> None:
        self._store = store
        self._gateway = gateway
        self._metrics = metrics
        self._judging = judging
        self._saved_at: dict[str, float] = {}
        self._offsets: dict[str, float] = {}
        self._told: dict[str, tuple[decisions.Said, float]] = {}
        self._elapsed = Elapsed()
        self._evidence: dict[str, Evidence] = {}
        self.is_active = False

    async def command(self, name: str, verb: Verb, by: str, step: int | None = None) -> Rollout:
        """Have *by* (a person's name) say *verb*, of that *step* (from 0) alone if it is given.

        Raises `NotFound`, or `Conflict` when it doesn't fit the state.
        """
        rollout = await self._store.write(partial(decisions.command, name=name, verb=verb, by=by, step=step))
        self._count(rollout, rollout.state)
        await self._move_traffic(rollout)
        return rollout

    async def step(self) -> float | None:
        """Look at each active rollout once, and take its next step.

        Returns in how many seconds to look again: None without one, as the start of a rollout is an event.
        """
        rollouts = await self._store.read(_watched)
        self.is_active = self._metrics.keeps_recent = bool(rollouts)
        names = {rollout.name for rollout in rollouts}
        for name in self._evidence.keys() - names:
            del self._evidence[name]
            self._saved_at.pop(name, None)
            self._told.pop(name, None)
            self._offsets.pop(name, None)
        self._judging.keep_only(names)
        for rollout in rollouts:
            try:
                await self._advance(rollout)
            except StokerError as error:
                log.warning("rollout %s: %s", rollout.name, error)
            except Exception:  # it concerns this rollout alone
                log.exception("rollout %s", rollout.name)
        return _LOOK_SECONDS if rollouts else None

    async def _advance(self, rollout: Rollout) -> None:
        deployment, replicas, failed_gate = await self._store.read(lambda q: _around(q, rollout))
        before = rollout.model_copy()
        facts = await self._facts(rollout, deployment, replicas, failed_gate)
        if facts.routed and is_news(rollout, deployment):
            await self._store.write(lambda tx: tell_traffic(tx, rollout))
        if isinstance(rollout.state, Promoted) and await self._is_cold_now(rollout):
            return
        state = machine.advance(rollout.spec, rollout.state, facts)
        if state is None:
            await self._keep_readings(before, rollout)
            return
        self._count(rollout, state)
        by = machine.led_by(rollout.led_by, rollout.state, state, facts)
        if await self._store.write(lambda tx: decisions.keep_state(tx, rollout, state, facts.verdict, by)):
            await self._move_traffic(rollout)

    async def _facts(
        self, rollout: Rollout, deployment: Deployment, replicas: Sequence[Replica], failed_gate: str | None
    ) -> machine.Facts:
        """Bring the numbers of *rollout* up to date, and say what `machine` needs to know."""
        evidence = self._evidence.setdefault(rollout.name, Evidence(rollout))
        seconds = self._count(rollout, rollout.state)
        verdict: Verdict | None = None
        unread = self._gateway.is_unread  # asked before what was read is taken in
        try:
            await evidence.update(self._metrics, rollout, replicas)
            if isinstance(rollout.state, Stepping | Paused):
                verdict = await self._judging.judge(rollout, evidence, self._began(rollout, rollout.state, seconds))
        except Unavailable as error:  # nothing can be judged; servers that die, and people, are heard all the same
            log.warning("rollout %s can't be judged: %s", rollout.name, error)
        rollout.exposure = evidence.exposure
        mine = [r for r in replicas if r.version == rollout.to_version and r.wanted]
        kept = [r for r in replicas if r.version == rollout.from_version and r.wanted]
        stables = [r for r in kept if not r.rests]
        return machine.Facts(
            now=now(),
            seconds=seconds,
            candidate_ready=bool(mine) and ready_count(mine) >= wanted_count(deployment, mine),
            candidate_failed=_trouble(mine) or failed_gate,
            stable_failed=_given_up(stables),
            stable_at_hand=ready_count(stables) > 0,
            stable_ready=bool(stables) and ready_count(stables) >= wanted_count(deployment, stables),
            step_requests=evidence.tested.requests,
            step_callers=evidence.tested.callers,
            verdict=verdict,
            trip=evidence.trip(),
            unread=unread,
            routed=self._is_routed(rollout, deployment, replicas),
            is_swap=rollout.is_swap,
            stable_sleeps=len(stables) < len(kept),
        )

    def _count(self, rollout: Rollout, state: RolloutState) -> float:
        """Seconds spent in *state*; counted from the first call on, whatever the clock is set to meanwhile."""
        since = getattr(state, "since", None)
        return self._elapsed.since(rollout.name, since) if since else 0.0

    def _began(self, rollout: Rollout, state: Stepping | Paused, seconds: float) -> float:
        """The unix time at which *state* began, *seconds* ago, as the clock goes now: it moves only if that was set."""
        moment = state.since.timestamp()
        offset = time.time() - seconds - moment
        known = self._offsets.get(rollout.name, 0.0)
        if abs(offset - known) > JUMP_SECONDS:
            self._offsets[rollout.name] = known = offset
        return moment + known

    async def _keep_readings(self, before: Rollout, rollout: Rollout) -> None:
        """Keep what is new; with an event where guards changed their minds: of failing at once, else now and then."""
        present, said = time.monotonic(), decisions.said(rollout)
        told, told_at = self._told.setdefault(rollout.name, (decisions.said(before), -_TELL_SECONDS))
        is_grave = any("fail" in now_said + then_said for now_said, then_said in zip(said, told, strict=True))
        tells = said != told and (is_grave or present - told_at >= _TELL_SECONDS)
        is_due = present - self._saved_at.get(rollout.name, -_SAVE_SECONDS) >= _SAVE_SECONDS
        if not tells and not (is_due and _numbers(before) != _numbers(rollout)):
            return
        if tells:
            self._told[rollout.name] = said, present
        self._saved_at[rollout.name] = present
        await self._store.write(lambda tx: decisions.keep_readings(tx, rollout, tells=tells))

    def _is_routed(self, rollout: Rollout, deployment: Deployment, replicas: Sequence[Replica]) -> bool:
        """Whether the gateway said that it follows the split of the present state."""
        table = self._gateway.acknowledged
        wanted = route(deployment, replicas, rollout)
        return table is not None and any(
            is_same_split(r, wanted) for r in table.routes if r.deployment == rollout.deployment
        )

    async def _is_cold_now(self, rollout: Rollout) -> bool:
        """Whether the old version's time to stand by is over; if so, its replicas are let go."""
        state = rollout.state
        assert isinstance(state, Promoted)
        if state.warm_until is None:
            return True
        if not self._elapsed.has_come(f"{rollout.name} warm", state.warm_until, rollout.spec.keep_warm):
            return False

        def let_go(tx: Transaction) -> None:
            deployment = tx.find(Deployment, rollout.deployment)
            if deployment is not None and deployment.warm is not None and deployment.warm.rollout == rollout.name:
                version, deployment.warm = deployment.warm.version, None
                tx.save(deployment, "DeploymentCooled", f"{deployment.name}: version {version} no longer stands by.")

        await self._store.write(let_go)
        return True

    async def _move_traffic(self, rollout: Rollout) -> None:
        """Have the gateway follow the new state at once, and note when it said that it does."""
        try:
            await self._gateway.push()
        except httpx.HTTPError as error:
            log.warning("rollout %s: the gateway can't be told: %r; it is told when it answers", rollout.name, error)
            return
        moment = now()

        def save(tx: Transaction) -> None:
            current = tx.get(Rollout, rollout.name)
            if current.state != rollout.state:
                return
            tell_traffic(tx, current)
            if isinstance(current.state, RollingBack) and not current.is_swap and current.restored_at is None:
                current.restored_at = moment
                tx.save(current)

        await self._store.write(save)


def _watched(query: Query) -> list[Rollout]:
    """Rollouts that are under way; those whose old version stands by; and those whose last move of traffic is to be
    told yet.
    """
    ended = []
    for deployment in query.all(Deployment):
        if deployment.warm is not None:
            ended.append(query.find(Rollout, deployment.warm.rollout))
        elif deployment.rollout is None and not is_told(deployment):
            ended += query.all(Rollout, deployment=deployment.name)[-1:]
    found = [r for r in ended if r is not None and r.phase in FINAL_PHASES]
    return [*query.all(Rollout, phase=set(ACTIVE_PHASES)), *found]


def _around(query: Query, rollout: Rollout) -> tuple[Deployment, list[Replica], str | None]:
    """Its deployment, with all replicas; and which gate its version failed since it began, in a sentence."""
    deployment = query.get(Deployment, rollout.deployment)
    failed = failed_gates(query, deployment.spec.model, rollout.to_version)
    said = f"v{rollout.to_version} {failed}" if failed else None
    return deployment, query.all(Replica, deployment=deployment.name), said


def _trouble(replicas: Sequence[Replica]) -> str | None:
    """What is the matter with a version's servers, in a sentence; None: nothing."""
    for replica in replicas:
        if isinstance(replica.state, BackingOff | ReplicaFailed | Unwell):
            return f"{replica.name}: {replica.state.message}"
    return None


def _given_up(replicas: Sequence[Replica]) -> str | None:
    """Which server of a version won't be started again, in a sentence; None: none."""
    return next((f"{r.name}: {r.state.message}" for r in replicas if isinstance(r.state, ReplicaFailed)), None)


def _numbers(rollout: Rollout) -> tuple[dict[str, ArmStats], list[GuardReading], list[GuardReading], object]:
    return rollout.arms, rollout.readings, rollout.contention, rollout.exposure
