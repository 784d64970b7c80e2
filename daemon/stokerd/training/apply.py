"""What applying, and deleting, a job or schedule does. Each function runs inside the transaction that it is given."""

from __future__ import annotations

from pathlib import Path

from stoker.errors import Conflict, InvalidSpec
from stoker.types.base import now
from stoker.types.registry import Model
from stoker.types.training import ACTIVE_PHASES, Job, JobSpec, Run, Schedule, ScheduleSpec
from stokerd.store.store import Transaction
from stokerd.training.command import check_command
from stokerd.training.schedules import trigger_of


def apply_job(tx: Transaction, spec: JobSpec) -> None:
    """Keep *spec*. Raises `InvalidSpec` or `NotFound`."""
    check_command(spec)
    if spec.code is not None and not Path(spec.code).is_absolute():
        raise InvalidSpec(f"job {spec.name}: code: the path {spec.code} is relative.", "Give an absolute one.")
    if spec.code is not None and not Path(spec.code).is_dir():
        raise InvalidSpec(
            f"job {spec.name}: code: there is no folder {spec.code}.", "Relative paths start at the spec file's folder."
        )
    if spec.registers is not None:
        tx.get(Model, spec.registers.model)
    job = tx.find(Job, spec.name)
    if job is None:
        tx.save(Job(name=spec.name, spec=spec), "JobCreated", f"job {spec.name} was created.")
    elif job.spec != spec:
        job.spec = spec
        tx.save(job, "JobChanged", f"job {spec.name} was changed; runs from now on follow it.")


def apply_schedule(tx: Transaction, spec: ScheduleSpec) -> None:
    """Keep *spec*. Raises `InvalidSpec` or `NotFound`."""
    job = tx.get(Job, spec.job)
    trigger_of(spec, now())
    unknown = sorted(set(spec.params) - set(job.spec.params))
    if unknown:
        raise InvalidSpec(
            f"schedule {spec.name}: params: job {spec.job} has no param {unknown[0]!r}.",
            f"It has: {', '.join(sorted(job.spec.params)) or 'none'}.",
        )
    schedule = tx.find(Schedule, spec.name)
    if schedule is None:
        tx.save(Schedule(name=spec.name, spec=spec), "ScheduleCreated", f"schedule {spec.name} was created.")
    elif schedule.spec != spec:
        schedule.spec = spec
        schedule.spec_set_at = now()
        tx.save(schedule, "ScheduleChanged", f"schedule {spec.name} was changed.")


def delete_job(tx: Transaction, name: str, by: str) -> None:
    """Forget a job; its runs stay. Raises `NotFound`, or `Conflict` while something needs it."""
    job = tx.get(Job, name)
    users = [s.name for s in tx.all(Schedule) if s.spec.job == name]
    if users:
        raise Conflict(f"job {name} is fired by schedule {users[0]}.", f"First `stoker delete schedule {users[0]}`.")
    active = tx.all(Run, job=name, phase=ACTIVE_PHASES)
    if active:
        raise Conflict(f"job {name} has a run that goes on: {active[0].name}.", f"`stoker cancel {active[0].name}`.")
    tx.delete(job, "JobDeleted", f"job {name} was deleted; its runs stay.", by=by)


def delete_schedule(tx: Transaction, name: str, by: str) -> None:
    """Forget a schedule. Raises `NotFound`."""
    tx.delete(tx.get(Schedule, name), "ScheduleDeleted", f"schedule {name} was deleted.", by=by)
