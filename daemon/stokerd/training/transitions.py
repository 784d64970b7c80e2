"""What becomes of a run, given what is seen of its process. Pure."""

from __future__ import annotations

from datetime import datetime, timedelta

from stoker.types.training import Failed, Queued, Run
from stokerd.processes.states import Exited, Lost

BACKOFF_CAP_SECONDS = 600.0


def after_failure(run: Run, why: str, observed: Exited | Lost | None, moment: datetime) -> Queued | Failed:
    """Queued again while retries are left, waiting twice as long each time; else failed."""
    if run.attempt <= run.spec.retries:
        seconds = min(run.spec.backoff * 2 ** min(run.attempt - 1, 32), BACKOFF_CAP_SECONDS)
        return Queued(not_before=moment + timedelta(seconds=seconds), why=f"attempt {run.attempt} failed: {why}.")
    attempts = "" if run.attempt == 1 else f", at attempt {run.attempt} of {run.spec.retries + 1}"
    exited = observed if isinstance(observed, Exited) else None
    return Failed(
        started_at=getattr(run.state, "started_at", None),
        finished_at=moment,
        message=f"{why}{attempts}.",
        exit_code=exited.exit_code if exited else None,
        signal=exited.signal if exited else None,
    )


def timed_out(run: Run, started_at: datetime, moment: datetime) -> bool:
    """Whether this attempt has run for longer than its job allows."""
    return run.spec.timeout is not None and (moment - started_at).total_seconds() > run.spec.timeout
