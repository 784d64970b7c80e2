"""A small OpenAI server whose answers are decided by the "weights" that it serves: ``behaviour.json`` in the folder.

``text``: what it says. ``status``: HTTP status of chats. ``delay``: seconds before the first byte. ``die_after``: exits
with that answer's number. ``never_ready``: answers nothing. Readiness asks /v1/completions, which always works.

usage: model_server.py SOCKET MODEL_FOLDER NAME      stdlib only
"""

from __future__ import annotations

import json
import os
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
LOCK = threading.Lock()


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        pass

    def do_GET(self) -> None:
        self.answer(200, {"status": "ok"})

    def do_POST(self) -> None:
        global ANSWERED
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if BEHAVIOUR.get("never_ready"):
            time.sleep(3600)
        if self.path == "/v1/completions":
            self.answer(200, {"choices": [{"text": BEHAVIOUR["text"]}]})
            return
        time.sleep(BEHAVIOUR.get("delay", 0))
        with LOCK:
            ANSWERED += 1
            if BEHAVIOUR.get("die_after") == ANSWERED:
                os._exit(0)
        status = BEHAVIOUR.get("status", 200)
        if status != 200:
            self.answer(status, {"error": {"message": "the chat template is missing", "type": "BadRequestError"}})
        elif body.get("stream"):
            self.stream()
        else:
            message = {"role": "assistant", "content": BEHAVIOUR["text"]}
            usage = {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5}
            self.answer(200, {"model": NAME, "choices": [{"message": message}], "usage": usage})

    def answer(self, status: int, body: dict[str, Any]) -> None:
        data = json.dumps(body).encode()
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
        for word in str(BEHAVIOUR["text"]).split(" "):
            chunk = json.dumps({"choices": [{"delta": {"content": word + " "}}]})
            self.chunk(f"data: {chunk}\n\n".encode())
            time.sleep(BEHAVIOUR.get("pause", 0))
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


print(f"serving {FOLDER}", flush=True)
Server(("", 0), Handler, bind_and_activate=True).serve_forever()
