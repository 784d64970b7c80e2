"""What the rollout screen says of each state of a rollout, before any widget."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stoker.types.events import Event
from stoker.types.guards import Evidence, Guard, GuardReading, Pass
from stoker.types.rollouts import (
    VERBS,
    Aborted,
    CanaryStep,
    Exposure,
    Paused,
    PlannedStep,
    Preparing,
    Promoting,
    Returning,
    RollingBack,
    Rollout,
    Stepping,
)
from stoker.types.serving import Deployment, Warm
from stoker_tui.histogram import BLOCKS, MARK, bars, ground, position, ticks
from stoker_tui.interval import BEYOND, LIMIT, Interval, draw_interval
from stoker_tui.model import View
from stoker_tui.text import Line, plain, width_of
from stoker_tui.views import arms, guards, overview, steering
from stoker_tui.views import rollout as words
from tests.tui import rollouts, world

CLOCK = world.StillClock()
NUMBER = st.one_of(st.none(), st.floats(allow_nan=True))
LATENCY = st.floats(1e-5, 1e4)
BAD = st.sampled_from(["above", "below", "outside"])


def text(lines: Sequence[Line]) -> str:
    return "\n".join(plain(row).rstrip() for row in lines)


def view_of(rollout: Rollout, deployment: Deployment | None = None) -> View:
    view = View()
    view.put(rollout)
    if deployment is not None:
        view.put(deployment)
    return view


def axis(width: int = 41, **known: object) -> str:
    return plain(draw_interval(Interval(**known), width, "good"))  # type: ignore[arg-type]


@given(NUMBER, NUMBER, NUMBER, NUMBER, st.floats(0, 1e9), BAD, st.booleans(), st.integers(1, 90))
def test_any_interval_is_drawn_in_its_width(
    low: float | None,
    estimate: float | None,
    high: float | None,
    alike: float | None,
    limit: float,
    bad: str,
    is_ratio: bool,
    width: int,
) -> None:
    interval = Interval(limit, low, estimate, high, alike, bad, is_ratio)  # type: ignore[arg-type]
    assert width_of(draw_interval(interval, width, "good")) == width


@given(st.floats(1.05, 3), st.floats(0.2, 4))
def test_where_the_estimate_is_drawn_tells_whether_it_is_within_the_limit(limit: float, estimate: float) -> None:
    drawn = axis(limit=limit, estimate=estimate, low=estimate * 0.99, high=estimate * 1.01, alike=1.0, is_ratio=True)
    if "●" in drawn and abs(estimate - limit) > 1e-9:
        at = next(i for i, c in enumerate(drawn) if c in (LIMIT, "╂"))
        assert (drawn.index("●") > at) == (estimate > limit)


def test_limits_stand_under_one_another_and_beyond_them_it_is_hatched() -> None:
    ratio = axis(limit=1.5, low=0.9, estimate=1.0, high=1.1, alike=1.0, is_ratio=True)
    points = axis(limit=0.02, low=-0.001, estimate=0.0, high=0.004, alike=0.0)
    assert ratio.index(LIMIT) == points.index(LIMIT)
    assert set(ratio[ratio.index(LIMIT) + 1 :]) == {BEYOND} and BEYOND not in ratio[: ratio.index(LIMIT)]


def test_what_must_be_at_least_so_much_is_hatched_on_the_left_and_what_must_be_alike_on_both_sides() -> None:
    at_least = axis(limit=0.8, low=0.9, estimate=0.93, high=0.96, bad="below")
    assert at_least.startswith(BEYOND) and not at_least.endswith(BEYOND)
    both = axis(limit=1.5, low=0.9, estimate=1.0, high=1.1, alike=1.0, bad="outside", is_ratio=True)
    assert both.count(LIMIT) == 2 and both[0] == both[-1] == BEYOND


def test_an_end_that_is_not_bounded_is_an_arrow_and_the_part_beyond_the_limit_is_heavy() -> None:
    drawn = axis(limit=1.5, low=0.9, estimate=1.2, high=None, alike=1.0, is_ratio=True)
    assert drawn.lstrip()[0] == "├" and drawn[-1] == "▸" and "╂━" in drawn
    assert axis(limit=1.5, estimate=1.0, alike=1.0, is_ratio=True)[0] == "◂"
    far = axis(limit=1.1, low=90.0, estimate=95.0, high=99.0, alike=1.0, is_ratio=True)
    assert far[-1] == "▸" and "●" not in far


def test_nothing_known_shows_the_limit_alone() -> None:
    assert set(axis(limit=1.5, alike=1.0, is_ratio=True)) == {" ", "┊", LIMIT, BEYOND}


def test_an_evaluation_may_lie_below_stables_by_as_much_as_the_guard_allows() -> None:
    guard = Guard(metric="score", name="mmlu", limit=0.02)
    made = guards.interval(guard, Evidence(unit="number", limit=0.02, estimate=-0.01, low=-0.01, high=-0.01))
    assert (made.limit, made.alike, made.bad) == (-0.02, 0.0, "below")


@given(st.lists(st.integers(0, 10**6), min_size=1, max_size=30), st.integers(1, 3), st.integers(1, 3))
def test_no_request_is_too_few_to_be_seen_in_a_histogram(counts: list[int], each: int, rows: int) -> None:
    drawn = bars(counts, each, rows)
    assert len(drawn) == rows and all(len(row) == each * len(counts) for row in drawn)
    for i, count in enumerate(counts):
        assert (drawn[-1][i * each] != " ") == (count > 0)
        assert all(row[i * each] == BLOCKS[8] for row in drawn) or count < max(counts) or not count


@given(st.lists(st.integers(0, 47), min_size=1, max_size=3))
def test_every_quantile_has_its_mark_and_no_label_hides_one(places: list[int]) -> None:
    drawn = ground(list(zip(("p50", "p90", "p99"), sorted(places), strict=False)), 48)
    assert len(drawn) == 48 and [i for i, c in enumerate(drawn) if c == MARK] == sorted(set(places))


def test_quantiles_that_lie_near_each_other_are_labelled_on_the_side_where_there_is_room() -> None:
    assert ground([("p50", 5), ("p90", 6), ("p99", 14)], 18) == "┄┄p50┴┴p90┄┄┄┄┴p99"
    assert ground([("p50", 5), ("p90", 5), ("p99", 17)], 18) == "┄┄p90┴p50┄┄┄┄┄p99┴"


@given(LATENCY, LATENCY, LATENCY, st.integers(1, 90))
def test_any_latency_has_a_place_on_any_axis(value: float, low: float, high: float, width: int) -> None:
    assert 0 <= position(value, low, high, width) < width
    found = ticks(low, high, width)
    assert all(b[1] - a[1] >= 8 for a, b in itertools.pairwise(found))
    assert all(low <= tick <= high for tick, _ in found)


STATES = {
    "stepping": rollouts.rollout(),
    "shadow": rollouts.shadowed(),
    "target": rollouts.at_step(1),
    "capped": rollouts.at_step(2),
    "approve": rollouts.at_step(3),
    "pause": rollouts.at_step(5),
    "starved": rollouts.starved(),
    "rolled back": rollouts.failing(),
    "promoted": rollouts.promoted(),
    "cold": rollouts.promoted(-1),
    "no such step": rollouts.rollout(state=Stepping(step=9, since=world.ago(5))),
    "preparing": rollouts.rollout(arms={}, readings=[], distributions={}, state=Preparing(since=world.ago(5))),
    "promoting": rollouts.rollout(state=Promoting(since=world.ago(5))),
    "returning": rollouts.rollout(state=Returning(since=world.ago(5), because="ada wants it back.")),
    "rolling back": rollouts.rollout(state=RollingBack(since=world.ago(5), because="5 failed answers in a row")),
    "aborted": rollouts.rollout(state=Aborted(finished_at=world.ago(5), because="aborted by ada")),
    "swap": rollouts.rollout(plan=rollouts.plan(rollouts.STEPS, "swap")),
    "unplanned": rollouts.rollout(plan=None, started_by="", distributions={}),
}


@pytest.mark.parametrize("name", STATES)
@given(width=st.integers(1, 170))
def test_every_state_is_drawn_at_any_width(name: str, width: int) -> None:
    rollout = STATES[name]
    view = view_of(rollout)
    drawn = [
        words.title(rollout, view, CLOCK, width),
        words.exposure(rollout, width),
        words.ladder(rollout, CLOCK, width, 1),
        guards.guards(rollout, width, in_full=True),
        guards.contention(rollout, width, in_full=False),
        arms.arms(rollout, view, width, tall=width > 100),
    ]
    assert all(isinstance(row, tuple) for lines in drawn for row in lines)
    assert all(verb in VERBS[rollout.phase] for verb in steering.allowed(rollout, view))
    assert all(
        steering.consequence(rollout, verb, view, CLOCK).endswith((".", "!"))
        for verb in ("pause", "resume", "approve", "promote", "abort", "rollback")
    )


def test_the_ladder_says_what_the_present_step_still_needs_and_how_long_the_others_take() -> None:
    said = text(words.ladder(rollouts.rollout(), CLOCK, 79))
    assert "▸ 2  canary 25 % of at most 50 callers starved in 58m 48s" in said
    assert "37 of 50 requests, 19 of 20 callers, 1m 12s of 2m" in said
    assert "planned: about 6m in all" in said and "✓ 1  shadow 100 %" in said
    assert "· 3  canary 50 %" in said and "about 2m" in said and "· 4  promotion" in said


def test_a_step_that_has_all_it_needs_says_which_guards_it_waits_for() -> None:
    spec = rollouts.rollout().spec.model_copy(update={"steps": [CanaryStep(percent=5, min_requests=10)]})
    said = text(words.ladder(rollouts.rollout(spec=spec, state=Stepping(step=0, since=world.ago(5))), CLOCK, 79))
    assert "waits for total p90" in said


@pytest.mark.parametrize(
    ("step", "sentence"),
    [
        (1, "37 of 10 requests"),
        (3, "waits for grace to approve it: key o"),
        (5, "goes on in 8m 48s"),
    ],
)
def test_every_kind_of_step_says_what_it_waits_for(step: int, sentence: str) -> None:
    assert sentence in text(words.ladder(rollouts.at_step(step), CLOCK, 79))


def test_where_it_was_rolled_back_is_seen_on_the_ladder() -> None:
    told: list[dict[str, Any]] = [{"step": 0}, {"step": 1}, {"step": True}, {}]
    events = [
        Event(id=i, time=world.NOON, kind="rollout", name="chat-v4", reason="R", message="m", data=data)
        for i, data in enumerate(told)
    ]
    said = text(words.ladder(rollouts.failing(), CLOCK, 79, words.came_to(events)))
    assert "◂ 2  canary 25 % of at most 50 callers rolled back in this step" in said and "✓ 1" in said
    assert words.came_to([]) is None


def test_a_swap_leaves_out_its_shadow_steps_and_says_what_the_plan_foresaw() -> None:
    planned = rollouts.plan(rollouts.STEPS, "swap")
    steps = [*planned.steps[:1], PlannedStep(step=rollouts.STEPS[1], says="everybody gets v4"), *planned.steps[2:]]
    rollout = rollouts.rollout(plan=planned.model_copy(update={"steps": steps}))
    said = text(words.ladder(rollout, CLOCK, 79))
    assert "· 1  shadow 100 %" in said and "left out: one version runs" in said and "everybody gets v4" in said
    assert "now: everybody, since only one version runs at a time" in text(words.exposure(rollout, 79))


@pytest.mark.parametrize(
    ("rollout", "sentences"),
    [
        (
            STATES["capped"],
            ["37 requests of 19 callers got v4", "✗ 1 failed answer (2.7 %)", "19 of at most 50"],
        ),
        (STATES["shadow"], ["no client has got an answer of v4", "now: nobody; only copies"]),
        (STATES["target"], ["now: x-team: internal, key testers, and nobody else"]),
        (STATES["pause"], ["now: 50 % of callers, and x-team: internal, key testers"]),
        (rollouts.rollout(exposure=Exposure(requests=1, callers=1)), ["1 request of 1 caller"]),
        (rollouts.rollout(exposure=Exposure(errors=4)), ["✗ 4 failed answers of v4 seen by clients"]),
    ],
)
def test_the_blast_radius_is_said_with_what_bounds_it(rollout: Rollout, sentences: list[str]) -> None:
    said = text(words.exposure(rollout, 79))
    assert all(sentence in said for sentence in sentences), said


def test_how_much_evidence_is_missing_is_said_in_the_room_that_there_is() -> None:
    seen = Evidence(unit="ratio", limit=1.5, requests=37, callers=19, missing=111)
    longest, *_, shortest = guards.amounts(seen)
    assert longest == "▕█▌    ▏ 37 requests of 19 callers, about 111 more to go" and shortest == "about 111 more to go"
    assert guards.amounts(seen.model_copy(update={"missing": 0}))[0] == "37 requests of 19 callers, enough"
    assert guards.amounts(seen.model_copy(update={"missing": None, "requests": 1}))[-1] == "1 request"


@pytest.mark.parametrize(
    ("unit", "value", "said"),
    [
        ("ratio", 1.314, "1.31 ×"),
        ("points", -0.004, "-0.4 points"),
        ("seconds", 0.31, "310 ms"),
        ("share", 0.021, "2.1 %"),
        ("tokens", 512.4, "512"),
        ("number", 0.8312, "0.8312"),
    ],
)
def test_evidence_is_said_in_its_unit(unit: str, value: float, said: str) -> None:
    assert guards.said(Evidence(unit=unit, limit=1.0), value) == said  # type: ignore[arg-type]


def test_a_guard_shows_its_interval_and_stable_what_it_suffers() -> None:
    said = text(guards.guards(rollouts.rollout(), 79, in_full=False))
    assert "✓ holds    TTFT p90 at most 2 × stable's" in said and "1.13 × 0.81 to 1.41" in said
    assert "1.05 × from 0.62 on" in said and "37 of 50 requests on the candidate so far." in said
    assert "times v3's at 99 %" not in said, "a guard that holds needs no sentence where there's little room"
    assert "times v3's at 99 %" in text(guards.guards(rollouts.rollout(), 79, in_full=True)).replace("\n", " ")
    assert "CONTENTION: v3 now against v3 before v4 came" in text(guards.contention(STATES["shadow"], 79, in_full=True))
    assert not guards.contention(rollouts.rollout(), 79, in_full=True)


def test_a_guard_that_gives_no_numbers_still_gives_its_sentence() -> None:
    bare = [GuardReading(guard=rollouts.GUARDS[0], verdict=Pass(reason="all is well here"))]
    assert "all is well here" in text(guards.guards(rollouts.rollout(readings=bare), 79, in_full=False))


@pytest.mark.parametrize(
    ("name", "shares"),
    [
        ("stepping", ("75 %", "25 %")),
        ("shadow", ("100 %", "100 % mirrored")),
        ("target", ("all but targets", "targets")),
        ("capped", ("95 %", "5 % and targets")),
        ("approve", ("95 %", "5 % and targets")),
        ("pause", ("50 %", "50 % and targets")),
        ("starved", ("100 %", "25 % mirrored")),
        ("promoting", ("0 %", "100 %")),
        ("returning", ("0 %", "100 %")),
        ("rolling back", ("100 %", "0 %")),
        ("swap", ("0 %", "100 %")),
    ],
)
def test_who_gets_what_is_said_for_every_state(name: str, shares: tuple[str, str]) -> None:
    assert arms.weights(STATES[name]) == shares


def test_both_histograms_stand_on_one_axis_with_their_quantiles() -> None:
    rollout = rollouts.rollout()
    said = text(arms.arms(rollout, view_of(rollout), 79, tall=False)).splitlines()
    at = next(i for i, row in enumerate(said) if row.startswith("  TTFT, ms"))
    assert "100 ms" in said[at] and said[at].endswith("p50  p90  p99")
    assert said[at + 1].split()[-3:] == ["118", "310", "920"] and said[at + 3].split()[-3:] == ["121", "350", "1240"]
    assert said[at + 2].count(MARK) == said[at + 4].count(MARK) == 3
    assert said[at + 4].startswith("  × stable’s") and said[at + 4].split()[-3:] == ["1.03", "1.13", "1.35"]


def warm_deployment() -> Deployment:
    return world.deployment(version=4, warm=Warm(version=3, until=world.ago(-400), rollout="chat-v4"))


def swap(**changes: object) -> Rollout:
    return rollouts.rollout(plan=rollouts.plan(rollouts.STEPS, "swap")).model_copy(update=changes)


@pytest.mark.parametrize(
    ("rollout", "deployment", "verb", "sentence"),
    [
        (STATES["stepping"], None, "promote", "All traffic goes to v4. v3 stands by for 10m"),
        (STATES["stepping"], None, "promote", "1 of its guards can't say yet."),
        (STATES["stepping"], None, "abort", "All traffic goes back to v3 at once"),
        (STATES["stepping"], None, "pause", "v4 keeps its share of the traffic (25 %)"),
        (STATES["starved"], None, "resume", "Clients get answers of v4 again: 25 %."),
        (STATES["starved"], None, "abort", "v4, whose answers nobody gets now"),
        (STATES["shadow"], None, "abort", "v3 keeps all traffic"),
        (STATES["preparing"], None, "abort", "v4, which has got none, stops"),
        (STATES["approve"], None, "approve", "It goes on with step 5, canary 50 %: v4 answers 50 % of callers."),
        (STATES["promoted"], warm_deployment(), "rollback", "its replicas stand by till 14:36:40"),
        (STATES["promoted"], world.deployment(version=4), "rollback", "they start first, and v4 answers until"),
        (STATES["cold"], warm_deployment(), "rollback", "they start first, and v4 answers until"),
        (swap(), world.deployment(), "abort", "requests are held for up to 10m, then refused"),
        (swap(), world.deployment(), "promote", "v4 keeps all traffic. v3 has stopped already"),
        (
            swap(state=rollouts.promoted().state.model_copy(update={"warm_until": None})),
            world.deployment(
                spec=world.deployment().spec.model_copy(update={"hold_timeout": 1800.0}), version=4, warm=None
            ),
            "rollback",
            "requests are held for up to 30m, then refused",
        ),
    ],
)
def test_what_will_happen_is_said_as_it_will_happen(
    rollout: Rollout, deployment: Deployment | None, verb: str, sentence: str
) -> None:
    said = steering.consequence(rollout, verb, view_of(rollout, deployment), CLOCK)
    assert sentence in said, said


def test_a_promotion_is_not_rolled_back_when_the_deployment_has_moved_on() -> None:
    promoted = rollouts.promoted()
    assert steering.allowed(promoted, view_of(promoted, warm_deployment())) == ("rollback",)
    for moved in (world.deployment(version=5), world.deployment(version=4, rollout="chat-v5")):
        assert steering.allowed(promoted, view_of(promoted, moved)) == ()
    said = text(words.title(promoted, view_of(promoted, world.deployment(version=5)), CLOCK, 79))
    assert "chat serves v5 by now." in said


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("starved", "Clients get v3; v4 only answers copies of requests (25 % mirrored)."),
        ("promoted", "v3 stands by, warm, for 6m 40s more (till 14:36:40): b rolls back at once."),
        ("cold", "v3 no longer stands by: b rolls back, in the time that it takes to start."),
        ("returning", "The replicas of v3 start; v4 answers until they are ready."),
        ("rolled back", "Stable had all traffic again 40 ms after the verdict."),
        ("stepping", "Started by ada; v4 shares the devices of v3."),
        ("promoted", "promoted by grace 3m 25s ago"),
    ],
)
def test_the_title_says_who_answers_and_who_decided(name: str, sentence: str) -> None:
    assert sentence in text(words.title(STATES[name], view_of(STATES[name]), CLOCK, 120))


def test_the_overview_says_how_long_there_is_a_quick_way_back() -> None:
    rollout = rollouts.promoted()
    assert overview.rollouts(view_of(rollout, warm_deployment()), CLOCK).rows[0].more.endswith("warm, till 14:36:40")
    assert "warm" not in overview.rollouts(view_of(rollout, world.deployment(version=4)), CLOCK).rows[0].more


def test_a_pause_that_keeps_its_share_says_so() -> None:
    paused = rollouts.rollout(state=Paused(step=1, since=world.ago(9), because="paused by ada", by="ada"))
    assert "v4 keeps its share of the traffic: 25 %." in text(words.title(paused, view_of(paused), CLOCK, 79))


def test_the_history_says_who_decided() -> None:
    event = Event(
        id=1, time=world.NOON, kind="rollout", name="chat-v4", reason="RolloutPaused", message="chat-v4 is paused.",
        data={"by": "grace", "because": "paused by grace"},
    )  # fmt: skip
    assert "14:30:00  grace     chat-v4 is paused." in text(words.story([event], CLOCK, 79))
