"""Processes outlive the daemon, whenever it dies, and never run twice; a killed shim leaves nothing behind."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from stoker.errors import Unavailable
from stokerd.processes.log_writer import rotated
from stokerd.processes.logs import follow, read_log, tail_lines
from stokerd.processes.states import Absent, Alive, Lost
from stokerd.processes.supervisor import Supervisor
from tests.harness import DEADLINE
from tests.process_kit import Bench, bench, is_running, running_with, until
from tests.unit.processes.grouped import GroupedBench, grouped

__all__ = ["bench", "grouped"]

DAEMON = """
import os, signal, sys
from pathlib import Path
from stokerd.processes import folder, supervisor
from stokerd.processes.states import Command

def die(*args, **kwargs):
    os.kill(os.getpid(), signal.SIGKILL)

def wrap(owner, name, *, before=None, after=None):
    original = getattr(owner, name)
    def wrapped(*args, **kwargs):
        before and before()
        result = original(*args, **kwargs)
        after and after()
        return result
    setattr(owner, name, wrapped)

moment, root = sys.argv[1], Path(sys.argv[2])
match moment:
    case "before the intent": wrap(folder.Folder, "write_command", before=die)
    case "in the intent": wrap(folder.records, "replace", before=die)
    case "before the shim": wrap(os, "posix_spawn", before=die)
    case "after the shim": wrap(os, "posix_spawn", after=die)
    case "before the stop's signal": wrap(supervisor, "send", before=die)
    case "after the stop's signal": wrap(supervisor, "send", after=die)
s = supervisor.Supervisor(root / "processes")
print("up", flush=True)
sys.stdin.readline()
argv, env = ("sh", "-c", "echo started; exec sleep 600"), {"PATH": "/usr/bin:/bin"}
s.start("p", Command(argv, "/", env, str(root / "logs/p.log")))
print("started", flush=True)
sys.stdin.readline()
s.stop("p", 600)
sys.stdin.readline()
"""


@pytest.fixture
def daemon(bench: Bench) -> Iterator[subprocess.Popen[str]]:
    """A process that starts, then stops p, each on a line from us; it doesn't die by itself."""
    with run_daemon(bench, "never") as process:
        yield process
        process.kill()


def run_daemon(bench: Bench, moment: str) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, "-c", DAEMON, moment, os.fspath(bench.root)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout
    assert process.stdout.readline() == "up\n"
    return process


def say(daemon: subprocess.Popen[str]) -> None:
    assert daemon.stdin
    daemon.stdin.write("go\n")
    daemon.stdin.flush()


def reconcile(bench: Bench, supervisor: Supervisor) -> Alive:
    """What a daemon does each second for something that should run."""

    def step() -> Alive | None:
        seen = supervisor.observe("p")
        if isinstance(seen, Absent):
            supervisor.start("p", bench.command("sh", "-c", "echo started; exec sleep 600"))
        return seen if isinstance(seen, Alive) and seen.pid else None

    alive = until(step)
    assert isinstance(alive, Alive)
    return alive


def assert_ran_once(bench: Bench, supervisor: Supervisor) -> None:
    alive = reconcile(bench, supervisor)
    bench.says("started")
    assert alive.pid
    assert is_running(alive.pid)
    supervisor.stop("p", 600)
    assert bench.exited(supervisor=supervisor).signal == signal.SIGTERM
    assert bench.text().count("started") == 1


def test_a_program_lives_on_when_its_daemon_is_killed(bench: Bench, daemon: subprocess.Popen[str]) -> None:
    say(daemon)
    bench.says("started")
    before = bench.alive()
    daemon.kill()
    daemon.wait()
    after = bench.again()
    after.adopt()
    assert after.observe("p") == before
    assert before.pid
    assert is_running(before.pid)
    assert_ran_once(bench, after)


@pytest.mark.parametrize("moment", ["before the intent", "in the intent", "before the shim", "after the shim"])
def test_a_daemon_killed_at_a_step_of_a_start_starts_it_once(bench: Bench, moment: str) -> None:
    with run_daemon(bench, moment) as daemon:
        say(daemon)
        assert daemon.wait(DEADLINE) == -signal.SIGKILL
    after = bench.again()
    after.adopt()
    assert_ran_once(bench, after)


@pytest.mark.parametrize("moment", ["before the stop's signal", "after the stop's signal"])
def test_a_daemon_killed_at_a_step_of_a_stop_ends_it_when_it_comes_back(bench: Bench, moment: str) -> None:
    with run_daemon(bench, moment) as daemon:
        say(daemon)
        bench.says("started")
        say(daemon)
        assert daemon.wait(DEADLINE) == -signal.SIGKILL
    after = bench.again()
    after.adopt()
    assert bench.exited(supervisor=after).signal == signal.SIGTERM


def test_a_daemon_killed_at_any_instant_starts_it_once(bench: Bench) -> None:
    chance = random.Random(0)
    for _ in range(12):
        with run_daemon(bench, "never") as daemon:
            say(daemon)
            timer = threading.Timer(chance.uniform(0, 0.08), daemon.kill)
            timer.start()
            timer.join()
            daemon.wait()
        after = bench.again()
        after.adopt()
        assert_ran_once(bench, after)
        after.forget("p")
        bench.log.unlink()


def test_a_shim_killed_at_any_instant_leaves_nothing_running(bench: Bench) -> None:
    def is_gone(marker: str) -> bool:
        return not running_with(marker)

    chance = random.Random(0)
    for attempt in range(24):
        marker = f"600.{os.getpid()}{attempt}"
        bench.supervisor.start("p", bench.command("sh", "-c", f"sleep {marker} & exec sleep {marker}"))
        shim = bench.supervisor._watches["p"].pid
        if attempt % 2:
            bench.alive()
        timer = threading.Timer(chance.uniform(0, 0.06), os.kill, (shim, signal.SIGKILL))
        timer.start()
        timer.join()
        assert isinstance(bench.end(), Lost)
        until(partial(is_gone, marker))
        bench.supervisor.forget("p")


def test_a_shim_killed_at_any_instant_leaves_no_detached_descendant(grouped: GroupedBench) -> None:
    """Forked twice, in a session of its own, holding nothing of ours: the group is all that still knows it."""
    chance = random.Random(1)
    detach = "(setsid sh -c 'exec sleep {0} </dev/null >/dev/null 2>&1' &)"
    for attempt in range(24):
        marker = f"601.{os.getpid()}{attempt}"
        script = f"{detach.format(marker)}; {detach.format(marker)}; exec sleep {marker}"
        grouped.supervisor.start("p", grouped.command("sh", "-c", script))
        shim = grouped.supervisor._watches["p"].pid
        if attempt % 2:
            grouped.alive()
        timer = threading.Timer(chance.uniform(0, 0.06), os.kill, (shim, signal.SIGKILL))
        timer.start()
        timer.join()
        assert isinstance(grouped.end(), Lost)
        assert not running_with(marker)  # nothing to wait for: Lost is said when all are dead
        assert grouped.folders() == []
        grouped.supervisor.forget("p")


def test_many_are_adopted_quickly(bench: Bench) -> None:
    many = [f"p{n}" for n in range(60)]
    for process in many:
        bench.supervisor.start(process, bench.command("sleep", "600"))
    pids = {process: bench.alive(process).pid for process in many}
    bench.supervisor.close()

    def adopted_in_a_second() -> Supervisor | None:
        after = bench.again()
        began = time.monotonic()
        after.adopt()
        if time.monotonic() - began < 1.0:
            return after
        after.close()
        return None

    after = until(adopted_in_a_second)  # a machine that stalled just then is given another chance
    for process, pid in pids.items():
        seen = after.observe(process)
        assert isinstance(seen, Alive)
        assert seen.pid == pid


def test_a_torrent_of_output_neither_stalls_the_program_nor_fills_the_disk(bench: Bench) -> None:
    mebibytes = 400
    torrent = f"dd if=/dev/zero bs=64k count={mebibytes * 16} 2>/dev/null"
    began = time.monotonic()
    subprocess.run(["sh", "-c", f"{torrent} | cat > {bench.root / 'yardstick'}"], check=True)
    yardstick = time.monotonic() - began
    began = time.monotonic()
    bench.sh(f"{torrent}; echo the end")
    assert bench.exited().exit_code == 0
    took = time.monotonic() - began
    assert sum(each.stat().st_size for each in bench.log.parent.iterdir()) <= 256 << 20
    assert read_log(bench.log, -8) == (b"the end\n", (mebibytes << 20) + 8)
    assert bench.record("exit.json")["log_dropped_bytes"] == 0
    # About the same on an idle machine.
    assert took < 20 * yardstick, f"{took:.1f} s; a pipe into a file takes {yardstick:.1f} s"


def test_a_torrent_never_takes_more_of_the_disk_than_its_bounds(bench: Bench) -> None:
    """Looked at while it goes on; the end of it is there, and the offset tells how much there was in all."""
    segment_bytes, kept, total = 4 << 20, 2, 300 << 20
    supervisor = bench.again(log_segment_bytes=segment_bytes, log_segments_kept=kept)
    supervisor.start("p", bench.command("sh", "-c", f"yes 'a line of the torrent' | head -c {total}; echo; echo end"))
    most = looks = 0
    while isinstance(supervisor.observe("p"), Alive):
        sizes = []
        for each in bench.log.parent.glob("p.log*"):
            with contextlib.suppress(FileNotFoundError):  # moved aside or dropped just now
                sizes.append(each.stat().st_size)
        most, looks = max(most, sum(sizes)), looks + 1
    assert bench.exited().exit_code == 0
    assert looks > 10
    # One more than is kept while it is moved aside; one may be seen under both of its names.
    assert 0 < most <= (kept + 2) * segment_bytes
    data, end = read_log(bench.log, -5)
    assert (data, end) == (b"\nend\n", total + 5)
    assert bench.record("exit.json")["log_dropped_bytes"] == 0


def test_a_log_is_followed_through_many_lives_of_the_daemon_with_each_line_once(bench: Bench) -> None:
    """All that a follower keeps is its offset; the log is moved aside again and again meanwhile."""
    gate = bench.root / "enough"
    supervisor = bench.again(log_segment_bytes=50_000, log_segments_kept=10_000)
    script = f"n=0; while [ ! -e {gate} ]; do n=$((n+1)); echo line $n; done; echo the end"
    supervisor.start("p", bench.command("sh", "-c", script))
    bench.alive()
    supervisor.close()

    async def live(offset: int) -> bytes:
        """One daemon's life: it adopts the program, and its follower leaves in the middle, unless that has ended."""
        after = bench.again()
        after.adopt()
        got, pieces = b"", 0
        async for piece in follow(bench.log, offset, lambda: not isinstance(after.observe("p"), Alive)):
            got, pieces = got + piece, pieces + 1
            if pieces == 3 and not gate.exists():
                break
        after.close()
        return got

    whole = b""
    for _ in range(8):
        whole += asyncio.run(live(len(whole)))
    until(lambda: len(rotated(os.fspath(bench.log))) > 8)
    gate.touch()
    *lines, end = (whole + asyncio.run(live(len(whole)))).splitlines()
    assert end == b"the end"
    assert lines == [b"line %d" % (n + 1) for n in range(len(lines))]
    assert bench.exited().exit_code == 0


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k", "small", disk], capture_output=True)
    if mounted.returncode:
        pytest.skip(f"no small disk can be mounted here: {mounted.stderr.decode().strip()}")
    yield disk
    until(lambda: subprocess.run(["umount", disk], capture_output=True).returncode == 0)


def fill(disk: Path) -> Path:
    """Leave not one block."""
    ballast = disk / "ballast"
    with ballast.open("wb", buffering=0) as file:
        try:
            while True:
                file.write(b"x" * 4096)
        except OSError:
            return ballast


def test_on_a_full_disk_a_start_says_so_and_works_once_there_is_room(small_disk: Path) -> None:
    small = Bench(small_disk)
    ballast = fill(small_disk)
    try:
        with pytest.raises(Unavailable, match="No space left on device") as caught:
            small.sh("exit 3")
        assert caught.value.code == "process-not-started"
        ballast.unlink()
        small.sh("exit 3")
        assert small.exited().exit_code == 3
    finally:
        small.clean()


def test_a_disk_that_fills_up_costs_log_lines_but_no_exit_status_and_no_stop(small_disk: Path) -> None:
    small = Bench(small_disk)
    try:
        small.sh("trap 'exit 4' TERM; echo up; while :; do sleep 0.01; done")
        small.says("up")
        fill(small_disk)
        small.supervisor.stop("p", 600)  # its deadline can't be written
        assert small.exited().exit_code == 4
    finally:
        small.clean()


def test_the_log_says_what_a_full_disk_cost_it(small_disk: Path) -> None:
    small = Bench(small_disk)
    try:
        gate = small_disk / "gate"
        os.mkfifo(gate)
        small.sh(f"echo up; read x < {gate}; head -c 1000000 /dev/zero; echo full > {gate}; read x < {gate}; echo on")
        small.says("up\n")
        ballast = fill(small_disk)
        gate.write_text("\n")
        assert gate.read_text() == "full\n"
        ballast.unlink()
        gate.write_text("\n")
        assert small.exited().exit_code == 0
        assert tail_lines(small.log, 1)[0].endswith("on")  # after what was written once there was room
        assert "bytes of log dropped: No space left on device]" in small.text()
        assert 0 < small.record("exit.json")["log_dropped_bytes"] <= 1_000_000
    finally:
        small.clean()
