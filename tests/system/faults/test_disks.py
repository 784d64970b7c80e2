"""Disks that are full or read-only: the daemon answers, refuses what it can't keep, and goes on when it can again."""

from __future__ import annotations

import contextlib
import os
import sqlite3
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from stoker.errors import Unavailable
from stoker.types.rollouts import RolledBack, Rollout
from stoker.types.serving import Deployment
from stoker.types.training import Failed, Job, Run
from tests.harness import STOKERD, state_of, wait_for
from tests.system.faults import census
from tests.system.faults.callers import Callers, ask
from tests.system.faults.disks import Disk, Ext4, disk, short_folder
from tests.system.faults.jobs import job, start_run
from tests.system.faults.scene import Scene
from tests.system.loop import add_version, serve

SIZE = "96m"
LITTLE_BYTES = 16 << 20  # less than metrics must leave to the state
TALK = "while ! test -e ../go; do echo a line of a hundred bytes or so, again and again and again; done; exit 4"


@pytest.fixture(scope="module")
def small() -> Iterator[Disk]:
    with disk(SIZE) as made:
        yield made


@pytest.fixture(scope="module")
def on_small(small: Disk) -> Iterator[Scene]:
    with Scene(home=small.folder / "h", settings="logs: {segment_bytes: 1MiB, segments: 1}") as scene:
        add_version(scene, "one")
        serve(scene)
        yield scene


@pytest.fixture
def scene(on_small: Scene) -> Iterator[Scene]:
    yield on_small
    on_small.check()


def points(scene: Scene) -> int:
    """How many times the host was sampled."""
    series = scene.client.request("GET", "/v1/series", params={"name": "host.memory_used_bytes", "max_points": 10_000})
    return max((len(s["points"]) for s in series), default=0)


def refused(scene: Scene, name: str) -> str:
    """Apply jobs until one is refused; returns the refusal's code."""
    for number in range(10_000):  # what SQLite has in its write-ahead log already can be written again
        try:
            scene.apply(f"{{kind: job, name: {name}-{number}, command: [x], env: {{PAD: {'x' * 5000}}}}}")
        except Unavailable as error:
            return error.code
    raise AssertionError("a full disk took everything")


def test_little_room_stops_metrics_before_state(small: Disk, scene: Scene) -> None:
    wait_for(lambda: points(scene) >= 1, "the host is sampled")
    with small.filled(leave_bytes=LITTLE_BYTES):
        with scene.openai() as client:
            assert ask(client) == "I am one"
        wait_for(lambda: "metrics are not stored" in scene.log, "metrics stop, and it is said")
        scene.apply("{kind: job, name: fits, command: [x]}")
        stopped_at = points(scene)
    wait_for(lambda: points(scene) > stopped_at, "metrics go on")


def test_no_room_at_all_loses_nothing(small: Disk, scene: Scene) -> None:
    """State, metrics, and the log of a run that never stops talking; the run ends while there is no room."""
    scene.apply(job(TALK, "talks"))
    run = start_run(scene, "talks")
    folder = Path(scene.wait_phase(Run, run, "running").folder)
    wait_for(lambda: (folder / "log").exists(), "it talks")
    pid = scene.pid_of(f"run-{run}-1")
    (small.folder / "go").touch()
    with Callers(scene) as callers:
        with small.filled():
            assert refused(scene, "full") == "database-unavailable"
            kept = {j.name for j in scene.client.list(Job)}
            (small.folder / "go").rename(folder / "go")  # takes no room
            wait_for(lambda: not Path(f"/proc/{pid}").exists(), "the run ends")
            small.fill()  # what its log gave back
            wait_for(lambda: scene.client.host().disk_free < 1 << 20, "the daemon answers, and says that it is full")
            callers.hear(20)
        ended = scene.wait_phase(Run, run, "failed")
    callers.assert_heard_only("I am one")
    assert state_of(ended, Failed).exit_code == 4
    assert kept <= {j.name for j in scene.client.list(Job)}
    scene.apply("{kind: job, name: afterwards, command: [x]}")


def canary(name: str, to: int) -> str:
    """A rollout that stays in its step until something happens."""
    step = "{type: canary, percent: 50, min_requests: 1000000}"
    return f"{{kind: rollout, name: {name}, deployment: chat, to: {to}, steps: [{step}], keep_warm: 0s}}"


def test_a_bad_version_is_taken_back_although_there_is_little_room(small: Disk, scene: Scene) -> None:
    """What a rollout is judged by is kept down to the last few megabytes, which are left to the decision."""
    bad = add_version(scene, "bad", status=500)
    with Callers(scene) as callers:
        with small.filled(leave_bytes=LITTLE_BYTES):
            scene.apply(canary("little", bad.number))
            ended = scene.wait_phase(Rollout, "little", "rolled-back", "aborted", "promoted")
        callers.hear(20)
    assert "failed each of its last 5 answers" in state_of(ended, RolledBack).because
    callers.assert_heard_only("I am one", "HTTP 500")


def test_a_version_that_gets_sick_while_there_is_no_room_is_taken_back_when_there_is(
    small: Disk, scene: Scene, tmp_path: Path
) -> None:
    sick = add_version(scene, "sick", sick=str(tmp_path / "sick"))
    with Callers(scene) as callers:
        scene.apply(canary("none", sick.number))
        callers.hear(10, ["I am sick"])
        with small.filled():
            assert refused(scene, "full-too") == "database-unavailable"
            (tmp_path / "sick").touch()
            callers.hear(10, ["HTTP 500"])
        ended = scene.wait_phase(Rollout, "none", "rolled-back", "aborted", "promoted")
        callers.hear(20, ["I am one"])
    assert "failed each of its last 5 answers" in state_of(ended, RolledBack).because
    callers.assert_heard_only("I am one", "I am sick", "HTTP 500")
    told = [e.reason for e in scene.events() if e.name == "none"]
    assert (told.count("RolloutRollingBack"), told.count("RolloutRolledBack")) == (1, 1)


def test_a_kill_while_there_is_no_room(small: Disk, scene: Scene) -> None:
    """It says why it doesn't start (no backup can be made), and starts when there is room."""
    scene.kill()
    with contextlib.closing(sqlite3.connect(scene.home.state_db)) as db:
        db.execute("PRAGMA wal_checkpoint(TRUNCATE)")  # else the log, emptied at the start, would give it room
    with small.filled():
        with scene.openai() as client:
            assert ask(client) == "I am one"
        code, said = refuses_to_start(scene.root)
        assert (code, said.count("\n")) == (6, 1), said
        assert "room" in said
    scene.start()
    scene.wait_phase(Deployment, "chat", "ready")


def test_read_only_from_the_start_is_one_sentence(small: Disk, scene: Scene) -> None:
    with disk("8m") as other:
        other.remount("ro")
        code, said = refuses_to_start(other.folder / "home")
    assert (code, said.count("\n")) == (6, 1), said
    assert "Read-only file system" in said


def test_a_disk_that_becomes_read_only_under_it(tmp_path: Path) -> None:
    """As ext4 does when its device fails. Mounted anew, it has all that was promised."""
    device = Ext4(tmp_path / "device")
    with short_folder() as place:
        with device.mounted(place) as broken:
            scene = Scene(home=place / "h")
            try:
                break_under(scene, broken)
            finally:
                scene.kill()
                for found in census.look(scene.root):
                    scene.kill_pid(found.pid)
                wait_for(lambda: not census.mentions(scene.root), "all are dead, so that it can be unmounted")
        with device.mounted(place), scene:
            scene.check()
            assert [j.name for j in scene.client.list(Job)] == ["kept"]


def break_under(scene: Scene, disk: Disk) -> None:
    with scene.home.config.open("rb") as settings:
        os.fsync(settings.fileno())  # what the daemon itself has promised needs no such help
    scene.start()
    add_version(scene, "one")
    serve(scene)
    scene.apply("{kind: job, name: kept, command: [x]}")
    with Callers(scene) as callers:
        disk.break_down()
        with pytest.raises(Unavailable) as caught:
            scene.apply("{kind: job, name: read-only, command: [x]}")
        assert caught.value.code == "database-unavailable"
        assert scene.client.host().pid == scene.pid
        assert [j.name for j in scene.client.list(Job)] == ["kept"]
        callers.hear(20)
    callers.assert_heard_only("I am one")


def refuses_to_start(home: Path) -> tuple[int, str]:
    """The exit code of a daemon that can't start there, and what it said."""
    done = subprocess.run([STOKERD, "--home", home], capture_output=True, text=True, timeout=60, check=False)
    return done.returncode, done.stderr
