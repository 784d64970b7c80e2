"""A real vLLM, supervised. One daemon and one server are shared by all tests here: a start takes a while."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import httpx
import openai
import psutil
import pytest

from stoker.types.host import TrafficStats
from stoker.types.registry import Version
from stoker.types.serving import Deployment, Replica, VllmEngine
from stokerd.processes.logs import tail_lines
from stokerd.processes.states import Alive
from stokerd.processes.supervisor import Supervisor
from stokerd.serving.engines.vllm import SHUTDOWN_TIMEOUT, Vllm
from stokerd.serving.looks import ask
from tests.harness import Stokerd, wait_for

REPOSITORY = Path(__file__).parents[2]
ENGINE = Path(os.environ.get("STOKER_ENGINE_VENV") or REPOSITORY / ".venv-engine") / "bin" / "python"
START_SECONDS = 300.0
pytestmark = [
    pytest.mark.vllm,
    pytest.mark.timeout(900),
    pytest.mark.skipif(not ENGINE.exists(), reason=f"there is no {ENGINE}: `make engine` makes it"),
    pytest.mark.xdist_group("vllm"),
]
DEPLOYMENT = """
kind: deployment
name: tiny
model: tiny
version: 1
engine:
  type: vllm
  args: [--enforce-eager, --max-model-len, "256", --max-num-seqs, "8", --kv-cache-memory-bytes, "67108864",
         --distributed-executor-backend, uni]
  env: {VLLM_ENABLE_V1_MULTIPROCESSING: "0", VLLM_CPU_OMP_THREADS_BIND: nobind, OMP_NUM_THREADS: "1"}
"""


@pytest.fixture(scope="module")
def daemon() -> Iterator[Stokerd]:
    with Stokerd(python=str(ENGINE)) as running:
        weights = running.root / "tiny"
        subprocess.run([ENGINE, REPOSITORY / "tests/system/tiny_model.py", weights], check=True, capture_output=True)
        running.apply("{kind: model, name: tiny}")
        running.client.request("POST", "/v1/models/tiny/versions", json={"path": str(weights)})
        running.apply(DEPLOYMENT)
        running.wait_phase(Deployment, "tiny", "ready", seconds=START_SECONDS)
        running.wait_event("GatewayReady", "gateway")
        yield running


@pytest.fixture
def client(daemon: Stokerd) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"http://127.0.0.1:{daemon.port}/v1", api_key="none", max_retries=0) as made:
        yield made


def traffic(daemon: Stokerd) -> TrafficStats:
    found = daemon.client.request("GET", "/v1/traffic", params={"window": 600})
    return TrafficStats.model_validate(found[0]) if found else TrafficStats.model_construct(requests=0)


def test_the_openai_client_chats_through_the_gateway_streamed_or_not(daemon: Stokerd, client: openai.OpenAI) -> None:
    assert [m.id for m in client.models.list()] == ["tiny"]
    messages = [{"role": "user", "content": "Hi"}]
    whole = client.chat.completions.create(model="tiny", messages=messages, max_tokens=48, temperature=0)  # type: ignore[arg-type]
    assert whole.usage is not None
    assert whole.usage.completion_tokens == 48
    stream = client.chat.completions.create(
        model="tiny", messages=messages, max_tokens=48, temperature=0, stream=True  # type: ignore[arg-type]
    )  # fmt: skip
    text = "".join(c.choices[0].delta.content or "" for c in stream if c.choices)
    assert text == whole.choices[0].message.content
    assert client.completions.create(model="tiny", prompt="Hi", max_tokens=3).choices[0].text
    assert client.responses.create(model="tiny", input="Hi", max_output_tokens=8).output_text

    wait_for(lambda: traffic(daemon).requests >= 4, "the requests are recorded")
    stats = traffic(daemon)
    assert stats.errors == 0
    assert stats.prompt_tokens > 0
    assert stats.completion_tokens >= 48 + 3 + 8, stats
    assert stats.ttft_p50 is not None
    assert stats.inter_token_p50 is not None


def test_an_unknown_model_is_refused_as_openai_clients_expect(client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError, match="tiny"):
        client.completions.create(model="nope", prompt="Hi")


def test_a_client_that_goes_away_frees_the_engine(daemon: Stokerd) -> None:
    (replica,) = daemon.client.list(Replica)

    def running() -> float:
        transport = httpx.HTTPTransport(uds=replica.address.removeprefix("unix:"))
        with httpx.Client(transport=transport, base_url="http://vllm") as direct:
            lines = direct.get("/metrics").text.splitlines()
        return sum(float(line.rsplit(" ", 1)[1]) for line in lines if line.startswith("vllm:num_requests_running{"))

    body = {"model": "tiny", "prompt": "Hi", "max_tokens": 250, "stream": True, "ignore_eos": True}
    with daemon.openai() as caller, caller.stream("POST", "/completions", json=body) as response:
        next(response.iter_lines())
    wait_for(lambda: running() == 0, "vLLM has stopped generating")


def test_what_stoker_reads_of_this_vllm_is_there(daemon: Stokerd, client: openai.OpenAI) -> None:
    """Names change between versions: without its step counter a hang would never be seen."""
    (replica,) = daemon.client.list(Replica)
    engine = Vllm(VllmEngine(type="vllm"), str(ENGINE))

    def steps() -> float:
        metrics = asyncio.run(ask(replica.address, str(engine.metrics_path), 30))
        counted = engine.steps(metrics or "")
        assert counted is not None, metrics
        return counted

    before = steps()
    client.completions.create(model="tiny", prompt="Hi", max_tokens=20, extra_body={"ignore_eos": True})
    wait_for(lambda: steps() >= before + 20, "each token was a step")
    assert asyncio.run(ask(replica.address, engine.health_path, 30))
    assert engine.options() == {SHUTDOWN_TIMEOUT}
    assert "unrecognized" not in "".join(tail_lines(daemon.root / "replicas" / replica.name / "log", 1000))


def test_a_server_whose_engine_was_killed_is_started_again_with_nothing_left_behind(daemon: Stokerd) -> None:
    (replica,) = daemon.client.list(Replica)
    supervisor = Supervisor(daemon.home.processes)
    observed = supervisor.observe(replica.state.process)  # type: ignore[union-attr]
    supervisor.close()
    assert isinstance(observed, Alive)
    assert observed.pid is not None
    tree = [psutil.Process(observed.pid), *psutil.Process(observed.pid).children(recursive=True)]
    before = daemon.client.host().last_event_id
    victim = next((p for p in tree[1:] if "EngineCore" in " ".join(p.cmdline()) + p.name()), tree[0])
    victim.send_signal(signal.SIGKILL)
    daemon.wait_event("ReplicaBackingOff", "tiny-v1-0", after=before, seconds=60)
    daemon.wait_event("ReplicaReady", "tiny-v1-0", after=before, seconds=START_SECONDS)
    assert not [p for p in tree if p.is_running() and p.status() != psutil.STATUS_ZOMBIE]
    with daemon.openai() as caller:
        assert caller.post("/completions", json={"model": "tiny", "prompt": "a", "max_tokens": 1}).status_code == 200


def test_an_interpreter_without_vllm_is_said_in_one_sentence_within_seconds(daemon: Stokerd) -> None:
    daemon.apply(
        "{kind: deployment, name: no-vllm, model: tiny, version: 1, restart: {limit: 0}, "
        "engine: {type: vllm, python: /usr/bin/python3}}"
    )
    failed = daemon.wait_phase(Deployment, "no-vllm", "failed")
    assert "vLLM is not installed for /usr/bin/python3" in failed.message
    daemon.client.request("DELETE", "/v1/deployments/no-vllm")
    daemon.wait_event("DeploymentDeleted", "no-vllm")


def test_options_that_vllm_refuses_end_in_failed_with_its_own_words(daemon: Stokerd) -> None:
    daemon.apply(DEPLOYMENT.replace("name: tiny", "name: wrong") .replace("[--enforce-eager,", "[--no-such-option,")
                 + "restart: {limit: 0}\n")  # fmt: skip
    failed = daemon.wait_phase(Deployment, "wrong", "failed", seconds=120)
    assert "no-such-option" in failed.message
    assert daemon.client.get(Version, "tiny@1").number == 1
