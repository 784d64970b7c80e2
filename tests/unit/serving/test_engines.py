from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

from stoker.errors import InvalidSpec
from stoker.types.serving import DeploymentSpec
from stokerd.serving.engines import check_engine, engine_of, launch_digest
from stokerd.serving.engines.base import Launch


def spec(**engine: Any) -> DeploymentSpec:
    return DeploymentSpec.model_validate(
        {"kind": "deployment", "name": "d", "model": "m", "version": 1, "engine": engine}
    )


def launch(**fields: Any) -> Launch:
    values: dict[str, Any] = {
        "deployment": "d", "version": 3, "model": Path("/weights"), "socket": Path("/s.sock"), "port": 1234,
        "devices": (), "log": Path("/logs/log"), "inherited": {"PATH": "/bin"},
    }  # fmt: skip
    return Launch(**values | fields)


def test_vllm_serves_the_deployments_name_over_its_own_socket_on_the_devices_it_was_given() -> None:
    engine = engine_of(spec(type="vllm", args=["--max-model-len", "9"], env={"A": "1"}), "/py")
    made = engine.command(launch(devices=("GPU-a", "GPU-b")))
    assert made.argv[:3] == ("/py", "-m", "vllm.entrypoints.openai.api_server")
    text = " ".join(made.argv)
    assert "--model /weights --served-model-name d --uds /s.sock --tensor-parallel-size 2 --max-model-len 9" in text
    assert made.env["CUDA_VISIBLE_DEVICES"] == "GPU-a,GPU-b"
    assert made.env["HF_HUB_OFFLINE"] == made.env["A"] == "1"


def test_any_program_can_serve_when_it_is_told_where_to_listen() -> None:
    engine = engine_of(spec(type="command", command=["serve", "--at={port}", "{model}", "{name}@{version}"]), "/py")
    assert engine.needs_port()
    assert engine.command(launch()).argv == ("serve", "--at=1234", "/weights", "d@3")
    assert [p.path for p in engine.probes("d")] == ["/v1/completions"]


@pytest.mark.parametrize(
    ("engine", "message"),
    [
        ({"type": "vllm", "args": ["--port", "1"]}, "Stoker sets --port itself"),
        ({"type": "vllm", "args": ["--uds=/x"]}, "Stoker sets --uds=/x itself"),
        ({"type": "command", "command": ["serve"]}, "isn't told where to listen"),
        ({"type": "command", "command": ["serve", "{sockets}"]}, "{sockets} can't be filled in"),
    ],
)
def test_what_cannot_work_is_refused_before_anything_starts(engine: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidSpec) as refused:
        check_engine(spec(**engine))
    assert message in str(refused.value)


def test_an_engine_that_is_missing_is_a_sentence() -> None:
    assert (
        "there is no program no-such" in engine_of(spec(type="command", command=["no-such", "{socket}"]), "").problem()
    )
    assert "vLLM is not installed" in engine_of(spec(type="vllm"), sys.executable).problem()
    assert "no interpreter /no/python" in engine_of(spec(type="vllm"), "/no/python").problem()


def test_only_what_servers_are_started_with_makes_them_start_anew() -> None:
    base = spec(type="vllm")
    assert launch_digest(base) == launch_digest(base.model_copy(update={"replicas": 5}))
    assert launch_digest(base) != launch_digest(spec(type="vllm", args=["--x"]))
