"""A shim that was started before it is needed: it saves time, and nobody can tell it from another by anything else."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from stoker.errors import Unavailable
from stokerd.processes import spares as spares_module
from stokerd.processes.folder import Folder
from stokerd.processes.spares import Spares
from tests.harness import DEADLINE
from tests.process_kit import Bench, is_running, until


@pytest.fixture(autouse=True)
def _soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spares_module, "REFILL_SECONDS", 0.0)


@pytest.fixture
def spares(bench: Bench) -> Iterator[Spares]:
    """Those of the bench's supervisor, filled."""
    asyncio.run(fill(bench.supervisor._spares))
    yield bench.supervisor._spares
    bench.supervisor._spares.close()


async def fill(spares: Spares) -> None:
    spares.refill_in(asyncio.get_running_loop())
    await filled(spares)


async def filled(spares: Spares) -> None:
    async with asyncio.timeout(DEADLINE):
        while spares._spare is None:  # noqa: ASYNC110 (it tells nobody)
            await asyncio.sleep(0.001)


def pid_of(spares: Spares) -> int:
    assert spares._spare is not None
    return spares._spare._watch.pid


def test_a_process_is_started_by_the_spare_shim_and_ends_as_any_other(bench: Bench, spares: Spares) -> None:
    spare = pid_of(spares)
    bench.sh("echo out; read x; exit 7")
    assert bench.exited().exit_code == 7
    assert bench.record("child.json")["shim"]["pid"] == spare
    assert bench.text() == "out\n"
    assert not is_running(spare)


def test_a_spare_shim_holds_nothing_of_the_daemon_s_and_bears_its_process_s_name(bench: Bench, spares: Spares) -> None:
    bench.sh("sleep 600", process="run-tune-17-attempt-1")
    shim = Path(f"/proc/{bench.shim('run-tune-17-attempt-1')}")
    assert (shim / "comm").read_text() == "run-tune-17-att\n"
    assert (shim / "cwd").readlink() == bench.folder / "run-tune-17-attempt-1"
    until(lambda: (shim / "fd/1").readlink() == Path(os.devnull))
    assert (shim / "fd/0").readlink() == Path(os.devnull)
    assert (shim / "fd/2").readlink() == bench.folder / "run-tune-17-attempt-1" / "shim.err"
    others = {str((shim / "fd" / name).readlink()) for name in os.listdir(shim / "fd")} - {os.devnull}  # noqa: PTH208
    assert not [each for each in others if each.startswith("socket:") or not each.startswith(("/", "pipe:"))]


def test_a_spare_shim_that_was_killed_is_replaced(bench: Bench, spares: Spares) -> None:
    spare = pid_of(spares)
    os.kill(spare, signal.SIGKILL)
    os.waitid(os.P_PID, spare, os.WEXITED | os.WNOWAIT)  # a signal takes its time: until then it takes what it is told
    bench.sh("exit 7")
    assert bench.exited().exit_code == 7


def test_a_spare_shim_ends_with_the_supervisor(bench: Bench, spares: Spares) -> None:
    spare = pid_of(spares)
    bench.supervisor.close()
    assert not Path(f"/proc/{spare}").exists()  # not even as a zombie


def test_a_folder_with_too_long_a_name_is_none_for_a_pipe(bench: Bench, spares: Spares) -> None:
    """It might be read in two pieces; the kernel takes no such path either."""
    spare = pid_of(spares)
    assert spares._spare is not None
    assert spares._spare.tell(bench.folder / ("x" * 5000)) is None
    assert not Path(f"/proc/{spare}").exists()
    spares._spare = None


def test_a_full_disk_is_told_before_a_shim_is_used(
    bench: Bench, spares: Spares, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The shim itself could not say so: it would be as if it had been killed."""
    spare = pid_of(spares)
    with monkeypatch.context() as full:
        full.setattr(Folder, "write_command", lambda *_: None)  # and so no folder
        with pytest.raises(Unavailable):
            bench.sh("exit 7")
    assert pid_of(spares) == spare
    bench.sh("exit 7")
    assert bench.exited().exit_code == 7


def test_there_is_one_spare_shim_soon_after_a_start_and_none_that_nobody_ends(bench: Bench) -> None:
    async def start_some() -> list[int]:
        bench.supervisor.adopt()
        pids = []
        for process in ("a", "b"):
            await filled(bench.supervisor._spares)
            pids.append(pid_of(bench.supervisor._spares))
            bench.sh("sleep 600", process)
        await filled(bench.supervisor._spares)
        return pids

    pids = asyncio.run(start_some())
    assert [bench.shim("a"), bench.shim("b")] == pids
    assert pid_of(bench.supervisor._spares) not in pids


DAEMON = """
import asyncio, os, signal, sys
from pathlib import Path
from stokerd.processes import spares, supervisor
from stokerd.processes.states import Command

moment, root = sys.argv[1], Path(sys.argv[2])
spares.REFILL_SECONDS = 0

async def main():
    s = supervisor.Supervisor(root / "processes")
    s.adopt()
    while s._spares._spare is None:
        await asyncio.sleep(0.001)
    print(s._spares._spare._watch.pid, flush=True)
    if moment == "idle":
        os.kill(os.getpid(), signal.SIGKILL)
    original, tell = os.write, s._spares._spare._tell
    def killing(fd, data):
        if fd == tell and moment == "before it is told":
            os.kill(os.getpid(), signal.SIGKILL)
        count = original(fd, data)
        if fd == tell:
            os.kill(os.getpid(), signal.SIGKILL)
        return count
    os.write = killing
    argv, env = ("sh", "-c", "echo started; exec sleep 600"), {"PATH": "/usr/bin:/bin"}
    s.start("p", Command(argv, "/", env, str(root / "logs/p.log")))

asyncio.run(main())
"""


@pytest.mark.parametrize("moment", ["idle", "before it is told", "after it was told"])
def test_a_killed_daemon_leaves_no_spare_shim_and_starts_nothing_twice(bench: Bench, moment: str) -> None:
    command = [sys.executable, "-c", DAEMON, moment, str(bench.root)]
    ended = subprocess.run(command, stdout=subprocess.PIPE, text=True, timeout=DEADLINE)
    assert ended.returncode == -signal.SIGKILL
    spare = int(ended.stdout)
    if moment != "after it was told":
        until(lambda: not is_running(spare))
    bench.sh("echo started; exec sleep 600")  # as a daemon does that finds no trace of a start
    bench.says("started")
    bench.alive()
    if moment == "after it was told":
        until(lambda: not is_running(spare) or bench.shim() == spare)
    assert bench.text() == "started\n"
