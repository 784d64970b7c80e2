from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stoker.types.rollouts import RolloutSpec
from stokerd.rollouts.pace import LateTraffic, Pace

HOURLY = LateTraffic(requests_per_hour=3600, callers=200, hours=24)
NOTHING: list[Any] = []


def pace(traffic: LateTraffic = HOURLY, *, is_swap: bool = False, replicas: int = 1, **fields: Any) -> Pace:
    spec = RolloutSpec.model_validate({"kind": "rollout", "name": "r", "deployment": "chat", "to": 7, **fields})
    return Pace(spec, traffic, stable="v6", replicas=replicas, is_swap=is_swap)


def canary(percent: float = 10, **fields: Any) -> dict[str, Any]:
    return {"type": "canary", "percent": percent, "min_requests": 20, **fields}


def test_the_usual_steps_take_as_long_as_their_requests_and_times_do() -> None:
    steps = pace().steps()
    assert [step.step.type for step in steps] == ["shadow", "canary", "canary", "canary", "promote"]
    assert [step.seconds for step in steps] == pytest.approx([200, 400, 300, 300, 0])
    assert [step.requests_per_hour for step in steps] == pytest.approx([360, 180, 900, 1800, 3600])
    assert [step.says for step in steps] == [""] * 5


def test_without_traffic_nobody_can_say_when() -> None:
    quiet = pace(LateTraffic(hours=24))
    assert all(step.seconds is None for step in quiet.steps()[:-1])
    assert quiet.steps()[0].says == "would starve: 0 of 20 requests in 1h"
    assert any(w.startswith("There were no requests in the last 1d") for w in quiet.warnings())
    assert any(w.startswith("There were no requests so far") for w in pace(LateTraffic()).warnings())


def test_a_step_that_would_starve_says_how_much_there_would_be() -> None:
    few = LateTraffic(requests_per_hour=60)
    (step, _) = pace(few, steps=[canary(5, max_duration=600)], guards=NOTHING).steps()
    assert (step.seconds, step.says) == (None, "would starve: 0 of 20 requests in 10m")
    (step, _) = pace(few, steps=[canary(50, max_duration=600)], guards=NOTHING, on_starved="promote").steps()
    assert (step.seconds, step.says) == (600, "would starve: 5 of 20 requests in 10m")


def test_guards_need_their_own_requests_and_stables_to_compare_with() -> None:
    guard = {"metric": "error_rate", "limit": 0.1, "min_requests": 100}
    (step, _) = pace(steps=[canary(50)], guards=[guard]).steps()
    assert step.seconds == pytest.approx(200)
    (step, _) = pace(steps=[canary(90)], guards=[guard]).steps()
    assert step.seconds == pytest.approx(1000)  # stable's 10 %
    (step, _) = pace(steps=[canary(100)], guards=[guard]).steps()
    assert step.says == "would starve: 0 of 100 requests of v6 to compare with in 1h"
    (step, _) = pace(steps=[canary(100)], guards=[{**guard, "against": "nothing"}]).steps()
    assert step.seconds == pytest.approx(100)


def test_requests_of_cold_replicas_come_on_top_for_guards_of_latencies() -> None:
    guard = {"metric": "ttft", "limit": 1.5, "min_requests": 50}
    first, second, _ = pace(steps=[canary(50), canary(50)], guards=[guard], cold_requests=10, replicas=3).steps()
    assert [first.seconds, second.seconds] == pytest.approx([160, 100])


def test_guards_of_kept_answers_need_a_shadow_step() -> None:
    guard = {"metric": "similarity", "limit": 0.8, "min_requests": 1000}
    (step, _) = pace(steps=[canary(50)], guards=[guard], keep_answers=True).steps()
    assert step.seconds == pytest.approx(40)
    warning = "Guards of similarity judge answers of shadow steps, and there is none."
    assert warning in pace(steps=[canary(50)], guards=[guard], keep_answers=True).warnings()
    assert warning not in pace(guards=[guard], keep_answers=True).warnings()


def test_the_blast_radius_bounds_the_share() -> None:
    (step, _) = pace(steps=[canary(50, max_callers=10)], guards=NOTHING).steps()
    assert step.requests_per_hour == pytest.approx(180)
    assert step.says == "bounded to 10 of 200 callers of late"
    (step, _) = pace(steps=[canary(50, max_callers=150)], guards=NOTHING).steps()
    assert (step.requests_per_hour, step.says) == (1800, "")


def test_callers_who_cannot_be_told_apart_get_nothing_of_a_bounded_canary() -> None:
    anonymous = LateTraffic(requests_per_hour=3600, hours=24)
    one = pace(anonymous, steps=[canary(50, max_callers=10)], guards=NOTHING)
    step = one.steps()[0]
    assert (step.seconds, step.requests_per_hour) == (None, 0)
    assert step.says.startswith("callers can't be told apart, so that all stay with v6; would starve: 0 of 20")
    assert any("max_callers" in w for w in one.warnings())
    assert pace(anonymous, steps=[canary(50)], guards=NOTHING).steps()[0].seconds == pytest.approx(40)


def test_few_callers_may_all_miss_a_small_canary() -> None:
    few = LateTraffic(requests_per_hour=3600, callers=3, hours=24)
    assert pace(few, steps=[canary(5)]).steps()[0].says == "by chance, it may be none of the 3 callers of late"


def test_enough_callers_take_their_time() -> None:
    (step, _) = pace(steps=[canary(50, min_callers=2)], guards=NOTHING).steps()
    assert step.seconds == pytest.approx(2 / (200 * 0.5 / 24) * 3600)
    (step, _) = pace(steps=[canary(50, min_callers=20)], guards=NOTHING).steps()
    assert step.says == "would starve: 4 of 20 callers in 1h"
    (step, _) = pace(steps=[canary(50, min_callers=20, max_callers=10, max_duration="7d")], guards=NOTHING).steps()
    assert (step.seconds, step.says.endswith("as it may have no more (max_callers), in 7d")) == (None, True)


def test_pauses_and_approvals_go_on_with_the_traffic_of_the_step_before() -> None:
    steps = [canary(10), {"type": "pause", "duration": "10m"}, {"type": "approve"}]
    _, pause, approval, promotion = pace(steps=steps).steps()
    assert [pause.seconds, pause.requests_per_hour] == pytest.approx([600, 360])
    assert (approval.seconds, approval.says) == (None, "waits for somebody, at most 7d")
    assert (promotion.seconds, promotion.requests_per_hour) == (0, 3600)


def test_what_targets_ask_is_not_known() -> None:
    (step, _) = pace(steps=[{"type": "target"}], targets=[{"key": "staff"}]).steps()
    assert (step.seconds, step.says) == (None, "how much its targets ask isn't known")


def test_promotion_is_one_step_written_or_not_and_waits_where_the_spec_says_so() -> None:
    assert len(pace(steps=[canary(), {"type": "promote"}]).steps()) == 2
    (_, promotion) = pace(steps=[canary()], on_pass="hold").steps()
    assert (promotion.seconds, promotion.says) == (None, "waits for somebody, at most 1d (on_pass: hold)")
    assert pace(steps=[canary(), {"type": "approve"}], on_pass="hold").steps()[-1].seconds == 0
    (promotion,) = pace(steps=[{"type": "promote"}], on_pass="hold").steps()
    assert promotion.seconds == 0


def test_in_a_swap_the_candidate_answers_everything_and_shadows_nothing() -> None:
    steps = pace(is_swap=True, steps=[{"type": "shadow", "percent": 10}, canary(5)]).steps()
    assert (steps[0].seconds, steps[0].says) == (0, "left out: v6 isn't there to be compared with")
    assert (steps[1].seconds, steps[1].requests_per_hour) == (20, 3600)
    assert steps[1].says == "in a swap, the candidate answers everything"


def test_what_a_careful_operator_should_know_is_warned_of() -> None:
    assert list(pace().warnings()) == []
    assert any("no guards" in w for w in pace(guards=NOTHING).warnings())
    assert any("on_starved" in w for w in pace(on_starved="promote").warnings())
    guard = {"metric": "ttft", "limit": 1.2, "proof": True}
    assert any("proof" in w for w in pace(guards=[guard]).warnings())


@given(
    rate=st.floats(0, 1e6),
    callers=st.integers(0, 10_000),
    percent=st.floats(0.1, 100),
    most=st.integers(0, 50),
    least=st.integers(0, 50),
    requests=st.integers(1, 10_000),
    is_swap=st.booleans(),
)
def test_what_is_foretold_is_within_the_times_of_the_step(
    rate: float, callers: int, percent: float, most: int, least: int, requests: int, is_swap: bool
) -> None:
    step = canary(percent, max_callers=most, min_callers=least, min_requests=requests, min_duration=5)
    traffic = LateTraffic(requests_per_hour=rate, callers=callers, hours=24)
    planned = pace(traffic, steps=[step], is_swap=is_swap).steps()[0]
    assert 0 <= planned.requests_per_hour <= rate
    if planned.seconds is None:
        assert "would starve" in planned.says
    else:
        assert 5 <= planned.seconds <= 3600
        assert planned.requests_per_hour * planned.seconds / 3600 >= requests - 1e-6
