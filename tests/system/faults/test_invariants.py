"""The judges judged: a story that is as it should be is let pass, and one that tells of an end twice, or never, not."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from stoker.types.base import now
from stoker.types.events import Event
from stoker.types.training import Failed, JobSpec, Run
from tests.system.faults import invariants


def story(kind: str, name: str, reasons: Sequence[str]) -> list[Event]:
    """One event for each reason; those of starts number the attempts, and each says how something ended."""
    events, attempt = [], 0
    for number, reason in enumerate(reasons, 1):
        attempt += reason == "RunStarted"
        data = {"attempt": attempt} if reason == "RunStarted" else {}
        message = f"{name}: it exited with code 1"
        events.append(Event(id=number, time=now(), kind=kind, name=name, reason=reason, message=message, data=data))
    return events


def of_run(*reasons: str) -> list[str]:
    spec = JobSpec(kind="job", name="j", command=["x"])
    ended = Failed(started_at=now(), finished_at=now(), message="it exited with code 1")
    run = Run(name="j-1", job="j", number=1, spec=spec, state=ended)
    return invariants.of_runs(story("run", "j-1", ["RunQueued", *reasons]), [run])


def of_replica(*reasons: str) -> list[str]:
    return invariants.of_replicas(story("replica", "d-v1-0", ["ReplicaCreated", *reasons]), [])


@pytest.mark.parametrize(
    "reasons",
    [
        ("RunStarted", "RunFailed"),
        ("RunStarted", "RunRetrying", "RunStarted", "RunLost", "RunStarted", "RunSucceeded"),
        ("RunStarted", "RunRetrying", "RunCancelled"),
        ("RunStarted", "RunLost", "RunCancelled"),
        ("RunCancelled",),
    ],
)
def test_a_run_may_end_once_for_each_start(reasons: tuple[str, ...]) -> None:
    assert of_run(*reasons) == []


@pytest.mark.parametrize(
    "reasons",
    [
        ("RunStarted", "RunFailed", "RunFailed"),
        ("RunStarted", "RunLost", "RunLost"),
        ("RunStarted", "RunRetrying", "RunRetrying", "RunStarted", "RunFailed"),
        ("RunStarted", "RunLost", "RunFailed"),
        ("RunStarted", "RunFailed", "RunCancelled"),
        ("RunStarted", "RunCancelled", "RunCancelled"),
        ("RunStarted",),
    ],
)
def test_an_end_of_a_run_that_is_told_twice_or_never_is_found(reasons: tuple[str, ...]) -> None:
    assert "ends told" in "\n".join(of_run(*reasons))


@pytest.mark.parametrize(
    "reasons",
    [
        ("ReplicaStarting", "ReplicaBackingOff", "ReplicaStarting", "ReplicaStopped"),
        ("ReplicaStarting", "ReplicaBackingOff", "ReplicaStopped"),
        ("ReplicaStarting", "ReplicaFailed", "ReplicaStopped"),
        ("ReplicaStopped",),
    ],
)
def test_a_server_may_end_once_for_each_start(reasons: tuple[str, ...]) -> None:
    assert of_replica(*reasons) == []


@pytest.mark.parametrize(
    "reasons",
    [
        ("ReplicaStarting", "ReplicaBackingOff", "ReplicaBackingOff", "ReplicaStopped"),
        ("ReplicaStarting", "ReplicaBackingOff", "ReplicaRestarting", "ReplicaStopped"),
        ("ReplicaStarting", "ReplicaStopped", "ReplicaStopped"),
        ("ReplicaStarting", "ReplicaStarting", "ReplicaStopped"),
    ],
)
def test_an_end_of_a_server_that_is_told_twice_or_never_is_found(reasons: tuple[str, ...]) -> None:
    assert "ends told" in "\n".join(of_replica(*reasons))
