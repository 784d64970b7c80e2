"""Rollouts of real server processes behind the real gateway."""

from __future__ import annotations

import getpass
from collections.abc import Iterator

import httpx
import pytest

from stoker.errors import Conflict
from stoker.types.rollouts import Paused, RolledBack, Rollout
from stoker.types.serving import Deployment, Replica
from tests.harness import Stokerd, state_of, wait_for
from tests.system.loop import People, add_version, deployment, say, serve


@pytest.fixture
def daemon() -> Iterator[Stokerd]:
    with Stokerd() as running:
        yield running


def rollout(to: str, steps: str = "", extra: str = "") -> str:
    steps = steps or "[{type: canary, percent: 30, min_requests: 15}, {type: canary, percent: 60, min_requests: 15}]"
    return f"""
kind: rollout
name: r
deployment: chat
to: {to}
steps: {steps}
guards: [{{metric: error_rate, limit: 0.05}}]
keep_warm: 0s
{extra}
"""


def finished(daemon: Stokerd) -> Rollout:
    return daemon.wait_phase(Rollout, "r", "promoted", "rolled-back", "aborted")


def test_a_good_version_is_promoted_by_itself_and_no_request_fails_on_the_way(daemon: Stokerd) -> None:
    add_version(daemon, "one")
    add_version(daemon, "two")
    serve(daemon)
    with People(daemon) as people:
        steps = "[{type: shadow, percent: 50, min_requests: 10}, {type: canary, percent: 50, min_requests: 20}]"
        daemon.apply(rollout("two", steps))
        assert finished(daemon).phase == "promoted"
        wait_for(lambda: people.answers["I am two"] > 50, "people hear the new version")
        wait_for(
            lambda: [r.name for r in daemon.client.list(Replica)] == ["chat-v2-0"], "the old version's replica is gone"
        )
    assert set(people.answers) == {"I am one", "I am two"}
    kept = daemon.client.get(Deployment, "chat")
    assert (kept.version, kept.previous_version, kept.rollout) == (2, 1, None)


@pytest.mark.parametrize("status", [500, 400])
def test_a_version_that_answers_with_errors_is_taken_back_by_itself_after_a_few(daemon: Stokerd, status: int) -> None:
    """Also where it says that those who ask are at fault, all of whom are anonymous."""
    add_version(daemon, "one")
    add_version(daemon, "two", status=status)
    serve(daemon)
    for attempt in range(5):  # until the machine did not stall just between verdict and rollback
        ended = taken_back(daemon, f"r{attempt}", status)
        with People(daemon) as people:
            people.hear(101, "I am one")
        assert set(people.answers) == {"I am one"}
        assert daemon.client.get(Deployment, "chat").version == 1
        assert ended.verdict_at is not None
        assert ended.restored_at is not None
        if (ended.restored_at - ended.verdict_at).total_seconds() < 1:
            return
    pytest.fail(f"restored at {ended.restored_at}, {ended.verdict_at} was the verdict")


def taken_back(daemon: Stokerd, name: str, status: int) -> Rollout:
    """Roll version two out to somebody who goes on after a bad answer only once it was judged; count those."""
    daemon.apply(rollout("two").replace("name: r", f"name: {name}"))
    found = daemon.wait_phase(Rollout, name, "stepping")
    bad = 0

    def look() -> bool:
        nonlocal found
        found = daemon.client.get(Rollout, name)
        return found.phase != "stepping" or bad <= (found.arms["candidate"].errors if "candidate" in found.arms else 0)

    with daemon.openai() as client:
        while found.phase == "stepping":
            try:
                assert say(client) == "I am one"
            except httpx.HTTPStatusError as error:
                assert error.response.status_code == status
                bad += 1
            wait_for(look, "the bad answer is judged")
    ended = daemon.wait_phase(Rollout, name, "promoted", "rolled-back", "aborted")
    assert ended.phase == "rolled-back"
    assert ended.exposure.errors == bad == ended.spec.max_errors_in_a_row
    return ended


def test_a_version_that_is_much_slower_is_taken_back_by_itself(daemon: Stokerd) -> None:
    add_version(daemon, "one", delay=0.01)
    add_version(daemon, "two", delay=0.5)  # so that a machine which makes both slow hides nothing
    serve(daemon)
    guard = "guards: [{metric: ttft, quantile: 0.5, limit: 2}]"
    spec = rollout("two", "[{type: canary, percent: 50, min_requests: 100000}]").replace(
        "guards: [{metric: error_rate, limit: 0.05}]", guard
    )
    with People(daemon, 10):
        daemon.apply(spec)
        ended = finished(daemon)
    assert ended.phase == "rolled-back"
    assert "TTFT p50" in state_of(ended, RolledBack).because


def test_a_version_whose_server_dies_is_taken_back_and_nobody_hears_of_it_after_that(daemon: Stokerd) -> None:
    add_version(daemon, "one")
    add_version(daemon, "two", die_after=5)
    serve(daemon)
    with People(daemon) as people:
        daemon.apply(rollout("two"))
        ended = finished(daemon)
        assert ended.phase == "rolled-back"
        assert "chat-v2-0" in state_of(ended, RolledBack).because
        failed = sum(n for a, n in people.answers.items() if not a.startswith("I am"))
        wait_for(lambda: people.answers["I am one"] > 200, "people go on")
        assert (
            sum(n for a, n in people.answers.items() if not a.startswith("I am")) <= failed + 3
        )  # those under way when the traffic moved


def test_a_version_that_never_gets_ready_is_taken_back_without_having_got_a_request(daemon: Stokerd) -> None:
    add_version(daemon, "one")
    add_version(daemon, "two", never_ready=True)
    daemon.apply("{kind: model, name: m}")
    serve(daemon)
    daemon.apply(deployment(extra="start_timeout: 2s"))
    with People(daemon) as people:
        daemon.apply(rollout("two"))
        ended = finished(daemon)
        assert ended.phase == "rolled-back"
        assert "not ready within 2 s" in state_of(ended, RolledBack).because
    assert set(people.answers) == {"I am one"}


def test_without_traffic_a_rollout_is_starved_and_holds(daemon: Stokerd) -> None:
    add_version(daemon, "one")
    add_version(daemon, "two")
    serve(daemon)
    daemon.apply(rollout("two", "[{type: canary, percent: 50, min_requests: 5, max_duration: 1s}]"))
    paused = daemon.wait_phase(Rollout, "r", "paused")
    assert "starved" in state_of(paused, Paused).because
    assert daemon.client.get(Deployment, "chat").version == 1


@pytest.mark.parametrize("moment", ["preparing", "stepping", "paused"])
def test_abort_brings_everything_back_from_every_state(daemon: Stokerd, moment: str) -> None:
    add_version(daemon, "one")
    add_version(daemon, "two", never_ready=moment == "preparing")
    serve(daemon)
    daemon.apply(rollout("two", "[{type: canary, percent: 100, min_requests: 100000}]"))
    daemon.wait_phase(Rollout, "r", "preparing" if moment == "preparing" else "stepping")
    if moment == "paused":
        daemon.client.request("POST", "/v1/rollouts/r/pause")
    daemon.client.request("POST", "/v1/rollouts/r/abort")
    assert finished(daemon).phase == "aborted"
    with daemon.openai() as client:
        assert say(client) == "I am one"
    wait_for(lambda: len(daemon.client.list(Replica)) == 1, "the candidate is gone")


def test_a_person_can_hold_go_on_and_promote_and_is_told_what_does_not_fit(daemon: Stokerd) -> None:
    add_version(daemon, "one")
    add_version(daemon, "two")
    serve(daemon)
    daemon.apply(rollout("two", "[{type: canary, percent: 50, min_requests: 100000}]"))
    with pytest.raises(Conflict, match="in rollout r"):
        daemon.apply(rollout("two").replace("name: r", "name: r2"))
    daemon.wait_phase(Rollout, "r", "stepping")
    daemon.client.request("POST", "/v1/rollouts/r/pause")
    with pytest.raises(Conflict):
        daemon.client.request("POST", "/v1/rollouts/r/pause")
    daemon.client.request("POST", "/v1/rollouts/r/resume")
    assert daemon.client.get(Rollout, "r").phase == "stepping"
    daemon.client.request("POST", "/v1/rollouts/r/promote")
    assert finished(daemon).phase == "promoted"
    with daemon.openai() as client:
        assert say(client) == "I am two"
    by = [e.data["by"] for e in daemon.events() if e.reason == "RolloutPromoting" and "by" in e.data]
    assert by
    assert by[0] == getpass.getuser()


@pytest.mark.parametrize("moment", ["preparing", "stepping", "promoting", "rolling-back"])
def test_a_rollout_goes_on_where_it_was_after_the_daemon_was_killed(daemon: Stokerd, moment: str) -> None:
    add_version(daemon, "one")
    add_version(daemon, "two", status=500 if moment == "rolling-back" else 200)
    serve(daemon)
    with People(daemon) as people:
        daemon.apply(rollout("two"))
        daemon.wait_phase(Rollout, "r", moment, "promoted", "rolled-back")
        daemon.kill()
        asked = people.answers.total()
        wait_for(lambda: people.answers.total() > asked + 30, "people are served while the daemon is away")
        daemon.start()
        ended = finished(daemon)
    assert ended.phase == ("rolled-back" if moment == "rolling-back" else "promoted")
    if moment != "rolling-back":
        assert set(people.answers) == {"I am one", "I am two"}
    reasons = [e.reason for e in daemon.events() if e.kind == "rollout"]
    assert reasons.count("RolloutPromoted") + reasons.count("RolloutRolledBack") == 1
