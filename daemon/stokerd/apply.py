"""`apply`: all specs or none, in one transaction; a dry run does the same and takes it back."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

from pydantic import BaseModel

from stoker.errors import StokerError
from stoker.types.apply import AnySpec, Applied, ApplyRequest
from stoker.types.base import Spec
from stoker.types.registry import Model, ModelSpec
from stoker.types.rollouts import Rollout, RolloutSpec
from stoker.types.serving import Deployment, DeploymentSpec
from stoker.types.training import Job, JobSpec, Schedule, ScheduleSpec
from stokerd.registry.apply import apply_model
from stokerd.rollouts.apply import apply_rollout
from stokerd.rollouts.planning import Planner
from stokerd.serving.apply import apply_deployment
from stokerd.store.store import Store, Transaction
from stokerd.training.apply import apply_job, apply_schedule

Action = Literal["created", "changed", "unchanged"]
_ORDER: dict[type[Spec], int] = {ModelSpec: 0, JobSpec: 1, ScheduleSpec: 2, DeploymentSpec: 3, RolloutSpec: 4}


class _TakeBack(Exception):
    def __init__(self, applied: list[Applied]) -> None:
        self.applied = applied


async def apply(store: Store, request: ApplyRequest, planner: Planner, by: str) -> list[Applied]:
    """Keep the specs, for *by* (a person's name), and say what each one changed, in the order of the request.

    They are applied in the order in which they need each other, so one file may hold a model and what uses it.
    Raises the error of the first spec that is refused; then none was kept.
    """
    ordered = sorted(enumerate(request.specs), key=lambda item: _ORDER[type(item[1])])

    deployments = {spec.deployment for spec in request.specs if isinstance(spec, RolloutSpec)}
    traffic = {name: await planner.late_traffic(name) for name in deployments}

    def start(tx: Transaction, spec: RolloutSpec) -> None:
        apply_rollout(tx, spec, planner, traffic[spec.deployment], by)

    def work(tx: Transaction) -> list[Applied]:
        results: dict[int, Applied] = {}
        for index, spec in ordered:
            before = _kept(tx, spec)
            try:
                _apply(tx, spec, start, by)
            except StokerError as error:
                error.details.setdefault("kind", spec.kind)
                error.details.setdefault("name", spec.name)
                raise
            after = _kept(tx, spec)
            action: Action = "created" if before is None else "unchanged" if before == after else "changed"
            changes = _difference(before, after)
            results[index] = Applied(kind=spec.kind, name=spec.name, action=action, changes=changes)
        applied = [results[i] for i in range(len(results))]
        if request.dry_run:
            raise _TakeBack(applied)
        return applied

    try:
        return await store.write(work)
    except _TakeBack as taken:
        return taken.applied


def _apply(tx: Transaction, spec: AnySpec, start: Callable[[Transaction, RolloutSpec], None], by: str) -> None:
    match spec:
        case JobSpec():
            apply_job(tx, spec)
        case ScheduleSpec():
            apply_schedule(tx, spec)
        case ModelSpec():
            apply_model(tx, spec)
        case DeploymentSpec():
            apply_deployment(tx, spec, by)
        case RolloutSpec():
            start(tx, spec)


def _kept(tx: Transaction, spec: AnySpec) -> BaseModel | None:
    kinds: dict[str, type[Job | Schedule | Model | Deployment | Rollout]] = {
        "job": Job,
        "schedule": Schedule,
        "model": Model,
        "deployment": Deployment,
        "rollout": Rollout,
    }
    found = tx.find(kinds[spec.kind], spec.name)
    return None if found is None else found.spec


def _difference(before: BaseModel | None, after: BaseModel | None) -> dict[str, tuple[Any, Any]]:
    old = {} if before is None else _flat(before.model_dump(mode="json"))
    new = {} if after is None else _flat(after.model_dump(mode="json"))
    if before is None:
        new = {k: v for k, v in new.items() if v not in (None, {}, [], "")}
    return {k: (old.get(k), new.get(k)) for k in sorted(old | new) if old.get(k) != new.get(k)}


def _flat(value: Any, path: str = "") -> dict[str, Any]:
    if isinstance(value, dict) and value:
        return {k: v for key, inner in value.items() for k, v in _flat(inner, f"{path}.{key}" if path else key).items()}
    return {path: value}
