"""Plays an interpreter that has vLLM, and its OpenAI server with sleep mode, for as little as a socket and a lock cost.

It is stricter than vLLM, so that a mistake is heard: asleep, it refuses inferences (vLLM lets them wait), and awake it
holds its devices by locks in ``$STAND_IN_FOLDER``, so that no two can be awake on one. Asked for the paths that vLLM
has only with ``VLLM_SERVER_DEV_MODE=1``, it answers 404 without that.

``behaviour.json`` in the weights' folder: ``text`` is what it says; ``calls`` names a file that gets a line for each
path of administration that it was asked; ``sleep_status`` and ``wake_status`` are HTTP statuses; ``sleep_until`` and
``wake_until`` name files without which it goes on falling asleep, or waking up; ``insomnia``: it says that it slept,
and is awake.

usage: vllm_stand_in.py -I -c CODE [OPTION]                         as Stoker asks whether vLLM is there
       vllm_stand_in.py -m vllm.entrypoints.openai.api_server ...   stdlib only
"""

from __future__ import annotations

import argparse
import fcntl
import json
import os
import socket
import sys
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

if sys.argv[1] == "-I":
    sys.exit(0 if "find_spec('vllm') else 3" in sys.argv[3] else 3)  # it has vllm, and no --shutdown-timeout

parser = argparse.ArgumentParser()
parser.add_argument("--model", type=Path, required=True)
parser.add_argument("--served-model-name", required=True)
parser.add_argument("--uds", required=True)
parser.add_argument("--enable-sleep-mode", action="store_true")
OPTIONS = parser.parse_args(sys.argv[3:])
BEHAVIOUR: dict[str, Any] = json.loads((OPTIONS.model / "behaviour.json").read_text())
HAS_SLEEP = OPTIONS.enable_sleep_mode and os.environ.get("VLLM_SERVER_DEV_MODE") == "1"


class Devices:
    """The GPUs that it may use, each locked by who is awake on it."""

    def __init__(self) -> None:
        uuids = filter(None, os.environ.get("CUDA_VISIBLE_DEVICES", "").split(","))
        folder = os.environ["STAND_IN_FOLDER"]
        self._files = [os.open(f"{folder}/{uuid}.lock", os.O_WRONLY | os.O_CREAT) for uuid in uuids]
        self.are_held = False

    def take(self) -> None:
        """Raises OSError where another one has them."""
        for file in self._files:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        self.are_held = True

    def give_back(self) -> None:
        self.are_held = False
        for file in self._files:
            fcntl.flock(file, fcntl.LOCK_UN)


DEVICES = Devices()


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        pass

    def do_GET(self) -> None:
        if self.path == "/is_sleeping" and HAS_SLEEP:
            self.note()
            self.answer(200, {"is_sleeping": not DEVICES.are_held})
        else:
            self.answer(404 if self.path == "/is_sleeping" else 200, {})

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"] or 0))
        path = self.path.partition("?")[0]
        if path in ("/sleep", "/wake_up"):
            self.note()
            verb = path.removesuffix("_up").removeprefix("/")
            if not HAS_SLEEP:
                self.answer(404, {"detail": "Not Found"})
            elif (status := BEHAVIOUR.get(f"{verb}_status", 200)) != 200:
                self.answer(status, {"error": "CUDA out of memory"})
            else:
                self.change(verb)
        elif not DEVICES.are_held:
            self.answer(503, {"error": {"message": "asleep", "type": "Asleep"}})
        elif path == "/v1/completions":
            self.answer(200, {"choices": [{"text": BEHAVIOUR["text"]}]})
        else:
            assert json.loads(body)["model"] == OPTIONS.served_model_name
            message = {"role": "assistant", "content": BEHAVIOUR["text"]}
            self.answer(200, {"model": OPTIONS.served_model_name, "choices": [{"message": message}]})

    def change(self, verb: str) -> None:
        until = BEHAVIOUR.get(f"{verb}_until")
        while until is not None and not Path(until).exists():
            time.sleep(0.01)
        if verb == "wake":
            DEVICES.take()
            self.answer(200, {"status": "awake", "tags": None})
        else:
            if not BEHAVIOUR.get("insomnia"):
                DEVICES.give_back()
            self.answer(200, {"status": "sleeping", "level": 1})

    def note(self) -> None:
        with Path(BEHAVIOUR["calls"]).open("a") as file:
            file.write(f"{self.path}\n")

    def answer(self, status: int, body: dict[str, Any]) -> None:
        data = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)


class Server(ThreadingHTTPServer):
    address_family = socket.AF_UNIX
    daemon_threads = True

    def server_bind(self) -> None:
        self.socket.bind(OPTIONS.uds)

    def get_request(self) -> tuple[socket.socket, Any]:
        connection, _ = self.socket.accept()
        return connection, ("client", 0)


DEVICES.take()
print(f"serving {OPTIONS.model}", flush=True)
Server(("", 0), Handler, bind_and_activate=True).serve_forever()
