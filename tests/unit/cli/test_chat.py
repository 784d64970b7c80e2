"""chat, against a stand-in gateway on a real port."""

from __future__ import annotations

import io
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from tests.unit.cli.conftest import Stoker
from tests.unit.cli.stand_in import StandIn

SAID = [
    {"model": "smol@1", "choices": [{"delta": {"role": "assistant", "content": ""}}]},
    {"model": "smol@1", "choices": [{"delta": {"content": "Par"}}]},
    {"model": "smol@1", "choices": [{"delta": {"content": "is."}, "finish_reason": "stop"}]},
    {"model": "smol@1", "choices": [], "usage": {"completion_tokens": 2}},
]


class Gateway(ThreadingHTTPServer):
    """Answers each chat with ``chunks``, or with ``refusal`` (status, body); keeps what it was asked."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.chunks: list[Any] = SAID
        self.refusal: tuple[int, Any] | None = None
        self.is_cut = False
        self.asked: list[tuple[dict[str, str], dict[str, Any]]] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/v1"


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Gateway

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        self.server.asked.append(({k.lower(): v for k, v in self.headers.items()}, body))
        self.close_connection = True
        if self.server.refusal is not None:
            status, answer = self.server.refusal
            data = answer if isinstance(answer, bytes) else json.dumps(answer).encode()
            self.send_response(status)
            self.send_header("content-length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)
            return
        self.send_response(200)
        self.send_header("content-type", "text/event-stream")
        self.send_header("x-stoker-arm", "candidate")
        if self.server.is_cut:
            self.send_header("content-length", "1000000")
        self.end_headers()
        for chunk in self.server.chunks:
            self.wfile.write(f"data: {chunk if isinstance(chunk, str) else json.dumps(chunk)}\n\n".encode())
        if not self.server.is_cut:
            self.wfile.write(b"data: [DONE]\n\n")

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture(scope="module")
def _server() -> Iterator[Gateway]:
    with Gateway() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture
def gateway(_server: Gateway, daemon: StandIn) -> Gateway:
    _server.chunks, _server.refusal, _server.is_cut, _server.asked = SAID, None, False, []
    daemon.host = daemon.host.model_copy(update={"gateway": _server.url})
    return _server


def test_an_answer_is_streamed_out(gateway: Gateway, stoker: Stoker) -> None:
    answer = stoker(
        "chat", "chat", "Capital", "of France?", "--system", "Be short.", "--session", "s1", "--max-tokens", "9",
        "--temperature", "0", "--api-key", "sk-1",
    )  # fmt: skip
    assert (answer.code, answer.out) == (0, "Paris.\n")
    headers, body = gateway.asked[0]
    assert headers["x-stoker-session"] == "s1"
    assert headers["authorization"] == "Bearer sk-1"
    assert body["model"] == "chat"
    assert [m["content"] for m in body["messages"]] == ["Be short.", "Capital of France?"]
    assert (body["max_tokens"], body["temperature"]) == (9, 0)


def test_as_json_the_answer_has_its_timings(gateway: Gateway, stoker: Stoker) -> None:
    answer = stoker("chat", "chat", "hi", "--json").json
    assert (answer["message"], answer["model"], answer["arm"]) == ("Paris.", "smol@1", "candidate")
    assert answer["usage"] == {"completion_tokens": 2}
    assert answer["finish_reason"] == "stop"
    assert 0 < answer["ttft_seconds"] <= answer["total_seconds"]


def test_what_is_piped_in_is_the_message(gateway: Gateway, stoker: Stoker, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("from a pipe\n"))
    assert stoker("chat", "chat").out == "Paris.\n"
    assert gateway.asked[0][1]["messages"] == [{"role": "user", "content": "from a pipe\n"}]
    assert "max_tokens" not in gateway.asked[0][1]
    monkeypatch.setattr("sys.stdin", io.StringIO(" \n"))
    assert stoker("chat", "chat").code == 2


def test_a_conversation_remembers_what_was_said(
    gateway: Gateway, stoker: Stoker, monkeypatch: pytest.MonkeyPatch
) -> None:
    said = iter(["hello", "", "and?", "/new", "fresh"])
    monkeypatch.setattr("sys.stdin.isatty", lambda: True, raising=False)

    def read(_: str) -> str:
        try:
            return next(said)
        except StopIteration:
            raise EOFError from None

    monkeypatch.setattr("builtins.input", read)
    talk = stoker("chat", "chat")
    assert talk.code == 0
    assert [[m["content"] for m in body["messages"]] for _, body in gateway.asked] == [
        ["hello"],
        ["hello", "Paris.", "and?"],
        ["fresh"],
    ]
    assert len({headers["x-stoker-session"] for headers, _ in gateway.asked}) == 1
    assert "(arm candidate, first token after" in talk.err


@pytest.mark.parametrize(
    ("refusal", "code", "words"),
    [
        ((404, {"error": {"message": "there is no deployment x.", "code": "model_not_found"}}), 4, "no deployment x"),
        ((400, {"error": {"message": "too long"}}), 2, "too long"),
        ((503, {"error": {"message": "no healthy replica", "type": "unavailable"}}), 6, "no healthy replica"),
        ((500, b"<html>"), 6, "HTTP 500"),
        ((429, {"object": "error", "message": "busy"}), 6, "busy"),
    ],
)
def test_a_refusal_is_told_in_its_own_words(
    gateway: Gateway, stoker: Stoker, refusal: tuple[int, Any], code: int, words: str
) -> None:
    gateway.refusal = refusal
    refused = stoker("chat", "x", "hi")
    assert (refused.code, words in refused.err) == (code, True)


def test_an_answer_that_breaks_off_is_a_failure(gateway: Gateway, stoker: Stoker) -> None:
    gateway.is_cut = True
    cut = stoker("chat", "chat", "hi")
    assert (cut.code, "broke off" in cut.err) == (6, True)


@pytest.mark.parametrize("chunks", [["{"], ["[]"], [{"error": {"message": "engine died"}}]])
def test_an_answer_that_is_none_is_a_failure(gateway: Gateway, stoker: Stoker, chunks: list[Any]) -> None:
    gateway.chunks = chunks
    assert stoker("chat", "chat", "hi").code == 6


def test_a_gateway_that_is_away_is_told(daemon: StandIn, stoker: Stoker) -> None:
    refused = stoker("chat", "chat", "hi")
    assert (refused.code, "gateway http://127.0.0.1:1/v1" in refused.err) == (6, True)
