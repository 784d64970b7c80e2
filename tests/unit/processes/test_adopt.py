"""A daemon that comes back finds everything; here a second supervisor is that daemon (tests/system has kill -9)."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import uvloop

from stokerd.processes.spares import SHIM
from stokerd.processes.states import Absent, Alive, Exited, Lost
from tests.harness import DEADLINE
from tests.process_kit import Bench, is_running, until


def test_a_new_daemon_finds_the_same_program_and_its_end(bench: Bench) -> None:
    bench.sh("echo up; sleep 600")
    before = bench.alive()
    bench.supervisor.close()
    new = bench.again()
    new.adopt()
    assert new.observe("p") == before
    assert new.ids() == ["p"]
    new.stop("p", 30)
    assert bench.exited(supervisor=new).signal == signal.SIGTERM


def test_an_end_while_no_daemon_was_there_is_not_lost(bench: Bench) -> None:
    bench.sh("exit 6")
    bench.supervisor.close()
    until((bench.folder / "p" / "exit.json").exists)
    new = bench.again()
    new.adopt()
    assert bench.exited(supervisor=new).exit_code == 6


def test_a_new_daemon_shortens_the_grace_that_the_old_one_gave(bench: Bench) -> None:
    bench.sh("trap '' TERM; echo up; while :; do sleep 1; done")
    bench.says("up")
    bench.supervisor.stop("p", 600)
    bench.supervisor.close()
    new = bench.again()
    new.stop("p", 600)
    new.stop("p", 0.1)
    assert bench.exited(supervisor=new).signal == signal.SIGKILL


@pytest.mark.parametrize("new_loop", [asyncio.new_event_loop, uvloop.new_event_loop], ids=["asyncio", "uvloop"])
def test_changes_are_told_in_the_loop_as_they_happen(bench: Bench, new_loop: object) -> None:
    """Start, end, and the end of an adopted one; without anybody asking."""
    told: list[tuple[str, str]] = []

    async def live() -> None:
        def tell(process: str) -> None:
            told.append((process, type(supervisor.observe(process)).__name__))
            changed.set()

        async def heard(count: int) -> None:
            async with asyncio.timeout(DEADLINE):
                while len(told) < count:
                    changed.clear()
                    await changed.wait()

        changed = asyncio.Event()
        supervisor = bench.again(on_change=tell)
        supervisor.adopt()
        supervisor.start("new", bench.command("sh", "-c", "read x < gate; exit 3", cwd=os.fspath(bench.root)))
        await heard(1)
        assert told[0] == ("new", "Alive")
        (bench.root / "gate").write_text("")  # a fifo: the program waits for this
        await heard(2)
        assert told[1] == ("new", "Exited")
        assert adopted
        os.kill(adopted, signal.SIGKILL)
        await heard(3)
        assert told[2] == ("p", "Exited")
        supervisor.close()

    os.mkfifo(bench.root / "gate")
    bench.sh("sleep 600")
    adopted = bench.alive().pid
    bench.supervisor.close()
    with asyncio.Runner(loop_factory=new_loop) as runner:  # type: ignore[arg-type]
        runner.run(live())
    assert len(told) == 3


def test_a_killed_shim_is_told_and_its_tree_dies(bench: Bench) -> None:
    told: list[object] = []

    async def live() -> None:
        changed = asyncio.Event()
        supervisor = bench.again(on_change=lambda _: changed.set())
        supervisor.adopt()
        os.kill(bench.shim(), signal.SIGKILL)
        async with asyncio.timeout(DEADLINE):
            while not isinstance(seen := supervisor.observe("p"), Lost):
                changed.clear()
                await changed.wait()
        told.append(seen)
        supervisor.close()

    bench.sh("echo main $$; (trap '' TERM; setsid sh -c 'echo session $$; sleep 600') & (sleep 600) & wait")
    main, session = bench.pid_after("main"), bench.pid_after("session")
    asyncio.run(live())
    assert isinstance(told[-1], Lost)
    until(lambda: not is_running(main))  # by the kernel
    until(lambda: not is_running(session))  # by the supervisor: it held the log pipe, though in another session


def test_what_a_killed_shim_left_is_killed_by_the_next_daemon(bench: Bench) -> None:
    """No pipe betrays this one: it is known by its session, and by having started while the shim still lived."""
    bench.sh("sh -c 'echo worker $$; exec >/dev/null 2>&1; sleep 600' & echo up; wait")
    bench.says("up")
    worker = bench.pid_after("worker")
    lock = bench.folder / "p" / "lock"
    started = int(Path(f"/proc/{worker}/stat").read_bytes().rpartition(b")")[2].split()[19])
    until(lambda: int(lock.read_text()) > started)  # a heartbeat
    bench.supervisor.close()
    shim = bench.shim()
    os.kill(shim, signal.SIGKILL)
    os.waitpid(shim, 0)
    assert is_running(worker)
    new = bench.again()
    new.adopt()
    assert bench.end(supervisor=new) == Lost("Its shim is gone and left no exit status: it was killed.")
    assert not is_running(worker)


def test_what_left_the_session_and_closed_the_pipe_is_known_by_its_environment(bench: Bench, tmp_path: Path) -> None:
    """A daemon that the program made. Those of other starts, whose marks resemble its own, are let live."""
    bench.sh("(setsid sh -c 'echo daemon $$; exec >/dev/null 2>&1; cd /; exec sleep 600' &); echo up; exec sleep 600")
    bench.says("up")
    daemon = bench.pid_after("daemon")
    until(lambda: Path(f"/proc/{daemon}/comm").read_text() == "sleep\n")
    (tmp_path / "other").mkdir()
    other = Bench(tmp_path / "other")  # another home, in which a process of the same name lives
    other.sh("echo up; exec sleep 600")
    other.says("up")
    mark = mark_in(daemon)
    name, pid, ticks, inode = mark.split(":")
    assert (name, int(pid)) == ("p", bench.alive().pid)
    strange = {"STOKER_PROCESS": f"p:{pid}:{int(ticks) + 1}:{inode}", "MY_STOKER_PROCESS": mark}
    bystanders = [
        os.posix_spawn("/bin/sleep", ["sleep", "600"], env, setsid=True)
        for env in (strange, {"STOKER_PROCESS": f"{mark}1"}, {})
    ]
    try:
        bench.supervisor.close()
        os.kill(bench.shim(), signal.SIGKILL)
        new = bench.again()
        new.adopt()
        assert isinstance(bench.end(supervisor=new), Lost)
        assert not is_running(daemon)
        assert all(is_running(each) for each in bystanders)
        assert isinstance(other.supervisor.observe("p"), Alive)
        assert is_running(other.alive().pid or 0)
    finally:
        for each in bystanders:
            os.kill(each, signal.SIGKILL)
            os.waitpid(each, 0)
        other.clean()


def mark_in(pid: int) -> str:
    environ = Path(f"/proc/{pid}/environ").read_text().split("\0")
    (mark,) = [each for each in environ if each.startswith("STOKER_PROCESS=")]
    return mark.partition("=")[2]


def test_a_program_dies_with_its_shim_even_when_no_daemon_is_there(bench: Bench) -> None:
    bench.sh("echo up; sleep 600")
    bench.says("up")
    pid = bench.alive().pid
    assert pid
    bench.supervisor.close()
    os.kill(bench.shim(), signal.SIGKILL)
    until(lambda: not is_running(pid))


def test_what_was_lost_is_not_started_again_under_its_id(bench: Bench) -> None:
    bench.sh("echo started; sleep 600")
    bench.says("started")
    os.kill(bench.shim(), signal.SIGKILL)
    lost = bench.end()
    bench.sh("echo started; sleep 600")
    assert bench.supervisor.observe("p") == lost
    assert bench.again().observe("p") == lost
    assert bench.text().count("started") == 1


def test_a_shim_that_comes_late_to_a_folder_that_has_run_leaves_it_alone(bench: Bench) -> None:
    """Started by a daemon that was killed then, and scheduled only after another shim had done the work."""
    bench.sh("echo started; exit 3")
    end = bench.exited()
    subprocess.run([sys.executable, "-I", "-S", SHIM, bench.folder / "p"], check=True)
    assert bench.text().count("started") == 1
    assert bench.again().observe("p") == end


def test_a_shim_that_dies_before_it_started_the_program_is_lost_not_absent(bench: Bench) -> None:
    """Absent would have the daemon start it again and again, and nobody would ever hear why."""
    (bench.folder / "p" / "exit.json.reserve").mkdir(parents=True)
    bench.sh("echo never")
    end = bench.end()
    assert isinstance(end, Lost)
    assert end.message.startswith("Its shim ended before it could start the program: IsADirectoryError")
    assert bench.text() == ""


@pytest.mark.parametrize("junk", [b"", b"{", b"[]", b"{}", b'{"exit_code": "x"}', b"\xff\xfe"])
@pytest.mark.parametrize("name", ["exit.json", "child.json"])
def test_a_record_that_cant_be_read_is_lost_with_the_reason(bench: Bench, name: str, junk: bytes) -> None:
    bench.sh("exit 0")
    bench.exited()
    (bench.folder / "p" / "exit.json").unlink()
    (bench.folder / "p" / name).write_bytes(junk)
    seen = bench.again().observe("p")
    assert isinstance(seen, Lost)
    assert name in seen.message
    bench.again().adopt()


def test_half_removed_folders_are_cleaned_up_and_strange_files_are_left(bench: Bench) -> None:
    (bench.folder / ".forgotten-p-1").mkdir(parents=True)
    (bench.folder / "a file").write_text("")
    (bench.folder / "empty").mkdir()
    bench.supervisor.adopt()
    assert bench.supervisor.ids() == ["empty"]
    assert bench.supervisor.observe("empty") == Absent()
    assert sorted(each.name for each in bench.folder.iterdir()) == ["a file", "empty"]


def test_what_a_killed_daemon_wrote_half_is_cleaned_up_and_a_shims_is_left(bench: Bench) -> None:
    bench.sh("sleep 600")
    bench.alive()
    for name in ("command.json.17.tmp", "stop.json.17.tmp", "exit.json.17.tmp"):
        (bench.folder / "p" / name).write_text('{"half')
    again = bench.again()
    again.adopt()
    assert isinstance(again.observe("p"), Alive)
    assert [f.name for f in (bench.folder / "p").glob("*.tmp")] == ["exit.json.17.tmp"]


def test_looking_is_cheap(bench: Bench) -> None:
    bench.sh("sleep 600")
    bench.alive()
    bench.sh("exit 0", "q")
    bench.exited("q")
    began = time.process_time()
    for _ in range(1000):
        assert isinstance(bench.supervisor.observe("p"), Alive)
        assert isinstance(bench.supervisor.observe("q"), Exited)
    assert (time.process_time() - began) / 2000 < 100e-6


def test_a_supervisor_that_cant_see_concludes_nothing(bench: Bench) -> None:
    """Out of file descriptors is no reason to say that a program is gone."""
    import resource

    from stoker.errors import Unavailable

    bench.sh("sleep 600")
    bench.alive()
    new = bench.again()
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    in_use = max(int(fd) for fd in os.listdir("/proc/self/fd")) + 1  # noqa: PTH208
    resource.setrlimit(resource.RLIMIT_NOFILE, (in_use, hard))
    hogs = []
    try:
        while True:
            hogs.append(os.open("/dev/null", os.O_RDONLY))
    except OSError:
        with pytest.raises(Unavailable) as blind:
            new.observe("p")
        assert blind.value.hint
        with pytest.raises(Unavailable) as blind:
            new.ids()
        assert blind.value.hint
        with pytest.raises(Unavailable):
            new.start("q", bench.command("true"))
    finally:
        for fd in hogs:
            os.close(fd)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert isinstance(new.observe("p"), Alive)
    new.start("q", bench.command("true"))
    assert bench.exited("q", new).exit_code == 0
