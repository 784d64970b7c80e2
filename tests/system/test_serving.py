"""Deployments of real server processes: restarts, changes, deletion, and what is said when something is wrong."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Iterator

import pytest

from stoker.errors import Conflict, InvalidSpec, NotFound
from stoker.types.rollouts import Rollout
from stoker.types.serving import Deployment, Ready, Replica
from stokerd.processes.states import Alive
from stokerd.processes.supervisor import Supervisor
from tests.harness import STOKERD, Stokerd, state_of, wait_for
from tests.system.loop import People, add_version, deployment, say, serve


@pytest.fixture
def daemon() -> Iterator[Stokerd]:
    with Stokerd() as running:
        yield running


def pid_of(daemon: Stokerd, replica: str) -> int:
    process = state_of(daemon.client.get(Replica, replica), Ready).process
    supervisor = Supervisor(daemon.home.processes)
    observed = supervisor.observe(process)
    supervisor.close()
    assert isinstance(observed, Alive)
    assert observed.pid is not None
    return observed.pid


def test_a_server_that_dies_is_started_again_while_others_answer(daemon: Stokerd) -> None:
    add_version(daemon, "one")
    serve(daemon, replicas=2)
    os.kill(pid_of(daemon, "chat-v1-0"), signal.SIGKILL)
    backing = daemon.wait_event("ReplicaBackingOff", "chat-v1-0")
    assert "killed by signal 9" in backing.message
    with daemon.openai() as client:
        assert {say(client) for _ in range(10)} == {"I am one"}
    daemon.wait_event("ReplicaReady", "chat-v1-0", after=backing.id)
    daemon.wait_phase(Deployment, "chat", "ready")
    assert daemon.client.get(Replica, "chat-v1-0").starts == 2


def test_a_changed_engine_takes_over_without_a_failed_request(daemon: Stokerd) -> None:
    add_version(daemon, "one")
    serve(daemon)
    with People(daemon) as people:
        daemon.apply(deployment().replace("command: [", 'env: {CHANGED: "1"}, command: ['))
        wait_for(lambda: [r.name for r in daemon.client.list(Replica)] == ["chat-v1-1"], "the new one alone is left")
        asked = people.answers.total()
        wait_for(lambda: people.answers.total() > asked + 20, "people go on")
    assert set(people.answers) == {"I am one"}


def test_a_crash_loop_ends_in_failed_with_the_last_words_and_applying_again_revives_it(daemon: Stokerd) -> None:
    folder = add_version(daemon, "one").folder
    assert folder
    broken = (
        deployment(extra="restart: {limit: 1}")
        .replace('"{name}"]', '"{name}", x]')
        .replace("model_server.py", "no_such_server.py")
    )
    daemon.apply(broken)
    failed = daemon.wait_phase(Deployment, "chat", "failed")
    assert "no_such_server.py" in failed.message
    assert "given up after 2 failures" in failed.message
    daemon.apply(broken)
    daemon.wait_event("ReplicaRevived", "chat-v1-0")


def test_delete_drains_and_leaves_nothing_and_cannot_be_applied_over(daemon: Stokerd) -> None:
    go = daemon.root / "go"
    add_version(daemon, "one", hold=str(go))
    serve(daemon)
    body = {"model": "chat", "messages": [], "stream": True}
    with daemon.openai() as client, client.stream("POST", "/chat/completions", json=body) as answer:
        lines = answer.iter_lines()
        next(lines)
        daemon.client.request("DELETE", "/v1/deployments/chat")
        with pytest.raises(Conflict, match="being deleted"):
            daemon.apply(deployment())
        go.touch()
        assert "data: [DONE]" in list(lines)
    daemon.wait_event("DeploymentDeleted", "chat")
    assert daemon.client.list(Replica) == []
    with daemon.openai() as client:
        assert client.post("/chat/completions", json=body).status_code == 404


def test_what_ended_with_an_ephemeral_daemon_goes_on_with_the_next_and_counts_as_nobodys_failure() -> None:
    with Stokerd() as daemon:
        add_version(daemon, "one")
        add_version(daemon, "two")
        serve(daemon)
        daemon.apply("{kind: rollout, name: r, deployment: chat, to: two, "
                     "steps: [{type: canary, percent: 50, min_requests: 100000}]}")  # fmt: skip
        daemon.wait_phase(Rollout, "r", "stepping")
        daemon.terminate()
        daemon.process = subprocess.Popen([STOKERD, "--home", daemon.root, "--ephemeral"], stderr=subprocess.DEVNULL)
        wait_for(daemon.is_up, "it answers")
        daemon.terminate()
        daemon.start()
        daemon.wait_event("ReplicaRestarting", "chat-v2-0")
        wait_for(lambda: {r.phase for r in daemon.client.list(Replica)} == {"ready"}, "both serve again")
        assert daemon.client.get(Rollout, "r").phase == "stepping"
        assert {r.failures for r in daemon.client.list(Replica)} == {0}


def test_what_does_not_fit_is_refused_and_nothing_changes(daemon: Stokerd) -> None:
    with pytest.raises(NotFound, match="no model named 'm'"):
        daemon.apply(deployment())
    add_version(daemon, "one")
    with pytest.raises(NotFound, match="no version 7"):
        daemon.apply(deployment().replace("version: 1", "version: 7"))
    with pytest.raises(InvalidSpec):
        daemon.apply(deployment().replace("{socket}", "{sock}"))
    assert daemon.client.list(Deployment) == []
    daemon.apply(deployment())
    add_version(daemon, "two")
    with pytest.raises(Conflict, match="versions change by rollout"):
        daemon.apply(deployment().replace("version: 1", "version: 2"))
