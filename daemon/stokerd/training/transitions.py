"""What becomes of a run, given what is seen of its process. Pure."""

from __future__ import annotations

from datetime import datetime, timedelta

from stoker.types.training import Failed, Queued, Run, RunLost, Running
from stokerd.backoff import backoff_seconds
from stokerd.processes.states import Exited, Lost

BACKOFF_CAP_SECONDS = 600.0


def after_failure(run: Run, why: str, observed: Exited | Lost | None, moment: datetime) -> Queued | Failed | RunLost:
    """Queued again while retries are left, waiting twice as long each time; else lost, if it was cut off, or failed."""
    if run.attempt <= run.spec.retries:
        seconds = _wait_after(run, run.attempt)
        was = "was lost" if isinstance(observed, Lost) else "failed"
        return Queued(not_before=moment + timedelta(seconds=seconds), why=f"attempt {run.attempt} {was}: {why}.")
    attempts = "" if run.attempt == 1 else f", at attempt {run.attempt} of {run.spec.retries + 1}"
    started_at = getattr(run.state, "started_at", None)
    if isinstance(observed, Lost) and isinstance(run.state, Running):
        return RunLost(started_at=run.state.started_at, finished_at=moment, message=f"{why}{attempts}.")
    exited = observed if isinstance(observed, Exited) else None
    return Failed(
        started_at=started_at,
        finished_at=moment,
        message=f"{why}{attempts}.",
        exit_code=exited.exit_code if exited else None,
        signal=exited.signal if exited else None,
    )


def longest_wait(run: Run) -> float:
    """The most seconds for which a queued *run* is to wait for its moment, whatever the clock was set to since."""
    return 0.0 if run.attempt == 1 else _wait_after(run, run.attempt - 1)


def _wait_after(run: Run, attempt: int) -> float:
    return backoff_seconds(run.name, attempt, run.spec.backoff, BACKOFF_CAP_SECONDS)
