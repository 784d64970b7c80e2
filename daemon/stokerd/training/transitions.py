"""What becomes of a run, given what is seen of its process. Pure."""

from __future__ import annotations

from datetime import datetime, timedelta

from stoker.types.training import Failed, Queued, Run, RunLost, Running
from stokerd.backoff import backoff_seconds
from stokerd.processes.states import Exited, Lost, ending

BACKOFF_CAP_SECONDS = 600.0


def is_cut_off(run: Run, observed: Exited | Lost | None) -> bool:
    """Whether *run* was ended from outside, so that its exit status, if there is one, says nothing of it.

    Who cancels a run, or finds it over its time, says so in its state first. One that is running and whose process was
    asked to end was ended with all others: by ``stokerd --end``, an ephemeral daemon, or the machine's shutdown.
    """
    if not isinstance(run.state, Running):
        return False
    return isinstance(observed, Lost) or (isinstance(observed, Exited) and observed.was_asked)


def how_it_ended(observed: Exited | Lost) -> str:
    """How the process of a run that nobody stopped ended, as half a sentence."""
    if isinstance(observed, Exited) and observed.was_asked:
        return f"it was ended from outside, with all that ran or with the machine; {ending(observed)}"
    return ending(observed)


def after_failure(run: Run, why: str, observed: Exited | Lost | None, moment: datetime) -> Queued | Failed | RunLost:
    """Queued again while retries are left, waiting twice as long each time; else lost, if it was cut off, or failed."""
    if run.attempt <= run.spec.retries:
        seconds = _wait_after(run, run.attempt)
        was = "was lost" if is_cut_off(run, observed) else "failed"
        return Queued(not_before=moment + timedelta(seconds=seconds), why=f"attempt {run.attempt} {was}: {why}.")
    attempts = "" if run.attempt == 1 else f", at attempt {run.attempt} of {run.spec.retries + 1}"
    if isinstance(run.state, Running) and is_cut_off(run, observed):
        return RunLost(started_at=run.state.started_at, finished_at=moment, message=f"{why}{attempts}.")
    exited = observed if isinstance(observed, Exited) else None
    return Failed(
        started_at=getattr(run.state, "started_at", None),
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
