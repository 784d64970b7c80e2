"""kill -9 of the daemon at chosen moments. What it had begun is finished by its next life, once."""

from __future__ import annotations

import contextlib
import json
import subprocess
import threading
from pathlib import Path

import pytest

from stoker.errors import StokerError
from stoker.types.rollouts import Rollout
from stoker.types.serving import Deployment, Replica
from stoker.types.training import Failed, Run
from tests.harness import STOKERD, state_of, wait_for
from tests.system.faults.callers import Callers, ask
from tests.system.faults.jobs import job, start_run
from tests.system.faults.scene import Scene
from tests.system.loop import add_version, deployment

START_MOMENTS = ("ReplicaCreated", "ReplicaStarting")
STOP_MOMENTS = ("DeploymentDeleting", "ReplicaDraining", "ReplicaStopping")
RUN_MOMENTS = ("RunQueued", "RunStarted", "RunRetrying")


@pytest.fixture(scope="module")
def world(shared_scene: Scene) -> Scene:
    """Model m with versions 1 and 2 that are well, and 3 that answers with errors; 1 is served."""
    held = {"hold": str(shared_scene.root / "go")}
    for alias, behaviour in (("one", {}), ("two", {}), ("bad", {"status": 500}), ("slow", held)):
        add_version(shared_scene, alias, **behaviour)
    shared_scene.apply(deployment(extra="restart: {backoff: 0.1s}"))
    shared_scene.wait_phase(Deployment, "chat", "ready")
    shared_scene.wait_event("GatewayReady", "gateway")
    return shared_scene


def test_idle_nothing_notices(world: Scene, shared: Scene) -> None:
    server, workers = shared.server_of("chat-v1-0"), [shared.pid_of(p) for p in shared.gateway_processes()]
    before = shared.client.host().last_event_id
    with Callers(shared) as callers:
        shared.kill()
        callers.hear(20)
        shared.start()
        wait_for(lambda: shared.client.host().gateway_phase == "ready", "it speaks with the gateway")
        callers.hear(20)
    callers.assert_heard_only("I am one")
    assert shared.server_of("chat-v1-0") == server
    assert [shared.pid_of(p) for p in shared.gateway_processes()] == workers
    assert {e.reason for e in shared.events(before)} <= {"GatewayReady"}


def test_a_stream_that_runs_is_completed(world: Scene, shared: Scene) -> None:
    shared.apply(deployment().replace("name: chat", "name: slow").replace("version: 1", "version: slow"))
    shared.wait_phase(Deployment, "slow", "ready")
    with shared.openai() as client:
        body = {"model": "slow", "messages": [], "stream": True}
        with client.stream("POST", "/chat/completions", json=body) as answer:
            lines = answer.iter_lines()
            first = next(lines)
            shared.kill()
            (shared.root / "go").touch()  # not sooner does the server go on
            rest = [line for line in lines if line]
    assert "I " in first
    assert rest[-1] == "data: [DONE]"
    assert "".join(json.loads(r[6:])["choices"][0]["delta"]["content"] for r in rest[:-1]).strip() == "am slow"
    shared.start()
    shared.client.request("DELETE", "/v1/deployments/slow")
    shared.wait_event("DeploymentDeleted", "slow")


@pytest.mark.parametrize("moment", START_MOMENTS)
def test_in_the_middle_of_a_start(world: Scene, shared: Scene, moment: str) -> None:
    name = f"start-{moment.lower()}"
    about = f"{name}-v1-0" if moment.startswith("Replica") else name
    with shared.killed_at(moment, about):
        shared.apply(deployment().replace("name: chat", f"name: {name}"))
    shared.wait_phase(Deployment, name, "ready")
    assert shared.client.get(Replica, f"{name}-v1-0").starts == 1
    with shared.openai() as client:
        assert ask(client, model=name) == "I am one"


def test_between_a_servers_start_and_its_first_answer(world: Scene, shared: Scene) -> None:
    gate = shared.root / "gate"
    guarded = deployment().replace("name: chat", "name: gated")
    guarded = guarded.replace("command: [", f'command: [/bin/sh, -c, "while ! test -e {gate}; do sleep 0.05; done; '
                              'exec \\"$@\\"", sh, ')  # fmt: skip
    shared.apply(guarded)
    shared.wait_phase(Replica, "gated-v1-0", "starting")
    pid = shared.server_of("gated-v1-0")
    shared.kill()
    gate.touch()
    shared.start()
    shared.wait_phase(Deployment, "gated", "ready")
    assert shared.server_of("gated-v1-0") == pid


@pytest.mark.parametrize("moment", STOP_MOMENTS)
def test_in_the_middle_of_a_stop(world: Scene, shared: Scene, moment: str) -> None:
    name = f"stop-{moment.lower()}"
    shared.apply(deployment().replace("name: chat", f"name: {name}"))
    shared.wait_phase(Deployment, name, "ready")
    about = f"{name}-v1-0" if moment.startswith("Replica") else name
    with shared.killed_at(moment, about):
        shared.client.request("DELETE", f"/v1/deployments/{name}")
    shared.wait_event("DeploymentDeleted", name)
    with shared.openai() as client:
        assert ask(client, model=name) == "HTTP 404"


@pytest.mark.parametrize("moment", RUN_MOMENTS)
def test_in_the_middle_of_a_run(world: Scene, shared: Scene, moment: str) -> None:
    name = f"run-{moment.lower()}"
    shared.apply(job('test "$STOKER_ATTEMPT" = 2', name, retries=1, backoff=0.1))
    with shared.killed_at(moment, f"{name}-1"):
        start_run(shared, name)
    done = shared.wait_phase(Run, f"{name}-1", "succeeded")
    assert done.attempt == 2


def test_in_the_middle_of_a_cancellation(world: Scene, shared: Scene) -> None:
    shared.apply(job("trap 'sleep 2; exit 5' TERM; echo ready; while :; do sleep 0.1; done", "stubborn"))
    start_run(shared, "stubborn")
    wait_for(lambda: b"ready" in b"".join(shared.client.log("run", "stubborn-1")), "it runs")
    with shared.killed_at("RunCancelling", "stubborn-1"):
        shared.client.request("POST", "/v1/runs/stubborn-1/cancel")
    shared.wait_phase(Run, "stubborn-1", "cancelled")


def test_runs_that_end_while_it_is_away(world: Scene, shared: Scene) -> None:
    shared.apply(job("while ! test -e ../go; do sleep 0.05; done; exit 7", "away"))
    start_run(shared, "away")
    shared.wait_phase(Run, "away-1", "running")
    pid = shared.pid_of("run-away-1-1")
    folder = Path(shared.client.get(Run, "away-1").folder)
    shared.kill()
    (folder / "go").touch()
    wait_for(lambda: not Path(f"/proc/{pid}").exists(), "the run ends")
    shared.start()
    assert state_of(shared.wait_phase(Run, "away-1", "failed"), Failed).exit_code == 7


@pytest.mark.parametrize(
    ("moment", "to", "end"),
    [
        ("RolloutStarted", "two", "promoted"),
        ("shadow", "one", "promoted"),
        ("canary", "two", "promoted"),
        ("RolloutPromoting", "one", "promoted"),
        ("RolloutRollingBack", "bad", "rolled-back"),
    ],
)
def test_in_the_middle_of_a_rollout(world: Scene, shared: Scene, moment: str, to: str, end: str) -> None:
    name = f"r-{moment.lower()}"
    steps = {
        "shadow": "[{type: shadow, percent: 100, min_requests: 10}, {type: canary, percent: 50, min_requests: 10}]"
    }.get(moment, "[{type: canary, percent: 50, min_requests: 15}]")
    spec = (
        f"{{kind: rollout, name: {name}, deployment: chat, to: {to}, steps: {steps}, "
        "guards: [{metric: error_rate, limit: 0.1}], keep_warm: 0s}"
    )
    with Callers(shared, 4) as callers:
        with shared.killed_at(moment if moment.startswith("Rollout") else "RolloutStepped", name):
            shared.apply(spec)
        callers.hear(10)
        shared.wait_phase(Rollout, name, end)
        failed = callers.answers["HTTP 500"]  # of the bad version, which kept its part until the daemon was back
        callers.hear(30)
    told = [e.reason for e in shared.events() if e.name == name]
    assert told.count("RolloutPromoted") + told.count("RolloutRolledBack") == 1
    assert callers.answers["HTTP 500"] <= failed + 4  # those that were under way
    callers.assert_heard_only("I am one", "I am two", *(["HTTP 500"] if to == "bad" else []))


def test_two_daemons_at_once(world: Scene, shared: Scene) -> None:
    """The lock decides; whoever loses says who has it, and touches nothing."""
    before = shared.client.host().last_event_id
    second = subprocess.run([STOKERD, "--home", shared.root], capture_output=True, text=True, timeout=60, check=False)
    assert second.returncode == 3, second.stderr
    assert f"pid {shared.pid}" in second.stderr
    assert shared.client.host().last_event_id == before
    shared.kill()
    contenders = [subprocess.Popen([STOKERD, "--home", shared.root], stderr=subprocess.DEVNULL) for _ in range(2)]
    wait_for(lambda: [c.poll() for c in contenders].count(3) == 1, "one of two that start at once gives up")
    shared.process = next(c for c in contenders if c.poll() is None)
    wait_for(shared.is_up, "the other serves")


def test_stale_files_of_killed_lives_are_in_nobodys_way(world: Scene, shared: Scene) -> None:
    """A socket of a killed daemon, a lock file with a pid that lives, sockets of servers, half a removed folder."""
    shared.kill()
    assert shared.home.socket.exists()
    shared.home.lock.write_text("1\n")
    half = shared.home.processes / ".forgotten-replica-x-1-5"
    half.mkdir()
    (half / "command.json").write_text("{")
    partial = shared.home.backups / "state-20200101T000000000000-0001.partial"
    partial.write_text("half a backup")
    shared.start()
    assert shared.home.lock.read_text() == f"{shared.pid}\n"
    assert not half.exists()
    shared.kill_pid(shared.server_of("chat-v2-0") if _serves(shared, 2) else shared.server_of("chat-v1-0"))
    shared.wait_phase(Deployment, "chat", "ready")  # its socket was left by the kill


def _serves(scene: Scene, version: int) -> bool:
    return scene.client.get(Deployment, "chat").version == version


def test_requests_to_the_daemon_that_a_kill_cuts_off_are_kept_or_not_but_never_half(
    world: Scene, shared: Scene
) -> None:
    stop = threading.Event()
    kept: list[int] = []

    def apply() -> None:
        for number in range(10_000):
            with contextlib.suppress(StokerError):
                shared.apply(f"{{kind: job, name: cut-{number}, command: [x]}}\n---\n"
                             f"{{kind: job, name: off-{number}, command: [x]}}")  # fmt: skip
                kept.append(number)
            if stop.wait(0.002):
                return

    thread = threading.Thread(target=apply)
    thread.start()
    wait_for(lambda: len(kept) > 20, "some were kept")
    shared.kill()
    stop.set()
    thread.join()
    shared.start()
    names = {e.name for e in shared.events() if e.reason == "JobCreated"}
    assert {f"cut-{n}" for n in kept} <= names
    assert {n.removeprefix("cut-") for n in names if n[:4] == "cut-"} == {
        n.removeprefix("off-") for n in names if n[:4] == "off-"
    }
