"""Servers that stop, quit, crash, never get ready, or take too much: each is told of, and no other suffers for it."""

from __future__ import annotations

import json
import os
import signal
import sys

import pytest

from stoker.types.host import NO_MEMORY_OF_TREES
from stoker.types.serving import Deployment, Replica
from stoker.types.training import Failed, Run
from tests.harness import state_of, wait_for
from tests.system.faults import census
from tests.system.faults.callers import Callers, ask
from tests.system.faults.jobs import start_run
from tests.system.faults.scene import Scene
from tests.system.loop import add_version, deployment

QUICK = "restart: {limit: 100, backoff: 0.1s, backoff_cap: 0.5s, healthy_after: 0.5s}"
HOG = "import time; x = bytearray(256 << 20); time.sleep(1000)"
CALLERS = 3


@pytest.fixture(scope="module")
def world(shared_scene: Scene) -> Scene:
    """Versions of model m that behave as they are named; nothing is served yet."""
    for alias, behaviour in (("one", {}), ("quits", {"die_after": 1}), ("never", {"never_ready": True})):
        add_version(shared_scene, alias, **behaviour)
    shared_scene.wait_event("GatewayReady", "gateway")
    return shared_scene


def spec(name: str, version: str = "one", replicas: int = 1, extra: str = QUICK) -> str:
    made = deployment(replicas, extra).replace("name: chat", f"name: {name}")
    return made.replace("version: 1", f"version: {version}")


def script(name: str, text: str, extra: str) -> str:
    """A deployment whose server is a line of shell."""
    return (
        f"{{kind: deployment, name: {name}, model: m, version: 1, {extra}, "
        f"engine: {{type: command, command: [/bin/sh, -c, '{text}', '{{socket}}']}}}}"
    )


def delete(scene: Scene, name: str) -> None:
    scene.client.request("DELETE", f"/v1/deployments/{name}")
    scene.wait_event("DeploymentDeleted", name)


def routed(scene: Scene, name: str) -> int:
    """How many servers of a deployment the gateway sends requests to."""
    table = json.loads((scene.home.gateway / "routes.json").read_text())
    return next(len(r["arms"][0]["addresses"]) for r in table["routes"] if r["deployment"] == name)


def test_stopped_they_get_no_requests_until_they_go_on_or_are_started_anew(world: Scene, shared: Scene) -> None:
    shared.apply(spec("still", replicas=2, extra=f"{QUICK}\nstall_timeout: 5s"))
    shared.apply(spec("frozen", replicas=2, extra=f"{QUICK}\nstall_timeout: 0.5s"))
    for name in ("still", "frozen"):
        shared.wait_phase(Deployment, name, "ready")
    before = shared.client.host().last_event_id
    still, frozen = shared.server_of("still-v1-0"), shared.server_of("frozen-v1-0")
    for pid in (still, frozen):
        os.kill(pid, signal.SIGSTOP)

    shared.wait_phase(Replica, "still-v1-0", "unreachable", "stalled")
    wait_for(lambda: routed(shared, "still") == 1, "it gets no requests")
    with Callers(shared, CALLERS, "still") as callers:
        callers.hear(20)
        shared.kill_pid(still, signal.SIGCONT)  # gone, where this machine is slow: it is started anew then
        shared.wait_phase(Replica, "still-v1-0", "ready")
    callers.assert_heard_only("I am one")
    if shared.client.get(Replica, "still-v1-0").starts == 1:
        assert shared.server_of("still-v1-0") == still

    shared.wait_event("ReplicaBackingOff", "frozen-v1-0", after=before)
    shared.wait_event("ReplicaReady", "frozen-v1-0", after=before)
    assert not census.lives(frozen)
    with shared.openai() as client:
        assert {ask(client, model="frozen") for _ in range(6)} == {"I am one"}
    for name in ("still", "frozen"):
        delete(shared, name)


def test_told_to_end_while_it_warms_up_it_is_started_again(world: Scene, shared: Scene) -> None:
    shared.apply(spec("warming", "never"))
    shared.wait_event("ReplicaStarting", "warming-v3-0")
    os.kill(shared.server_of("warming-v3-0"), signal.SIGTERM)
    backing = shared.wait_event("ReplicaBackingOff", "warming-v3-0")
    assert "while it started" in backing.message
    wait_for(lambda: shared.client.get(Replica, "warming-v3-0").starts == 2, "it is started again")
    delete(shared, "warming")


def test_exit_0_unasked_is_a_failure(world: Scene, shared: Scene) -> None:
    shared.apply(spec("quits", "quits"))
    shared.wait_phase(Deployment, "quits", "ready")
    before = shared.client.host().last_event_id
    with shared.openai() as client:
        assert ask(client, model="quits") == "HTTP 502"
    backing = shared.wait_event("ReplicaBackingOff", "quits-v2-0", after=before)
    assert "exited with code 0 unasked" in backing.message
    shared.wait_event("ReplicaReady", "quits-v2-0", after=before)
    delete(shared, "quits")


def test_a_crash_loop_ends_in_failed_with_the_last_words(world: Scene, shared: Scene) -> None:
    shared.apply(script("crashes", "echo no such layer; exit 3", "restart: {limit: 2, backoff: 0.1s}"))
    failed = shared.wait_event("ReplicaFailed", "crashes-v1-0")
    assert "exited with code 3" in failed.message
    assert failed.data["log"][-1] == "no such layer"
    told = [e.reason for e in shared.events() if e.name == "crashes-v1-0"]
    assert (told.count("ReplicaStarting"), told.count("ReplicaBackingOff")) == (3, 2)
    with shared.openai() as client:
        assert ask(client, model="crashes") == "HTTP 503"
    shared.check()  # while it is failed: nothing of it is left
    delete(shared, "crashes")


def test_failures_that_lie_a_healthy_period_apart_are_no_crash_loop(world: Scene, shared: Scene) -> None:
    shared.apply(spec("steady", extra="restart: {limit: 1, backoff: 0.1s, healthy_after: 0.5s}"))
    shared.wait_phase(Deployment, "steady", "ready")
    for failure in range(3):
        wait_for(lambda: shared.client.get(Replica, "steady-v1-0").failures == 0, f"{failure} failures are forgiven")
        before = shared.client.host().last_event_id
        shared.kill_pid(shared.server_of("steady-v1-0"))
        shared.wait_event("ReplicaBackingOff", "steady-v1-0", after=before)
        shared.wait_event("ReplicaReady", "steady-v1-0", after=before)
    assert not [e for e in shared.events() if (e.reason, e.name) == ("ReplicaFailed", "steady-v1-0")]
    delete(shared, "steady")


def test_never_ready_ends_in_failed_and_its_process_with_it(world: Scene, shared: Scene) -> None:
    shared.apply(spec("late", "never", extra="restart: {limit: 0}\nstart_timeout: 1s"))
    shared.wait_event("ReplicaStarting", "late-v3-0")
    starting = shared.server_of("late-v3-0")
    failed = shared.wait_event("ReplicaFailed", "late-v3-0")
    assert "not ready within 1 s" in failed.message
    wait_for(lambda: not census.lives(starting), "its server is ended")
    delete(shared, "late")


def test_out_of_memory_is_told_as_that(world: Scene, shared: Scene) -> None:
    if NO_MEMORY_OF_TREES in shared.client.host().limits:
        pytest.skip(f"no memory limits on this host: {shared.client.host().limits}")
    hog = f'"{sys.executable}", -c, "{HOG}"'
    shared.apply(f"{{kind: job, name: hog, command: [{hog}], limits: {{memory: 64MiB}}}}")
    run = start_run(shared, "hog")
    assert "out of memory" in state_of(shared.wait_phase(Run, run, "failed"), Failed).message
    shared.apply(
        "{kind: deployment, name: hungry, model: m, version: 1, restart: {limit: 0}, limits: {memory: 64MiB}, "
        f'engine: {{type: command, command: [{hog}, "{{socket}}"]}}}}'
    )
    failed = shared.wait_event("ReplicaFailed", "hungry-v1-0")
    assert "out of memory" in failed.message
    delete(shared, "hungry")
