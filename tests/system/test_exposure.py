"""Who gets the candidate of a rollout: those who are named, and no more distinct callers than its step says."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator

import pytest

from stoker.types.rollouts import Rollout
from stokerd.processes.states import Alive
from stokerd.processes.supervisor import Supervisor
from tests.harness import Stokerd, wait_for
from tests.system.loop import CHAT, add_version, serve

ROLLOUT = """
kind: rollout
name: r
deployment: chat
to: two
targets: [{header: X-Team, value: ml}]
steps: [{type: canary, percent: 50, min_requests: 100000, max_callers: 5}]
"""


@pytest.fixture
def daemon() -> Iterator[Stokerd]:
    with Stokerd() as running:
        for alias in ("one", "two"):
            add_version(running, alias)
        serve(running)
        running.apply(ROLLOUT)
        running.wait_phase(Rollout, "r", "stepping")
        wait_for(lambda: arm(running, {"x-team": "ml"}) == "candidate", "who is named gets the candidate")
        yield running


def arm(daemon: Stokerd, headers: dict[str, str]) -> str:
    """Which arm answers, asked over a connection of its own."""
    with daemon.openai() as client:
        answer = client.post("/chat/completions", json=CHAT, headers=headers)
        answer.raise_for_status()
        return answer.headers["x-stoker-arm"]


def exposed(daemon: Stokerd) -> set[int]:
    """Which of 40 callers get the candidate; each asks twice."""
    arms = {n: [arm(daemon, {"x-stoker-session": f"caller-{n}"}) for _ in range(2)] for n in range(40)}
    assert all(len(set(twice)) == 1 for twice in arms.values()), "a caller stays on its arm"
    return {n for n, twice in arms.items() if twice[0] == "candidate"}


def test_no_more_callers_than_the_cap_are_exposed_and_they_stay_so_when_workers_are_killed(daemon: Stokerd) -> None:
    callers = exposed(daemon)
    assert len(callers) == 5
    supervisor = Supervisor(daemon.home.processes)
    supervisor.adopt()
    workers = [p for p in supervisor.ids() if p.startswith("gateway-")]
    assert len(workers) == 2
    for worker in workers:
        state = supervisor.observe(worker)
        assert isinstance(state, Alive)
        assert state.pid
        os.kill(state.pid, signal.SIGKILL)
    supervisor.close()
    ended = daemon.client.host().last_event_id
    wait_for(lambda: daemon.events(ended) and daemon.client.host().gateway_phase == "ready", "both are back")
    assert exposed(daemon) == callers


def test_callers_who_can_not_be_told_apart_stay_with_stable(daemon: Stokerd) -> None:
    assert {arm(daemon, {}) for _ in range(20)} == {"stable"}
    assert {arm(daemon, {"x-team": "sales"}) for _ in range(5)} == {"stable"}
    assert {arm(daemon, {"x-team": "ml"}) for _ in range(5)} == {"candidate"}
