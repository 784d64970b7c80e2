"""What the system tests of the loop share: a deployment of versions that behave as they are told."""

from __future__ import annotations

import itertools
import json
import os
import secrets
import signal
import sys
import threading
from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import httpx

from stoker.types.events import Event
from stoker.types.registry import Version
from stoker.types.rollouts import Rollout, Stepping
from stoker.types.serving import Deployment, Replica
from stokerd.processes.states import Alive
from stokerd.processes.supervisor import Supervisor
from tests.harness import DEADLINE, Stokerd, wait_for

SERVER = Path(__file__).with_name("model_server.py")
CHAT = {"model": "chat", "messages": [{"role": "user", "content": "Hi"}]}


def deployment(replicas: int = 1, extra: str = "", *, name: str = "chat", model: str = "m") -> str:
    """The spec of a deployment of a model's first version."""
    return f"""
kind: deployment
name: {name}
model: {model}
version: 1
replicas: {replicas}
engine: {{type: command, command: [{sys.executable}, {SERVER}, "{{socket}}", "{{model}}", "{{name}}"]}}
drain_timeout: 90s
{extra}
"""


def add_version(daemon: Stokerd, alias: str, model: str = "m", **behaviour: Any) -> Version:
    """Register "weights" that behave so, as the next version of *model*."""
    folder = daemon.root / (f"weights-{alias}" if model == "m" else f"weights-{model}-{alias}")
    folder.mkdir()
    (folder / "behaviour.json").write_text(json.dumps({"text": f"I am {alias}", **behaviour}))
    daemon.apply(f"{{kind: model, name: {model}}}")
    body = {"path": str(folder), "aliases": [alias]}
    return Version.model_validate(daemon.client.request("POST", f"/v1/models/{model}/versions", json=body))


def serve(daemon: Stokerd, replicas: int = 1) -> Deployment:
    """Deploy version 1 and wait until it serves."""
    daemon.apply(deployment(replicas))
    daemon.wait_event("GatewayReady", "gateway")
    return daemon.wait_phase(Deployment, "chat", "ready")


def asking() -> dict[str, Any]:
    """A question that nobody asked before: who has no name is told by what is asked, and how long it is."""
    return {"messages": [{"role": "user", "content": f"Hi {secrets.token_hex(4)}{'!' * secrets.randbelow(40)}"}]}


def say(client: httpx.Client, **fields: Any) -> str:
    """What the deployment answers to a chat. Raises httpx.HTTPStatusError."""
    response = client.post("/chat/completions", json={**CHAT, **asking(), **fields})
    response.raise_for_status()
    return str(response.json()["choices"][0]["message"]["content"])


class People:
    """Callers who chat all the time, until the block ends; ``answers`` counts what they got (text, or HTTP status).

    Args:
        count: how many at a time.
        model: whom they ask.
        users: their names, of whom each has a turn after the others; without, each request is one of its own caller.
            ``heard`` counts what each of them got.
        long: those of them who send long prompts.
    """

    def __init__(
        self,
        daemon: Stokerd,
        count: int = 3,
        *,
        model: str = "chat",
        users: Sequence[str] = (),
        long: Sequence[str] = (),
    ) -> None:
        self._daemon = daemon
        self._fields: dict[str, Any] = {"model": model}
        self._turns = itertools.cycle(users or [""])
        self._long = set(long)
        self._stop = threading.Event()
        self._lock = threading.Lock()
        self.answers: Counter[str] = Counter()
        self.heard: dict[str, Counter[str]] = defaultdict(Counter)
        self._threads = [threading.Thread(target=self._chat) for _ in range(count)]

    def __enter__(self) -> People:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(2 * DEADLINE)

    def hear(self, more: int, text: str = "") -> None:
        """Wait until so many more answers came: of *text*, where that is given."""

        def count() -> int:
            return self.answers[text] if text else self.answers.total()

        wanted = count() + more
        wait_for(lambda: count() >= wanted, f"{more} more answers {text!r} beside {self.answers}")

    def wrong(self, *right: str) -> int:
        """How many answers were none of these."""
        return self.answers.total() - sum(self.answers[text] for text in right)

    def _chat(self) -> None:
        with self._daemon.openai() as client:
            while not self._stop.is_set():
                with self._lock:
                    user = next(self._turns)
                fields = {**self._fields, "user": user} if user else dict(self._fields)
                if user in self._long:
                    fields["messages"] = [
                        {"role": "user", "content": f"Hi {secrets.token_hex(4)} " + "and more " * 200}
                    ]
                answer = heard(client, **fields)
                with self._lock:
                    self.answers[answer] += 1
                    if user:
                        self.heard[user][answer] += 1
                self._stop.wait(0.01)


def heard(client: httpx.Client, **fields: Any) -> str:
    """What the deployment answers to a chat, the HTTP status of an error, or how the connection broke."""
    try:
        return say(client, **fields)
    except httpx.HTTPStatusError as error:
        return f"HTTP {error.response.status_code}"
    except httpx.HTTPError as error:
        return type(error).__name__


def pid_of(daemon: Stokerd, prefix: str) -> int:
    """The pid of the one process that is alive under an id with *prefix*."""
    (pid,) = pids_of(daemon, prefix)
    return pid


def pids_of(daemon: Stokerd, prefix: str) -> list[int]:
    """The pids of those that are."""
    supervisor = Supervisor(daemon.home.processes)
    try:
        found = [supervisor.observe(p) for p in supervisor.ids() if p.startswith(prefix)]
    finally:
        supervisor.close()
    return [o.pid for o in found if isinstance(o, Alive) and o.pid is not None]


def vllm_like(daemon: Stokerd) -> str:
    """An engine of type vllm, by an interpreter whose vLLM is the model server of these tests."""
    folder = daemon.root / "like" / "vllm" / "entrypoints" / "openai"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "api_server.py").write_text(
        "import argparse, os, sys\n"
        "p = argparse.ArgumentParser()\n"
        "[p.add_argument(a) for a in ('--model', '--served-model-name', '--uds')]\n"
        "a, _ = p.parse_known_args()\n"
        "print('arguments:', *sys.argv[1:], flush=True)\n"
        f"os.execv(sys.executable, [sys.executable, {str(SERVER)!r}, a.uds, a.model, a.served_model_name])\n"
    )
    python = daemon.root / "python"
    python.write_text(
        '#!/bin/sh\n[ "$1" != -I ] || exit 0  # whether it has vLLM, and which options that takes\n'
        f'PYTHONPATH={daemon.root}/like exec {sys.executable} "$@"\n'
    )
    python.chmod(0o755)
    return f"engine: {{type: vllm, python: {python}}}"


class Chat:
    """A model and a deployment of its name, on a daemon that others may use too: versions ``one`` and on.

    Args:
        name: another one for each test.
        extra: lines of the deployment's spec, which outrank the usual ones.
        stable: how version ``one`` behaves.
    """

    def __init__(self, daemon: Stokerd, name: str, extra: str = "", **stable: Any) -> None:
        self.daemon, self.name = daemon, name
        add_version(daemon, "one", name, **stable)
        self.deploy(extra)
        daemon.wait_event("GatewayReady", "gateway")
        daemon.wait_phase(Deployment, name, "ready")
        with daemon.openai() as client:
            wait_for(lambda: heard(client, model=name) == "I am one", "the gateway knows of it")

    def deploy(self, extra: str = "") -> None:
        """Apply its spec with these lines, which outrank the usual ones."""
        self.daemon.apply(_merged(deployment(extra=extra, name=self.name, model=self.name)))

    def add(self, alias: str, **behaviour: Any) -> Version:
        """Register the next version."""
        return add_version(self.daemon, alias, self.name, **behaviour)

    def spec(self, steps: str, extra: str = "", *, to: str = "two", name: str = "") -> str:
        """Of a rollout that is named as the deployment, unless it has a *name*; lines of *extra* outrank the usual."""
        return _merged(f"""
kind: rollout
name: {name or self.name}
deployment: {self.name}
to: {to}
steps: {steps}
guards: [{{metric: error_rate, limit: 0.05}}]
keep_warm: 0s
{extra}
""")

    def roll_out(self, steps: str, extra: str = "", *, to: str = "two", name: str = "") -> None:
        """Start a rollout of that `spec`."""
        self.daemon.apply(self.spec(steps, extra, to=to, name=name))

    @property
    def rollout(self) -> Rollout:
        """As it is now."""
        return self.daemon.client.get(Rollout, self.name)

    @property
    def deployed(self) -> Deployment:
        """The deployment as it is now."""
        return self.daemon.client.get(Deployment, self.name)

    def wait(self, *phases: str, name: str = "") -> Rollout:
        """The rollout, once it is in one of *phases*; returns at its end in any case, which the caller then sees."""
        ended = ("promoted", "rolled-back", "aborted")
        return self.daemon.wait_phase(Rollout, name or self.name, *phases, *ended)

    def wait_step(self, step: int) -> None:
        """Wait until that step (from 0) is on."""

        def is_on() -> bool:
            state = self.rollout.state
            return isinstance(state, Stepping) and state.step == step

        wait_for(is_on, f"step {step} of {self.name}")

    def wait_arms(self, **percent: float) -> None:
        """Wait until the gateway has confirmed these shares of the arms, those of targets alone being 0."""
        wait_for(lambda: {s.arm: s.percent for s in self.deployed.shares} == percent, f"{self.name} has {percent}")

    def command(self, verb: str, name: str = "") -> Rollout:
        """Say *verb*. Raises `Conflict`."""
        return Rollout.model_validate(self.daemon.client.request("POST", f"/v1/rollouts/{name or self.name}/{verb}"))

    def ask(self, count: int, **fields: Any) -> Counter[str]:
        """What so many callers hear, who were never there before."""
        headers = fields.pop("headers", {})
        with self.daemon.openai() as client:
            client.headers.update(headers)
            return Counter(heard(client, model=self.name, **fields) for _ in range(count))

    def people(self, count: int = 3, **how: Any) -> People:
        """Callers who chat with it; see `People`."""
        return People(self.daemon, count, model=self.name, **how)

    def kill(self, version: int, number: signal.Signals = signal.SIGKILL) -> None:
        """Kill the server of a version."""
        os.kill(pid_of(self.daemon, f"replica-{self.name}-v{version}-0-"), number)

    def replicas(self) -> set[str]:
        """Which there are, without the deployment's name."""
        return {r.name.removeprefix(f"{self.name}-") for r in self.daemon.client.list(Replica, deployment=self.name)}

    def told(self, *reasons: str, name: str = "") -> list[Event]:
        """Events of the rollout: of these reasons, where some are given."""
        found = [e for e in self.daemon.events() if (e.kind, e.name) == ("rollout", name or self.name)]
        return [e for e in found if e.reason in reasons or not reasons]


def _merged(text: str) -> str:
    """Of several lines with the same key, the last one."""
    lines = dict(line.split(": ", 1) for line in text.splitlines() if line)
    return "\n".join(f"{key}: {value}" for key, value in lines.items())
