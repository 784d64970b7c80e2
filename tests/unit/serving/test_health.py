from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stokerd.serving.health import (
    MAX_GAP_SECONDS,
    Condition,
    GivenUp,
    Look,
    Sick,
    Vitals,
    Well,
    diagnose,
    look_interval,
    take,
)

TIMEOUT = 60.0


class Server:
    """Is looked at each 2 s, and reports what became of it."""

    def __init__(self, condition: Condition = "ready") -> None:
        self.condition: Condition = condition
        self.at = 1000.0
        self.vitals: Vitals | None = None
        self.verdict: Sick | Well | GivenUp | None = None

    def look(self, **seen: Any) -> None:
        self.vitals = take(self.vitals, Look(**{"at": self.at, "has_answered": True} | seen), self.condition)
        self.verdict = diagnose(self.vitals, self.condition, TIMEOUT)
        if isinstance(self.verdict, Sick):
            self.condition = self.verdict.phase

    def live(self, seconds: float, **seen: Any) -> Sick | Well | GivenUp | None:
        """Time passes; functions among *seen* are asked for what they are at that time. Ends at the first verdict."""
        until = self.at + seconds
        while self.at < until:
            self.at += 2
            self.look(**{k: v(self.at) if callable(v) else v for k, v in seen.items()})
            if self.verdict is not None:
                return self.verdict
        return None


def test_a_server_that_answers_is_well_however_long_it_is_idle() -> None:
    assert Server().live(100_000) is None


def test_a_server_that_answers_nothing_gets_no_requests_and_is_given_up_after_twice_as_long() -> None:
    server = Server()
    server.live(10)
    sick = server.live(1000, has_answered=False)
    assert isinstance(sick, Sick)
    assert (sick.phase, sick.seconds) == ("unreachable", 60)
    assert "nothing has come from it for 60 s" in sick.why
    given_up = server.live(1000, has_answered=False)
    assert isinstance(given_up, GivenUp)
    assert server.at == 1000 + 10 + 120
    assert "for 120 s" in given_up.why


def test_it_is_well_again_as_soon_as_it_answers() -> None:
    server = Server()
    server.live(1000, has_answered=False)
    assert server.live(50, has_answered=False) is None
    assert isinstance(server.live(2), Well)


def test_a_server_whose_tokens_flow_is_not_unreachable_though_it_answers_no_health_check() -> None:
    busy = Server()
    busy.live(2)
    assert busy.live(10_000, has_answered=False, received=lambda at: int(at), waited_seconds=1.0) is None


def test_a_server_that_makes_steps_is_well_though_it_sends_nobody_anything() -> None:
    busy = Server()
    assert busy.live(10_000, steps=lambda at: at, waited_seconds=lambda at: at - 1000) is None


def test_a_server_that_makes_no_step_while_a_request_waits_is_stalled_and_given_up_after_twice_as_long() -> None:
    server = Server()
    server.live(10, steps=7.0)
    sick = server.live(1000, steps=7.0, waited_seconds=lambda at: at - 1010)
    assert isinstance(sick, Sick)
    assert (sick.phase, sick.seconds) == ("stalled", 60)
    assert "its step counter has stood still for 60 s (at 7)" in sick.why
    assert "waited 60 s" in sick.why
    assert isinstance(server.live(1000, steps=7.0, waited_seconds=lambda at: at - 1010), GivenUp)
    assert server.at == 1010 + 120


def test_many_requests_that_are_refused_at_once_are_no_stall_though_no_step_is_made_for_them() -> None:
    assert Server().live(10_000, steps=7.0, waited_seconds=0.01) is None


def test_an_engine_that_counts_no_steps_is_never_stalled() -> None:
    assert Server().live(10_000, waited_seconds=lambda at: at - 1000) is None


def test_a_stalled_server_is_not_well_by_its_clients_going_away_but_by_a_step() -> None:
    server = Server()
    server.live(1000, steps=7.0, waited_seconds=lambda at: at - 1000)
    assert server.live(40, waited_seconds=0.0) is None
    assert isinstance(server.live(2, steps=8.0), Well)
    other = Server()
    other.live(1000, steps=7.0, waited_seconds=lambda at: at - 1000)
    assert isinstance(other.live(100, waited_seconds=0.0), GivenUp)


def test_a_missing_reading_says_neither_that_steps_are_made_nor_that_they_are_not() -> None:
    server = Server()
    waited: dict[str, Any] = {"waited_seconds": lambda at: at - 1000}
    server.live(32, steps=7.0, **waited)
    assert server.live(1000, **waited) is None
    assert isinstance(server.live(30, steps=7.0, **waited), Sick)


@pytest.mark.parametrize("condition", ["ready", "stalled", "unreachable"])
def test_nothing_is_concluded_from_the_first_look_or_from_a_time_in_which_nobody_looked(condition: Condition) -> None:
    server = Server(condition)
    server.look(has_answered=False, steps=7.0, waited_seconds=9999.0)
    assert server.verdict is None
    server.at += 100_000  # the daemon was stopped, and goes on
    server.look(has_answered=False, steps=7.0, waited_seconds=9999.0)
    assert server.verdict is None
    assert server.vitals is not None
    assert server.vitals.silent_seconds == MAX_GAP_SECONDS


def test_a_server_that_was_unwell_before_the_daemon_restarted_must_show_that_it_is_well() -> None:
    assert isinstance(Server("unreachable").live(2), Well)
    assert Server("unreachable").live(100, has_answered=False) is None
    assert Server("stalled").live(100) is None
    assert isinstance(Server("stalled").live(200), GivenUp)
    assert isinstance(Server("stalled").live(100, steps=lambda at: at), Well)


looks: st.SearchStrategy[dict[str, Any]] = st.builds(
    dict,
    gap=st.floats(0, 100),
    has_answered=st.booleans(),
    steps=st.none() | st.integers(0, 3),
    waited_seconds=st.sampled_from([0.0, 1.0, 50.0, 100.0, 1000.0]),
    received=st.none() | st.integers(0, 3),
)


@given(st.lists(looks, min_size=1, max_size=60))
def test_nobody_is_ended_who_gave_a_sign_of_life_and_of_progress_within_the_time(seen: list[dict[str, Any]]) -> None:
    server = Server()
    heard = moved = server.at
    for number, look in enumerate(seen):
        before = server.vitals
        server.at += look.pop("gap")
        if server.vitals is None or isinstance(server.verdict, Well):
            server.condition, server.vitals, before = "ready", None, None
            heard = moved = server.at
        server.look(**look)
        assert server.vitals is not None
        has_moved = before is not None and None not in (before.steps, look["steps"]) and look["steps"] > before.steps
        if look["has_answered"] or has_moved:
            heard = server.at
        if has_moved or (server.condition == "ready" and not look["waited_seconds"]):
            moved = server.at
        if isinstance(server.verdict, Sick):
            assert server.at - (heard if server.verdict.phase == "unreachable" else moved) >= TIMEOUT
        if isinstance(server.verdict, GivenUp):
            assert server.at - min(heard, moved) >= 2 * TIMEOUT
            assert number > 1
            break


def test_looks_are_cheap_for_usual_times_and_often_enough_for_short_ones() -> None:
    assert [look_interval(t) for t in (0.5, 5, 20, 60, 3600)] == [0.1, 0.5, 2, 2, 2]
