"""Jobs and the runs made of them: everything that a run depends on is frozen when it is made."""

from __future__ import annotations

import asyncio
import shutil
from pathlib import Path
from typing import Any

from stoker.errors import Conflict, Invalid, Unavailable
from stoker.types.base import now
from stoker.types.training import Cancelled, Cancelling, Job, Queued, Run, Running
from stokerd.registry.models import resolve_reference
from stokerd.store.content import ContentStore
from stokerd.store.store import Query, Store, Transaction
from stokerd.training.datasets import resolve_dataset
from stokerd.training.provenance import Provenance


class Jobs:
    """What the API and schedules do with jobs and runs. ``python`` is for jobs that name no interpreter."""

    def __init__(self, store: Store, content: ContentStore, provenance: Provenance, python: str, runs: Path) -> None:
        self._store = store
        self._content = content
        self._provenance = provenance
        self._python = python
        self._folder = runs

    async def create_run(
        self, name: str, params: dict[str, Any], *, trigger: str = "manual", key: str | None = None
    ) -> Run:
        """Queue a run of job *name* with *params* over the job's own.

        *key* makes it idempotent: a run of this job with the same trigger key is given back, not made again. Raises
        `NotFound` (job, dataset, base model, code folder), `Invalid` (a param that the job hasn't), `Unavailable`
        (interpreter, disk).
        """
        job = await self._store.read(lambda q: q.get(Job, name))
        spec = job.spec
        unknown = sorted(set(params) - set(spec.params))
        if unknown:
            raise Invalid(
                f"job {name} has no param {unknown[0]!r}.", f"It has: {', '.join(sorted(spec.params)) or 'none'}."
            )
        await self._store.read(lambda q: self._resolve(q, job))  # refuse early, before anything is copied
        python = self.python_of(job)
        environment = await self._provenance.environment(python)
        code = commit = None
        if spec.code is not None:
            folder = Path(spec.code)
            commit = await self._provenance.commit(folder)
            code = (await asyncio.to_thread(self._content.add, folder, is_code=True)).digest

        def save(tx: Transaction) -> Run:
            if key is not None:
                same = tx.all(Run, job=name, trigger=key)
                if same:
                    return same[0]
            current = tx.get(Job, name)
            dataset, base = self._resolve(tx, current)
            current.runs = tx.largest(Run, "number", job=name) + 1  # an earlier job of that name may have left runs
            run = Run(
                name=f"{name}-{current.runs}",
                job=name,
                number=current.runs,
                spec=spec,
                params={**spec.params, **params},
                trigger=key or trigger,
                code_digest=code,
                code_commit=commit,
                dataset_version=dataset and dataset.name,
                dataset_digest=dataset and dataset.digest,
                base_version=base and base.name,
                environment=environment | {"executable": python},
                folder=str(self._folder / f"{name}-{current.runs}"),
            )
            tx.save(current)
            tx.save(run, "RunQueued", f"{run.name} waits for its turn ({run.trigger}).")
            return run

        return await self._store.write(save)

    def python_of(self, job: Job) -> str:
        """The absolute path of the interpreter of the job's runs. Raises `Unavailable`."""
        name = job.spec.python or self._python
        found = shutil.which(name)
        if found is None:
            raise Unavailable(
                f"job {job.name}: there is no interpreter {name}.",
                "Name one that exists: `python` in the job, or training.python in stoker.yaml.",
                code="python-unusable",
            )
        return str(Path(found).absolute())

    @staticmethod
    def _resolve(query: Query, job: Job) -> tuple[Any, Any]:
        dataset = resolve_dataset(query, job.spec.dataset) if job.spec.dataset else None
        base = resolve_reference(query, job.spec.base) if job.spec.base else None
        return dataset, base

    async def cancel(self, name: str) -> Run:
        """Ask for the end of a run. Raises `NotFound`, or `Conflict` when it has ended."""

        def save(tx: Transaction) -> Run:
            run = tx.get(Run, name)
            match run.state:
                case Queued():
                    run.state = Cancelled(finished_at=now())
                    tx.save(run, "RunCancelled", f"{name} was cancelled before it started.")
                case Running(process=process, started_at=started_at):
                    run.state = Cancelling(process=process, started_at=started_at, because="cancelled")
                    tx.save(run, "RunCancelling", f"{name} is being stopped.")
                case Cancelling():
                    pass
                case _:
                    raise Conflict(f"run {name} has ended already ({run.phase}).", "There is nothing to cancel.")
            return run

        return await self._store.write(save)
