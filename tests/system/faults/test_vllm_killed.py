"""kill -9 of the processes of a real vLLM, one by one: nothing of the old server is left when the next one starts."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Iterator

import psutil
import pytest

from stoker.types.serving import Deployment
from tests.harness import wait_for
from tests.system.faults import census
from tests.system.faults.scene import Scene
from tests.system.test_vllm import DEPLOYMENT
from tests.system.tiny import ENGINE, NEEDS_VLLM, REPOSITORY, START_SECONDS

pytestmark = NEEDS_VLLM
APART = DEPLOYMENT.replace('VLLM_ENABLE_V1_MULTIPROCESSING: "0"', 'VLLM_ENABLE_V1_MULTIPROCESSING: "1"')
QUICK = "restart: {limit: 100, backoff: 0.1s, backoff_cap: 0.5s}\n"


@pytest.fixture(scope="module")
def served() -> Iterator[Scene]:
    """A tiny model behind an API server and an EngineCore, as vLLM runs by default."""
    with Scene(python=str(ENGINE), waits_for=START_SECONDS) as scene:
        weights = scene.root / "tiny"
        subprocess.run([ENGINE, REPOSITORY / "tests/system/tiny_model.py", weights], check=True, capture_output=True)
        scene.apply("{kind: model, name: tiny}")
        scene.client.request("POST", "/v1/models/tiny/versions", json={"path": str(weights)})
        scene.apply(APART + QUICK)
        scene.wait_phase(Deployment, "tiny", "ready", seconds=START_SECONDS)
        scene.wait_event("GatewayReady", "gateway")
        yield scene


def tree(pid: int) -> list[psutil.Process]:
    return [psutil.Process(pid), *psutil.Process(pid).children(recursive=True)]


def is_engine_core(process: psutil.Process) -> bool:
    return "EngineCore" in process.name() + " ".join(process.cmdline())


def kill(scene: Scene, pid: int, everyone: list[psutil.Process]) -> int:
    """Kill *pid* and see that *everyone* is dead before another server starts. Returns the last event's id before."""
    before = scene.client.host().last_event_id
    os.kill(pid, signal.SIGKILL)
    backing = scene.wait_event("ReplicaBackingOff", "tiny-v1-0", after=before)
    starting = scene.wait_event("ReplicaStarting", "tiny-v1-0", after=before)
    assert starting.id > backing.id
    assert not [p.pid for p in everyone if census.lives(p.pid)], "all of the old one was gone before the new one began"
    return before


def test_of_the_api_server_alone_the_engine_goes_too_and_another_server_comes(served: Scene) -> None:
    pid = served.server_of("tiny-v1-0")
    everyone = tree(pid)
    assert [p for p in everyone if is_engine_core(p)], [p.cmdline() for p in everyone]
    before = kill(served, pid, everyone)
    with served.openai() as client:
        refused = client.post("/completions", json={"model": "tiny", "prompt": "a", "max_tokens": 1})
        assert refused.json()["error"]["message"]
    served.wait_event("ReplicaReady", "tiny-v1-0", after=before, seconds=START_SECONDS)
    with served.openai() as client:
        answer = client.post("/completions", json={"model": "tiny", "prompt": "a", "max_tokens": 4, "temperature": 0})
        assert answer.json()["usage"]["completion_tokens"] == 4
    served.check()


def test_of_the_daemon_while_a_stream_runs_the_stream_is_completed(served: Scene) -> None:
    body = {"model": "tiny", "prompt": "Hi", "max_tokens": 200, "stream": True, "temperature": 0, "ignore_eos": True}
    with served.openai() as client, client.stream("POST", "/completions", json=body) as answer:
        lines = answer.iter_lines()
        next(lines)
        served.kill()
        rest = [line for line in lines if line]
    assert rest[-1] == "data: [DONE]"
    assert len(rest) >= 100
    served.start()
    wait_for(lambda: served.client.host().gateway_phase == "ready", "the daemon speaks with the gateway again")
    served.check()


def test_of_engine_core_alone_the_api_server_goes_too(served: Scene) -> None:
    """The last one: its successor is not waited for."""
    everyone = tree(served.server_of("tiny-v1-0"))
    (core,) = [p for p in everyone if is_engine_core(p)]
    kill(served, core.pid, everyone)
    served.client.request("DELETE", "/v1/deployments/tiny")
    served.wait_event("DeploymentDeleted", "tiny")
    served.check()
