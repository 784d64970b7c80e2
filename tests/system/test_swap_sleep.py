"""A swap on the only GPU by vLLM's sleep mode: real processes, a simulated driver, a stand-in for vLLM's server.

The stand-in (vllm_stand_in.py) refuses an inference while it sleeps, and to start or wake up beside one that is awake
on its GPU: whoever hears an answer has been served as they should be.
"""

from __future__ import annotations

import ast
import json
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import httpx
import pytest

from stoker.types.rollouts import RolledBack, Rollout
from stoker.types.serving import Asleep, Deployment, Ready, Replica
from stokerd.serving.engines.vllm import ENABLE_SLEEP, SLEEP_PATHS
from tests.harness import Stokerd, state_of, wait_for
from tests.nvml.fleet import LOST, Fleet, Gpu
from tests.system.faults.scene import Scene
from tests.system.loop import People, add_version

SERVER = Path(__file__).with_name("vllm_stand_in.py")
ENGINE = Path(os.environ.get("STOKER_ENGINE_VENV") or Path(__file__).parents[2] / ".venv-engine")
VLLM = sorted(ENGINE.glob("lib/python3*/site-packages/vllm"))
CANARY = "[{type: canary, percent: 50, min_requests: 20}]"
FOREVER = "[{type: canary, percent: 50, min_requests: 100000}]"


@pytest.fixture
def fleet(tmp_path: Path, request: pytest.FixtureRequest) -> Fleet:
    return Fleet(tmp_path, getattr(request, "param", 1))


@pytest.fixture
def daemon(fleet: Fleet) -> Iterator[Stokerd]:
    with Stokerd(env=fleet.env()) as running:
        yield running


def serve(daemon: Stokerd, **behaviours: dict[str, Any]) -> None:
    """Deploy version one on the GPU, with a second version that waits to be rolled out."""
    python = daemon.root / "python"
    python.write_text(f'#!/bin/sh\nexec {sys.executable} {SERVER} "$@"\n')
    python.chmod(0o755)
    for alias in ("one", "two"):
        add_version(daemon, alias, calls=str(daemon.root / f"calls-{alias}"), **behaviours.get(alias, {}))
    daemon.apply(f"""
kind: deployment
name: chat
model: m
version: 1
devices: 1
drain_timeout: 90s
engine: {{type: vllm, python: {python}, args: [--enable-sleep-mode], env: {{STAND_IN_FOLDER: {daemon.root}}}}}
restart: {{limit: 100, backoff: 0.1s, backoff_cap: 0.5s, healthy_after: 0.5s}}
""")
    daemon.wait_event("GatewayReady", "gateway")
    daemon.wait_phase(Deployment, "chat", "ready")


@contextmanager
def callers(daemon: Stokerd) -> Iterator[People]:
    """People who have heard version one, and are to hear nothing but answers."""
    with People(daemon) as people:
        wait_for(lambda: people.answers["I am one"], "people hear the old version")
        yield people


def hear(people: People, text: str) -> None:
    before = people.answers[text]
    wait_for(lambda: people.answers[text] > before + 20, f"people hear: {text}")


def swap(daemon: Stokerd, steps: str = CANARY, keep_warm: str = "0s", name: str = "r", to: str = "two") -> None:
    daemon.apply(f"""
kind: rollout
name: {name}
deployment: chat
to: {to}
placement: swap
steps: {steps}
guards: [{{metric: error_rate, limit: 0.05, against: nothing}}]
keep_warm: {keep_warm}
""")


def say(daemon: Stokerd, verb: str) -> None:
    daemon.client.request("POST", f"/v1/rollouts/r/{verb}")


def replica(daemon: Stokerd, name: str) -> Replica | None:
    return next((r for r in daemon.client.list(Replica) if r.name == name), None)


def calls(daemon: Stokerd, alias: str) -> list[str]:
    """What the servers of that version were told."""
    path = daemon.root / f"calls-{alias}"
    return path.read_text().split() if path.exists() else []


def kill_server(daemon: Stokerd, name: str) -> None:
    state = daemon.client.get(Replica, name).state
    assert isinstance(state, Ready | Asleep)
    child = json.loads((daemon.home.processes / state.process / "child.json").read_bytes())["child"]
    os.kill(child["pid"], signal.SIGKILL)


def told(daemon: Stokerd, name: str) -> list[str]:
    return [e.reason.removeprefix("Replica") for e in daemon.events() if e.name == name]


def leases(daemon: Stokerd) -> list[str]:
    return [lease.owner for device in daemon.client.host().devices for lease in device.leases]


def test_a_swap_there_and_back_starts_the_old_version_once_and_answers_every_request(daemon: Stokerd) -> None:
    serve(daemon)
    with callers(daemon) as people:
        swap(daemon, FOREVER)
        daemon.wait_phase(Rollout, "r", "stepping")
        hear(people, "I am two")
        old = replica(daemon, "chat-v1-0")
        assert old is not None
        assert (old.devices, state_of(old, Asleep).devices) == ([], [Fleet.uuid(0)])
        assert leases(daemon) == ["replica/chat-v2-0"]
        say(daemon, "abort")
        daemon.wait_phase(Rollout, "r", "aborted")
        hear(people, "I am one")
    assert set(people.answers) == {"I am one", "I am two"}
    wait_for(lambda: replica(daemon, "chat-v2-0") is None, "the candidate is gone")
    back = replica(daemon, "chat-v1-0")
    assert back is not None
    assert isinstance(back.state, Ready)
    assert (back.starts, back.devices, leases(daemon)) == (1, [Fleet.uuid(0)], ["replica/chat-v1-0"])
    assert told(daemon, "chat-v1-0")[-6:] == ["Ready", "Rests", "Asleep", "Recalled", "Waking", "Awake"]
    assert calls(daemon, "one") == ["/sleep?level=1", "/is_sleeping", "/wake_up", "/is_sleeping"]


def test_after_promotion_the_old_version_sleeps_on_and_a_rollback_wakes_it(daemon: Stokerd) -> None:
    serve(daemon)
    with callers(daemon) as people:
        swap(daemon, keep_warm="1h")
        daemon.wait_phase(Rollout, "r", "promoted")
        kept = daemon.client.get(Deployment, "chat")
        assert (kept.version, kept.phase) == (2, "ready")
        assert kept.warm is not None
        assert kept.warm.rests
        assert daemon.client.get(Replica, "chat-v1-0").phase == "asleep"
        say(daemon, "rollback")
        daemon.wait_phase(Rollout, "r", "aborted", "rolled-back")
        hear(people, "I am one")
    assert set(people.answers) == {"I am one", "I am two"}
    assert daemon.client.get(Replica, "chat-v1-0").starts == 1


def test_a_new_version_that_dies_while_the_old_one_sleeps_is_taken_back_after_promotion_too(daemon: Stokerd) -> None:
    serve(daemon)
    with callers(daemon) as people:
        swap(daemon, keep_warm="1h")
        daemon.wait_phase(Rollout, "r", "promoted")
        kill_server(daemon, "chat-v2-0")
        ended = daemon.wait_phase(Rollout, "r", "rolled-back")
        assert "chat-v2-0" in state_of(ended, RolledBack).because
        hear(people, "I am one")
    kept = daemon.client.get(Deployment, "chat")
    assert (kept.version, kept.warm) == (1, None)
    assert daemon.client.get(Replica, "chat-v1-0").starts == 1


def test_when_its_time_to_stand_by_is_over_a_sleeping_server_is_ended(daemon: Stokerd) -> None:
    serve(daemon)
    with callers(daemon) as people:
        swap(daemon, keep_warm="1s")
        daemon.wait_phase(Rollout, "r", "promoted")
        wait_for(lambda: replica(daemon, "chat-v1-0") is None, "the old version's server is gone")
    assert set(people.answers) == {"I am one", "I am two"}
    assert told(daemon, "chat-v1-0")[-3:] == ["Retired", "Stopping", "Stopped"]
    assert "Awake" not in told(daemon, "chat-v1-0")


def test_a_version_that_sleeps_can_be_swapped_in_again(daemon: Stokerd) -> None:
    serve(daemon)
    with callers(daemon) as people:
        swap(daemon, keep_warm="1h")
        daemon.wait_phase(Rollout, "r", "promoted")
        swap(daemon, keep_warm="1h", name="r2", to="one")
        assert "wakes up on GPU 0" in str(daemon.client.get(Rollout, "r2").plan)
        assert daemon.client.get(Replica, "chat-v1-0").start_seconds, "to plan by"
        daemon.wait_phase(Rollout, "r2", "promoted")
        wait_for(lambda: daemon.client.get(Replica, "chat-v2-0").phase == "asleep", "the other one sleeps")
    assert set(people.answers) == {"I am one", "I am two"}
    assert daemon.client.get(Replica, "chat-v1-0").starts == 1


@pytest.mark.parametrize(
    ("one", "why"),
    [
        ({"sleep_status": 500}, "/sleep?level=1 answered HTTP 500"),
        ({"insomnia": True}, "it says that it is awake"),
    ],
)
def test_a_server_that_cannot_sleep_is_stopped_and_started_anew(daemon: Stokerd, one: dict[str, Any], why: str) -> None:
    serve(daemon, one=one)
    with callers(daemon) as people:
        swap(daemon, FOREVER)
        retired = daemon.wait_event("ReplicaRetired", "chat-v1-0")
        assert why in retired.message
        daemon.wait_phase(Rollout, "r", "stepping")
        hear(people, "I am two")
        assert replica(daemon, "chat-v1-0") is None
        say(daemon, "abort")
        daemon.wait_phase(Rollout, "r", "aborted")
    assert set(people.answers) == {"I am one", "I am two"}
    assert daemon.client.get(Replica, "chat-v1-0").phase == "ready"


def test_a_server_whose_memory_the_driver_does_not_give_back_is_stopped(daemon: Stokerd, fleet: Fleet) -> None:
    fleet.set(0, used_mib=70_000)
    serve(daemon)
    with callers(daemon) as people:
        swap(daemon, FOREVER)
        retired = daemon.wait_event("ReplicaRetired", "chat-v1-0")
        assert "GPU 0 has only 11.64 GiB free of the 80 GiB that it had" in retired.message
        daemon.wait_phase(Rollout, "r", "stepping")
        hear(people, "I am two")
    assert set(people.answers) == {"I am one", "I am two"}


def test_a_server_that_does_not_wake_up_is_started_anew(daemon: Stokerd) -> None:
    serve(daemon, one={"wake_status": 500})
    with callers(daemon) as people:
        swap(daemon, FOREVER)
        daemon.wait_phase(Rollout, "r", "stepping")
        say(daemon, "abort")
        anew = daemon.wait_event("ReplicaRestarting", "chat-v1-0")
        assert "it did not wake up: /wake_up answered HTTP 500" in anew.message
        daemon.wait_phase(Rollout, "r", "aborted")
        hear(people, "I am one")
    assert set(people.answers) == {"I am one", "I am two"}
    assert daemon.client.get(Replica, "chat-v1-0").starts == 2


def test_a_server_that_dies_in_its_sleep_is_started_when_its_version_serves_again(daemon: Stokerd) -> None:
    serve(daemon)
    with callers(daemon) as people:
        swap(daemon, FOREVER)
        daemon.wait_phase(Rollout, "r", "stepping")
        kill_server(daemon, "chat-v1-0")
        retired = daemon.wait_event("ReplicaRetired", "chat-v1-0")
        assert "killed by signal 9" in retired.message
        wait_for(lambda: replica(daemon, "chat-v1-0") is None, "it is gone")
        assert daemon.client.get(Rollout, "r").phase == "stepping"
        say(daemon, "abort")
        daemon.wait_phase(Rollout, "r", "aborted")
        hear(people, "I am one")
    assert set(people.answers) == {"I am one", "I am two"}


@pytest.mark.parametrize("fleet", [(Gpu(), Gpu(state=LOST))], indirect=True, ids=["two GPUs"])
def test_a_version_whose_gpu_is_lost_while_it_sleeps_is_started_anew_on_another(daemon: Stokerd, fleet: Fleet) -> None:
    serve(daemon)
    with callers(daemon) as people:
        swap(daemon, FOREVER)
        daemon.wait_phase(Rollout, "r", "stepping")
        fleet.play(Gpu(state=LOST), Gpu())
        wait_for(lambda: [bool(d.error) for d in daemon.client.host().devices] == [True, False], "GPU 0 is lost")
        say(daemon, "abort")
        anew = daemon.wait_event("ReplicaRestarting", "chat-v1-0")
        assert "on other devices" in anew.message
        daemon.wait_phase(Rollout, "r", "aborted")
        hear(people, "I am one")
    assert set(people.answers) == {"I am one", "I am two"}
    assert daemon.client.get(Replica, "chat-v1-0").devices == [Fleet.uuid(1)]


@pytest.mark.parametrize("moment", ["draining", "asleep", "waking"])
def test_a_swap_goes_on_where_it_was_after_the_daemon_was_killed(daemon: Stokerd, moment: str) -> None:
    sleeps, wakes = daemon.root / "sleeps", daemon.root / "wakes"
    serve(daemon, one={"sleep_until": str(sleeps), "wake_until": str(wakes)})
    with callers(daemon) as people:
        swap(daemon, FOREVER)
        if moment == "draining":
            wait_for(lambda: calls(daemon, "one"), "it is told to sleep")
            assert daemon.client.get(Replica, "chat-v1-0").phase == "draining"
            daemon.kill()
        sleeps.touch()
        if moment == "draining":
            daemon.start()
        daemon.wait_phase(Rollout, "r", "stepping")
        hear(people, "I am two")
        if moment == "asleep":
            daemon.kill()
            asked = people.answers.total()
            wait_for(lambda: people.answers.total() > asked + 20, "people are served while the daemon is away")
            daemon.start()
            assert daemon.client.get(Replica, "chat-v1-0").phase == "asleep"
        say(daemon, "abort")
        if moment == "waking":
            wait_for(lambda: "/wake_up" in calls(daemon, "one"), "it is told to wake up")
            daemon.kill()
        wakes.touch()
        if moment == "waking":
            daemon.start()
        daemon.wait_phase(Rollout, "r", "aborted")
        hear(people, "I am one")
    assert set(people.answers) == {"I am one", "I am two"}
    assert daemon.client.get(Replica, "chat-v1-0").starts == 1


def killed_at(scene: Scene, reason: str, is_now: bool) -> AbstractContextManager[None]:
    return scene.killed_at(reason, "chat-v1-0") if is_now else nullcontext()


def test_a_daemon_that_is_killed_at_any_step_of_it_loses_nothing(fleet: Fleet) -> None:
    with Scene(env=fleet.env()) as scene:
        serve(scene)
        with callers(scene) as people:
            for moment in ("ReplicaRests", "ReplicaAsleep", "ReplicaRecalled", "ReplicaWaking", "ReplicaAwake"):
                name = f"r-{moment.lower()}"
                with killed_at(scene, moment, moment in ("ReplicaRests", "ReplicaAsleep")):
                    swap(scene, FOREVER, name=name)
                scene.wait_phase(Rollout, name, "stepping")
                hear(people, "I am two")
                with killed_at(scene, moment, moment not in ("ReplicaRests", "ReplicaAsleep")):
                    scene.client.request("POST", f"/v1/rollouts/{name}/abort")
                scene.wait_phase(Rollout, name, "aborted")
                hear(people, "I am one")
        assert set(people.answers) == {"I am one", "I am two"}
        assert scene.client.get(Replica, "chat-v1-0").starts == 1
        scene.check()


def test_one_who_thinks_better_of_it_at_once_gets_the_old_version_back(daemon: Stokerd) -> None:
    sleeps = daemon.root / "sleeps"
    serve(daemon, one={"sleep_until": str(sleeps)})
    with callers(daemon) as people:
        swap(daemon, FOREVER)
        wait_for(lambda: calls(daemon, "one"), "it is told to sleep")
        say(daemon, "abort")
        daemon.wait_event("ReplicaWaking", "chat-v1-0")
        sleeps.touch()
        daemon.wait_phase(Rollout, "r", "aborted")
        hear(people, "I am one")
    assert set(people.answers) == {"I am one"}
    assert daemon.client.get(Replica, "chat-v1-0").starts == 1
    assert replica(daemon, "chat-v2-0") is None


def test_no_client_of_the_gateway_can_put_a_server_to_sleep(daemon: Stokerd) -> None:
    serve(daemon)
    with httpx.Client(base_url=f"http://127.0.0.1:{daemon.port}", trust_env=False) as client:
        for path in ("/sleep?level=1", "/wake_up", "/collective_rpc", "/v1/sleep", "/v1/../sleep", "//sleep"):
            assert client.post(path, json={"model": "chat"}).status_code == 404, path
        assert client.get("/is_sleeping").status_code == 404
    assert calls(daemon, "one") == []


@pytest.mark.vllm
@pytest.mark.skipif(not VLLM, reason=f"there is no vLLM in {ENGINE}: `make engine` makes it")
def test_the_installed_vllm_has_the_paths_and_the_option_that_a_swap_uses() -> None:
    posted, got, parameters = set(), set(), set()
    for path in (VLLM[0] / "entrypoints").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            match node:
                case ast.Call(func=ast.Attribute(attr="post"), args=[ast.Constant(value=str(route)), *_]):
                    posted.add(route)
                case ast.Call(func=ast.Attribute(attr="get"), args=[ast.Constant(value=str(route)), *_]):
                    got.add(route)
                case ast.AsyncFunctionDef(name="sleep", args=ast.arguments(args=arguments)):
                    parameters |= {a.arg for a in arguments}
    assert {SLEEP_PATHS.sleep.partition("?")[0], SLEEP_PATHS.wake} <= posted
    assert SLEEP_PATHS.is_sleeping in got
    assert "level" in parameters
    assert f'"{ENABLE_SLEEP}"' in (VLLM[0] / "engine" / "arg_utils.py").read_text()
    assert "VLLM_SERVER_DEV_MODE" in (VLLM[0] / "envs.py").read_text()
