"""The paths that the gateway serves are those that the installed vLLM has, found in its source: no server is needed."""

from __future__ import annotations

import ast
import os
from pathlib import Path

import pytest

from stokerd.gateway.surface import ENDPOINTS

ENGINE = Path(os.environ.get("STOKER_ENGINE_VENV") or Path(__file__).parents[2] / ".venv-engine")
ROUTES = sorted(ENGINE.glob("lib/python3*/site-packages/vllm/entrypoints"))
ADMINISTRATION = {  # of an engine: never for clients
    "dev",
    "elastic_ep",
    "fault_tolerance",
    "lora",
    "online",
    "profile",
    "sagemaker",
}
WITHOUT_MODEL = {"/v1/responses/{response_id}/cancel"}
pytestmark = [
    pytest.mark.vllm,
    pytest.mark.skipif(not ROUTES, reason=f"there is no vLLM in {ENGINE}: `make engine` makes it"),
]


def routes() -> set[str]:
    """What vLLM's routers take by POST, less what administers an engine."""
    found = set()
    for path in ROUTES[0].rglob("*.py"):
        if ADMINISTRATION & set(path.relative_to(ROUTES[0]).parts):
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            match node:
                case ast.Call(func=ast.Attribute(attr="post"), args=[ast.Constant(value=str(route)), *_]):
                    found.add(route)
    return found


def test_clients_reach_every_path_that_vllm_serves_a_model_at() -> None:
    assert {endpoint.path for endpoint in ENDPOINTS.values()} == routes() - WITHOUT_MODEL


def test_each_path_is_found_by_its_own_bytes() -> None:
    assert all(endpoint.path.encode() == path for path, endpoint in ENDPOINTS.items())
