"""A real vLLM, supervised. One daemon and one server are shared by all tests here: a start takes a while."""

from __future__ import annotations

import asyncio
import secrets
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import httpx
import openai
import psutil
import pytest

from stoker.errors import StokerError
from stoker.types.host import TrafficStats
from stoker.types.registry import Version
from stoker.types.rollouts import Rollout
from stoker.types.serving import Deployment, Ready, Replica, VllmEngine
from stokerd.processes.logs import tail_lines
from stokerd.processes.states import Alive
from stokerd.processes.supervisor import Supervisor
from stokerd.serving.asking import ask
from stokerd.serving.engines.vllm import SHUTDOWN_TIMEOUT, Vllm
from tests.harness import Stokerd, state_of, wait_for
from tests.system.tiny import ENGINE, NEEDS_VLLM, REPOSITORY, START_SECONDS, tiny_deployment, tiny_vllm

pytestmark = NEEDS_VLLM
ADAPTER = "{kind: deployment, name: tuned, model: tuned, version: 1, engine: {type: adapter, base: tiny}}"
DEPLOYMENT = tiny_deployment("--enable-lora", "--max-loras", "2", "--max-lora-rank", "8", max_model_len=256)


@pytest.fixture(scope="module")
def daemon() -> Iterator[Stokerd]:
    with tiny_vllm(DEPLOYMENT) as running:
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
    whole = client.chat.completions.create(model="tiny", messages=messages, max_tokens=48, temperature=0)
    assert whole.usage is not None
    assert whole.usage.completion_tokens == 48
    stream = client.chat.completions.create(model="tiny", messages=messages, max_tokens=48, temperature=0, stream=True)
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
    replica = daemon.client.get(Replica, "tiny-v1-0")

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
    replica = daemon.client.get(Replica, "tiny-v1-0")
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


def say(daemon: Stokerd, model: str) -> str:
    """What *model* says at temperature 0, to somebody who never asked before."""
    body = {"model": model, "prompt": "Hi", "max_tokens": 24, "temperature": 0, "user": secrets.token_hex(4)}
    with daemon.openai() as caller:
        response = caller.post("/completions", json=body)
    assert response.status_code == 200, response.text
    return str(response.json()["choices"][0]["text"])


@pytest.fixture(scope="module")
def adapter(daemon: Stokerd) -> str:
    """A deployment of an adapter with two versions, ready."""
    daemon.apply("{kind: model, name: tuned}")
    for seed in ("1", "2"):
        folder = daemon.root / f"tuned-{seed}"
        command: list[str | Path] = [ENGINE, REPOSITORY / "tests/system/tiny_adapter.py", folder, "--seed", seed]
        subprocess.run(command, check=True, capture_output=True)
        daemon.client.request("POST", "/v1/models/tuned/versions", json={"path": str(folder)})
    daemon.apply(ADAPTER)
    daemon.wait_phase(Deployment, "tuned", "ready")
    return "tuned"


def test_an_adapter_is_loaded_into_a_server_that_runs_and_served_beside_its_base(daemon: Stokerd, adapter: str) -> None:
    (row,) = [r for r in daemon.client.list(Replica) if r.deployment == adapter]
    assert (row.host, row.phase) == ("tiny-v1-0", "ready")
    assert say(daemon, adapter) == say(daemon, "tuned@1") != say(daemon, "tiny")
    with pytest.raises(StokerError, match="serves the adapters tuned"):
        daemon.client.request("DELETE", "/v1/deployments/tiny")


def test_an_adapters_canary_starts_no_server(daemon: Stokerd, adapter: str) -> None:
    first, before = say(daemon, adapter), daemon.client.host().last_event_id
    steps = "[{type: canary, percent: 50, min_requests: 3}]"
    guards = "[{metric: error_rate, limit: 0.5, min_requests: 3}, {metric: total, limit: 100, min_requests: 3}]"
    daemon.apply(
        f"{{kind: rollout, name: tune, deployment: tuned, to: 2, steps: {steps}, guards: {guards}, cold_requests: 1, "
        "keep_warm: 0s}"
    )
    daemon.wait_event("RolloutStepped", "tune", after=before)
    second = wait_for(lambda: say(daemon, "tuned@2"), "the candidate answers")
    assert second != first

    def asks() -> bool:
        return say(daemon, adapter) in {first, second} and daemon.client.get(Rollout, "tune").phase == "promoted"

    wait_for(asks, "its canary is promoted")
    judged = {r.guard.metric: r.verdict.verdict for r in daemon.client.get(Rollout, "tune").readings}
    assert judged == {"error_rate": "pass", "total": "pass"}, "both are in one server, and are told apart"
    wait_for(lambda: say(daemon, adapter) == second, "the adapter's version 2 serves")
    daemon.wait_event("ReplicaStopped", "tuned-v1-on-tiny-v1-0", after=before)
    starts = [e.name for e in daemon.events(before) if e.reason == "ReplicaStarting"]
    assert starts == ["tuned-v2-on-tiny-v1-0"]


def test_a_server_whose_engine_was_killed_is_started_again_with_nothing_left_behind(daemon: Stokerd) -> None:
    replica = daemon.client.get(Replica, "tiny-v1-0")
    supervisor = Supervisor(daemon.home.processes)
    observed = supervisor.observe(state_of(replica, Ready).process)
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
    if any(r.deployment == "tuned" for r in daemon.client.list(Replica)):  # what was loaded into it is there again
        daemon.wait_event("ReplicaReady", "tuned-v2-on-tiny-v1-0", after=before)
        assert say(daemon, "tuned")
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
