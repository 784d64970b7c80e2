"""The clock is set forth and back by an hour, while things are on their way: nothing freezes, nothing fires twice.

The machine's clock stays as it is: a small library in front of the C library's gives the daemon one of its own.
"""

from __future__ import annotations

import mmap
import shutil
import struct
import subprocess
import time
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest

from stoker.types.rollouts import Rollout
from stoker.types.serving import Deployment
from stoker.types.training import Run, Schedule
from tests.harness import wait_for
from tests.system.faults.callers import Callers
from tests.system.faults.jobs import job, start_run
from tests.system.faults.scene import Scene
from tests.system.loop import add_version, deployment

HOUR = 3600
SLOW = "restart: {limit: 100, backoff: 1s, backoff_cap: 1s}"


class Clock:
    """How far the daemon's clock is ahead of the machine's."""

    def __init__(self, path: Path) -> None:
        path.write_bytes(b"\0" * 8)
        with path.open("r+b") as file:
            self._page = mmap.mmap(file.fileno(), 8)

    def set(self, seconds: int) -> None:
        self._page[:8] = struct.pack("q", seconds)


@pytest.fixture(scope="module")
def clock(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Clock, dict[str, str]]]:
    """The clock, and the environment of a program that goes by it."""
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("no C compiler (cc) to build the clock with")
    folder = tmp_path_factory.mktemp("clock")
    library, source = folder / "fake_clock.so", Path(__file__).with_name("fake_clock.c")
    subprocess.run([compiler, "-Wall", "-Wextra", "-Werror", "-shared", "-fPIC", "-o", library, source], check=True)
    yield Clock(folder / "clock"), {"LD_PRELOAD": str(library), "XDG_FAULT_CLOCK": str(folder / "clock")}


@pytest.fixture(scope="module")
def in_its_time(clock: tuple[Clock, dict[str, str]]) -> Iterator[Scene]:
    with Scene(env=clock[1]) as scene:
        add_version(scene, "one")
        add_version(scene, "two")
        add_version(scene, "never", never_ready=True)
        scene.apply(deployment(extra=SLOW))
        scene.wait_phase(Deployment, "chat", "ready")
        scene.wait_event("GatewayReady", "gateway")
        yield scene


@pytest.fixture(params=[HOUR, -HOUR], ids=["forth", "back"])
def leap(request: pytest.FixtureRequest, clock: tuple[Clock, dict[str, str]]) -> Iterator[int]:
    """Seconds by which the test sets the clock; it is right again afterwards."""
    yield request.param
    clock[0].set(0)


def test_the_daemon_goes_by_it(in_its_time: Scene, clock: tuple[Clock, dict[str, str]]) -> None:
    """Else the other tests here would show nothing."""
    in_its_time.apply("{kind: job, name: early, command: [x]}")
    before = in_its_time.events()[-1].time
    clock[0].set(HOUR)
    in_its_time.apply("{kind: job, name: late, command: [x]}")
    made = in_its_time.wait_event("JobCreated", "late")
    clock[0].set(0)
    assert made.time - before > timedelta(minutes=50)


def test_runs_and_servers_on_their_way(in_its_time: Scene, clock: tuple[Clock, dict[str, str]], leap: int) -> None:
    """A timeout of a minute doesn't end a run at once, and a wait of two seconds isn't an hour; nor for servers."""
    scene, name = in_its_time, "forth" if leap > 0 else "back"
    scene.apply(job("while ! test -e ../go; do sleep 0.05; done", f"bounded-{name}", timeout=600))
    scene.apply(job('test "$STOKER_ATTEMPT" = 2', f"retried-{name}", retries=1, backoff=2))
    started = deployment(extra=f"{SLOW}\nstart_timeout: 600s").replace("name: chat", f"name: start-{name}")
    scene.apply(started.replace("version: 1", "version: never"))
    bounded, retried = start_run(scene, f"bounded-{name}"), start_run(scene, f"retried-{name}")
    folder = Path(scene.wait_phase(Run, bounded, "running").folder)
    scene.wait_event("RunRetrying", retried)
    scene.wait_event("ReplicaStarting", f"start-{name}-v3-0")
    before = scene.client.host().last_event_id
    scene.kill_pid(scene.server_of("chat-v1-0"))
    scene.wait_event("ReplicaBackingOff", "chat-v1-0", after=before)

    clock[0].set(leap)
    scene.wait_phase(Run, retried, "succeeded")
    scene.wait_event("ReplicaReady", "chat-v1-0", after=before)
    (folder / "go").touch()
    scene.wait_phase(Run, bounded, "succeeded", "failed")
    reasons = {e.reason for e in scene.events(before)}
    assert not reasons & {"RunTimedOut", "RunFailed", "ReplicaFailed"}, scene.told()
    assert not [e for e in scene.events() if (e.reason, e.name) == ("ReplicaBackingOff", f"start-{name}-v3-0")]
    scene.client.request("DELETE", f"/v1/deployments/start-{name}")
    scene.wait_event("DeploymentDeleted", f"start-{name}")
    scene.check()


def test_a_rollout_on_its_way(in_its_time: Scene, clock: tuple[Clock, dict[str, str]], leap: int) -> None:
    """A step of some seconds takes neither an hour nor none, and an hour that never was doesn't starve it."""
    scene, name = in_its_time, f"leap-{'forth' if leap > 0 else 'back'}"
    to = 3 - scene.client.get(Deployment, "chat").version
    with Callers(scene, 4) as callers:
        begin = time.monotonic()
        scene.apply(
            f"{{kind: rollout, name: {name}, deployment: chat, to: {to}, guards: [{{metric: error_rate, limit: 0.1}}], "
            "keep_warm: 0s, "
            "steps: [{type: canary, percent: 50, min_requests: 20, min_duration: 5s, max_duration: 20m}]}"
        )
        scene.wait_phase(Rollout, name, "stepping")
        clock[0].set(leap)
        scene.wait_phase(Rollout, name, "promoted")
    assert time.monotonic() - begin > 5
    callers.assert_heard_only("I am one", "I am two")
    scene.check()


def test_schedules(in_its_time: Scene, clock: tuple[Clock, dict[str, str]], leap: int) -> None:
    """An interval goes on, with no burst of what an hour of it would have been, and no firing makes two runs."""
    scene, name = in_its_time, f"each-{'forth' if leap > 0 else 'back'}"
    scene.apply(job("exit 0", name) + f"---\n{{kind: schedule, name: {name}, job: {name}, interval: 1, misfire: once}}")

    def fired() -> int:
        return [e.reason for e in scene.events() if e.name == name].count("ScheduleFired")

    wait_for(lambda: fired() >= 1, "it fires")
    clock[0].set(leap)
    before = fired()
    wait_for(lambda: fired() >= before + 3, "it goes on firing")
    assert scene.client.get(Schedule, name).next_fire_at is not None
    scene.client.request("DELETE", f"/v1/schedules/{name}")
    runs = scene.client.list(Run, job=name)
    assert len({r.trigger for r in runs}) == len(runs)
    assert len(runs) < 60, "the hour was not made up for"
    scene.check()
