"""What is kept of a rollout's decisions, each with its event. All run inside the transaction that they are given."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from stoker.errors import Conflict
from stoker.types.base import now
from stoker.types.rollouts import (
    Aborted,
    Decision,
    GuardReading,
    Paused,
    Promoted,
    Returning,
    RolledBack,
    RollingBack,
    Rollout,
    RolloutState,
    Stepping,
    Verb,
    Verdict,
    guard_subject,
)
from stoker.types.serving import Deployment, Ready, Replica, Warm
from stokerd.rollouts import machine
from stokerd.rollouts.tidings import REASONS, sentence
from stokerd.store.store import Transaction

_WORDS = {"pass": "holds", "fail": "fails", "starved": "can't be told yet"}


def ready_count(replicas: Sequence[Replica]) -> int:
    """How many of them are ready."""
    return sum(isinstance(r.state, Ready) for r in replicas)


def wanted_count(deployment: Deployment, replicas: Sequence[Replica]) -> int:
    """How many must be ready: an adapter has one on each of its servers, however many there are."""
    return len(replicas) if any(r.host for r in replicas) else deployment.spec.replicas


def command(tx: Transaction, name: str, verb: Verb, by: str, step: int | None = None) -> Rollout:
    """Keep that *by* (a person's name) said *verb*; with *step*, of that step alone (from 0).

    Raises `NotFound`, or `Conflict` when it doesn't fit the state, or another step is on by now.
    """
    rollout = tx.get(Rollout, name)
    deployment = tx.get(Deployment, rollout.deployment)
    is_after = isinstance(rollout.state, Promoted) and verb == "rollback"
    if is_after:
        _check_return(rollout, deployment)
    stand_by = [r for r in tx.all(Replica, deployment=deployment.name, version=rollout.from_version) if r.wanted]
    is_warm = deployment.warm is not None and ready_count(stand_by) > 0  # those that are there answer for the others
    try:
        if step is not None and getattr(rollout.state, "step", None) != step:
            raise Conflict(
                f"rollout {name} is not in step {step + 1}. Now it is so: {sentence(rollout, rollout.state)}",
                f"Look what it does now (`stoker rollout status {name}`), then say {verb} again if it still fits.",
                code="moved-on",
            )
        state = machine.command(
            rollout.spec,
            rollout.state,
            verb,
            now(),
            by,
            is_warm=is_warm,
            is_swap=rollout.is_swap,
            next_event=tx.last_event_id() + 1,
        )
    except Conflict as error:
        if rollout.decided is not None:
            last = rollout.decided
            error.message += f" {last.by} said {last.verb} at {last.at:%H:%M:%S} UTC."
            error.details["decided"] = last.model_dump(mode="json")
        raise
    if is_after:
        deployment.rollout, deployment.warm = rollout.name, None
        tx.save(deployment)
    if isinstance(state, Promoted):  # the way back was called off
        _end(tx, rollout, state, deployment, by)
    rollout.enter(state)
    rollout.led_by = by
    rollout.decided = Decision(verb=verb, by=by, at=now())
    if isinstance(state, RollingBack | Returning):
        rollout.verdict_at, rollout.restored_at = now(), None
    reason = {"pause": "Paused", "resume": "Resumed", "approve": "Approved", "promote": "Promoting"}.get(
        verb, "Returning" if isinstance(state, Returning) else "Aborting"
    )
    because = getattr(state, "because", "")
    message = f"{name}: {by} said {verb}; {sentence(rollout, state).removeprefix(f'{name}: ')}"
    tx.save(rollout, f"Rollout{reason}", message, by=by, because=because, **_evidence(rollout))
    return rollout


def _check_return(rollout: Rollout, deployment: Deployment) -> None:
    """See whether a promoted rollout can be taken back. Raises `Conflict`."""
    if deployment.rollout is not None:
        raise Conflict(
            f"deployment {deployment.name} is in rollout {deployment.rollout} now.",
            f"Wait for its end, or `stoker rollout abort {deployment.rollout}`.",
            code="rollout-active",
        )
    if deployment.deleting or deployment.version != rollout.to_version:
        raise Conflict(
            f"deployment {deployment.name} serves version {deployment.version} now, which {rollout.name} didn't bring.",
            f"To move it: `stoker rollout start {deployment.name} --to {rollout.from_version}`.",
        )


def _evidence(rollout: Rollout) -> dict[str, Any]:
    """What an event of a decision says beside its sentence."""
    return {
        "step": getattr(rollout.state, "step", None),
        "readings": [r.model_dump(mode="json") for r in rollout.readings],
        "contention": [r.model_dump(mode="json") for r in rollout.contention],
        "arms": {name: stats.model_dump(mode="json") for name, stats in rollout.arms.items()},
        "exposure": rollout.exposure.model_dump(mode="json"),
    }


def keep_readings(tx: Transaction, rollout: Rollout, *, tells: bool) -> None:
    """Keep what the guards say; with an event if *tells*, and when stable began to suffer."""
    current = tx.get(Rollout, rollout.name)
    if current.state != rollout.state:
        return
    suffered, suffers = _verdicts(current.contention).count("fail"), _verdicts(rollout.contention).count("fail")
    for field in ("arms", "readings", "contention", "distributions", "exposure"):
        setattr(current, field, getattr(rollout, field))
    if suffers > suffered:
        reasons = [r.verdict.reason for r in rollout.contention if r.verdict.verdict == "fail"]
        message = f"{rollout.name}: {'. Also, '.join(reasons)}."
        tx.save(current, "RolloutContended", message, by="guards", **_evidence(rollout))
    told = ", ".join(f"{guard_subject(r.guard)} {_WORDS[r.verdict.verdict]}" for r in rollout.readings)
    verdicts = _verdicts(rollout.readings)
    reason = "GuardsRead" if tells else ""
    tx.save(current, reason, f"{rollout.name}: {told}.", verdicts=verdicts, by="guards", **_evidence(rollout))


Said = tuple[list[str], list[str]]


def said(rollout: Rollout) -> Said:
    """The verdicts of its guards, and those of contention."""
    return _verdicts(rollout.readings), _verdicts(rollout.contention)


def _verdicts(readings: Sequence[GuardReading]) -> list[str]:
    return [r.verdict.verdict for r in readings]


def keep_state(tx: Transaction, rollout: Rollout, state: RolloutState, verdict: Verdict | None, by: str) -> bool:
    """Keep the decision, unless a person was faster; the end of a rollout and what it leaves are one change."""
    current = tx.get(Rollout, rollout.name)
    if current.state != rollout.state:
        return False
    if isinstance(state, Stepping | Paused | Promoted):
        state = state.model_copy(update={"began": tx.last_event_id() + 1})
    rollout.verdict_at, rollout.restored_at, rollout.decided = current.verdict_at, current.restored_at, current.decided
    was_promoted = isinstance(current.state, Promoted)
    was_returning = isinstance(current.state, Returning)
    rollout.enter(state)
    if isinstance(state, RolledBack | Aborted):  # reached only when the gateway said that it follows
        rollout.restored_at = rollout.restored_at or now()
    if isinstance(state, RollingBack) and not was_returning:
        rollout.verdict_at, rollout.restored_at = now(), None
    deployment = tx.get(Deployment, rollout.deployment)
    if was_promoted and isinstance(state, RollingBack):
        if deployment.rollout is not None or deployment.deleting or deployment.version != rollout.to_version:
            return False
        deployment.rollout, deployment.warm = rollout.name, None
        tx.save(deployment)
    rollout.led_by = by
    if isinstance(state, Promoted | RolledBack | Aborted):
        _end(tx, rollout, state, deployment, by)
    tx.save(
        rollout,
        REASONS[type(state)],
        sentence(rollout, state),
        by=by,
        verdict=verdict.verdict if verdict else None,
        because=getattr(state, "because", ""),
        **_evidence(rollout),
    )
    return True


def _end(tx: Transaction, rollout: Rollout, state: RolloutState, deployment: Deployment, by: str) -> None:
    """What the end of a rollout leaves of its deployment."""
    served = deployment.version
    deployment.rollout = None
    deployment.version = rollout.to_version if isinstance(state, Promoted) else rollout.from_version
    if deployment.version != served:
        deployment.previous_version = served
    if isinstance(state, Promoted) and state.warm_until is not None:
        deployment.warm = Warm(
            version=rollout.from_version, until=state.warm_until, rollout=rollout.name, rests=rollout.is_swap
        )
    tx.save(deployment, "DeploymentServes", f"{deployment.name} serves version {deployment.version}.", by=by)
