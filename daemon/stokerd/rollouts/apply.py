"""What applying a rollout does: it starts; and what it would do."""

from __future__ import annotations

from stoker.errors import Conflict
from stoker.types.base import now
from stoker.types.keys import ApiKey
from stoker.types.registry import Evaluation, Version
from stoker.types.rollouts import FINAL_PHASES, Preparing, Rollout, RolloutPlan, RolloutSpec
from stoker.types.serving import Deployment
from stokerd.registry.models import resolve_version
from stokerd.rollouts.fit import LateTraffic
from stokerd.rollouts.planning import Planner
from stokerd.store.store import Query, Store, Transaction


def apply_rollout(tx: Transaction, spec: RolloutSpec, planner: Planner, traffic: LateTraffic, by: str) -> None:
    """Have *by* (a person's name) start it. The same spec again changes nothing; a changed one is refused.

    Raises `NotFound` or `Conflict`.
    """
    known = tx.find(Rollout, spec.name)
    if known is not None:
        if known.spec == spec:
            return
        if known.phase in FINAL_PHASES:
            hint = "Give this one another name."
        else:
            hint = "What goes on can't be changed: abort it, or wait for its end, and give this one another name."
        who = f", which {known.started_by} started {_moment(known)}" if known.started_by else ""
        raise Conflict(f"there is a rollout {spec.name} already ({known.phase}{who}), with another spec.", hint)
    deployment, version = check(tx, spec)
    plan = planner.plan(tx, spec, deployment, version, traffic)
    if not plan.fits:
        raise Conflict(plan.says, "`stoker rollout start --dry-run` shows the whole plan.", code="no-room")
    rollout = Rollout(
        name=spec.name,
        spec=spec,
        deployment=deployment.name,
        from_version=deployment.version,
        to_version=version.number,
        state=Preparing(since=now()),
        plan=plan,
        started_by=by,
        led_by=by,
        began=tx.last_event_id() + 1,
    )
    deployment.rollout, deployment.warm = rollout.name, None
    tx.save(deployment)
    message = f"{rollout.name}: {deployment.name} moves from version {rollout.from_version} to {rollout.to_version}."
    tx.save(rollout, "RolloutStarted", message, by=by, plan=plan.model_dump(mode="json"))


async def dry_run(store: Store, planner: Planner, spec: RolloutSpec) -> RolloutPlan:
    """How the rollout of *spec* would go; nothing is started. Raises as `apply_rollout` does, but for want of room."""
    traffic = await planner.late_traffic(spec.deployment)
    return await store.read(lambda q: planner.plan(q, spec, *check(q, spec), traffic))


def check(query: Query, spec: RolloutSpec) -> tuple[Deployment, Version]:
    """The deployment that *spec* speaks of, and the version that it is to serve. Raises `NotFound` or `Conflict`."""
    deployment = query.get(Deployment, spec.deployment)
    if deployment.deleting:
        raise Conflict(f"deployment {spec.deployment} is being deleted.", "Apply it again when it is gone.")
    if deployment.rollout is not None:
        other = query.find(Rollout, deployment.rollout)
        who = f", which {other.started_by} started {_moment(other)}" if other is not None and other.started_by else ""
        raise Conflict(
            f"deployment {spec.deployment} is in rollout {deployment.rollout} already{who}.",
            f"Wait for its end, or `stoker rollout abort {deployment.rollout}`.",
            code="rollout-active",
        )
    for target in spec.targets:
        if target.key:
            query.get(ApiKey, target.key)  # a name that is mistyped would expose nobody, and say nothing
    version = resolve_version(query, deployment.spec.model, spec.to)
    if version.number == deployment.version:
        raise Conflict(f"deployment {spec.deployment} serves {version.name} already.", "There is nothing to roll out.")
    for other_name in filter(None, (spec.embeddings, spec.judge.deployment if spec.judge else None)):
        query.get(Deployment, other_name)
    failed = failed_gates(query, version.model, version.number)
    if failed:
        raise Conflict(
            f"version {version.name} {failed}.",
            f"`stoker evaluate {version.name} GATE --passed` if that is mended.",
            code="gate-failed",
        )
    return deployment, version


def failed_gates(query: Query, model: str, number: int) -> str:
    """Which gates a version failed, who said so and when: the end of a sentence. Empty: none."""
    failed = [e for e in query.all(Evaluation, model=model, number=number) if e.passed is False]
    said = [f"{e.metric} ({e.by}, {e.at:%Y-%m-%d %H:%M} UTC){': ' + e.note if e.note else ''}" for e in failed]
    return f"failed a gate: {'; '.join(said)}" if said else ""


def _moment(rollout: Rollout) -> str:
    return f"{rollout.created_at:%Y-%m-%d %H:%M:%S} UTC"
