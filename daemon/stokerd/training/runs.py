"""Brings runs forward: queued, running, ended. It may die between any two lines and goes on where the rows say."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
from datetime import datetime
from pathlib import Path

from stoker.errors import StokerError, Unavailable
from stoker.types.base import now
from stoker.types.registry import Lineage, Version
from stoker.types.training import (
    ACTIVE_PHASES,
    Cancelled,
    Cancelling,
    DatasetVersion,
    Failed,
    Queued,
    Run,
    RunLost,
    Running,
    Succeeded,
)
from stokerd.clock import Elapsed
from stokerd.devices import leases
from stokerd.devices.handback import Handbacks
from stokerd.devices.inventory import Inventory
from stokerd.processes.environment import inherited
from stokerd.processes.kernel import age_seconds
from stokerd.processes.logs import tail_lines
from stokerd.processes.states import Absent, Alive, Command, Exited, Lost
from stokerd.processes.supervisor import Supervisor
from stokerd.registry.models import Registry
from stokerd.store.content import ContentStore
from stokerd.store.store import Query, Store, Transaction
from stokerd.tracking.reader import Tracking
from stokerd.training.command import Places, command_of, newest_checkpoint
from stokerd.training.transitions import after_failure, how_it_ended, is_cut_off, longest_wait

log = logging.getLogger(__name__)
PROCESS_PREFIX = "run-"
GRACE_SECONDS = 10.0
_LOOK_SECONDS = 1.0  # where nothing tells of what is waited for
_HANDBACK_SECONDS = 0.5  # the driver is asked no sooner who is on a device
_TICK_SECONDS = 0.02  # ages of processes are counted in ticks of the kernel


class Runs:
    """The reconciler of runs. ``library`` is the folder that makes ``import stoker`` work in training scripts."""

    def __init__(
        self,
        store: Store,
        content: ContentStore,
        supervisor: Supervisor,
        inventory: Inventory,
        tracking: Tracking,
        registry: Registry,
        *,
        concurrent: int,
        library: Path,
    ) -> None:
        self._store = store
        self._content = content
        self._supervisor = supervisor
        self._inventory = inventory
        self._tracking = tracking
        self._registry = registry
        self._concurrent = concurrent
        self._library = library
        self._delays: dict[str, str] = {}
        self._elapsed = Elapsed()
        self._handbacks = Handbacks("run", store, inventory)

    async def step(self) -> float | None:
        """Look at each active run once, and take its next step.

        Returns in how many seconds to look again. None where only events can change anything: that a process started
        or ended is told by the supervisor, and each change of a run is an event.
        """
        runs = await self._store.read(lambda q: q.all(Run, phase=ACTIVE_PHASES))
        waits = [await self._advance_safely(run) for run in runs]
        self._handbacks.keep_only({r.name for r in runs})
        kept = {r.state.process for r in runs if isinstance(r.state, Running | Cancelling)}
        if self._supervisor.sweep(PROCESS_PREFIX, kept, GRACE_SECONDS):
            waits.append(_LOOK_SECONDS)
        return min((wait for wait in waits if wait is not None), default=None)

    async def _advance_safely(self, run: Run) -> float | None:
        """Take the step; whatever goes wrong concerns this run alone, and the others go on."""
        try:
            wait = await self._advance(run)
            self._delays.pop(run.name, None)
            return wait
        except Unavailable as error:  # no disk, no file table: nothing is known or decided, so it is tried again
            if self._delays.get(run.name) != error.message:
                self._delays[run.name] = error.message
                message = f"{run.name} is held up, and tried again each second: {error}"
                log.warning("run %s", message)
                with contextlib.suppress(Unavailable):
                    await self._store.write(lambda tx: tx.record("run", run.name, "RunHeldUp", message))
            return _LOOK_SECONDS
        except StokerError as error:
            await self._fail(run, str(error).rstrip("."), None)
        except Exception as error:
            log.exception("run %s", run.name)
            await self._fail(run, f"an error inside Stoker: {error!r}; the daemon's log has more", None)
        return None

    async def _advance(self, run: Run) -> float | None:
        match run.state:
            case Queued(not_before=not_before):
                if (wait := self._elapsed.until(run.name, not_before, longest_wait(run))) > 0:
                    return wait
                claimed = await self._store.write(lambda tx: self._claim(tx, run.name))
                if isinstance(claimed.state, Running):
                    run.state, run.devices = claimed.state, claimed.devices  # the sweep, too, is to know of its process
                    return await self._advance(run)
                return _LOOK_SECONDS if run.spec.devices else None
            case Running(process=process, started_at=started_at):
                match self._supervisor.observe(process):
                    case Absent():
                        self._supervisor.start(process, await self._prepare(run))
                        return _LOOK_SECONDS
                    case Alive(pid=int() as pid):
                        return await self._watch_time(run, pid)
                    case Alive():
                        return _LOOK_SECONDS
                    case Exited() | Lost() if not await self._handbacks.is_done(run.name, run.devices):
                        return _HANDBACK_SECONDS  # the next to use its devices may need what the driver has not back
                    case Exited(exit_code=0, was_asked=False):
                        await self._succeed(run, started_at)
                    case Exited() | Lost() as observed:
                        await self._fail(run, how_it_ended(observed), observed)
            case Cancelling(process=process, because=because):
                match self._supervisor.observe(process):
                    case Alive():
                        self._supervisor.stop(process, GRACE_SECONDS)  # asked again and again, in case its shim hangs
                        return _LOOK_SECONDS
                    case Exited() | Lost() if not await self._handbacks.is_done(run.name, run.devices):
                        return _HANDBACK_SECONDS
                    case ended if because == "timeout":
                        seen = ended if isinstance(ended, Exited | Lost) else None
                        await self._fail(run, f"it ran for longer than its timeout of {run.spec.timeout:g} s", seen)
                    case _:
                        await self._end(run, Cancelled(finished_at=now()), "RunCancelled", f"{run.name} was stopped.")
        return None

    async def _watch_time(self, run: Run, pid: int) -> float | None:
        """See that this attempt runs for no longer than its job allows; a clock that is set doesn't count."""
        try:
            left = None if run.spec.timeout is None else run.spec.timeout - age_seconds(pid)
        except OSError:  # it has ended just now, which is told
            return None
        if left is not None and left <= 0:
            await self._store.write(lambda tx: self._time_out(tx, run.name))
            return None
        return None if left is None else left + _TICK_SECONDS

    def _claim(self, tx: Transaction, name: str) -> Run:
        """Take a slot and devices, in one transaction with the decision to run. Returns the run as it is then."""
        run = tx.get(Run, name)
        if not isinstance(run.state, Queued):
            return run
        busy = len(tx.all(Run, phase={"running", "cancelling"}))
        if busy >= self._concurrent:
            why = f"{busy} run(s) are going on; the limit is {self._concurrent}."
        else:
            devices, why = leases.find(
                tx, self._inventory.devices(), leases.Request(run.spec.devices, run.spec.device_memory)
            )
            if not why:
                run.devices = devices
                run.state = Running(process=f"{PROCESS_PREFIX}{name}-{run.attempt}", started_at=now())
                tx.save(run, "RunStarted", f"{name} started (attempt {run.attempt}).", attempt=run.attempt)
                return run
        if run.state.why != why:
            run.state = Queued(not_before=run.state.not_before, why=why)
            tx.save(run, "RunWaiting", f"{name} waits: {why}")
        return run

    @staticmethod
    def _time_out(tx: Transaction, name: str) -> None:
        run = tx.get(Run, name)
        if isinstance(run.state, Running):
            run.state = Cancelling(process=run.state.process, started_at=run.state.started_at, because="timeout")
            tx.save(run, "RunTimedOut", f"{name} ran for longer than {run.spec.timeout:g} s; it is being stopped.")

    async def _prepare(self, run: Run) -> Command:
        """Lay out the run's folder; the same again changes nothing but a broken copy of the code."""
        folder = Path(run.folder)

        def lay_out(dataset: str | None, base: str | None) -> Places:
            for name in ("output", "artifacts"):
                (folder / name).mkdir(parents=True, exist_ok=True)
            if run.code_digest is None:
                (folder / "code").mkdir(exist_ok=True)
            else:
                self._content.copy(run.code_digest, folder / "code")
            return Places(
                folder=folder,
                python=str(run.environment["executable"]),
                dataset=self._content.folder(dataset) if dataset else None,
                base=self._content.folder(base) if base else None,
                library=self._library,
            )

        def digests(query: Query) -> tuple[str | None, str | None]:
            dataset = query.get(DatasetVersion, run.dataset_version).digest if run.dataset_version else None
            return dataset, query.get(Version, run.base_version).digest if run.base_version else None

        dataset, base = await self._store.read(digests)
        places = await asyncio.to_thread(lay_out, dataset, base)
        return command_of(run, places, inherited(os.environ))

    async def _succeed(self, run: Run, started_at: datetime) -> None:
        registered = None
        if run.spec.registers is not None:
            weights = Path(run.folder) / "output" / run.spec.registers.path
            if not weights.exists():
                await self._fail(run, f"it exited with code 0, but left no {weights} to register", None)
                return
            version = await self._registry.register(
                run.spec.registers.model, weights, await self._lineage(run), run.spec.registers.aliases
            )
            registered = version.name
        state = Succeeded(started_at=started_at, finished_at=now(), registered=registered)
        made = f" and made {registered}" if registered else ""
        await self._end(run, state, "RunSucceeded", f"{run.name} succeeded{made}.")

    async def _lineage(self, run: Run) -> Lineage:
        logged, metrics = await self._tracking.summary(Path(run.folder))
        return Lineage(
            run=run.name,
            code_commit=run.code_commit,
            code_digest=run.code_digest,
            dataset_version=run.dataset_version,
            dataset_digest=run.dataset_digest,
            base_version=run.base_version,
            params={**logged, **run.params},
            metrics=metrics,
            environment=run.environment,
        )

    async def _fail(self, run: Run, why: str, observed: Exited | Lost | None) -> None:
        if isinstance(run.state, Cancelling) and run.state.because == "cancelled":
            await self._end(run, Cancelled(finished_at=now()), "RunCancelled", f"{run.name} was stopped; {why}.")
            return
        state = after_failure(run, why, observed, now())
        lines = await asyncio.to_thread(tail_lines, Path(run.folder) / "log", 5)
        if isinstance(state, Queued):
            reason = "RunLost" if is_cut_off(run, observed) else "RunRetrying"
            run.attempt += 1
            wait = (state.not_before - now()).total_seconds()
            run.checkpoint = await self._checkpoint(run)
            point = f", from {Path(run.checkpoint).name}" if run.checkpoint else ""
            await self._end(run, state, reason, f"{run.name}: {why}; again in {wait:.0f} s{point}.", log=lines)
        elif isinstance(state, RunLost):
            await self._end(run, state, "RunLost", f"{run.name} was lost: {state.message}", log=lines)
        else:
            await self._end(run, state, "RunFailed", f"{run.name} failed: {state.message}", log=lines)

    @staticmethod
    async def _checkpoint(run: Run) -> str | None:
        """What the next attempt goes on from."""
        if run.spec.checkpoint is None:
            return None
        found = await asyncio.to_thread(newest_checkpoint, Path(run.folder) / "output", run.spec.checkpoint)
        return None if found is None else str(found)

    async def _end(
        self,
        run: Run,
        state: Queued | Succeeded | Failed | RunLost | Cancelled,
        reason: str,
        message: str,
        **data: object,
    ) -> None:
        """Leave the running state and give the devices back, unless somebody else moved the run meanwhile."""

        def save(tx: Transaction) -> None:
            current = tx.get(Run, run.name)
            if current.state != run.state:
                return
            current.state = state
            current.attempt = run.attempt
            current.checkpoint = run.checkpoint
            current.devices = []
            tx.save(current, reason, message, **data)

        await self._store.write(save)
