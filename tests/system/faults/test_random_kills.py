"""Fifty kill -9 of the daemon at random moments, its own start included, while everything is in motion."""

from __future__ import annotations

import contextlib
import os
import random
import threading
from pathlib import Path

import pytest

from stoker.errors import StokerError
from stoker.types.rollouts import FINAL_PHASES, Rollout
from stoker.types.serving import Deployment
from stoker.types.training import Run
from tests.nvml.fleet import Fleet
from tests.system.faults.callers import Callers
from tests.system.faults.scene import Scene
from tests.system.loop import add_version, deployment

KILLS = 50
EARLY = 0.5  # of them come before the daemon answers; the others up to so many seconds after that
LATE_SECONDS = 0.5
ATTEMPT = "sleep 0.$STOKER_PAUSE; exit $((STOKER_ATTEMPT < STOKER_GOOD))"


class Work:
    """Somebody who asks for runs and rollouts all the time, whether the daemon is there or not."""

    def __init__(self, scene: Scene, chance: random.Random) -> None:
        self._scene = scene
        self._chance = chance
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._ask, name="work")
        self.runs: set[str] = set()
        self.rollouts = 0

    def __enter__(self) -> Work:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _ask(self) -> None:
        while not self._over.wait(self._chance.uniform(0.02, 0.15)):
            with contextlib.suppress(StokerError):
                if self._chance.random() < 0.6:
                    made = self._scene.client.request("POST", f"/v1/jobs/job-{self._chance.randrange(3)}/runs", json={})
                    self.runs.add(made["name"])
                elif all(r.phase in FINAL_PHASES for r in self._scene.client.list(Rollout)):
                    self._roll_out()

    def _roll_out(self) -> None:
        to = 3 - self._scene.client.get(Deployment, "chat").version
        self._scene.apply(
            f"{{kind: rollout, name: r{self.rollouts}, deployment: chat, to: {to}, steps: ["
            "{type: shadow, percent: 50, min_requests: 10}, {type: canary, percent: 50, min_requests: 20}], "
            "guards: [{metric: error_rate, limit: 0.1}], keep_warm: 0s}"
        )
        self.rollouts += 1


def life(chance: random.Random, start_seconds: float) -> float:
    """How long the daemon lives, in seconds."""
    if chance.random() < EARLY:
        return chance.uniform(0, start_seconds)
    return start_seconds + chance.uniform(0, LATE_SECONDS)


@pytest.mark.timeout(900)
def test_fifty_kills_at_random_moments_under_load(tmp_path: Path) -> None:
    seed = int(os.environ.get("STOKER_FAULT_SEED") or random.randrange(2**32))
    print(f"STOKER_FAULT_SEED={seed}")  # shown when it fails
    chance = random.Random(seed)
    with Scene(waits_for=180, env=Fleet(tmp_path, 3).env()) as scene:
        add_version(scene, "one")
        add_version(scene, "two")
        for number in range(3):
            scene.apply(
                f"{{kind: job, name: job-{number}, command: [/bin/sh, -c, '{ATTEMPT}'], retries: 3, backoff: 0.1, "
                f"devices: 1, device_memory: {number + 1}0GiB, "
                f'env: {{STOKER_PAUSE: "{number}", STOKER_GOOD: "{number}"}}}}'
            )
        scene.apply(deployment(2, "devices: 1\ndevice_memory: 30GiB"))
        scene.wait_phase(Deployment, "chat", "ready")
        scene.wait_event("GatewayReady", "gateway")
        with Callers(scene, 3) as callers:
            scene.kill()
            scene.start()  # tells how long a start takes while the machine is busy
            with Work(scene, random.Random(seed + 1)) as work:
                for number in range(3 * KILLS):
                    if number >= KILLS and len(work.runs) >= 5 and work.rollouts:
                        break  # else it hardly ever lived for long enough to be asked for anything
                    slowness = max(1.0, 2 * number / KILLS - 1)  # other work on the machine may have come since
                    threading.Event().wait(life(chance, scene.start_seconds * slowness))
                    scene.kill()
                    scene.spawn()
                scene.wait_up()
            scene.settle()
            callers.hear(20)
        scene.check()
        assert len(work.runs) >= 5, "there was load"
        assert work.rollouts >= 1
        runs = {r.name: r for r in scene.client.list(Run)}
        assert work.runs <= set(runs), "a run that was promised is there"
        assert {r.phase for r in runs.values()} == {"succeeded"}
        assert not [r for r in scene.client.list(Rollout) if r.phase != "promoted"]
        assert sum(len(d.leases) for d in scene.client.host().devices) == 2, "what is left is the servers'"
        callers.assert_heard_only("I am one", "I am two")
