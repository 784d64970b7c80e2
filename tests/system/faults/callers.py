"""Clients of the gateway who know what they should hear."""

from __future__ import annotations

import json
import threading
from collections import Counter
from collections.abc import Iterable

import httpx

from tests.harness import Stokerd, wait_for
from tests.system.loop import asking

GAP_SECONDS = 0.02
CHAT = {"model": "chat", "messages": [{"role": "user", "content": "Hi"}]}


class Callers:
    """Chat until the block ends, whole and streamed by turns; ``answers`` counts what they heard.

    That is the text of an answer, ``HTTP n`` for a proper error, the kind of exception when the connection broke, or
    ``wrong: …`` for what no client should ever get: half an answer that claims to be whole, an error without a body.
    """

    def __init__(self, daemon: Stokerd, count: int = 3, model: str = "chat") -> None:
        self._daemon = daemon
        self._model = model
        self._over = threading.Event()
        self._lock = threading.Lock()
        self._threads = [
            threading.Thread(target=self._chat, args=(n,), name=f"caller-{n}", daemon=True) for n in range(count)
        ]
        self.answers: Counter[str] = Counter()

    def __enter__(self) -> Callers:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join()

    def hear(self, more: int, texts: Iterable[str] = ()) -> None:
        """Wait until so many more answers came (of *texts*, where some are given)."""
        wanted = set(texts)

        def count() -> int:
            with self._lock:
                return sum(n for a, n in self.answers.items() if a in wanted or not wanted)

        target = count() + more
        wait_for(lambda: count() >= target, f"{more} more answers of {wanted or 'any kind'}; heard: {self.answers}")

    def others(self, *texts: str) -> Counter[str]:
        """What they heard that is none of *texts*, so far."""
        with self._lock:
            return Counter({answer: count for answer, count in self.answers.items() if answer not in texts})

    def assert_heard_only(self, *texts: str, errors: int = 0) -> None:
        """Say that every answer was one of *texts*, but for so many proper errors and cut connections at most."""
        others = self.others(*texts)
        assert not [a for a in others if a.startswith("wrong")], others
        assert others.total() <= errors, f"{others} beside {self.answers.total() - others.total()} good ones"

    def _chat(self, number: int) -> None:
        is_stream = number % 2 == 1
        with self._daemon.openai() as client:
            while not self._over.is_set():
                answer = ask(client, stream=is_stream, model=self._model)
                with self._lock:
                    self.answers[answer] += 1
                is_stream = not is_stream
                self._over.wait(GAP_SECONDS)


def ask(client: httpx.Client, *, stream: bool = False, model: str = "chat") -> str:
    """What a client hears to one chat; see `Callers` for the form."""
    try:
        body = {**CHAT, **asking(), "model": model, "stream": stream}
        with client.stream("POST", "/chat/completions", json=body) as response:
            response.read()
    except httpx.HTTPError as error:
        return type(error).__name__
    return read_chat(response, stream=stream)


def read_chat(response: httpx.Response, *, stream: bool) -> str:
    """What an answer that was read to its end says; see `Callers` for the form."""
    try:
        if response.is_error:
            return f"HTTP {response.status_code}" if response.json()["error"]["message"] else "wrong: no message"
        if not stream:
            return str(response.json()["choices"][0]["message"]["content"])
        return _text_of(response.text)
    except (ValueError, KeyError, IndexError, TypeError):
        return f"wrong: HTTP {response.status_code} with {response.text[:100]!r}"


def _text_of(stream: str) -> str:
    data = [line.removeprefix("data: ") for line in stream.splitlines() if line.startswith("data: ")]
    if data[-1] == "[DONE]":
        return "".join(json.loads(d)["choices"][0]["delta"].get("content") or "" for d in data[:-1]).strip()
    return "broke off" if "error" in json.loads(data[-1]) else f"wrong: a stream that ends with {data[-1][:100]!r}"
