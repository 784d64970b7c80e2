"""A small OpenAI server whose answers are decided by the "weights" that it serves: ``behaviour.json`` in the folder.

``text``: what it says. ``status``: HTTP status of chats. ``delay``: seconds before the first byte. ``die_after``:
exits with that answer's number. ``hold``: a stream's words after the first wait until that file is there.
``never_ready``: answers nothing. ``until``: streams a word each 50 ms until that file is there. ``deaf``: while that
file is there, no GET is answered, and each leaves a byte in it. ``stuck``: while that file is there, no inference
goes on, and no step is counted. ``stuck_after``: the same from that answer on, for good. ``waits_for``: no inference
goes on before that file is there. ``sick``: while that file is there, chats get 500. ``fails_user``: chats of that
``user`` get 500. ``fails_word``: chats whose last message has that word get 500. ``fails_every``: one chat in so many
gets 500. ``slow_over``: [characters of the last message, seconds]: longer ones take so long. ``garbage``: it says other
nonsense each time. ``last_words``: says that and exits with 3, at once. Readiness asks /v1/completions, which works
else.

usage: model_server.py SOCKET MODEL_FOLDER NAME      stdlib only
"""

from __future__ import annotations

import json
import os
import secrets
import socket
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

PATH, FOLDER, NAME = sys.argv[1:4]
BEHAVIOUR: dict[str, Any] = json.loads((Path(FOLDER) / "behaviour.json").read_text())
ANSWERED = 0
STEPS = 0
LOCK = threading.Lock()
NOBODY = object()


def is_there(name: str) -> bool:
    """Whether the file is there that the behaviour of that name speaks of."""
    return name in BEHAVIOUR and Path(BEHAVIOUR[name]).exists()


def is_stuck() -> bool:
    """Whether no inference goes on."""
    is_early = "waits_for" in BEHAVIOUR and not is_there("waits_for")
    return is_early or is_there("stuck") or BEHAVIOUR.get("stuck_after", ANSWERED + 1) <= ANSWERED


def is_refused(body: dict[str, Any]) -> bool:
    """Whether that chat, of which the count is up to date, gets an error that others don't."""
    is_unlucky = "fails_every" in BEHAVIOUR and ANSWERED % BEHAVIOUR["fails_every"] == 0
    is_hated = "fails_word" in BEHAVIOUR and BEHAVIOUR["fails_word"] in last_message(body).split()
    return is_unlucky or is_hated or is_there("sick") or body.get("user") == BEHAVIOUR.get("fails_user", NOBODY)


def last_message(body: dict[str, Any]) -> str:
    """What was said last."""
    return str((body.get("messages") or [{"content": ""}])[-1]["content"])


def seconds_of(body: dict[str, Any]) -> float:
    """What it takes before the first byte."""
    most, slow = BEHAVIOUR.get("slow_over", (float("inf"), 0.0))
    is_long = len(last_message(body)) > most
    return float(slow if is_long else BEHAVIOUR.get("delay", 0))


def text() -> str:
    """What it says this time."""
    return " ".join(secrets.token_hex(3) for _ in range(8)) if BEHAVIOUR.get("garbage") else str(BEHAVIOUR["text"])


def step() -> None:
    """One step of the engine, when it isn't stuck."""
    global STEPS
    while is_stuck():
        time.sleep(0.01)
    with LOCK:
        STEPS += 1


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        pass

    def do_GET(self) -> None:
        while is_there("deaf"):
            with Path(BEHAVIOUR["deaf"]).open("a") as file:
                file.write(".")
            time.sleep(3600)
        if self.path == "/metrics":
            self.answer(200, f'vllm:iteration_tokens_total_count{{engine="0",model_name="{NAME}"}} {STEPS}.0\n')
        else:
            self.answer(200, {"status": "ok"})

    def do_POST(self) -> None:
        global ANSWERED
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if BEHAVIOUR.get("never_ready"):
            time.sleep(3600)
        step()
        if self.path == "/v1/completions":
            self.answer(200, {"choices": [{"text": BEHAVIOUR["text"]}]})
            return
        time.sleep(seconds_of(body))
        with LOCK:
            ANSWERED += 1
            if BEHAVIOUR.get("die_after") == ANSWERED:
                os._exit(0)
            status = 500 if is_refused(body) else BEHAVIOUR.get("status", 200)
        if status != 200:
            self.answer(status, {"error": {"message": "the chat template is missing", "type": "BadRequestError"}})
        elif body.get("stream"):
            self.stream()
        else:
            message = {"role": "assistant", "content": text()}
            usage = {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5}
            self.answer(200, {"model": NAME, "choices": [{"message": message}], "usage": usage})

    def answer(self, status: int, body: dict[str, Any] | str) -> None:
        data = (body if isinstance(body, str) else json.dumps(body)).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def stream(self) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        for word in text().split(" "):
            chunk = json.dumps({"choices": [{"delta": {"content": word + " "}}]})
            self.chunk(f"data: {chunk}\n\n".encode())
            while "hold" in BEHAVIOUR and not Path(BEHAVIOUR["hold"]).exists():
                time.sleep(0.01)
        while "until" in BEHAVIOUR and not is_there("until"):
            step()
            self.chunk(b'data: {"choices": [{"delta": {"content": "more "}}]}\n\n')
            time.sleep(0.05)
        self.chunk(b"data: [DONE]\n\n")
        self.chunk(b"")

    def chunk(self, data: bytes) -> None:
        self.wfile.write(f"{len(data):x}\r\n".encode() + data + b"\r\n")


class Server(ThreadingHTTPServer):
    address_family = socket.AF_UNIX
    daemon_threads = True

    def server_bind(self) -> None:
        self.socket.bind(PATH)

    def get_request(self) -> tuple[socket.socket, Any]:
        connection, _ = self.socket.accept()
        return connection, ("client", 0)


if "last_words" in BEHAVIOUR:
    print(BEHAVIOUR["last_words"], flush=True)
    sys.exit(3)
print(f"serving {FOLDER}", flush=True)
Server(("", 0), Handler, bind_and_activate=True).serve_forever()
