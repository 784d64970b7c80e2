from __future__ import annotations

from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stoker.types.training import Cancelling, Failed, JobSpec, Queued, Run, RunLost, Running
from stokerd.backoff import JITTER
from stokerd.processes.states import Exited, Lost, ending
from stokerd.training.transitions import BACKOFF_CAP_SECONDS, after_failure, how_it_ended, is_cut_off, longest_wait

NOW = datetime(2026, 1, 1, tzinfo=UTC)


def run(attempt: int, retries: int) -> Run:
    spec = JobSpec(kind="job", name="j", command=["x"], retries=retries, backoff=10)
    return Run(name="j-1", job="j", number=1, spec=spec, attempt=attempt, state=Running(process="p", started_at=NOW))


@given(st.integers(1, 100), st.integers(0, 100))
def test_retries_are_counted_and_their_waits_double_up_to_a_cap(attempt: int, retries: int) -> None:
    state = after_failure(run(attempt, retries), "it broke", Exited(3, None, 0, 1), NOW)
    if attempt <= retries:
        assert isinstance(state, Queued)
        wait = (state.not_before - NOW).total_seconds()
        usual = min(10 * 2 ** (attempt - 1), BACKOFF_CAP_SECONDS / (1 + JITTER))
        assert usual * (1 - JITTER) <= wait <= min(usual * (1 + JITTER), BACKOFF_CAP_SECONDS) + 1e-6
        assert state == after_failure(run(attempt, retries), "it broke", Exited(3, None, 0, 1), NOW)
    else:
        assert isinstance(state, Failed)
        assert state.exit_code == 3
        assert state.started_at == NOW


def test_each_way_to_end_has_its_own_words() -> None:
    assert ending(Exited(1, None, 0, 1)) == "it exited with code 1"
    assert ending(Exited(None, 9, 0, 1)) == "it was killed by signal 9"
    assert "not found" in ending(Exited(127, None, 0, 1, "x: not found"))
    assert "machine" in ending(Lost("the machine went down"))


def test_a_run_that_was_cut_off_is_retried_like_others_and_lost_when_no_retry_is_left() -> None:
    retried = after_failure(run(1, 1), "the machine went down", Lost("x", by_reboot=True), NOW)
    assert isinstance(retried, Queued)
    assert "attempt 1 was lost" in retried.why
    lost = after_failure(run(2, 1), "the machine went down", Lost("x", by_reboot=True), NOW)
    assert isinstance(lost, RunLost)
    assert "at attempt 2 of 2" in lost.message


@pytest.mark.parametrize(
    "asked", [Exited(0, None, 0, 1, was_asked=True), Exited(3, None, 0, 1, was_asked=True),
              Exited(None, 15, 0, 1, was_asked=True)]
)  # fmt: skip
def test_a_run_that_was_told_to_end_though_nobody_decided_so_was_cut_off_whatever_it_exited_with(asked: Exited) -> None:
    """By `stokerd --end`, or the machine's shutdown."""
    assert is_cut_off(run(1, 1), asked)
    assert "from outside" in how_it_ended(asked)
    retried = after_failure(run(1, 1), how_it_ended(asked), asked, NOW)
    assert isinstance(retried, Queued)
    assert "attempt 1 was lost" in retried.why
    lost = after_failure(run(2, 1), how_it_ended(asked), asked, NOW)
    assert isinstance(lost, RunLost)
    assert "at attempt 2 of 2" in lost.message


def test_a_run_that_was_told_to_end_because_its_time_was_up_has_failed() -> None:
    late = run(1, 0)
    late.state = Cancelling(process="p", started_at=NOW, because="timeout")
    asked = Exited(None, 15, 0, 1, was_asked=True)
    assert not is_cut_off(late, asked)
    assert isinstance(after_failure(late, "it ran for too long", asked, NOW), Failed)


def test_a_clock_that_is_set_back_makes_no_run_wait_longer_than_it_was_to() -> None:
    assert longest_wait(run(1, 3)) == 0
    retried = after_failure(run(2, 3), "it broke", None, NOW)
    assert isinstance(retried, Queued)
    waits = (retried.not_before - NOW).total_seconds()
    assert abs(longest_wait(run(3, 3)) - waits) < 1e-5  # datetimes count microseconds
