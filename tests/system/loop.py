"""What the system tests of the loop share: a deployment of versions that behave as they are told."""

from __future__ import annotations

import json
import sys
import threading
from collections import Counter
from pathlib import Path
from typing import Any

import httpx

from stoker.types.registry import Version
from stoker.types.serving import Deployment
from tests.harness import DEADLINE, Stokerd

SERVER = Path(__file__).with_name("model_server.py")
CHAT = {"model": "chat", "messages": [{"role": "user", "content": "Hi"}]}


def deployment(replicas: int = 1, extra: str = "") -> str:
    """The spec of deployment ``chat`` of model ``m``."""
    return f"""
kind: deployment
name: chat
model: m
version: 1
replicas: {replicas}
engine: {{type: command, command: [{sys.executable}, {SERVER}, "{{socket}}", "{{model}}", "{{name}}"]}}
drain_timeout: 90s
{extra}
"""


def add_version(daemon: Stokerd, alias: str, **behaviour: Any) -> Version:
    """Register "weights" that behave so, as the next version of model ``m``."""
    folder = daemon.root / f"weights-{alias}"
    folder.mkdir()
    (folder / "behaviour.json").write_text(json.dumps({"text": f"I am {alias}", **behaviour}))
    daemon.apply("{kind: model, name: m}")
    body = {"path": str(folder), "aliases": [alias]}
    return Version.model_validate(daemon.client.request("POST", "/v1/models/m/versions", json=body))


def serve(daemon: Stokerd, replicas: int = 1) -> Deployment:
    """Deploy version 1 and wait until it serves."""
    daemon.apply(deployment(replicas))
    daemon.wait_event("GatewayReady", "gateway")
    ready: Deployment = daemon.wait_phase(Deployment, "chat", "ready")
    return ready


def say(client: httpx.Client, **fields: Any) -> str:
    """What the deployment answers to a chat. Raises httpx.HTTPStatusError."""
    response = client.post("/chat/completions", json={**CHAT, **fields})
    response.raise_for_status()
    return str(response.json()["choices"][0]["message"]["content"])


class People:
    """Callers who chat all the time, until the block ends; ``answers`` counts what they got (text, or HTTP status)."""

    def __init__(self, daemon: Stokerd, count: int = 3, *, stream: bool = False) -> None:
        self._daemon = daemon
        self._stream = stream
        self._stop = threading.Event()
        self._lock = threading.Lock()
        self.answers: Counter[str] = Counter()
        self._threads = [threading.Thread(target=self._chat) for _ in range(count)]

    def __enter__(self) -> People:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(2 * DEADLINE)

    def _chat(self) -> None:
        with self._daemon.openai() as client:
            while not self._stop.is_set():
                try:
                    answer = say(client)
                except httpx.HTTPStatusError as error:
                    answer = f"HTTP {error.response.status_code}"
                except httpx.HTTPError as error:
                    answer = type(error).__name__
                with self._lock:
                    self.answers[answer] += 1
                self._stop.wait(0.01)
