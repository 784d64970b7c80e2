from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from itertools import product
from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

from stoker.errors import Conflict, Internal
from stoker.types.rollouts import (
    FINAL_PHASES,
    Aborted,
    Fail,
    Guard,
    Pass,
    Paused,
    Preparing,
    Promoted,
    Promoting,
    RolledBack,
    RollingBack,
    RolloutSpec,
    RolloutState,
    Starved,
    Step,
    Stepping,
)
from stokerd.rollouts.machine import VERBS, Facts, Verb, advance, command, weights

T0 = datetime(2026, 1, 1, tzinfo=UTC)
SPEC = RolloutSpec(
    kind="rollout",
    name="bring-v7",
    deployment="assistant",
    to=7,
    steps=[
        Step(type="shadow", percent=10, min_requests=5, max_duration=60),
        Step(type="canary", percent=25, min_requests=20, min_duration=10, max_duration=60),
    ],
)
PASS, FAIL, STARVED = Pass(reason="it holds"), Fail(reason="it is slow"), Starved(reason="few")
STATES: dict[str, RolloutState] = {
    "preparing": Preparing(since=T0),
    "stepping": Stepping(step=0, since=T0),
    "paused": Paused(step=1, since=T0, because="paused by ada"),
    "promoting": Promoting(since=T0),
    "rolling-back": RollingBack(since=T0, because="it is slow"),
    "promoted": Promoted(finished_at=T0),
    "rolled-back": RolledBack(finished_at=T0, because="it is slow"),
    "aborted": Aborted(finished_at=T0, because="aborted by ada"),
}


def after(seconds: float) -> datetime:
    return T0 + timedelta(seconds=seconds)


def facts(seconds: float = 1, requests: int = 100, **others: object) -> Facts:
    return replace(Facts(now=after(seconds), seconds=seconds, step_requests=requests), **others)  # type: ignore[arg-type]


NOW = after(1)
FIRST, LAST = Stepping(step=0, since=T0), Stepping(step=1, since=T0)
PAUSED = Paused(step=0, since=T0, because="paused by ada")
BACK = RollingBack(since=T0, because="it is slow")


@pytest.mark.parametrize(
    ("state", "seen", "expected"),
    [
        (Preparing(since=T0), facts(), None),
        (Preparing(since=T0), facts(candidate_ready=True), Stepping(step=0, since=NOW)),
        (Preparing(since=T0), facts(candidate_failed="no GPU"), RollingBack(since=NOW, because="no GPU")),
        (
            Preparing(since=T0),
            facts(candidate_ready=True, candidate_failed="died"),
            RollingBack(since=NOW, because="died"),
        ),
        (Preparing(since=T0), facts(1e6, routed=True, verdict=PASS, trip="5 failed"), None),
        (FIRST, facts(), None),
        (FIRST, facts(verdict=PASS), Stepping(step=1, since=NOW)),
        (FIRST, facts(requests=4, verdict=PASS), None),
        (FIRST, facts(verdict=STARVED), None),
        (FIRST, facts(verdict=FAIL), RollingBack(since=NOW, because="it is slow")),
        (FIRST, facts(verdict=PASS, trip="5 failed"), RollingBack(since=NOW, because="5 failed")),
        (FIRST, facts(verdict=FAIL, trip="5 failed"), RollingBack(since=NOW, because="5 failed")),
        (FIRST, facts(verdict=PASS, candidate_failed="died"), RollingBack(since=NOW, because="died")),
        (FIRST, facts(60, verdict=PASS), Stepping(step=1, since=after(60))),
        (FIRST, facts(60, verdict=FAIL), RollingBack(since=after(60), because="it is slow")),
        (FIRST, facts(59.9, verdict=STARVED), None),
        (FIRST, facts(60, verdict=STARVED), Paused(step=0, since=after(60), because="starved: few")),
        (
            FIRST,
            facts(60, requests=4, verdict=PASS),
            Paused(step=0, since=after(60), because="starved: 4 of 5 requests after 60 s"),
        ),
        (FIRST, facts(-3600, verdict=STARVED), None),
        (LAST, facts(9.9, verdict=PASS), None),
        (LAST, facts(10, verdict=PASS), Promoting(since=after(10))),
        (PAUSED, facts(1e6, verdict=PASS, routed=True, candidate_ready=True), None),
        (PAUSED, facts(verdict=FAIL), None),
        (PAUSED, facts(trip="5 failed"), RollingBack(since=NOW, because="5 failed")),
        (PAUSED, facts(candidate_failed="died"), RollingBack(since=NOW, because="died")),
        (Promoting(since=T0), facts(1e6, verdict=FAIL, trip="5 failed"), None),
        (Promoting(since=T0), facts(routed=True), Promoted(finished_at=NOW)),
        (Promoting(since=T0), facts(routed=True, candidate_failed="died"), RollingBack(since=NOW, because="died")),
        (BACK, facts(1e6, candidate_failed="died", trip="5 failed", verdict=FAIL), None),
        (BACK, facts(routed=True), RolledBack(finished_at=NOW, because="it is slow")),
        (BACK.model_copy(update={"aborted": True}), facts(routed=True), Aborted(finished_at=NOW, because="it is slow")),
    ],
)
def test_what_is_observed_moves_a_rollout(state: RolloutState, seen: Facts, expected: RolloutState | None) -> None:
    assert advance(SPEC, state, seen) == expected


@pytest.mark.parametrize(
    ("state", "verb", "expected"),
    [
        (FIRST, "pause", Paused(step=0, since=NOW, because="paused by ada")),
        (PAUSED, "resume", Stepping(step=0, since=NOW)),
        (FIRST, "promote", Promoting(since=NOW)),
        (PAUSED, "promote", Promoting(since=NOW)),
        *(
            (state, "abort", RollingBack(since=NOW, because="aborted by ada", aborted=True))
            for state in (Preparing(since=T0), FIRST, PAUSED, Promoting(since=T0))
        ),
    ],
)
def test_what_a_person_says_moves_a_rollout(state: RolloutState, verb: Verb, expected: RolloutState) -> None:
    assert command(SPEC, state, verb, NOW, "ada") == expected


@pytest.mark.parametrize(("phase", "verb"), product(STATES, get_args(Verb)))
def test_a_verb_that_does_not_fit_is_refused_and_says_what_does(phase: str, verb: Verb) -> None:
    allowed = VERBS.get(phase, ())
    if verb in allowed:
        assert command(SPEC, STATES[phase], verb, NOW, "ada") != STATES[phase]
        return
    with pytest.raises(Conflict) as caught:
        command(SPEC, STATES[phase], verb, NOW, "ada")
    assert caught.value.message == f"rollout bring-v7 is {phase}: {verb} doesn't fit."
    assert caught.value.hint
    assert all(other in caught.value.hint for other in allowed)


def test_every_phase_is_in_the_tables_of_this_file() -> None:
    assert {get_args(v.model_fields["phase"].annotation)[0] for v in get_args(get_args(RolloutState)[0])} == set(STATES)


@pytest.mark.parametrize(
    ("state", "expected"),
    [
        (STATES["preparing"], (100, 0, 0)),
        (FIRST, (100, 0, 10)),
        (LAST, (75, 25, 0)),
        (STATES["paused"], (75, 25, 0)),
        (STATES["promoting"], (0, 100, 0)),
        (STATES["rolling-back"], (100, 0, 0)),
        *((STATES[phase], (100, 0, 0)) for phase in FINAL_PHASES),
    ],
)
def test_each_state_has_its_weights(state: RolloutState, expected: tuple[float, float, float]) -> None:
    assert weights(SPEC, state) == expected


def test_a_step_that_the_spec_does_not_have_is_an_error_and_no_default() -> None:
    with pytest.raises(Internal):
        weights(SPEC, Stepping(step=2, since=T0))
    with pytest.raises(Internal):
        advance(SPEC, Stepping(step=-1, since=T0), facts(verdict=PASS))


def test_a_step_that_could_never_pass_and_a_guard_that_could_never_fail_are_refused() -> None:
    with pytest.raises(ValidationError, match="could never pass"):
        Step(type="canary", percent=5, min_duration=60, max_duration=59)
    with pytest.raises(ValidationError, match="never fails"):
        Guard(metric="error_rate", limit=2)


STEPS = st.lists(
    st.builds(
        Step,
        type=st.sampled_from(["shadow", "canary"]),
        percent=st.floats(0.1, 100),
        min_requests=st.integers(1, 10),
        min_duration=st.floats(0, 5),
        max_duration=st.floats(5, 20),
    ),
    min_size=1,
    max_size=4,
)
SENTENCE = st.none() | st.none() | st.none() | st.just("it broke")
FACTS = st.builds(
    Facts,
    now=st.just(T0),
    candidate_ready=st.booleans(),
    candidate_failed=SENTENCE,
    step_requests=st.integers(0, 20),
    verdict=st.sampled_from([None, PASS, PASS, PASS, STARVED, FAIL]),
    trip=SENTENCE,
    routed=st.booleans(),
)
HAPPENINGS = st.lists(
    st.tuples(st.floats(0, 10), FACTS | st.sampled_from(get_args(Verb))),
    max_size=40,
)
ADAPTER: TypeAdapter[RolloutState] = TypeAdapter(RolloutState)


@given(STEPS, HAPPENINGS)
def test_whatever_happens_a_rollout_is_in_a_valid_state_with_proper_weights(
    steps: list[Step], happenings: list[tuple[float, Facts | Verb]]
) -> None:
    spec = SPEC.model_copy(update={"steps": steps})
    current: RolloutState = Preparing(since=T0)
    clock = T0
    for seconds, happening in happenings:
        clock += timedelta(seconds=seconds)
        before, following = current, None
        if isinstance(happening, str):
            try:
                following = command(spec, before, happening, clock, "ada")
            except Conflict:
                assert happening not in VERBS.get(before.phase, ())
        else:
            spent = (clock - getattr(before, "since", clock)).total_seconds()
            following = advance(spec, before, replace(happening, now=clock, seconds=spent))
        if following is not None:
            current = following
        check(spec, before, current)
    end = settle(spec, current, clock)
    assert end.phase in FINAL_PHASES


def check(spec: RolloutSpec, before: RolloutState, current: RolloutState) -> None:
    assert ADAPTER.validate_json(ADAPTER.dump_json(current)) == current  # it survives the store
    stable, candidate, shadow = weights(spec, current)
    assert stable + candidate == pytest.approx(100)
    assert min(stable, candidate, shadow) >= 0
    assert max(stable, candidate, shadow) <= 100
    assert not (candidate and shadow)
    if current.phase in {"preparing", "rolling-back", *FINAL_PHASES}:
        assert (candidate, shadow) == (0, 0)
    if before.phase in FINAL_PHASES:
        assert current == before
    if before.phase == "rolling-back":
        assert current.phase in {"rolling-back", "rolled-back", "aborted"}
    if current.phase == "promoted":
        assert before.phase in {"promoting", "promoted"}
    if isinstance(before, Stepping) and isinstance(current, Stepping):
        assert current.step in {before.step, before.step + 1}


def settle(spec: RolloutSpec, state: RolloutState, clock: datetime) -> RolloutState:
    """From anywhere, a person who aborts and a gateway that answers bring it to its end."""
    if "abort" in VERBS.get(state.phase, ()):
        state = command(spec, state, "abort", clock, "ada")
    return advance(spec, state, Facts(now=clock, routed=True)) or state


@given(STEPS)
def test_a_candidate_that_holds_every_guard_is_promoted_by_itself(steps: list[Step]) -> None:
    spec = SPEC.model_copy(update={"steps": steps})
    state: RolloutState = Preparing(since=T0)
    good = Facts(now=T0, candidate_ready=True, step_requests=10, verdict=PASS, routed=True)
    phases = [state.phase]
    for i in range(len(steps) + 2):
        state = advance(spec, state, replace(good, now=after(5 * (i + 1)), seconds=5.0)) or state
        phases.append(state.phase)
    assert phases == ["preparing", *["stepping"] * len(steps), "promoting", "promoted"]
