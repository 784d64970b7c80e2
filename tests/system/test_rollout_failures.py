"""Versions that fail each in its own way, and a daemon that dies at the worst moment: who is taken back, who isn't."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Iterator
from typing import Any

import pytest

from stoker.types.rollouts import RolledBack
from stoker.types.serving import Replica
from tests.harness import Stokerd, state_of, wait_for
from tests.system.loop import Chat, pids_of, vllm_like

ENDED = ("promoted", "rolled-back", "aborted")
ENDLESS = "[{type: canary, percent: 50, min_requests: 1000000}]"


@pytest.fixture(scope="module")
def daemon() -> Iterator[Stokerd]:
    with Stokerd() as running:
        yield running
        assert "Traceback" not in running.log, running.log


def test_a_version_that_hangs_after_its_50th_request_is_taken_back_and_clients_go_on(daemon: Stokerd) -> None:
    chat = Chat(daemon, "hangs", f"stall_timeout: 2s\ndrain_timeout: 3s\n{vllm_like(daemon)}")
    chat.add("two", stuck_after=50)
    with chat.people(4) as people:
        chat.roll_out(ENDLESS)
        ended = chat.wait(*ENDED)
        assert ended.phase == "rolled-back"
        because = state_of(ended, RolledBack).because
        assert "hangs-v2-0" in because
        assert "its step counter has stood still" in because
        people.hear(50, "I am one")
    assert 45 <= people.answers["I am two"] <= 53  # the four who came at once may have got its 50th answer, or none
    assert people.wrong("I am one", "I am two") <= 4, "none but those whose requests it had taken heard of it"


def test_a_version_that_answers_nonsense_is_taken_back_before_anybody_heard_it(daemon: Stokerd) -> None:
    chat = Chat(daemon, "nonsense")
    chat.add("two", garbage=True)
    steps = "[{type: shadow, percent: 100, min_requests: 1000000}, {type: canary, percent: 50}]"
    with chat.people() as people:
        chat.roll_out(steps, "keep_answers: true\nguards: [{metric: similarity, limit: 0.8}]")
        ended = chat.wait(*ENDED)
        people.hear(20)
    assert ended.phase == "rolled-back"
    because = state_of(ended, RolledBack).because
    assert "likeness of answers of v2" in because
    assert "limit 0.8" in because
    assert set(people.answers) == {"I am one"}
    assert ended.exposure.requests == 0


def test_a_version_that_is_slow_for_long_prompts_only_is_taken_back_by_a_guard_of_its_tail(daemon: Stokerd) -> None:
    """Three callers in ten are slow: the median is as ever, and so it is within a caller."""
    chat = Chat(daemon, "tail", delay=0.01)
    chat.add("two", delay=0.01, slow_over=[100, 0.3])
    users = [f"caller-{n}" for n in range(200)]
    long = [user for n, user in enumerate(users) if n % 10 < 3]
    guards = "[{metric: total, quantile: 0.5, limit: 4}, {metric: total, quantile: 0.9, limit: 2}]"
    with chat.people(6, users=users, long=long) as people:
        chat.roll_out(ENDLESS, f"guards: {guards}")
        ended = chat.wait(*ENDED)
    assert ended.phase == "rolled-back"
    because = state_of(ended, RolledBack).because
    assert "total p90 of v2" in because
    assert "callers" in because
    assert "p50" not in because
    assert set(people.answers) == {"I am one", "I am two"}


@pytest.mark.parametrize("known_by", ["user", "key"])
def test_a_version_that_fails_one_caller_only_is_taken_back_with_a_sentence_that_says_so(
    daemon: Stokerd, known_by: str
) -> None:
    """Be she known by what she says of herself, or by her API key alone."""
    chat = Chat(daemon, f"unfair-{known_by}")
    eve: dict[str, Any] = {"user": "eve"}
    if known_by == "key":
        made = daemon.client.request("POST", "/v1/keys", json={"name": "eve"})
        eve = {"headers": {"authorization": f"Bearer {made['text']}"}}
        eve["messages"] = [{"role": "user", "content": "it is eve who asks"}]
    chat.add("two", **({"fails_user": "eve"} if known_by == "user" else {"fails_word": "eve"}))
    users = [f"user-{n}" for n in range(40)]
    with chat.people(users=users) as people:
        chat.roll_out(
            "[{type: canary, percent: 100, min_requests: 1000000}]", "guards: [{metric: error_rate, limit: 0.5}]"
        )
        chat.wait_step(0)
        people.hear(20, "I am two")
        chat.ask(5, **eve)
        ended = chat.wait(*ENDED)
        people.hear(20, "I am one")
        assert chat.ask(1, **eve) == {"I am one": 1}
    assert ended.phase == "rolled-back"
    assert "failed 5 times in a row for one caller" in state_of(ended, RolledBack).because
    assert set(people.answers) == {"I am one", "I am two"}, "nobody else saw an error"


def test_while_stable_is_dead_the_candidate_is_neither_promoted_for_that_nor_blamed(daemon: Stokerd) -> None:
    chat = Chat(daemon, "widow", "hold_timeout: 60s\nrestart: {backoff: 2s}")
    chat.add("two")
    chat.roll_out("[{type: canary, percent: 50, min_requests: 20}]")
    chat.wait_step(0)
    chat.kill(1)
    died = daemon.wait_event("ReplicaBackingOff", "widow-v1-0")
    with chat.people(8) as people:  # those who are meant for stable wait
        back = daemon.wait_event("ReplicaReady", "widow-v1-0", after=died.id)
        ended = chat.wait(*ENDED)
        people.hear(20, "I am two")
    assert ended.phase == "promoted"
    (promoting,) = chat.told("RolloutPromoting")
    assert promoting.id > back.id, "as long as there was nothing to compare with, it wasn't judged"
    assert set(people.answers) <= {"I am one", "I am two"}


def test_the_gateway_alone_goes_back_to_stable_when_the_candidate_dies_while_the_daemon_is_away(
    daemon: Stokerd,
) -> None:
    chat = Chat(daemon, "alone")
    chat.add("two")
    chat.roll_out(ENDLESS)
    chat.wait_step(0)
    with chat.people() as people:
        people.hear(10, "I am two")
        daemon.kill()
        chat.kill(2)
        people.hear(60, "I am one")
        heard = people.answers.copy()
        people.hear(60)
        after = people.answers - heard
        assert set(after) == {"I am one"}, "a while after its end, nobody hears of it"
        daemon.start()
        ended = chat.wait(*ENDED)
        people.hear(20)
    assert ended.phase == "rolled-back"
    assert "alone-v2-0" in state_of(ended, RolledBack).because
    assert people.wrong("I am one", "I am two") <= 3, "those whose requests it had taken"
    assert len(chat.told("RolloutRollingBack")) == len(chat.told("RolloutRolledBack")) == 1


WALK = (
    "[{type: shadow, percent: 100, min_requests: 10}, {type: canary, percent: 100, min_requests: 10}, "
    "{type: target, min_requests: 10}, {type: approve}, {type: pause, duration: 1s}]"
)
EVERYBODY_ELSE: dict[str, float] = {"stable": 100, "candidate": 0}


def test_a_daemon_that_is_killed_in_each_kind_of_step_goes_on_there_and_counts_what_was_asked_meanwhile(
    daemon: Stokerd,
) -> None:
    chat = Chat(daemon, "walk")
    chat.add("two")
    chat.roll_out(WALK, "targets: [{header: X-Team, value: ml}]\nguards: []")
    chat.wait_step(0)
    chat.wait_arms(stable=100, shadow=100)
    with away(daemon):
        assert chat.ask(12) == {"I am one": 12}
    chat.wait_step(1)
    chat.wait_arms(candidate=100)
    with away(daemon):
        assert chat.ask(12) == {"I am two": 12}
    chat.wait_step(2)
    chat.wait_arms(**EVERYBODY_ELSE)
    with away(daemon):
        assert chat.ask(12, headers={"X-Team": "ml"}) == {"I am two": 12}
        assert chat.ask(12) == {"I am one": 12}
    chat.wait_step(3)
    with away(daemon):
        assert chat.ask(3, headers={"X-Team": "ml"}) == {"I am two": 3}
    assert chat.rollout.phase == "stepping"
    chat.command("approve")
    chat.command("pause")
    with away(daemon):
        assert chat.ask(3) == {"I am one": 3}
    assert chat.rollout.phase == "paused"
    chat.command("resume")
    chat.wait_step(4)
    with away(daemon):
        assert chat.ask(3) == {"I am one": 3}
    assert chat.wait("promoted").phase == "promoted"
    assert [e.data["step"] for e in chat.told("RolloutStepped", "RolloutApproved", "RolloutResumed")] == [
        0,
        1,
        2,
        3,
        4,
        4,
    ]
    assert len(chat.told("RolloutPromoting")) == len(chat.told("RolloutPromoted")) == 1
    assert chat.rollout.exposure.requests == 12 + 12 + 3


def test_a_daemon_that_comes_back_lets_nothing_pass_before_it_has_read_what_was_asked_meanwhile(
    daemon: Stokerd,
) -> None:
    chat = Chat(daemon, "unread")
    sick = daemon.root / "is-sick"
    chat.add("two", sick=str(sick))
    chat.roll_out("[{type: canary, percent: 100, min_requests: 1000000, max_duration: 3s}]", "on_starved: promote")
    chat.wait_arms(candidate=100)
    with away(daemon):
        sick.touch()
        assert chat.ask(5) == {"HTTP 500": 5}
        workers = pids_of(daemon, "gateway-")
        for pid in workers:
            os.kill(pid, signal.SIGSTOP)
    try:
        wait_for(lambda: "it doesn't answer" in daemon.client.host().gateway_message, "it has asked the gateway")
        assert chat.rollout.phase == "stepping", "though its time is over, and silence were enough"
    finally:
        for pid in workers:
            os.kill(pid, signal.SIGCONT)
    ended = chat.wait(*ENDED)
    assert ended.phase == "rolled-back"
    assert "each of its last 5 answers" in state_of(ended, RolledBack).because
    assert not chat.told("RolloutPromoting")
    assert ended.exposure.requests == 5


def test_a_daemon_that_is_killed_after_promotion_or_on_the_way_back_finishes_it(daemon: Stokerd) -> None:
    may_start = daemon.root / "may-start"
    may_start.touch()
    chat = Chat(daemon, "back", waits_for=str(may_start))
    chat.add("two")
    chat.roll_out(ENDLESS, "keep_warm: 600s")
    chat.wait_step(0)
    with chat.people() as people:
        chat.command("promote")
        with away(daemon):
            people.hear(10, "I am two")
        assert chat.wait("promoted").phase == "promoted"
        wait_for(lambda: chat.deployed.warm, "the old version stands by")
        with away(daemon):
            people.hear(10, "I am two")
        assert chat.deployed.warm
        assert chat.replicas() == {"v1-0", "v2-0"}
        chat.kill(1)  # or the way back would be over at once
        may_start.unlink()
        wait_for(lambda: daemon.client.get(Replica, "back-v1-0").phase != "ready", "it is seen")
        assert chat.command("rollback").phase == "returning"
        with away(daemon):
            people.hear(10, "I am two")
        assert chat.rollout.phase == "returning"
        may_start.touch()
        assert chat.wait("aborted", "rolled-back").phase == "aborted"
        people.hear(10, "I am one")
        wait_for(lambda: chat.replicas() == {"v1-0"}, "the other version is gone")
    assert set(people.answers) == {"I am one", "I am two"}
    ends = chat.told("RolloutPromoted", "RolloutReturning", "RolloutRollingBack", "RolloutAborted")
    assert [e.reason for e in ends] == ["RolloutPromoted", "RolloutReturning", "RolloutRollingBack", "RolloutAborted"]


@contextlib.contextmanager
def away(daemon: Stokerd) -> Iterator[None]:
    """Kill the daemon; after the block it is started again."""
    daemon.kill()
    yield
    daemon.start()
