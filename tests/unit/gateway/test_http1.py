from __future__ import annotations

import json
from typing import Any, Literal

import pytest

from stokerd.gateway.http1 import error_body, error_event


def test_an_error_looks_as_openai_utters_it() -> None:
    body = json.loads(error_body("No.", "invalid_request_error", "model_not_found", "model"))
    error = {"message": "No.", "type": "invalid_request_error", "param": "model", "code": "model_not_found"}
    assert body == {"error": error}


@pytest.mark.parametrize(
    ("kind", "code", "expected"),
    [
        ("invalid_request_error", "invalid_body", "invalid_request_error"),
        ("invalid_request_error", "model_not_found", "not_found_error"),
        ("server_error", "upstream_failed", "api_error"),
        ("server_error", "no_healthy_replica", "overloaded_error"),
        ("invalid_request_error", "missing_api_key", "authentication_error"),
        ("invalid_request_error", "model_not_allowed", "permission_error"),
        ("tokens", "rate_limit_exceeded", "rate_limit_error"),
        ("rate_limit_error", "rate_limit_exceeded", "rate_limit_error"),
    ],
)
def test_an_error_looks_as_anthropic_utters_it(kind: str, code: str, expected: str) -> None:
    body = json.loads(error_body("No.", kind, code, shape="anthropic"))
    assert body == {"type": "error", "error": {"type": expected, "message": "No."}}


def events(stream: bytes) -> list[tuple[str, Any]]:
    """The events of a stream, as a browser's EventSource reads them."""
    found, name, data = list[tuple[str, Any]](), "message", list[str]()
    for line in stream.decode().split("\n"):
        if not line and data:
            found.append((name, "\n".join(data)))
        if not line:
            name, data = "message", []
        elif line.startswith("event: "):
            name = line[7:]
        elif line.startswith("data: "):
            data.append(line[6:])
    return found


@pytest.mark.parametrize(
    ("shape", "path", "name"),
    [
        ("openai", "/v1/chat/completions", "message"),
        ("openai", "/v1/responses", "error"),
        ("anthropic", "/v1/messages", "error"),
    ],
)
@pytest.mark.parametrize("cut_off", [b"", b"data: {", b"event: x\n", b"data: {}\n", b"data: {}\n\n"])
def test_a_stream_ends_with_an_error_event_of_its_api(
    shape: Literal["openai", "anthropic"], path: str, name: str, cut_off: bytes
) -> None:
    last, data = events(cut_off + error_event("No.", "upstream_failed", shape=shape, path=path))[-1]
    error = json.loads(data)
    assert last == name
    assert error["error"]["message"] == "No."
    if name == "error":
        assert error["type"] == "error"
    if path == "/v1/responses":
        assert {"code", "message", "param", "sequence_number"} < set(error)
