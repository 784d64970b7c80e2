"""The benchmark of verdicts leads rollouts as the product does: what it says of their ends can be relied on."""

from __future__ import annotations

import pytest

from stoker.types.rollouts import DEFAULT_GUARDS, DEFAULT_STEPS, CanaryStep
from tests.bench.bench_verdicts import NO_FAULT, ended
from tests.bench.verdicts.ladder import ending, rollout_spec, tripped
from tests.bench.verdicts.world import Effect, requests, visits

SPEC = rollout_spec(DEFAULT_GUARDS)


def test_a_version_without_a_fault_takes_all_default_steps_and_stays() -> None:
    found = ending(1, spec=SPEC, effect=NO_FAULT)
    least = sum(step.min_duration for step in DEFAULT_STEPS) + SPEC.keep_warm
    assert (found.what, found.step) == ("promoted", None)
    assert found.seconds >= least


def test_a_version_that_fails_always_is_tripped_by_its_shadow() -> None:
    found = ending(1, spec=SPEC, effect=Effect("dead", errors=1.0))
    assert (found.what, found.step) == ("trip", 0)


def test_a_version_that_is_much_slower_is_never_promoted() -> None:
    slow = Effect("slow", slower=3.0)
    assert {ending(seed, spec=SPEC, effect=slow).what for seed in range(3)} <= {"guards", "held"}


def test_a_step_that_cannot_pass_is_held_once_its_time_is_over() -> None:
    spec = rollout_spec(DEFAULT_GUARDS, [CanaryStep(percent=5, min_requests=1_000_000, max_duration=600)])
    found = ending(1, spec=spec, effect=NO_FAULT)
    assert (found.what, found.step) == ("held", 0)
    assert found.seconds == pytest.approx(600, abs=60)


def test_a_trip_takes_the_last_answers_of_the_candidate_alone() -> None:
    found = requests(1, 400, 0.5, Effect("dead", errors=1.0))
    fifth = [n for n, request in enumerate(found, 1) if request.is_candidate][4]
    assert tripped(found) == fifth
    assert tripped(requests(1, 400, 0.5, NO_FAULT)) is None


def test_visits_come_in_order_one_a_second_and_the_same_each_time() -> None:
    found, again = ([visit for _, visit in zip(range(8000), visits(3, NO_FAULT), strict=False)] for _ in range(2))
    assert found == again
    seconds = [visit.seconds for visit in found]
    assert seconds == sorted(seconds)
    assert seconds[-1] == pytest.approx(8000, rel=0.2)


def test_what_is_told_of_endings_are_shares() -> None:
    found = ended([ending(seed, spec=SPEC, effect=Effect("dead", errors=1.0)) for seed in range(2)])
    assert (found["rollouts"], found["trip"], found["promoted"]) == (2, 1.0, 0.0)
