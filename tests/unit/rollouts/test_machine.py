from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from itertools import product
from typing import Any, get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

from stoker.errors import Conflict, Internal
from stoker.types.guards import Verdict
from stoker.types.rollouts import (
    FINAL_PHASES,
    VERBS,
    Aborted,
    ApproveStep,
    CanaryStep,
    Fail,
    Guard,
    Pass,
    Paused,
    PauseStep,
    Preparing,
    Promoted,
    PromoteStep,
    Promoting,
    Returning,
    RolledBack,
    RollingBack,
    RolloutSpec,
    RolloutState,
    ShadowStep,
    Starved,
    Step,
    Stepping,
    Target,
    TargetStep,
    Verb,
)
from stokerd.rollouts.machine import Facts, Split, advance, command, led_by, split, whom

T0 = datetime(2026, 1, 1, tzinfo=UTC)
SPEC = RolloutSpec(
    kind="rollout",
    name="bring-v7",
    deployment="assistant",
    to=7,
    steps=[
        ShadowStep(percent=10, min_requests=5, max_duration=60),
        CanaryStep(percent=25, min_requests=20, min_duration=10, max_duration=60),
    ],
)
WAYS = SPEC.model_copy(
    update={
        "targets": [Target(header="x-team", value="ops"), Target(key="alice")],
        "steps": [
            ApproveStep(by="bob", max_duration=100),
            TargetStep(min_requests=3, min_callers=2),
            CanaryStep(percent=5, max_callers=20),
            ApproveStep(),
            PauseStep(duration=50),
            PromoteStep(),
        ],
    }
)
PASS, FAIL, STARVED = Pass(reason="it holds"), Fail(reason="it is slow"), Starved(reason="few")
STATES: dict[str, RolloutState] = {
    "preparing": Preparing(since=T0),
    "stepping": Stepping(step=0, since=T0),
    "paused": Paused(step=1, since=T0, because="paused by ada", by="ada"),
    "promoting": Promoting(since=T0),
    "returning": Returning(since=T0, because="rolled back by ada"),
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
PAUSED = Paused(step=0, since=T0, because="paused by ada", by="ada")
HELD = Paused(step=1, since=T0, because="starved: few", verdict="starved")
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
        (FIRST, facts(60, verdict=PASS, unread=True), None),
        (FIRST, facts(60, verdict=STARVED, unread=True), None),
        (FIRST, facts(60, verdict=FAIL, unread=True), RollingBack(since=after(60), because="it is slow")),
        (FIRST, facts(trip="5 failed", unread=True), RollingBack(since=NOW, because="5 failed")),
        (FIRST, facts(59.9, verdict=STARVED), None),
        (FIRST, facts(60, verdict=STARVED), Paused(step=0, since=after(60), because="starved: few", verdict="starved")),
        (
            FIRST,
            facts(60, requests=4, verdict=PASS),
            Paused(step=0, since=after(60), because="starved: 4 of 5 requests after 1m", verdict="starved"),
        ),
        (FIRST, facts(-3600, verdict=STARVED), None),
        (LAST, facts(9.9, verdict=PASS), None),
        (LAST, facts(10, verdict=PASS), Promoting(since=after(10))),
        (PAUSED, facts(1e6, verdict=PASS, routed=True, candidate_ready=True), None),
        (PAUSED, facts(verdict=FAIL), None),
        (PAUSED, facts(trip="5 failed"), RollingBack(since=NOW, because="5 failed")),
        (PAUSED, facts(candidate_failed="died"), RollingBack(since=NOW, because="died")),
        (HELD, facts(SPEC.hold_limit - 1), None),
        (HELD, facts(verdict=FAIL), RollingBack(since=NOW, because="it is slow")),
        (HELD.model_copy(update={"verdict": "fail"}), facts(verdict=FAIL), None),
        (
            HELD,
            facts(SPEC.hold_limit),
            RollingBack(since=after(SPEC.hold_limit), because="held for 1d without a decision (starved: few)"),
        ),
        (Promoting(since=T0), facts(1e6, verdict=FAIL), None),
        (Promoting(since=T0), facts(routed=True, trip="5 failed"), RollingBack(since=NOW, because="5 failed")),
        (Promoting(since=T0), facts(routed=True), None),
        (Promoting(since=T0), facts(routed=True, candidate_ready=True, unread=True), None),
        (
            Promoting(since=T0),
            facts(routed=True, candidate_ready=True),
            Promoted(finished_at=NOW, warm_until=after(601)),
        ),
        (Promoting(since=T0), facts(routed=True, candidate_failed="died"), RollingBack(since=NOW, because="died")),
        (BACK, facts(1e6, candidate_failed="died", trip="5 failed", verdict=FAIL), None),
        (BACK, facts(routed=True), RolledBack(finished_at=NOW, because="it is slow")),
        (
            Promoting(since=T0),
            facts(routed=True, is_swap=True, candidate_ready=True),
            Promoted(finished_at=NOW),
        ),
        (
            Promoted(finished_at=T0, warm_until=after(9)),
            facts(trip="5 failed"),
            RollingBack(since=NOW, because="5 failed"),
        ),
        (Promoted(finished_at=T0, warm_until=after(9)), facts(trip="5 failed", stable_at_hand=False), None),
        (Promoted(finished_at=T0, warm_until=after(9)), facts(verdict=FAIL, routed=True), None),
        (Promoted(finished_at=T0), facts(trip="5 failed", candidate_failed="died"), None),
        (STATES["returning"], facts(stable_ready=False, routed=True), None),
        (
            STATES["returning"],
            facts(stable_ready=False, stable_failed="no GPU"),
            Promoted(finished_at=NOW, because="the way back failed: no GPU"),
        ),
        (STATES["returning"], facts(), RollingBack(since=NOW, because="rolled back by ada")),
        (BACK, facts(routed=True, is_swap=True, stable_ready=False), None),
        (BACK.model_copy(update={"aborted": True}), facts(routed=True), Aborted(finished_at=NOW, because="it is slow")),
    ],
)
def test_what_is_observed_moves_a_rollout(state: RolloutState, seen: Facts, expected: RolloutState | None) -> None:
    assert advance(SPEC, state, seen) == expected


def at(step: int, seconds: float, **seen: Any) -> RolloutState | None:
    return advance(WAYS, Stepping(step=step, since=T0), facts(seconds, **seen))


def test_an_approval_is_waited_for_and_no_verdict_stands_for_it() -> None:
    assert at(0, 99, verdict=PASS) is None
    assert at(0, 100, verdict=PASS) == Paused(
        step=0, since=after(100), because="starved: nobody approved within 1m 40s", verdict="starved"
    )
    assert at(3, 5, verdict=FAIL) == RollingBack(since=after(5), because="it is slow")  # the canary goes on meanwhile
    with pytest.raises(Conflict, match="to be approved by bob, and you are ada"):
        command(WAYS, Stepping(step=0, since=T0), "approve", NOW, "ada")
    assert command(WAYS, Stepping(step=0, since=T0), "approve", NOW, "bob") == Stepping(step=1, since=NOW)
    assert command(WAYS, Stepping(step=3, since=T0), "approve", NOW, "ada") == Stepping(step=4, since=NOW)
    with pytest.raises(Conflict, match="asks for no approval in step 2"):
        command(WAYS, Stepping(step=1, since=T0), "approve", NOW, "ada")


def test_a_step_wants_its_number_of_callers_too() -> None:
    assert at(1, 5, verdict=PASS, step_callers=1) is None
    assert at(1, 5, verdict=PASS, step_callers=2) == Stepping(step=2, since=after(5))
    assert at(1, 3600, verdict=PASS, step_callers=1) == Paused(
        step=1, since=after(3600), because="starved: 1 of 2 callers after 1h", verdict="starved"
    )


def test_silence_is_no_approval_and_a_starved_last_step_waits_where_a_passed_one_would() -> None:
    eager = {"on_starved": "promote"}
    held = advance(WAYS.model_copy(update=eager), Stepping(step=0, since=T0), facts(100))
    assert isinstance(held, Paused)
    waits = advance(SPEC.model_copy(update=eager | {"on_pass": "hold"}), LAST, facts(60, verdict=STARVED))
    assert waits == Paused(step=1, since=after(60), because="starved: few", verdict="starved")


def test_nobody_skips_an_approval_that_is_somebody_elses() -> None:
    at_once = Stepping(step=0, since=T0)
    with pytest.raises(Conflict, match="to be approved by bob, and you are ada: that can't be skipped"):
        command(WAYS, at_once, "promote", NOW, "ada")
    assert command(WAYS, at_once, "promote", NOW, "bob") == Promoting(since=NOW)
    assert command(WAYS, Stepping(step=1, since=T0), "promote", NOW, "ada") == Promoting(since=NOW)


def test_a_pause_ends_by_itself_and_a_failing_guard_ends_it_sooner() -> None:
    assert at(4, 49, verdict=STARVED) is None
    assert at(4, 50, verdict=STARVED) == Promoting(since=after(50))
    assert at(4, 10, verdict=FAIL) == RollingBack(since=after(10), because="it is slow")


@pytest.mark.parametrize(
    ("policy", "verdict", "expected"),
    [
        ({"on_fail": "hold"}, FAIL, Paused(step=1, since=after(60), because="failed: it is slow", verdict="fail")),
        (
            {"on_fail": "shadow"},
            FAIL,
            Paused(step=1, since=after(60), because="failed: it is slow", verdict="fail", exposure="shadow"),
        ),
        ({"on_starved": "roll-back"}, STARVED, RollingBack(since=after(60), because="starved: few")),
        (
            {"on_starved": "shadow"},
            STARVED,
            Paused(step=1, since=after(60), because="starved: few", verdict="starved", exposure="shadow"),
        ),
        ({"on_starved": "promote"}, STARVED, Promoting(since=after(60))),
        ({"on_pass": "hold"}, PASS, Paused(step=1, since=after(60), because="passed: it holds", verdict="pass")),
        (
            {"on_pass": "shadow"},
            PASS,
            Paused(step=1, since=after(60), because="passed: it holds", verdict="pass", exposure="shadow"),
        ),
    ],
)
def test_each_verdict_has_a_policy(policy: dict[str, str], verdict: Verdict, expected: RolloutState) -> None:
    assert advance(SPEC.model_copy(update=policy), LAST, facts(60, verdict=verdict)) == expected


def test_a_hard_trip_rolls_back_whatever_the_policy_says_of_failing_guards() -> None:
    spec = SPEC.model_copy(update={"on_fail": "hold"})
    assert advance(spec, LAST, facts(trip="5 failed")) == RollingBack(since=NOW, because="5 failed")


def test_a_swap_has_no_shadow_and_gives_everybody_the_version_that_runs() -> None:
    first = advance(SPEC, Preparing(since=T0), facts(candidate_ready=True, is_swap=True))
    assert first == Stepping(step=1, since=NOW)
    for phase in ("preparing", "stepping", "paused", "promoting"):
        assert split(SPEC, STATES[phase], is_swap=True) == Split(0, 100, exposes=True)
    assert split(SPEC, BACK, is_swap=True) == Split()


def test_it_is_known_who_led_to_a_state() -> None:
    going, back = Stepping(step=1, since=NOW), RollingBack(since=NOW, because="x")
    assert led_by("ada", Preparing(since=T0), going, facts()) == "ada"
    assert led_by("ada", FIRST, going, facts(verdict=PASS)) == "guards"
    assert led_by("ada", LAST, back, facts(verdict=FAIL)) == "guards"
    assert led_by("ada", LAST, back, facts(trip="5 failed")) == "guards"
    assert led_by("ada", LAST, back, facts(candidate_failed="died", trip="5 failed")) == "host"
    assert led_by("ada", LAST, Promoting(since=NOW), facts(verdict=PASS)) == "guards"
    assert led_by("guards", Promoting(since=T0), Promoted(finished_at=NOW), facts()) == "guards"
    assert led_by("ada", STATES["returning"], back, facts()) == "ada"
    assert led_by("ada", back, Aborted(finished_at=NOW, because="x"), facts()) == "ada"


def test_promotion_is_taken_back_at_once_while_the_old_version_stands_by_and_later_when_it_is_there_again() -> None:
    said = "rolled back by ada after promotion"
    promoted = Promoted(finished_at=T0, warm_until=after(600))
    assert command(SPEC, promoted, "rollback", NOW, "ada", is_warm=True) == RollingBack(
        since=NOW, because=said, aborted=True
    )
    assert command(SPEC, promoted, "rollback", NOW, "ada") == Returning(since=NOW, because=said, aborted=True)
    assert command(SPEC, STATES["returning"], "abort", NOW, "bob") == Promoted(
        finished_at=NOW, because="bob called off the way back"
    )
    with pytest.raises(Conflict, match="abort doesn't fit") as caught:
        command(SPEC, promoted, "abort", NOW, "ada")
    assert "stoker rollout rollback bring-v7" in caught.value.hint


def test_in_a_swap_a_way_back_that_is_called_off_or_fails_ends_when_the_new_version_is_there_again() -> None:
    again = Promoting(since=NOW)
    assert command(SPEC, STATES["returning"], "abort", NOW, "bob", is_swap=True) == again
    seen = facts(stable_ready=False, stable_failed="no GPU", is_swap=True)
    assert advance(SPEC, STATES["returning"], seen) == Promoting(since=NOW)
    assert advance(SPEC, again, facts(routed=True, is_swap=True)) is None
    assert advance(SPEC, again, facts(routed=True, is_swap=True, candidate_ready=True)) == Promoted(finished_at=NOW)


def test_whom_each_arm_answers_is_said_in_words() -> None:
    assert whom(WAYS, split(WAYS, Stepping(step=0, since=T0))) == {"stable": "everybody"}
    assert whom(WAYS, split(WAYS, Stepping(step=1, since=T0))) == {
        "stable": "everybody else",
        "candidate": "x-team: ops, key alice",
    }
    assert whom(WAYS, split(WAYS, Stepping(step=3, since=T0))) == {
        "stable": "everybody else",
        "candidate": "x-team: ops, key alice and 5 % of callers, at most 20",
    }
    assert whom(WAYS, split(WAYS, Promoting(since=T0))) == {"candidate": "everybody"}
    assert whom(SPEC, split(SPEC, FIRST)) == {"stable": "everybody", "shadow": "nobody: copies of 10 % of requests"}


@pytest.mark.parametrize(
    ("state", "verb", "expected"),
    [
        (FIRST, "pause", Paused(step=0, since=NOW, because="paused by ada", by="ada")),
        (PAUSED, "resume", Stepping(step=0, since=NOW)),
        (FIRST, "promote", Promoting(since=NOW)),
        (PAUSED, "promote", Promoting(since=NOW)),
        (FIRST, "rollback", RollingBack(since=NOW, because="rolled back by ada", aborted=True)),
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
    if verb == "approve" and phase == "stepping":
        return  # it depends on the step
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
    ("spec", "state", "expected"),
    [
        (SPEC, STATES["preparing"], Split()),
        (SPEC, FIRST, Split(shadow=10)),
        (SPEC, LAST, Split(75, 25, exposes=True)),
        (SPEC, STATES["paused"], Split(75, 25, exposes=True)),
        (SPEC, Paused(step=1, since=T0, because="few", exposure="shadow"), Split(shadow=25)),
        (SPEC, STATES["promoting"], Split(0, 100, exposes=True)),
        (SPEC, STATES["returning"], Split(0, 100, exposes=True)),
        (SPEC, STATES["rolling-back"], Split()),
        (WAYS, Stepping(step=0, since=T0), Split()),
        (WAYS, Stepping(step=1, since=T0), Split(exposes=True)),
        (WAYS, Stepping(step=2, since=T0), Split(95, 5, exposes=True, max_callers=20)),
        (WAYS, Stepping(step=4, since=T0), Split(95, 5, exposes=True, max_callers=20)),
        *((SPEC, STATES[phase], Split()) for phase in FINAL_PHASES),
    ],
)
def test_each_state_has_its_split(spec: RolloutSpec, state: RolloutState, expected: Split) -> None:
    assert split(spec, state) == expected


def test_a_step_that_the_spec_does_not_have_is_an_error_and_no_default() -> None:
    with pytest.raises(Internal):
        split(SPEC, Stepping(step=2, since=T0))
    with pytest.raises(Internal):
        advance(SPEC, Stepping(step=-1, since=T0), facts(verdict=PASS))


def test_what_could_never_pass_or_fail_is_refused() -> None:
    with pytest.raises(ValidationError, match="could never pass"):
        CanaryStep(percent=5, min_duration=60, max_duration=59)
    with pytest.raises(ValidationError, match="never fails"):
        Guard(metric="error_rate", limit=2)
    with pytest.raises(ValidationError, match="promote can only be the last"):
        RolloutSpec(kind="rollout", name="a", deployment="b", to=2, steps=[PromoteStep(), PromoteStep()])
    with pytest.raises(ValidationError, match="a target step needs targets"):
        RolloutSpec(kind="rollout", name="a", deployment="b", to=2, steps=[TargetStep()])
    with pytest.raises(ValidationError, match="need keep_answers"):
        RolloutSpec(kind="rollout", name="a", deployment="b", to=2, guards=[Guard(metric="similarity", limit=0.9)])


DURATIONS = st.fixed_dictionaries(
    {"min_requests": st.integers(1, 10), "min_duration": st.floats(0, 5), "max_duration": st.floats(5, 20)}
)
PERCENT = st.floats(0.1, 100)
STEPS = st.lists(
    st.builds(lambda p, d: ShadowStep(percent=p, **d), PERCENT, DURATIONS)
    | st.builds(lambda p, n, d: CanaryStep(percent=p, max_callers=n, **d), PERCENT, st.integers(0, 5), DURATIONS)
    | st.builds(lambda d: TargetStep(**d), DURATIONS)
    | st.builds(PauseStep, duration=st.floats(0.1, 10))
    | st.builds(ApproveStep, max_duration=st.floats(1, 20)),
    min_size=1,
    max_size=5,
)
POLICIES = st.fixed_dictionaries(
    {
        "on_pass": st.sampled_from(["promote", "promote", "hold", "shadow"]),
        "on_fail": st.sampled_from(["roll-back", "hold", "shadow"]),
        "on_starved": st.sampled_from(["hold", "roll-back", "shadow", "promote"]),
        "hold_limit": st.floats(0, 60),
        "keep_warm": st.sampled_from([0.0, 30.0]),
    }
)
SENTENCE = st.none() | st.none() | st.none() | st.just("it broke")
FACTS = st.builds(
    Facts,
    now=st.just(T0),
    candidate_ready=st.booleans(),
    candidate_failed=SENTENCE,
    stable_ready=st.booleans(),
    step_requests=st.integers(0, 20),
    verdict=st.sampled_from([None, PASS, PASS, PASS, STARVED, FAIL]),
    trip=SENTENCE,
    routed=st.booleans(),
)
HAPPENINGS = st.lists(
    st.tuples(st.floats(0, 10), FACTS | st.sampled_from(get_args(Verb))),
    max_size=60,
)
ADAPTER: TypeAdapter[RolloutState] = TypeAdapter(RolloutState)


@given(STEPS, POLICIES, HAPPENINGS, st.booleans())
def test_whatever_happens_a_rollout_is_in_a_valid_state_and_comes_to_an_end_with_one_version_serving(
    steps: list[Step], policies: dict[str, Any], happenings: list[tuple[float, Facts | Verb]], is_swap: bool
) -> None:
    spec = SPEC.model_copy(update={"steps": steps, "targets": WAYS.targets, **policies})
    current: RolloutState = Preparing(since=T0)
    clock = T0
    for seconds, happening in happenings:
        clock += timedelta(seconds=seconds)
        before, following = current, None
        if isinstance(happening, str):
            try:
                following = command(spec, before, happening, clock, "ada", is_swap=is_swap)
            except Conflict:
                asks = isinstance(before, Stepping) and isinstance(steps[before.step], ApproveStep)
                assert happening not in VERBS.get(before.phase, ()) or (happening == "approve" and not asks)
        else:
            spent = (clock - getattr(before, "since", clock)).total_seconds()
            seen = replace(happening, now=clock, seconds=spent, is_swap=is_swap)
            following = advance(spec, before, seen)
            if isinstance(seen.verdict, Fail) and isinstance(before, Stepping):
                assert following is not None
                assert following.phase in {"rolling-back", "paused"}
        if following is not None:
            current = following
        check(spec, before, current, is_swap=is_swap)
    end = settle(spec, current, clock, is_swap=is_swap)
    assert end.phase in FINAL_PHASES


def check(spec: RolloutSpec, before: RolloutState, current: RolloutState, *, is_swap: bool) -> None:
    assert ADAPTER.validate_json(ADAPTER.dump_json(current)) == current  # it survives the store
    divided = split(spec, current, is_swap=is_swap)
    assert divided.stable + divided.candidate == pytest.approx(100)
    assert min(divided.stable, divided.candidate, divided.shadow) >= 0
    assert max(divided.stable, divided.candidate, divided.shadow) <= 100
    assert not (divided.exposes and divided.shadow)
    assert divided.exposes or not divided.candidate
    if current.phase in {"rolling-back", *FINAL_PHASES}:
        assert divided == Split()
    if current.phase == "preparing" and not is_swap:
        assert divided == Split()
    if before.phase in {"rolled-back", "aborted"}:
        assert current == before
    if before.phase == "promoted":
        assert current.phase in {"promoted", "returning", "rolling-back"}
    if before.phase == "rolling-back":
        assert current.phase in {"rolling-back", "rolled-back", "aborted"}
    if current.phase == "promoted":
        assert before.phase in {"promoting", "promoted", "returning"}
    if isinstance(before, Stepping) and isinstance(current, Stepping) and before != current:
        skipped = spec.steps[before.step + 1 : current.step]
        assert current.step > before.step
        assert not skipped or (is_swap and all(isinstance(s, ShadowStep) for s in skipped))


def settle(spec: RolloutSpec, state: RolloutState, clock: datetime, *, is_swap: bool) -> RolloutState:
    """From anywhere, a person who aborts and a gateway that answers bring it to its end."""
    if "abort" in VERBS.get(state.phase, ()):
        state = command(spec, state, "abort", clock, "ada")
    for _ in range(2):
        state = advance(spec, state, Facts(now=clock, routed=True, is_swap=is_swap, candidate_ready=True)) or state
    return state


@given(st.lists(st.builds(lambda p, d: CanaryStep(percent=p, **d), PERCENT, DURATIONS), min_size=1, max_size=4))
def test_a_candidate_that_holds_every_guard_is_promoted_by_itself(steps: list[Step]) -> None:
    spec = SPEC.model_copy(update={"steps": steps})
    state: RolloutState = Preparing(since=T0)
    good = Facts(now=T0, candidate_ready=True, step_requests=10, verdict=PASS, routed=True)
    phases = [state.phase]
    for i in range(len(steps) + 2):
        state = advance(spec, state, replace(good, now=after(5 * (i + 1)), seconds=5.0)) or state
        phases.append(state.phase)
    assert phases == ["preparing", *["stepping"] * len(steps), "promoting", "promoted"]
