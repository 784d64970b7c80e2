"""What applying, and deleting, a deployment does. Each function runs inside the transaction that it is given."""

from __future__ import annotations

from stoker.errors import Conflict
from stoker.types.serving import Deployment, DeploymentSpec, Pending, Replica
from stokerd.registry.models import resolve_version
from stokerd.serving.engines import check_engine
from stokerd.store.store import Transaction


def apply_deployment(tx: Transaction, spec: DeploymentSpec) -> None:
    """Keep *spec*. Raises `NotFound` (model, version), `InvalidSpec`, or `Conflict`.

    The same spec again revives replicas that were given up. A changed engine brings up new replicas beside the old
    ones, which stop when as many new ones are ready.
    """
    version = resolve_version(tx, spec.model, spec.version)
    check_engine(spec)
    deployment = tx.find(Deployment, spec.name)
    if deployment is None:
        created = Deployment(name=spec.name, spec=spec, version=version.number)
        tx.save(created, "DeploymentCreated", f"deployment {spec.name} of {version.name} was created.")
        return
    if deployment.deleting:
        raise Conflict(f"deployment {spec.name} is being deleted.", "Apply it again when it is gone.")
    if deployment.spec == spec:
        _revive(tx, deployment)
        return
    if deployment.rollout is not None:
        raise Conflict(
            f"deployment {spec.name} is in rollout {deployment.rollout}.",
            f"Wait for its end, or `stoker rollout abort {deployment.rollout}`.",
            code="rollout-active",
        )
    if spec.model != deployment.spec.model:
        raise Conflict(f"deployment {spec.name} serves model {deployment.spec.model}.", "Use another deployment name.")
    if spec.version != deployment.spec.version:
        raise Conflict(
            f"deployment {spec.name} serves version {deployment.version}; versions change by rollout.",
            f"Leave `version: {deployment.spec.version}`, and `stoker rollout start {spec.name} --to {spec.version}`.",
        )
    deployment.spec = spec
    tx.save(deployment, "DeploymentChanged", f"deployment {spec.name} was changed.")


def _revive(tx: Transaction, deployment: Deployment) -> None:
    """Replicas that were given up get another chance when their deployment is applied again."""
    for replica in tx.all(Replica, deployment=deployment.name, phase="failed"):
        replica.failures = 0
        replica.state = Pending()
        tx.save(replica, "ReplicaRevived", f"{replica.name} is tried again, as {deployment.name} was applied again.")


def delete_deployment(tx: Transaction, name: str) -> None:
    """Let it drain, stop and be forgotten. Raises `NotFound`, or `Conflict` during a rollout."""
    deployment = tx.get(Deployment, name)
    if deployment.rollout is not None:
        raise Conflict(
            f"deployment {name} is in rollout {deployment.rollout}.",
            f"First `stoker rollout abort {deployment.rollout}`.",
            code="rollout-active",
        )
    if not deployment.deleting:
        deployment.deleting = True
        deployment.phase = "deleting"
        tx.save(deployment, "DeploymentDeleting", f"deployment {name} drains and stops.")
