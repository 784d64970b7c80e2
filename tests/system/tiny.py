"""A daemon that serves the model of `tiny_model` by a real vLLM: deployment, model and name are all ``tiny``."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from stoker.types.serving import Deployment
from tests.harness import Stokerd

REPOSITORY = Path(__file__).parents[2]
ENGINE = Path(os.environ.get("STOKER_ENGINE_VENV") or REPOSITORY / ".venv-engine") / "bin" / "python"
START_SECONDS = 300.0
NEEDS_VLLM = [
    pytest.mark.vllm,
    pytest.mark.timeout(900),
    pytest.mark.skipif(not ENGINE.exists(), reason=f"there is no {ENGINE}: `make engine` makes it"),
    pytest.mark.xdist_group("vllm"),
]


def tiny_deployment(*options: str, extra: str = "", max_model_len: int = 512) -> str:
    """Its spec, small enough for a machine that does much else; with more *options* of vLLM, and *extra* lines."""
    more = "".join(f', "{option}"' for option in options)
    return f"""
kind: deployment
name: tiny
model: tiny
version: 1
engine:
  type: vllm
  args: [--enforce-eager, --max-model-len, "{max_model_len}", --max-num-seqs, "8", --kv-cache-memory-bytes, "67108864",
         --distributed-executor-backend, uni{more}]
  env: {{VLLM_ENABLE_V1_MULTIPROCESSING: "0", VLLM_CPU_OMP_THREADS_BIND: nobind, OMP_NUM_THREADS: "1"}}
{extra}
"""


@contextmanager
def tiny_vllm(spec: str, python: Path = ENGINE, weights: Path | None = None) -> Iterator[Stokerd]:
    """The daemon, once the deployment of *spec* is ready. *python* is the interpreter that has vllm.

    With *weights*, the model is another one.
    """
    with Stokerd(python=str(python)) as running:
        if weights is None:
            weights = running.root / "tiny"
            make = [python, REPOSITORY / "tests/system/tiny_model.py", weights]
            subprocess.run(make, check=True, capture_output=True)
        running.apply("{kind: model, name: tiny}")
        running.client.request("POST", "/v1/models/tiny/versions", json={"path": str(weights)})
        running.apply(spec)
        running.wait_phase(Deployment, "tiny", "ready", seconds=START_SECONDS)
        running.wait_event("GatewayReady", "gateway")
        yield running
