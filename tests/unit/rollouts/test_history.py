from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from stoker.types.events import Event
from stoker.types.traffic import Served
from stokerd.rollouts.history import served

START = datetime(2026, 5, 4, 9, tzinfo=UTC)


def at(second: float) -> datetime:
    return START + timedelta(seconds=second)


def event(second: float, reason: str, /, kind: str = "deployment", name: str = "chat", **data: Any) -> Event:
    message = str(data.pop("message", ""))
    return Event(id=1, time=at(second), kind=kind, name=name, reason=reason, message=message, data=data)


def moved(second: float, *arms: tuple[str, int, float], whom: dict[str, str] | None = None, **data: Any) -> Event:
    listed = [{"arm": arm, "version": version, "percent": percent} for arm, version, percent in arms]
    return event(second, "TrafficMoved", arms=listed, whom=whom or {}, **data)


def brief(rows: list[Served]) -> list[tuple[int, str, float, float, float | None]]:
    """Version, arm, percent, and from which second to which."""
    return [
        (
            row.version,
            row.arm,
            row.percent,
            (row.since - START).total_seconds(),
            (row.until - START).total_seconds() if row.until else None,
        )
        for row in rows
    ]


BORN = [event(0, "DeploymentCreated", version=6, by="ann"), event(7, "DeploymentReady")]


def test_it_serves_from_when_it_is_ready_on_by_the_decision_of_whoever_created_it() -> None:
    (row,) = served(BORN, "chat")
    assert (row.since, row.until, row.by, row.whom, row.rollout) == (at(7), None, "ann", "everybody", "")
    assert served(BORN[:1], "chat") == []


def test_some_replicas_are_enough_to_serve() -> None:
    rows = served([BORN[0], event(5, "DeploymentDegraded"), event(9, "DeploymentReady")], "chat")
    assert brief(rows) == [(6, "stable", 100, 5, None)]


def test_a_rollout_is_told_arm_by_arm_to_whom_and_by_whom() -> None:
    share = {"candidate": "5 % of callers, at most 20", "stable": "everybody else"}
    events = [
        *BORN,
        moved(20, ("stable", 6, 100), ("shadow", 7, 10), by="bob", rollout="r", because="step 1"),
        moved(
            30, ("stable", 6, 95), ("candidate", 7, 5), whom=share, by="guards", rollout="r", because="shadow passed"
        ),
        moved(40, ("stable", 6, 0), ("candidate", 7, 100), by="guards", rollout="r", because="all guards held"),
        moved(41, ("stable", 7, 100), by="guards", rollout="r", because="promoted"),
    ]
    rows = served(events, "chat")
    assert brief(rows) == [
        (6, "stable", 100, 7, 30),
        (7, "shadow", 10, 20, 30),
        (6, "stable", 95, 30, 40),
        (7, "candidate", 5, 30, 40),
        (7, "candidate", 100, 40, 41),
        (7, "stable", 100, 41, None),
    ]
    assert [row.whom for row in rows] == [
        "everybody",
        "nobody: copies of 10 % of requests",
        "everybody else",
        "5 % of callers, at most 20",
        "everybody",
        "everybody",
    ]
    assert (rows[3].by, rows[3].because, rows[3].rollout) == ("guards", "shadow passed", "r")
    assert rows[1].by == "bob"


def test_what_goes_on_as_it_was_stays_one_row_with_the_decision_that_began_it() -> None:
    again = moved(20, ("stable", 6, 100), whom={"stable": "everybody"}, by="gateway", because="it started anew")
    assert served([*BORN, again], "chat") == served(BORN, "chat")


def test_targets_without_a_share_are_a_row_of_their_own() -> None:
    whom = {"stable": "everybody else", "candidate": "key staff"}
    rows = served([*BORN, moved(9, ("stable", 6, 100), ("candidate", 7, 0), whom=whom)], "chat")
    assert brief(rows)[1:] == [(6, "stable", 100, 9, None), (7, "candidate", 0, 9, None)]
    assert rows[2].whom == "key staff"


def test_a_share_that_changed_hands_within_the_same_percent_is_a_new_row() -> None:
    first = moved(9, ("candidate", 7, 5), ("stable", 6, 95), whom={"candidate": "5 %", "stable": "everybody else"})
    other = moved(
        12, ("candidate", 7, 5), ("stable", 6, 95), whom={"candidate": "5 %, at most 3", "stable": "everybody else"}
    )
    assert brief(served([*BORN, first, other], "chat"))[1:] == [
        (7, "candidate", 5, 9, 12),
        (6, "stable", 95, 9, None),
        (7, "candidate", 5, 12, None),
    ]


def test_nobody_was_served_by_a_stable_version_that_was_given_up() -> None:
    split = moved(10, ("stable", 6, 95), ("candidate", 7, 5))
    rows = served([*BORN, split, event(20, "DeploymentFailed"), event(50, "DeploymentReady")], "chat")
    assert brief(rows) == [
        (6, "stable", 100, 7, 10),
        (6, "stable", 95, 10, 20),
        (7, "candidate", 5, 10, None),
        (6, "stable", 95, 50, None),
    ]


def test_nobody_was_served_by_a_candidate_that_was_given_up_alone() -> None:
    rows = served([*BORN, moved(10, ("candidate", 7, 100)), event(20, "DeploymentFailed")], "chat")
    assert brief(rows)[1:] == [(7, "candidate", 100, 10, 20)]


def test_deletion_ends_all_and_the_same_name_can_live_again() -> None:
    events = [
        *BORN,
        moved(10, ("stable", 6, 95), ("candidate", 7, 5)),
        event(20, "DeploymentDeleting", by="ann"),
        event(25, "DeploymentDeleted"),
        event(30, "DeploymentCreated", version=8, by="bob"),
        event(33, "DeploymentReady"),
    ]
    rows = served(events, "chat")
    assert brief(rows)[1:] == [(6, "stable", 95, 10, 20), (7, "candidate", 5, 10, 20), (8, "stable", 100, 33, None)]
    assert rows[-1].by == "bob"


def test_traffic_that_was_divided_before_it_was_ready_counts_from_when_it_is() -> None:
    rows = served([BORN[0], moved(2, ("stable", 6, 100), by="gateway"), BORN[1]], "chat")
    assert brief(rows) == [(6, "stable", 100, 7, None)]


def test_events_of_others_say_nothing_of_it() -> None:
    others = [event(9, "DeploymentDeleted", name="other"), event(9, "DeploymentDeleted", kind="rollout")]
    assert served([*BORN, *others], "chat") == served(BORN, "chat")


def test_events_of_an_earlier_stoker_are_understood_by_their_messages() -> None:
    events = [
        event(0, "DeploymentCreated", message="deployment chat of m-2@6 was created."),
        event(7, "DeploymentReady"),
        event(20, "DeploymentServes", message="chat serves version 7."),
    ]
    assert brief(served(events, "chat")) == [(6, "stable", 100, 7, 20), (7, "stable", 100, 20, None)]


def test_what_the_gateway_confirmed_outranks_what_was_decided() -> None:
    events = [*BORN, moved(20, ("candidate", 7, 100)), event(21, "DeploymentServes", message="chat serves version 7.")]
    assert brief(served(events, "chat"))[1:] == [(7, "candidate", 100, 20, None)]


def test_no_row_ends_before_it_began_though_the_clock_was_set_back() -> None:
    rows = served([*BORN, moved(-50, ("stable", 7, 100))], "chat")
    assert brief(rows) == [(6, "stable", 100, 7, 7), (7, "stable", 100, -50, None)]


happenings = st.one_of(
    st.sampled_from(
        [
            ("DeploymentCreated", {"version": 6}),
            *((reason, {}) for reason in ("DeploymentReady", "DeploymentFailed", "DeploymentDeleting", "Other")),
        ]
    ),
    st.tuples(st.integers(1, 3), st.sampled_from([0.0, 5.0, 50.0, 100.0])).map(
        lambda drawn: (
            "TrafficMoved",
            {
                "arms": [
                    {"arm": "stable", "version": drawn[0], "percent": 100 - drawn[1]},
                    {"arm": "candidate", "version": drawn[0] + 1, "percent": drawn[1]},
                ]
            },
        )
    ),
)


@given(st.lists(happenings, max_size=30))
def test_at_any_time_each_arm_is_one_version_and_all_have_at_most_the_whole(
    drawn: list[tuple[str, dict[str, Any]]],
) -> None:
    rows = served([event(i, reason, **data) for i, (reason, data) in enumerate(drawn)], "chat")
    assert [row.since for row in rows] == sorted(row.since for row in rows)
    for second in range(len(drawn)):
        then = [row for row in rows if row.since <= at(second) and (row.until is None or at(second) < row.until)]
        assert len({row.arm for row in then}) == len(then)
        assert sum(row.percent for row in then) <= 100
