"""kill -9 of everything but the daemon: shims, servers, runs, the gateway, one by one and all at once."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from stoker.types.serving import Deployment, Replica
from stoker.types.training import Failed, Run
from tests.harness import state_of, wait_for
from tests.system.faults import census
from tests.system.faults.callers import Callers, ask
from tests.system.faults.jobs import job, start_run
from tests.system.faults.scene import Scene
from tests.system.loop import add_version, deployment

QUICK = "restart: {limit: 100, backoff: 0.1s, backoff_cap: 0.5s, healthy_after: 0.5s}"
CALLERS = 3
BROKEN = {"ConnectError", "ReadError", "RemoteProtocolError", "WriteError"}  # connections of who was killed


@pytest.fixture(scope="module")
def world(shared_scene: Scene) -> Scene:
    """Two servers of chat, which are started again soon and as often as need be."""
    add_version(shared_scene, "one")
    shared_scene.apply(deployment(2, QUICK))
    shared_scene.wait_phase(Deployment, "chat", "ready")
    shared_scene.wait_event("GatewayReady", "gateway")
    return shared_scene


def server(scene: Scene) -> int:
    return scene.server_of("chat-v1-0")


def shim(scene: Scene) -> int:
    return scene.shim_of(scene.process_of("chat-v1-0"))


@pytest.mark.parametrize(("find", "says"), [(server, "killed by signal 9"), (shim, "was lost")])
def test_of_a_server_the_other_answers_and_it_comes_back(
    world: Scene, shared: Scene, find: Callable[[Scene], int], says: str
) -> None:
    before = shared.client.host().last_event_id
    pid = shared.server_of("chat-v1-0")
    with Callers(shared, CALLERS) as callers:
        callers.hear(10)
        os.kill(find(shared), signal.SIGKILL)
        backing = shared.wait_event("ReplicaBackingOff", "chat-v1-0", after=before)
        assert not census.lives(pid)
        shared.wait_event("ReplicaReady", "chat-v1-0", after=before)
        callers.hear(20)
    assert says in backing.message
    callers.assert_heard_only("I am one", errors=CALLERS)  # those that this very server had taken


def test_of_a_run_is_told_with_its_signal(world: Scene, shared: Scene) -> None:
    shared.apply(job("sleep 1000", "victim"))
    start_run(shared, "victim")
    shared.wait_phase(Run, "victim-1", "running")
    os.kill(shared.pid_of("run-victim-1-1"), signal.SIGKILL)
    assert state_of(shared.wait_phase(Run, "victim-1", "failed"), Failed).signal == 9


@pytest.mark.parametrize("retries", [0, 1])
def test_of_a_runs_shim_leaves_nothing_of_its_tree(world: Scene, shared: Scene, retries: int) -> None:
    name = f"orphans-{retries}"
    script = 'test "$STOKER_ATTEMPT" = 2 && exit 0; '
    script += "env -u STOKER_RUN_DIR setsid sleep 1000 & echo $! > ../child; sleep 1000 & wait"
    shared.apply(job(script, name, retries=retries, backoff=0.1))
    start_run(shared, name)
    child = Path(shared.wait_phase(Run, f"{name}-1", "running").folder) / "child"
    wait_for(lambda: child.exists() and child.read_text().strip(), "its child runs")
    os.kill(shared.shim_of(f"run-{name}-1-1"), signal.SIGKILL)
    ended = shared.wait_phase(Run, f"{name}-1", "succeeded", "failed", "lost")
    assert (ended.phase == "succeeded") == (retries == 1)
    wait_for(lambda: not census.lives(int(child.read_text())), "a child in a session of its own is gone too")


@pytest.mark.parametrize("part", ["gateway", "shim"])
def test_of_a_gateways_worker_the_others_serve_and_it_takes_its_place_again(
    world: Scene, shared: Scene, part: str
) -> None:
    process = shared.gateway_processes()[0]
    worker = shared.pid_of(process)
    before = shared.client.host().last_event_id
    with Callers(shared, CALLERS) as callers:
        callers.hear(10)
        os.kill(worker if part == "gateway" else shared.shim_of(process), signal.SIGKILL)
        wait_for(lambda: census.has_let_go(worker), "the kernel has closed the worker's socket")
        cut_off = callers.others("I am one").total()  # by a socket on its way out, to which some may have come again
        for _ in range(20):  # on connections of their own: no worker that lives refuses one
            with shared.openai() as client:
                assert client.get("/models").status_code == 200
        failed = shared.wait_event("GatewayFailed", "gateway", after=before)
        back = shared.wait_event("GatewayReady", "gateway", after=before)
        callers.hear(20, ["I am one"])
    assert "worker 0 of the gateway" in failed.message
    assert "worker 0 of the gateway serves again" in back.message
    wait_for(lambda: not shared.client.host().gateway_message, "all workers serve")
    others = callers.others("I am one")
    assert set(others) <= BROKEN, others
    assert others.total() <= cut_off + CALLERS  # each of whom had one connection to that worker at most


def test_of_a_gateways_worker_and_of_the_daemon_that_just_told_it_is_told_once(world: Scene, shared: Scene) -> None:
    before = shared.client.host().last_event_id
    with shared.killed_at("GatewayFailed", "gateway"):
        os.kill(shared.pid_of(shared.gateway_processes()[0]), signal.SIGKILL)
    shared.wait_event("GatewayReady", "gateway", after=before)
    wait_for(lambda: not shared.client.host().gateway_message, "all workers serve")
    told = [e for e in shared.events() if e.id > before and e.reason == "GatewayFailed"]
    assert len(told) == 1, told


def test_of_all_workers_of_the_gateway_it_serves_again(world: Scene, shared: Scene) -> None:
    before = shared.client.host().last_event_id
    with Callers(shared, CALLERS) as callers:
        callers.hear(10)
        for process in shared.gateway_processes():
            os.kill(shared.pid_of(process), signal.SIGKILL)
        shared.wait_event("GatewayFailed", "gateway", after=before)
        ready = shared.wait_event("GatewayReady", "gateway", after=before)
        callers.hear(20, ["I am one"])
    assert "the gateway serves http" in ready.message
    assert set(callers.others("I am one")) <= BROKEN


@pytest.mark.parametrize("count", [1, 2])
def test_of_the_gateways_workers_while_the_daemon_is_away(world: Scene, shared: Scene, count: int) -> None:
    """Nothing starts them again then; those that live serve on."""
    pids = [shared.pid_of(process) for process in shared.gateway_processes()]
    shared.kill()
    for pid in pids[:count]:
        os.kill(pid, signal.SIGKILL)
    wait_for(lambda: all(census.has_let_go(pid) for pid in pids[:count]), "the kernel has closed their sockets")
    for _ in range(10):
        with shared.openai() as client:
            assert ask(client) == ("I am one" if count < len(pids) else "ConnectError")
    shared.start()
    wait_for(lambda: shared.client.host().gateway_phase == "ready", "the gateway serves again")
    wait_for(lambda: not shared.client.host().gateway_message, "all workers serve")
    with shared.openai() as client:
        assert ask(client) == "I am one"


@pytest.mark.parametrize("with_daemon", [False, True], ids=["all but the daemon", "all"])
def test_of_all_at_once_all_comes_back(world: Scene, shared: Scene, with_daemon: bool) -> None:
    name = f"all-{with_daemon}".lower()
    shared.apply(job('test "$STOKER_ATTEMPT" = 2 || sleep 1000', name, retries=1, backoff=0.1))
    start_run(shared, name)
    shared.pid_of(f"run-{name}-1-1")
    victims = sorted(census.look(shared.root), key=lambda f: f.role)
    assert {v.role for v in victims} == {"shim", "gateway", "replica", "run"}
    if with_daemon:
        shared.kill()
    for victim in victims:
        os.kill(victim.pid, signal.SIGKILL)
    if with_daemon:
        shared.start()
    assert shared.wait_phase(Run, f"{name}-1", "succeeded").attempt == 2
    wait_for(lambda: {r.phase for r in shared.client.list(Replica)} == {"ready"}, "both servers are ready again")
    wait_for(lambda: shared.client.host().gateway_phase == "ready", "the gateway is ready again")
    with shared.openai() as client:
        assert {ask(client, stream=s) for s in (False, True)} == {"I am one"}


def test_of_a_server_while_the_daemon_is_away_is_told_afterwards(world: Scene, shared: Scene) -> None:
    before = shared.client.host().last_event_id
    pid = shared.server_of("chat-v1-1")
    shared.kill()
    os.kill(pid, signal.SIGKILL)
    with Callers(shared, CALLERS) as callers:
        callers.hear(20)
        shared.start()
        backing = shared.wait_event("ReplicaBackingOff", "chat-v1-1", after=before)
        shared.wait_event("ReplicaReady", "chat-v1-1", after=before)
    assert "killed by signal 9" in backing.message
    callers.assert_heard_only("I am one")
