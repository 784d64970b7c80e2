from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path

import pytest

from stoker.errors import Conflict
from stokerd.processes.spares import SHIM
from stokerd.processes.states import Absent, Alive
from tests.process_kit import Bench, is_running, until

# os.write, not print: the handler may run in the middle of a print, which would be a reentrant call.
DEAF = """
import os, signal, time
signal.signal(signal.SIGTERM, lambda *_: os.write(1, b'heard\\n'))
os.write(1, b'up\\n')
while True: time.sleep(0.05)
"""


def test_a_program_may_end_in_its_own_way_when_asked(bench: Bench) -> None:
    bench.sh("trap 'echo bye; exit 4' TERM; echo up; while :; do sleep 0.01; done")
    bench.says("up")
    bench.supervisor.stop("p", 600)
    assert bench.exited().exit_code == 4
    assert "bye" in bench.text()
    assert bench.record("exit.json")["stop_asked"] is True


def test_a_program_that_is_deaf_is_killed_after_its_grace(bench: Bench) -> None:
    bench.python(DEAF)
    bench.says("up")
    bench.supervisor.stop("p", 600)
    bench.says("heard")
    assert isinstance(bench.supervisor.observe("p"), Alive)
    asked = time.monotonic()
    bench.supervisor.stop("p", 0.3)
    assert bench.exited().signal == signal.SIGKILL
    assert time.monotonic() - asked >= 0.3


def test_asking_again_shortens_the_grace_and_never_prolongs_it_and_signals_once(bench: Bench) -> None:
    bench.python(DEAF)
    bench.says("up")
    bench.supervisor.stop("p", 3600)
    bench.says("heard")
    bench.supervisor.stop("p", 3600)
    bench.supervisor.stop("p", 0.2)
    bench.supervisor.stop("p", 3600)
    assert bench.exited().signal == signal.SIGKILL
    assert bench.text().count("heard") == 1


def test_a_stop_right_after_the_start_is_not_lost(bench: Bench) -> None:
    bench.sh("sleep 600")
    bench.supervisor.stop("p", 600)
    assert bench.exited().signal == signal.SIGTERM


def test_a_program_that_was_frozen_hears_that_it_should_end(bench: Bench) -> None:
    """One with a handler of its own, that is: the kernel ends the others, frozen or not."""
    bench.python(DEAF.replace(r"os.write(1, b'heard\n')", "os._exit(4)"))
    bench.says("up")
    pid = bench.alive().pid
    assert pid
    os.kill(pid, signal.SIGSTOP)
    bench.supervisor.stop("p", 600)
    assert bench.exited().exit_code == 4


def test_a_frozen_shim_is_woken_by_a_stop(bench: Bench) -> None:
    bench.sh("echo up; exec sleep 600")
    bench.says("up")
    os.kill(bench.shim(), signal.SIGSTOP)
    bench.supervisor.stop("p", 600)
    assert bench.exited().signal == signal.SIGTERM


@pytest.mark.parametrize("trap", ["", "trap 'exit 0' TERM;"], ids=["dies", "exits"])
def test_a_signal_to_all_is_a_stop_though_the_program_dies_before_its_shim_has_sent_one(
    bench: Bench, trap: str
) -> None:
    """As systemd does at a shutdown: all are halted, told to end, and go on."""
    bench.sh(f"{trap} echo up; while :; do sleep 0.01; done")
    bench.says("up")
    shim, child = bench.shim(), bench.alive().pid
    assert child
    os.kill(shim, signal.SIGSTOP)
    until(lambda: _state(shim) == "T")
    os.kill(shim, signal.SIGTERM)
    os.kill(child, signal.SIGTERM)
    until(lambda: _state(child) == "Z")
    os.kill(shim, signal.SIGCONT)
    end = bench.exited()
    assert (end.exit_code, end.signal) == ((0, None) if trap else (None, signal.SIGTERM))
    assert end.was_asked


def test_a_stop_before_the_program_was_started_is_one_too(bench: Bench) -> None:
    """The shim hears of it when its command is only being looked at: nothing was started then."""
    folder = bench.folder / "p"
    bench.sh("exit 3")
    bench.exited()
    for name in ("child.json", "exit.json", "lock"):
        (folder / name).unlink()
    pid = os.posix_spawn(
        sys.executable, [sys.executable, "-I", "-S", os.fspath(SHIM), os.fspath(folder)], {}, setsid=True,
        setsigmask=[signal.SIGTERM],
    )  # fmt: skip
    os.kill(pid, signal.SIGTERM)
    os.waitpid(pid, 0)
    end = bench.exited(supervisor=bench.again())
    assert (end.signal, end.was_asked) == (signal.SIGTERM, True)


def _state(pid: int) -> str:
    return Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()[0].decode()


def test_stopping_what_is_absent_or_over_does_nothing(bench: Bench) -> None:
    bench.supervisor.stop("p", 1)
    assert bench.supervisor.observe("p") == Absent()
    bench.sh("exit 0")
    end = bench.exited()
    bench.supervisor.stop("p", 1)
    assert bench.exited() == end


def test_the_whole_tree_ends_with_its_program(bench: Bench) -> None:
    """A child, a daemon in a session of its own, and one that holds the log pipe: as an engine leaves its workers."""
    bench.python(
        "import os, time\n"
        "ready, say = os.pipe()\n"
        "def fork(word, *, detach):\n"
        "    if os.fork(): return\n"
        "    if detach:\n"
        "        os.setsid()\n"
        "        if os.fork(): os._exit(0)\n"
        "    os.write(1, f'{word} {os.getpid()}\\n'.encode())\n"
        "    os.write(say, b'.')\n"
        "    if detach: os.closerange(0, 9)\n"
        "    time.sleep(600)\n"
        "fork('child', detach=False); fork('daemon', detach=True)\n"
        "os.read(ready, 1); os.read(ready, 1)\n"
        "raise SystemExit(9)"
    )
    child, daemon = bench.pid_after("child"), bench.pid_after("daemon")
    assert bench.exited().exit_code == 9
    assert not is_running(child)
    assert not is_running(daemon)
    assert bench.record("exit.json")["remains"] == []


def test_a_stop_reaches_the_whole_tree(bench: Bench) -> None:
    bench.sh("trap '' TERM; (trap '' TERM; setsid sleep 600) & sh -c 'echo inner $$; sleep 600' & echo up; wait; wait")
    bench.says("up")
    inner = bench.pid_after("inner")
    bench.supervisor.stop("p", 0.1)
    assert bench.exited().signal == signal.SIGKILL
    assert not is_running(inner)


def test_orphans_of_the_tree_are_buried_while_the_program_lives(bench: Bench) -> None:
    bench.sh("for i in 1 2 3; do (sh -c 'echo orphan $$' &); done; sleep 600")
    until(lambda: bench.text().count("orphan") == 3)
    pids = [int(line.split()[1]) for line in bench.text().splitlines()]
    until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in pids))
    assert isinstance(bench.supervisor.observe("p"), Alive)


def test_a_program_that_closes_its_output_lives_on(bench: Bench) -> None:
    bench.sh("echo up; exec >/dev/null 2>&1; sleep 600")
    bench.says("up")
    schedstat = Path(f"/proc/{bench.shim()}/schedstat")
    before, began = int(schedstat.read_text().split()[0]), time.monotonic_ns()
    until(lambda: time.monotonic_ns() > began + 300e6)
    on_cpu = int(schedstat.read_text().split()[0]) - before
    assert on_cpu < (time.monotonic_ns() - began) / 6  # it does not spin on the closed pipe
    assert isinstance(bench.supervisor.observe("p"), Alive)


def test_ctrl_c_and_hang_up_in_the_daemons_terminal_do_not_reach_shim_or_program(bench: Bench) -> None:
    bench.sh("echo up; sleep 600")
    bench.says("up")
    shim, child = bench.shim(), bench.alive().pid
    assert child
    assert os.getsid(shim) == shim != os.getsid(0)
    assert os.getsid(child) == child == os.getpgid(child)
    for number in (signal.SIGINT, signal.SIGHUP, signal.SIGQUIT):
        os.kill(shim, number)
    assert bench.again().observe("p") == bench.alive()


def test_what_is_alive_cant_be_forgotten_and_what_is_forgotten_can_be_started_anew(bench: Bench) -> None:
    bench.sh("sleep 600")
    with pytest.raises(Conflict):
        bench.supervisor.forget("p")
    bench.supervisor.stop("p", 0)
    bench.end()
    assert bench.supervisor.ids() == ["p"]
    bench.supervisor.forget("p")
    bench.supervisor.forget("p")
    assert bench.supervisor.ids() == []
    assert bench.supervisor.observe("p") == Absent()
    assert list(bench.folder.iterdir()) == []
    bench.sh("exit 5")
    assert bench.exited().exit_code == 5
