"""What applying, and deleting, a deployment does. Each function runs inside the transaction that it is given."""

from __future__ import annotations

from stoker.errors import Conflict, InvalidSpec
from stoker.types.serving import AdapterEngine, Deployment, DeploymentSpec, Pending, Replica, VllmEngine
from stokerd.registry.models import resolve_version
from stokerd.serving.engines import check_engine
from stokerd.serving.engines.vllm import takes_adapters
from stokerd.store.store import Transaction


def apply_deployment(tx: Transaction, spec: DeploymentSpec, by: str) -> None:
    """Keep *spec*, for *by* (a person's name). Raises `NotFound` (model, version), `InvalidSpec`, or `Conflict`.

    The same spec again revives replicas that were given up. A changed engine brings up new replicas beside the old
    ones, which stop when as many new ones are ready.
    """
    version = resolve_version(tx, spec.model, spec.version)
    check_engine(spec)
    _check_names(tx, spec)
    if isinstance(spec.engine, AdapterEngine):
        _check_base(tx, spec, spec.engine.base)
    deployment = tx.find(Deployment, spec.name)
    if deployment is None:
        created = Deployment(name=spec.name, spec=spec, version=version.number)
        said = f"deployment {spec.name} of {version.name} was created."
        tx.save(created, "DeploymentCreated", said, version=version.number, by=by)
        return
    if deployment.deleting:
        raise Conflict(f"deployment {spec.name} is being deleted.", "Apply it again when it is gone.")
    if deployment.spec == spec:
        _revive(tx, deployment)
        return
    if deployment.rollout is not None:
        raise Conflict(
            f"deployment {spec.name} is in rollout {deployment.rollout}, which compares versions under one "
            "spec: it can't be changed meanwhile.",
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
    tx.save(deployment, "DeploymentChanged", f"deployment {spec.name} was changed.", by=by)


def _check_names(tx: Transaction, spec: DeploymentSpec) -> None:
    """See that each name by which clients may ask for it is its own. Raises `Conflict`."""
    if len({spec.name, *spec.aliases}) <= len(spec.aliases):
        raise InvalidSpec(f"deployment {spec.name}: aliases: a name is given twice.", "Name each once.")
    for other in tx.all(Deployment):
        taken = {other.name, *other.spec.aliases} & {spec.name, *spec.aliases}
        if other.name != spec.name and taken:
            raise Conflict(
                f"deployment {other.name} is known as {min(taken)} already.", "Choose another name.", code="name-taken"
            )


def _check_base(tx: Transaction, spec: DeploymentSpec, name: str) -> None:
    """See whether an adapter can be loaded there. Raises `NotFound` or `InvalidSpec`."""
    base = tx.get(Deployment, name)
    if not isinstance(base.spec.engine, VllmEngine):
        raise InvalidSpec(
            f"deployment {spec.name}: engine.base: {name} is not served by vLLM.",
            "Name a deployment whose engine is vllm.",
        )
    if not takes_adapters(base.spec.engine.args):
        raise InvalidSpec(
            f"deployment {spec.name}: engine.base: the servers of {name} take no adapters.",
            f"Add --enable-lora to engine.args of {name}, and apply that first.",
        )


def _revive(tx: Transaction, deployment: Deployment) -> None:
    """Replicas that were given up get another chance when their deployment is applied again."""
    for replica in tx.all(Replica, deployment=deployment.name, phase="failed"):
        replica.failures = 0
        replica.state = Pending()
        tx.save(replica, "ReplicaRevived", f"{replica.name} is tried again, as {deployment.name} was applied again.")


def delete_deployment(tx: Transaction, name: str, by: str) -> None:
    """Let it drain, stop and be forgotten. Raises `NotFound`, or `Conflict` during a rollout."""
    deployment = tx.get(Deployment, name)
    if deployment.rollout is not None:
        raise Conflict(
            f"deployment {name} is in rollout {deployment.rollout}.",
            f"First `stoker rollout abort {deployment.rollout}`.",
            code="rollout-active",
        )
    engines = {d.name: d.spec.engine for d in tx.all(Deployment)}
    adapters = [other for other, e in engines.items() if isinstance(e, AdapterEngine) and e.base == name]
    if adapters:
        raise Conflict(
            f"deployment {name} serves the adapters {', '.join(adapters)}.", "Delete these first.", code="has-adapters"
        )
    if not deployment.deleting:
        deployment.deleting = True
        deployment.phase = "deleting"
        tx.save(deployment, "DeploymentDeleting", f"deployment {name} drains and stops.", by=by)
