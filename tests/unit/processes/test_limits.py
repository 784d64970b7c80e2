"""Bounds hold for all that a program starts; what breaks them is named for what it is."""

from __future__ import annotations

import os
import signal
import sys
from functools import partial
from pathlib import Path

import pytest

from stokerd.processes.group import Group
from stokerd.processes.groups import Groups
from stokerd.processes.states import Alive, Bounds, Exited, Lost, ending
from stokerd.processes.supervisor import Supervisor
from tests.process_kit import Bench, is_running, until
from tests.unit.processes.grouped import GroupedBench, needs, needs_root

HOG = f"{sys.executable} -I -S -c 'x = bytearray(256 << 20); print(len(x))'"


def test_a_program_that_takes_more_memory_than_it_may_is_killed_as_out_of_memory(grouped: GroupedBench) -> None:
    needs(grouped, "memory")
    grouped.bounded(f"exec {HOG}", memory_bytes=64 << 20)
    end = grouped.exited()
    assert (end.signal, end.out_of_memory, end.memory_limit_bytes) == (signal.SIGKILL, True, 64 << 20)
    assert ending(end) == "the kernel killed it: out of memory (limit 64 MiB)"
    assert grouped.folders() == []
    assert grouped.exited(supervisor=grouped.again()) == end


def test_a_part_of_a_program_that_was_killed_for_its_memory_is_told_of(grouped: GroupedBench) -> None:
    """Its program may go on, end well or badly; or be killed with it, where the kernel can do that (v2)."""
    needs(grouped, "memory")
    grouped.bounded(f"{HOG}; echo went on with $?; exit 3", memory_bytes=64 << 20)
    end = grouped.exited()
    assert end.out_of_memory
    if end.signal is None:
        assert "went on with 137" in grouped.text()
        assert ending(end) == (
            "it exited with code 3, after the kernel had killed some of it: out of memory (limit 64 MiB)"
        )


def test_the_bound_is_for_the_tree_and_not_for_each_of_it(grouped: GroupedBench) -> None:
    needs(grouped, "memory")
    forks = (
        "import os, time\n"
        "for _ in range(3):\n"
        "    if not os.fork(): x = bytearray(60 << 20); time.sleep(600)\n"
        "os.wait()\n"
    )
    grouped.bounded(f"exec {sys.executable} -I -S -c '{forks}'", memory_bytes=128 << 20)
    assert grouped.exited().out_of_memory


def test_a_program_within_its_bounds_is_not_called_out_of_memory(grouped: GroupedBench) -> None:
    grouped.bounded("kill -KILL $$", memory_bytes=512 << 20)
    end = grouped.exited()
    assert not end.out_of_memory
    assert ending(end) == "it was killed by signal 9"


def test_a_program_that_forks_without_end_meets_its_bound(grouped: GroupedBench) -> None:
    needs(grouped, "pids")
    forks = (
        "import os, time\n"
        "for n in range(100):\n"
        "    try:\n"
        "        if not os.fork(): time.sleep(600)\n"
        "    except OSError as error: print('forks', n, error.strerror, flush=True); break\n"
    )
    grouped.bounded(f'exec {sys.executable} -I -S -c "{forks}"', processes=10)
    assert grouped.exited().exit_code == 0
    assert grouped.text() == "forks 9 Resource temporarily unavailable\n"


def test_the_weight_of_a_program_is_set_for_its_tree(grouped: GroupedBench) -> None:
    needs(grouped, "cpu")
    grouped.bounded("echo up; sleep 600", cpu_weight=250)
    grouped.says("up")
    found = [
        (name, (folder / name).read_text().strip())
        for folder in grouped.folders()
        for name in ("cpu.weight", "cpu.shares")
        if (folder / name).exists()
    ]
    assert found in ([("cpu.shares", "2560")], [("cpu.weight", "250")])


def test_who_is_killed_first_when_the_machine_has_no_memory_left_is_set(bench: Bench) -> None:
    ours = int(Path("/proc/self/oom_score_adj").read_text())
    command = bench.command("sh", "-c", "cat /proc/self/oom_score_adj; sleep 600")

    def has_a_line(log: Path) -> bool:
        return log.exists() and log.read_text().endswith("\n")

    for process, given in (("p", 300), ("q", 1000), ("r", 0)):
        log = bench.log.with_name(process)
        bounds = Bounds(oom_score_adj=given)
        bench.supervisor.start(process, type(command)(command.argv, "/", command.env, os.fspath(log), bounds))
        until(partial(has_a_line, log))
        assert int(log.read_text()) == min(ours + given, 1000)
        assert int(Path(f"/proc/{bench.shim(process)}/oom_score_adj").read_text()) == ours


def test_without_a_group_memory_is_bounded_for_each_process_and_address_space_is_not(bench: Bench) -> None:
    """An address space that is only reserved, as CUDA does by the terabyte, costs nothing."""
    script = (
        "import mmap\n"
        "mmap.mmap(-1, 1 << 40, prot=0, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | 0x4000)\n"
        "print('reserved', flush=True)\n"
        "try: bytearray(256 << 20)\n"
        "except MemoryError: print('bounded', flush=True)\n"
    )
    command = bench.command(sys.executable, "-I", "-S", "-c", script)
    bounds = Bounds(memory_bytes=128 << 20)
    bench.supervisor.start("p", type(command)(command.argv, "/", command.env, command.log, bounds))
    assert bench.exited().exit_code == 0, bench.text()
    assert bench.text() == "reserved\nbounded\n"


def test_a_group_that_vanishes_before_the_program_starts_keeps_nothing_from_starting(
    grouped: GroupedBench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its bounds are then enforced as well as they can be, and the record says what happened."""

    def vanish(groups: Groups, process: str, bounds: Bounds) -> None:
        make(groups, process, bounds)
        assert Group(groups.folders(process)).remove()

    make = Groups.make
    monkeypatch.setattr(Groups, "make", vanish)
    grouped.bounded("ulimit -d; exit 3", memory_bytes=64 << 20)
    assert grouped.exited().exit_code == 3
    assert grouped.text() == f"{64 << 10}\n"
    assert "can't be entered: No such file or directory" in grouped.record("exit.json")["group_failure"]


def test_a_program_without_bounds_has_a_group_and_no_limits(grouped: GroupedBench) -> None:
    grouped.sh("ulimit -d; sleep 600")
    grouped.says("unlimited\n")
    pid = grouped.alive().pid
    assert grouped.folders()
    assert pid in Group(list(map(os.fspath, grouped.folders()))).members()
    assert grouped.shim() not in Group(list(map(os.fspath, grouped.folders()))).members()


def test_endings_are_told_in_words() -> None:
    assert ending(Exited(None, 9, 0, 1, out_of_memory=True)) == "the kernel killed it: out of memory"
    assert ending(Exited(0, None, 0, 1, out_of_memory=True, memory_limit_bytes=3 << 29)) == (
        "it exited with code 0, after the kernel had killed some of it: out of memory (limit 1536 MiB)"
    )
    assert ending(Exited(None, 9, 0, 1)) == "it was killed by signal 9"
    assert ending(Exited(127, None, 0, 1, message="no such program.")) == (
        "its program could not be started: no such program."
    )
    assert ending(Lost("it was killed.")) == "its process was lost: it was killed."


DETACHED = (
    "import os, time\n"
    "ready, say = os.pipe()\n"
    "if not os.fork():\n"
    "    os.setsid()\n"
    "    if os.fork(): os._exit(0)\n"
    "    os.setsid()\n"
    "    os.write(1, f'daemon {os.getpid()}\\n'.encode())\n"
    "    null = os.open(os.devnull, os.O_RDWR)\n"
    "    for fd in (0, 1, 2): os.dup2(null, fd)\n"
    "    os.write(say, b'.')\n"
    "    time.sleep(600)\n"
    "os.read(ready, 1); print('detached', flush=True); time.sleep(600)"
)


def test_a_killed_shim_leaves_no_descendant_however_detached(grouped: GroupedBench) -> None:
    """In a session of its own, no pipe to us, its parent dead: only the group still knows it."""
    grouped.python(DETACHED)
    grouped.says("detached")
    daemon = grouped.pid_after("daemon")
    assert is_running(daemon)
    os.kill(grouped.shim(), signal.SIGKILL)
    assert isinstance(grouped.end(), Lost)
    assert not is_running(daemon)
    assert grouped.folders() == []


def test_a_next_daemon_finds_them_too(grouped: GroupedBench) -> None:
    grouped.python(DETACHED)
    grouped.says("detached")
    daemon, shim = grouped.pid_after("daemon"), grouped.shim()
    grouped.supervisor.close()
    os.kill(shim, signal.SIGKILL)
    os.waitpid(shim, 0)
    assert is_running(daemon)
    after = grouped.again(groups=None)  # one that makes no groups: the record says where they are
    after.adopt()
    assert isinstance(grouped.end(supervisor=after), Lost)
    assert not is_running(daemon)
    assert grouped.folders() == []


def test_the_end_of_a_program_ends_all_in_its_group_and_the_group(grouped: GroupedBench) -> None:
    """Also what never was a descendant: a terminal that somebody moved into it."""
    stranger = os.posix_spawn("/bin/sleep", ["sleep", "600"], {})
    try:
        grouped.sh("echo up; sleep 600")
        grouped.says("up")
        assert Group(list(map(os.fspath, grouped.folders()))).enter(stranger) == ""
        grouped.supervisor.stop("p", 30)
        grouped.exited()
        assert not is_running(stranger)
        assert grouped.folders() == []
    finally:
        os.kill(stranger, signal.SIGKILL)
        os.waitpid(stranger, 0)


def test_groups_that_a_program_made_beneath_its_own_end_with_it(grouped: GroupedBench) -> None:
    needs_root()
    make = "; ".join(f"mkdir {each}/inner; echo $$ > {each}/inner/cgroup.procs" for each in grouped.groups.folders("p"))
    grouped.sh(f"sh -c '{make}; echo in; sleep 600' & sleep 600")
    grouped.says("in\n")
    grouped.supervisor.stop("p", 0)
    grouped.exited()
    assert grouped.folders() == []


def test_the_group_of_a_forgotten_process_is_removed(grouped: GroupedBench) -> None:
    """Here its shim was killed when all was recorded but this."""
    grouped.sh("exit 0")
    grouped.exited()
    grouped.groups.make("p", Bounds())
    assert grouped.folders()
    grouped.supervisor.forget("p")
    assert grouped.folders() == []


def test_groups_of_which_nothing_is_known_are_ended_by_the_next_daemon(grouped: GroupedBench) -> None:
    """A start's daemon was killed before its intent was on the disk; or somebody deleted the folder."""
    grouped.sh("echo up; sleep 600")
    grouped.says("up")
    pid, shim = grouped.alive().pid, grouped.shim()
    assert pid
    grouped.groups.make("stale", Bounds())
    assert grouped.groups.processes() == {"p", "stale"}
    grouped.supervisor.close()
    (grouped.folder / "p").rename(grouped.root / "gone")

    def has_ended_them() -> bool:
        grouped.again().adopt()
        return not grouped.groups.processes()

    until(has_ended_them)
    assert not is_running(pid)
    os.waitpid(shim, 0)


def test_whose_tree_a_process_is_of_is_known_by_its_group_or_its_descent(grouped: GroupedBench) -> None:
    def pid_of(supervisor: Supervisor, process: str) -> int | None:
        seen = supervisor.observe(process)
        assert isinstance(seen, Alive)
        return seen.pid

    for process, options in (("grouped", {}), ("bare", {"groups": None})):
        supervisor = grouped.again(**options)
        supervisor.start(process, grouped.command("sh", "-c", f"sh -c 'echo {process} $$; sleep 600' & wait"))
        inner = grouped.pid_after(process)
        until(partial(pid_of, supervisor, process))
        for pid in (inner, grouped.shim(process)):
            assert supervisor.tree_of(pid) == process
        later = grouped.again(**options)
        later.adopt()
        assert later.tree_of(inner) == process
        assert later.tree_of(os.getpid()) is None
        assert later.tree_of(1) is None
        assert later.tree_of(2**22 - 1) is None
