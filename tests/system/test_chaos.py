"""A minute of mixed load while replicas, gateway workers and the daemon are killed, stopped and replaced at random.

Every request gets a right answer or one clear error, no caller changes arms within a step, no request is counted twice,
and memory returns to where it began.
"""

from __future__ import annotations

import contextlib
import os
import random
import re
import secrets
import signal
import threading
import time
from collections import Counter, defaultdict
from typing import Any

import httpx
import psutil
import pytest

from stoker.errors import StokerError
from stoker.types.rollouts import Rollout
from stoker.types.serving import Deployment, Replica
from stokerd.gateway.wire import Record
from tests.harness import wait_for
from tests.system.faults.callers import read_chat
from tests.system.faults.scene import Scene
from tests.system.loop import CHAT, add_version, deployment
from tests.system.records import records_of

SECONDS = 60.0
CALLERS = 8
GAP_SECONDS = 0.03
FIRST_BYTE = 300  # seconds; a setting of the workers, which changes nothing here
GROWTH_BYTES = 24 << 20
TEXTS = {"1": "I am one", "2": "I am two"}


class Caller:
    """Somebody with a name, who chats until told to stop, and keeps what was heard."""

    def __init__(self, scene: Scene, number: int, over: threading.Event, seed: int) -> None:
        self._scene, self._over, self._chance = scene, over, random.Random(seed + number)
        self.name = f"caller-{number}"
        self.heard: Counter[str] = Counter()
        self.asked = 0
        self.thread = threading.Thread(target=self._chat, name=self.name, daemon=True)

    def _chat(self) -> None:
        while not self._over.is_set():
            with self._scene.openai() as client:  # now and then a new connection, which any worker may get
                for _ in range(self._chance.randrange(1, 20)):
                    if self._over.wait(GAP_SECONDS):
                        return
                    self.heard[self._ask(client)] += 1

    def _ask(self, client: httpx.Client) -> str:
        """Version and arm of a right answer; a proper error, or how the connection broke; else ``wrong: …``."""
        self.asked += 1
        trace = f"00-{secrets.token_hex(16)}-{secrets.token_hex(8)}-01"
        headers = {"x-stoker-session": self.name, "traceparent": trace}
        body: dict[str, Any] = {**CHAT, "stream": self._chance.random() < 0.5}
        try:
            with client.stream("POST", "/chat/completions", json=body, headers=headers) as response:
                response.read()
        except httpx.HTTPError as error:
            return f"broken: {type(error).__name__}"
        said = read_chat(response, stream=body["stream"])
        version = response.headers.get("x-stoker-version", "")
        if said.startswith(("HTTP", "broke off", "wrong")):
            return said
        return version if said == TEXTS.get(version) else f"wrong: version {version} said {said!r}"


class Trouble:
    """What is done to the parts, one thing after another; ``done`` counts it."""

    def __init__(self, scene: Scene, chance: random.Random) -> None:
        self._scene, self.chance = scene, chance
        self.done: Counter[str] = Counter()

    def make(self) -> None:
        """Do one thing, drawn by lot."""
        deeds = [
            self.kill_replica, self.kill_replica, self.stop_replica, self.kill_worker, self.kill_worker,
            self.stop_worker, self.kill_daemon, self.replace_workers,
        ]  # fmt: skip
        deed = self.chance.choice(deeds)
        self.done[deed.__name__] += 1
        deed()

    def _pick(self, role: Any) -> int | None:
        pids = [f.pid for f in self._scene.living(role)]
        return self.chance.choice(pids) if pids else None

    def _signal(self, role: Any, number: signal.Signals, pause: float = 0.0) -> None:
        if (pid := self._pick(role)) is not None:
            self._scene.kill_pid(pid, number)
            if pause:
                time.sleep(pause)
                self._scene.kill_pid(pid, signal.SIGCONT)

    def kill_replica(self) -> None:
        """SIGKILL a server of the stable version; one of the candidate would end the rollout, and with it the step."""
        stable = [r for r in self._replicas() if r.version == 1 and r.phase == "ready"]
        if stable:
            with contextlib.suppress(StokerError):
                self._scene.kill_pid(self._scene.server_of(self.chance.choice(stable).name))

    def _replicas(self) -> list[Replica]:
        with contextlib.suppress(StokerError):
            return self._scene.client.list(Replica)
        return []

    def stop_replica(self) -> None:
        """Let one server stand still for a while."""
        self._signal("replica", signal.SIGSTOP, self.chance.uniform(0.2, 1.0))

    def kill_worker(self) -> None:
        """SIGKILL one worker of the gateway."""
        self._signal("gateway", signal.SIGKILL)

    def stop_worker(self) -> None:
        """Let one worker stand still for a while."""
        self._signal("gateway", signal.SIGSTOP, self.chance.uniform(0.2, 1.0))

    def kill_daemon(self) -> None:
        """SIGKILL the daemon, and start it again after a while."""
        self._scene.kill()
        time.sleep(self.chance.uniform(0.0, 1.0))
        self._scene.spawn()
        self._scene.wait_up()

    def replace_workers(self) -> None:
        """Have all workers replaced by new ones, as after an upgrade: another setting of theirs."""
        self._scene.kill()
        timeout = FIRST_BYTE + sum(self.done.values())
        config = self._scene.home.config
        text = re.sub(r"first_byte_timeout: \d+", f"first_byte_timeout: {timeout}", config.read_text())
        config.write_text(text)
        self._scene.spawn()
        self._scene.wait_up()


def is_at_rest(scene: Scene) -> bool:
    """Whether all that should serve does."""
    try:
        host, replicas = scene.client.host(), scene.client.list(Replica)
    except StokerError:
        return False
    return (host.gateway_phase, host.gateway_message) == ("ready", "") and {r.phase for r in replicas} == {"ready"}


def memory_of_workers(scene: Scene) -> int:
    """Bytes of the workers that live now, on average."""
    sizes = [psutil.Process(f.pid).memory_info().rss for f in scene.living("gateway")]
    return sum(sizes) // len(sizes)


@pytest.mark.timeout(400)
def test_a_minute_of_chaos() -> None:
    seed = int(os.environ.get("STOKER_FAULT_SEED") or random.randrange(2**32))
    print(f"STOKER_FAULT_SEED={seed}")  # shown when it fails
    over = threading.Event()
    spec = "hold_timeout: 30s\nrestart: {limit: 1000, backoff: 0.1, backoff_cap: 0.5}"
    scene = Scene(waits_for=180)
    settings = scene.home.config.read_text().replace("serving: {", f"serving: {{first_byte_timeout: {FIRST_BYTE}, ")
    scene.home.config.write_text(settings)
    with scene:
        add_version(scene, "one")
        add_version(scene, "two")
        scene.apply(deployment(2, spec))
        scene.wait_phase(Deployment, "chat", "ready")
        scene.wait_event("GatewayReady", "gateway")
        steps = "[{type: canary, percent: 50, min_requests: 1000000, max_duration: 36000s}]"
        rollout = f"kind: rollout, name: r, deployment: chat, to: 2, steps: {steps}, guards: []"
        scene.apply(f"{{{rollout}, max_errors_in_a_row: 1000000}}")
        scene.wait_event("RolloutStepped", "r")
        callers = [Caller(scene, n, over, seed) for n in range(CALLERS)]
        for caller in callers:
            caller.thread.start()
        wait_for(lambda: all(c.heard.total() > 20 for c in callers), "the callers hear something")
        before = memory_of_workers(scene)
        trouble = Trouble(scene, random.Random(seed))
        end = time.monotonic() + SECONDS
        while time.monotonic() < end:
            trouble.make()
            time.sleep(trouble.chance.uniform(0.1, 1.5))
        wait_for(lambda: is_at_rest(scene), "everything comes to rest", seconds=180)
        heard = {c.name: Counter(c.heard) for c in callers}
        wait_for(
            lambda: all(c.heard.total() > heard[c.name].total() + 10 for c in callers), "they are served as before"
        )
        over.set()
        for caller in callers:
            caller.thread.join()
        print(trouble.done, {c.name: dict(c.heard) for c in callers})
        assert scene.client.get(Rollout, "r").phase == "stepping"
        judge(callers, records_of(scene))
        assert memory_of_workers(scene) < before + GROWTH_BYTES
        scene.client.request("POST", "/v1/rollouts/r/abort")
        scene.check()


def judge(callers: list[Caller], records: list[Record]) -> None:
    """What callers heard and what was measured agree, and neither tells of anything wrong."""
    wrong = {c.name: {h: n for h, n in c.heard.items() if h.startswith("wrong")} for c in callers}
    assert not any(wrong.values()), wrong
    right = sum(n for c in callers for h, n in c.heard.items() if h in TEXTS)
    asked = sum(c.asked for c in callers)
    nobody_there = sum(c.heard["broken: ConnectError"] for c in callers)  # all workers dead, and the daemon, too
    told = {c.name: dict(c.heard) for c in callers}
    assert right > 0.95 * (asked - nobody_there), told
    assert right > 0.5 * asked, told
    traces = Counter(r.trace for r in records if r.arm != "shadow")
    assert not [t for t, n in traces.items() if n > 1], "a request was counted twice"
    assert len(traces) <= sum(c.asked for c in callers)
    arms: dict[str, set[str]] = defaultdict(set)
    for record in records:
        if not record.fell_back and record.status:
            arms[record.caller].add(record.arm)
    assert len(arms) == CALLERS
    assert all(len(a) == 1 for a in arms.values()), arms
    assert set().union(*arms.values()) == {"stable", "candidate"}, "there were callers on both arms"
