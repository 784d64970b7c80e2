"""What applying a rollout does: it starts. Runs inside the transaction that it is given."""

from __future__ import annotations

from stoker.errors import Conflict
from stoker.types.base import now
from stoker.types.rollouts import Preparing, Rollout, RolloutSpec
from stoker.types.serving import Deployment
from stokerd.registry.models import resolve_version
from stokerd.store.store import Transaction


def apply_rollout(tx: Transaction, spec: RolloutSpec) -> None:
    """Start it. The same spec again changes nothing; a changed one is refused. Raises `NotFound` or `Conflict`."""
    known = tx.find(Rollout, spec.name)
    if known is not None:
        if known.spec == spec:
            return
        raise Conflict(
            f"there is a rollout {spec.name} already ({known.phase}), with another spec.", "Give this one another name."
        )
    deployment = tx.get(Deployment, spec.deployment)
    if deployment.deleting:
        raise Conflict(f"deployment {spec.deployment} is being deleted.", "Apply it again when it is gone.")
    if deployment.rollout is not None:
        raise Conflict(
            f"deployment {spec.deployment} is in rollout {deployment.rollout} already.",
            f"Wait for its end, or `stoker rollout abort {deployment.rollout}`.",
            code="rollout-active",
        )
    version = resolve_version(tx, deployment.spec.model, spec.to)
    if version.number == deployment.version:
        raise Conflict(f"deployment {spec.deployment} serves {version.name} already.", "There is nothing to roll out.")
    rollout = Rollout(
        name=spec.name,
        spec=spec,
        deployment=deployment.name,
        from_version=deployment.version,
        to_version=version.number,
        state=Preparing(since=now()),
    )
    deployment.rollout = rollout.name
    tx.save(deployment)
    message = f"{rollout.name}: {deployment.name} moves from version {rollout.from_version} to {rollout.to_version}."
    tx.save(rollout, "RolloutStarted", message)
