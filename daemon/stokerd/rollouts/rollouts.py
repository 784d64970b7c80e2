"""Brings rollouts forward: gathers the facts, lets `machine` decide, keeps the decision, moves the traffic."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence

import httpx

from stoker.errors import StokerError
from stoker.types.base import now
from stoker.types.rollouts import (
    ACTIVE_PHASES,
    Aborted,
    Paused,
    Preparing,
    Promoted,
    Promoting,
    RolledBack,
    RollingBack,
    Rollout,
    RolloutState,
    Stepping,
    Verdict,
)
from stoker.types.serving import BackingOff, Deployment, Ready, Replica, ReplicaFailed
from stokerd.clock import Elapsed
from stokerd.gateway.wire import Record
from stokerd.rollouts import machine
from stokerd.rollouts.verdict import hard_trip, judge_all, overall
from stokerd.serving.gateway import GatewayLink
from stokerd.serving.plan import route
from stokerd.store.store import Query, Store, Transaction
from stokerd.telemetry.metrics import Metrics
from stokerd.telemetry.quantiles import arm_stats

log = logging.getLogger(__name__)
ALPHA = 0.05  # chance, over a whole rollout and however often it is looked at, that a guard fails without a cause
MAX_RECORDS = 200_000  # of one step; past that the newest are judged


class Rollouts:
    """The reconciler of rollouts, and what the API does with them."""

    def __init__(self, store: Store, gateway: GatewayLink, metrics: Metrics) -> None:
        self._store = store
        self._gateway = gateway
        self._metrics = metrics
        self._elapsed = Elapsed()

    async def command(self, name: str, verb: machine.Verb, by: str) -> Rollout:
        """Pause, resume, promote or abort. Raises `NotFound`, or `Conflict` when the verb doesn't fit the state."""

        def save(tx: Transaction) -> Rollout:
            rollout = tx.get(Rollout, name)
            rollout.state = machine.command(rollout.spec, rollout.state, verb, now(), by)
            if isinstance(rollout.state, RollingBack):
                rollout.verdict_at = now()
            reason = {"pause": "Paused", "resume": "Resumed", "promote": "Promoting", "abort": "Aborting"}[verb]
            tx.save(rollout, f"Rollout{reason}", f"{name}: {verb}, by {by}.", by=by)
            return rollout

        rollout = await self._store.write(save)
        await self._move_traffic(rollout)
        return rollout

    async def clock_was_set(self) -> None:
        """Start the steps that are on anew: requests are told from earlier ones by the time at which they began."""
        rollouts = await self._store.read(lambda q: q.all(Rollout, phase={"stepping", "paused"}))
        moment = now()
        for rollout in rollouts:
            self._elapsed.since(rollout.name, moment)  # counted from here on, should the clock be set again at once

        def save(tx: Transaction) -> None:
            for rollout in tx.all(Rollout, phase={"stepping", "paused"}):
                assert isinstance(rollout.state, Stepping | Paused)
                rollout.state = rollout.state.model_copy(update={"since": moment})
                tx.save(rollout)

        await self._store.write(save)

    async def step(self) -> None:
        """Look at each active rollout once, and take its next step."""
        for rollout in await self._store.read(lambda q: q.all(Rollout, phase=ACTIVE_PHASES)):
            try:
                await self._advance(rollout)
            except StokerError as error:
                log.warning("rollout %s: %s", rollout.name, error)
            except Exception:  # it concerns this rollout alone
                log.exception("rollout %s", rollout.name)

    async def _advance(self, rollout: Rollout) -> None:
        deployment, replicas = await self._store.read(lambda q: _around(q, rollout))
        arms = await self._records(rollout)
        facts = await asyncio.to_thread(self._judge, rollout, deployment, replicas, arms)
        state = machine.advance(rollout.spec, rollout.state, facts)
        if state is None:
            await self._store.write(lambda tx: self._keep_readings(tx, rollout))
            return
        if isinstance(state, Stepping):
            self._elapsed.since(rollout.name, state.since)  # counted from now on, whatever the clock is set to
        rollout.candidate_errors = await self._count_errors(rollout)
        if await self._store.write(lambda tx: self._keep_state(tx, rollout, state, facts.verdict)):
            await self._move_traffic(rollout)

    def _judge(
        self, rollout: Rollout, deployment: Deployment, replicas: Sequence[Replica], arms: dict[str, list[Record]]
    ) -> machine.Facts:
        """Bring arms and readings of *rollout* up to date, and say what `machine` needs to know."""
        tested = arms["shadow"] if self._is_shadow(rollout) else arms["candidate"]
        verdict: Verdict | None = None
        if isinstance(rollout.state, Stepping | Paused):  # else they stay as they were at the last verdict
            rollout.arms = {name: arm_stats(records) for name, records in arms.items() if records or name == "stable"}
            rollout.readings = judge_all(rollout.spec.guards, arms["stable"], tested, ALPHA / len(rollout.spec.steps))
            verdict = overall(rollout.readings)
        since = getattr(rollout.state, "since", None)
        candidates = [r for r in replicas if r.version == rollout.to_version and r.wanted]
        ready = [r for r in candidates if isinstance(r.state, Ready)]
        broken = [f"{r.name}: {r.state.message}" for r in candidates if isinstance(r.state, BackingOff | ReplicaFailed)]
        return machine.Facts(
            now=now(),
            seconds=self._elapsed.since(rollout.name, since) if since else 0.0,
            candidate_ready=bool(candidates) and len(ready) >= deployment.spec.replicas,
            candidate_failed=broken[0] if broken else None,
            step_requests=sum(r.is_error or not r.client_gone for r in tested),
            verdict=verdict,
            trip=hard_trip(tested, rollout.spec.max_errors_in_a_row),
            routed=self._is_routed(rollout, deployment, replicas),
        )

    @staticmethod
    def _is_shadow(rollout: Rollout) -> bool:
        return isinstance(rollout.state, Stepping | Paused) and rollout.spec.steps[rollout.state.step].type == "shadow"

    def _is_routed(self, rollout: Rollout, deployment: Deployment, replicas: Sequence[Replica]) -> bool:
        """Whether the gateway said that it follows the weights of the present state."""
        table = self._gateway.acknowledged
        wanted = route(deployment, replicas, rollout)
        return table is not None and any(
            [(a.name, a.version, a.weight) for a in r.arms] == [(a.name, a.version, a.weight) for a in wanted.arms]
            for r in table.routes
            if r.deployment == rollout.deployment and r.salt == wanted.salt
        )

    async def _records(self, rollout: Rollout) -> dict[str, list[Record]]:
        """Requests of the present step, by arm; in a state without a step, none."""
        arms: dict[str, list[Record]] = {"stable": [], "candidate": [], "shadow": []}
        if isinstance(rollout.state, Stepping | Paused):
            for record in await self._metrics.records(
                rollout.deployment, since=rollout.state.since.timestamp(), limit=MAX_RECORDS
            ):
                version = rollout.from_version if record.arm == "stable" else rollout.to_version
                if record.version == version and record.arm in arms:
                    arms[record.arm].append(record)
        return arms

    async def _count_errors(self, rollout: Rollout) -> int:
        since = rollout.created_at.timestamp()
        records = await self._metrics.records(rollout.deployment, since=since, arms=["candidate"], limit=MAX_RECORDS)
        return sum(r.is_error for r in records if r.version == rollout.to_version)

    @staticmethod
    def _keep_readings(tx: Transaction, rollout: Rollout) -> None:
        """Keep what the guards say; with an event when a guard changed its mind."""
        current = tx.get(Rollout, rollout.name)
        if current.state != rollout.state or (current.arms, current.readings) == (rollout.arms, rollout.readings):
            return
        before = [r.verdict.verdict for r in current.readings]
        after = [r.verdict.verdict for r in rollout.readings]
        current.arms, current.readings = rollout.arms, rollout.readings
        said = ", ".join(f"{r.guard.metric} {r.verdict.verdict}" for r in rollout.readings)
        reasons = [r.verdict.reason for r in rollout.readings]
        reason = "GuardsRead" if before != after else ""
        tx.save(current, reason, f"{rollout.name}: {said}.", verdicts=after, reasons=reasons)

    @staticmethod
    def _keep_state(tx: Transaction, rollout: Rollout, state: RolloutState, verdict: Verdict | None) -> bool:
        """Keep the decision, unless a person was faster; the end of a rollout and what it leaves are one change."""
        current = tx.get(Rollout, rollout.name)
        if current.state != rollout.state:
            return False
        rollout.verdict_at, rollout.restored_at = current.verdict_at, current.restored_at
        if isinstance(state, RolledBack | Aborted):  # reached only when the gateway said that it follows
            rollout.restored_at = rollout.restored_at or now()
        rollout.state = state
        reason, message = _describe(rollout, state)
        if isinstance(state, RollingBack):
            rollout.verdict_at = now()
        if isinstance(state, Promoted | RolledBack | Aborted):
            deployment = tx.get(Deployment, rollout.deployment)
            deployment.rollout = None
            if isinstance(state, Promoted):
                deployment.previous_version, deployment.version = deployment.version, rollout.to_version
            tx.save(deployment, "DeploymentServes", f"{deployment.name} serves version {deployment.version}.")
        evidence = [f"{r.guard.metric}: {r.verdict.verdict}: {r.verdict.reason}" for r in rollout.readings]
        tx.save(rollout, reason, message, verdict=verdict.verdict if verdict else None, evidence=evidence)
        return True

    async def _move_traffic(self, rollout: Rollout) -> None:
        """Have the gateway follow the new state at once, and note when it said that it does."""
        try:
            await self._gateway.push()
        except httpx.HTTPError as error:
            log.warning("rollout %s: the gateway can't be told: %r; it is told when it answers", rollout.name, error)
            return
        if isinstance(rollout.state, RollingBack):
            moment = now()

            def save(tx: Transaction) -> None:
                current = tx.get(Rollout, rollout.name)
                if current.restored_at is None:
                    current.restored_at = moment
                    tx.save(current)

            await self._store.write(save)


def _around(query: Query, rollout: Rollout) -> tuple[Deployment, list[Replica]]:
    return query.get(Deployment, rollout.deployment), query.all(Replica, deployment=rollout.deployment)


def _describe(rollout: Rollout, state: RolloutState) -> tuple[str, str]:
    """Reason and sentence of the event."""
    name, to = rollout.name, rollout.to_version
    match state:
        case Stepping(step=step):
            kind = rollout.spec.steps[step]
            where = f"step {step + 1} of {len(rollout.spec.steps)}"
            return "RolloutStepped", f"{name}: {where}: {kind.type} {kind.percent:g} % to version {to}."
        case Paused(because=because):
            return "RolloutPaused", f"{name}: paused: {because}"
        case Promoting():
            return "RolloutPromoting", f"{name}: every guard held in every step; all traffic goes to version {to}."
        case RollingBack(because=because):
            return "RolloutRollingBack", f"{name}: all traffic goes back to version {rollout.from_version}: {because}"
        case Promoted():
            return "RolloutPromoted", f"{name}: version {to} is promoted."
        case RolledBack(because=because):
            return "RolloutRolledBack", f"{name}: version {rollout.from_version} serves as before: {because}"
        case Aborted(because=because):
            return "RolloutAborted", f"{name}: aborted: {because}"
        case Preparing():
            return "RolloutPreparing", f"{name}: version {to} is being prepared."
    raise AssertionError(state)
