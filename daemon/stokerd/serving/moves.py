"""How replicas and deployments change in the database, whatever serves them: guarded moves, retirement, health."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from stoker.types.base import now
from stoker.types.rollouts import Rollout
from stoker.types.serving import Deployment, Replica, ReplicaFailed, ReplicaState
from stoker.types.supervision import Restart
from stokerd.serving.plan import after_failure
from stokerd.store.store import Query, Store, Transaction


def rollout_of(query: Query, deployment: Deployment) -> Rollout | None:
    """The rollout that *deployment* is in; None: it is in none."""
    return query.find(Rollout, deployment.rollout) if deployment.rollout else None


async def move(
    store: Store,
    replica: Replica,
    state: ReplicaState,
    reason: str = "",
    message: str = "",
    *,
    before: Replica | None = None,
    **data: object,
) -> None:
    """Keep *replica* in *state*, unless somebody else moved it meanwhile: from *before*, where it was changed since."""
    expected = (before or replica).state

    def save(tx: Transaction) -> None:
        current = tx.find(Replica, replica.name)
        if current is not None and current.state == expected:
            moved = replica.model_copy(update={"state": state, "wanted": current.wanted, "rests": current.rests})
            tx.save(moved, reason, message, **data)

    await store.write(save)


async def fail(store: Store, replica: Replica, restart: Restart, why: str, **data: object) -> None:
    """Count a failure of *replica*, and let it back off, or give it up."""
    before = replica.model_copy()
    replica.failures += 1
    state = after_failure(replica, restart, why, now())
    reason = "ReplicaFailed" if isinstance(state, ReplicaFailed) else "ReplicaBackingOff"
    await move(store, replica, state, reason, f"{replica.name}: {state.message}", before=before, **data)


def retire(tx: Transaction, replicas: Sequence[Replica], names: Collection[str]) -> None:
    """Say of those of *replicas* that are named that they are no longer wanted."""
    for replica in replicas:
        if replica.name in names:
            replica.wanted = False
            tx.save(replica, "ReplicaRetired", f"{replica.name} is no longer wanted.")


def rest(tx: Transaction, replicas: Sequence[Replica], names: Collection[str]) -> None:
    """Say of those of *replicas* that are named that they are to sleep."""
    for replica in replicas:
        if replica.name in names:
            replica.rests = True
            tx.save(replica, "ReplicaRests", f"{replica.name} gets no more requests, and is put to sleep.")


def recall(tx: Transaction, replicas: Sequence[Replica], names: Collection[str]) -> None:
    """Say of those of *replicas* that are named that they are to serve again."""
    for replica in replicas:
        if replica.name in names:
            replica.rests = False
            tx.save(replica, "ReplicaRecalled", f"{replica.name} is to serve again.")


def tell_health(tx: Transaction, deployment: Deployment, phase: str, message: str) -> None:
    """Keep how *deployment* does, with an event when its phase changes."""
    reason = f"Deployment{phase.capitalize()}" if deployment.phase != phase else ""
    deployment.phase, deployment.message = phase, message  # type: ignore[assignment]
    tx.save(deployment, reason, f"deployment {deployment.name} is {phase}{': ' + message if message else ''}.")
