from __future__ import annotations

import os
import signal
import socket
import sys
import time
from pathlib import Path

import pytest

from stoker.errors import Invalid, Unavailable
from stokerd.processes.states import Absent, Alive, Command
from tests.process_kit import Bench, until


def test_the_exit_code_and_both_output_streams_are_kept(bench: Bench) -> None:
    asked = time.time()
    bench.sh("echo out; echo err >&2; exit 7")
    end = bench.exited()
    assert (end.exit_code, end.signal, end.message) == (7, None, "")
    assert asked <= end.started_at <= end.ended_at <= time.time()
    assert sorted(bench.text().split()) == ["err", "out"]


def test_the_signal_that_ended_a_program_is_kept(bench: Bench) -> None:
    bench.sh("kill -SEGV $$")
    end = bench.exited()
    assert (end.exit_code, end.signal) == (None, signal.SIGSEGV)


def test_the_program_has_exactly_the_environment_it_was_given_its_folder_and_an_empty_stdin(bench: Bench) -> None:
    env = {"A": "1", "ÜMLAUT": "ß", "BYTES": "\udcff", "EMPTY": ""}
    script = "import os, sys; print(sorted(os.environb.items()), os.getcwd(), repr(sys.stdin.read()), sys.argv[1])"
    argv = (sys.executable, "-I", "-S", "-c", script, "é")
    bench.supervisor.start("p", Command(argv, os.fspath(bench.root), env, os.fspath(bench.log)))
    assert bench.exited().exit_code == 0
    got = bench.log.read_bytes().decode()
    child, inode = bench.record("child.json")["child"], (bench.folder / "p").stat().st_ino
    env |= {"STOKER_PROCESS": f"p:{child['pid']}:{child['start_ticks']}:{inode}"}  # by which its tree is known
    expected = sorted((os.fsencode(name), os.fsencode(value)) for name, value in env.items())
    # CPython itself may add LC_CTYPE to an environment without a locale (PEP 538).
    assert got.replace(", (b'LC_CTYPE', b'C.UTF-8')", "") == f"{expected} {bench.root} '' é\n"


def test_the_program_is_not_deaf_to_signals_and_inherits_no_descriptors(bench: Bench) -> None:
    listener = socket.create_server(("127.0.0.1", 0))
    listener.set_inheritable(True)
    with listener:
        bench.sh("grep -E 'SigBlk|SigIgn' /proc/self/status; ls /proc/self/fd; sleep 600")
        bench.says("\n3\n")  # of ls itself
        shim_fds = [link.readlink() for link in Path(f"/proc/{bench.shim()}/fd").iterdir()]
    _, blocked, _, ignored, *fds = bench.text().split()
    assert int(blocked, 16) == 0
    assert int(ignored, 16) & ~(0b11 << 31) == 0  # 32 and 33 are glibc's own, and can't be set
    assert fds == ["0", "1", "2", "3"]
    assert not [target for target in map(str, shim_fds) if target.startswith("socket:")]


@pytest.mark.parametrize(
    ("argv", "cwd", "code", "sentence"),
    [
        (("no-such-program",), "/", 127, "The program 'no-such-program' was not found in its PATH (/usr/bin:/bin)."),
        (("/no/such",), "/", 127, "The program '/no/such' was not found."),
        (("/etc/passwd",), "/", 126, "The program '/etc/passwd' can't be executed: Permission denied."),
        (("true",), "/no/such", 126, "The working directory '/no/such' can't be entered: No such file or directory."),
    ],
)
def test_a_program_that_cant_be_started_says_why(
    bench: Bench, argv: tuple[str, ...], cwd: str, code: int, sentence: str
) -> None:
    bench.supervisor.start("p", bench.command(*argv, cwd=cwd))
    end = bench.exited()
    assert (end.exit_code, end.signal, end.message) == (code, None, sentence)


def test_a_script_without_its_interpreter_says_so(bench: Bench) -> None:
    script = bench.root / "script"
    script.write_text("#!/no/such/python\n")
    script.chmod(0o755)
    bench.supervisor.start("p", bench.command(os.fspath(script)))
    assert bench.exited().message == f"The interpreter that '{script}' names in its first line was not found."


def test_a_start_that_is_asked_for_again_is_no_second_start(bench: Bench) -> None:
    for _ in range(3):
        bench.sh("echo started; read x < fifo || sleep 600")
    alive = bench.alive()
    bench.says("started")
    bench.sh("echo started; sleep 600")
    assert bench.alive() == alive
    bench.supervisor.stop("p", 0)
    end = bench.exited()
    bench.sh("echo started; sleep 600")
    assert bench.exited() == end
    assert bench.text().count("started") == 1


def test_two_shims_for_one_folder_start_one_program(bench: Bench) -> None:
    """Two daemons' starts may overlap: the first was killed just after it had started the shim."""
    other = bench.again()
    command = bench.command("sh", "-c", "echo started; sleep 600")
    bench.supervisor._find_shim = lambda *_: False  # type: ignore[method-assign]
    other._find_shim = lambda *_: False  # type: ignore[method-assign]
    bench.supervisor.start("p", command)
    other.start("p", command)
    del bench.supervisor._find_shim, other._find_shim
    bench.says("started")
    survivors = [s.observe("p") for s in (bench.supervisor, other, bench.again())]
    assert len({a.pid for a in survivors if isinstance(a, Alive) and a.pid}) == 1
    bench.supervisor.stop("p", 0)
    assert bench.exited("p").signal is not None
    assert bench.text().count("started") == 1


def test_an_intent_whose_shim_was_never_started_is_absent_and_can_be_started(bench: Bench) -> None:
    folder = bench.folder / "p"
    folder.mkdir(parents=True)
    (folder / "command.json.17.tmp").write_text('{"argv": ["sl')
    assert bench.supervisor.observe("p") == Absent()
    (folder / "command.json").write_text('{"argv": ["sl')
    assert bench.supervisor.observe("p") == Absent()
    bench.sh("exit 3")
    assert bench.exited().exit_code == 3


@pytest.mark.parametrize("process", ["", "..", ".hidden", "a/b", "a b", "ü", "-x", "x" * 201])
def test_ids_that_would_leave_the_folder_are_refused(bench: Bench, process: str) -> None:
    with pytest.raises(Invalid):
        bench.supervisor.start(process, bench.command("true"))
    with pytest.raises(Invalid):
        bench.supervisor.observe(process)


@pytest.mark.parametrize(
    "change",
    [
        {"argv": ()},
        {"argv": ("",)},
        {"argv": ("true", "a\0b")},
        {"argv": ("true", "\ud800")},
        {"cwd": "here"},
        {"log": "p.log"},
        {"env": {"": "x"}},
        {"env": {"A=B": "x"}},
    ],
)
def test_a_command_that_no_kernel_would_take_is_refused_and_leaves_nothing(
    bench: Bench, change: dict[str, object]
) -> None:
    command = {"argv": ("true",), "cwd": "/", "env": {}, "log": os.fspath(bench.log)} | change
    with pytest.raises(Invalid) as refused:
        bench.supervisor.start("p", Command(**command))  # type: ignore[arg-type]
    assert refused.value.hint
    assert bench.supervisor.ids() == []


def test_a_home_that_cant_be_written_says_so_and_a_later_start_works(bench: Bench) -> None:
    bench.folder.write_text("a file where a folder should be")
    with pytest.raises(Unavailable, match="Not a directory"):
        bench.sh("exit 0")
    bench.folder.unlink()
    bench.sh("exit 0")
    assert bench.exited().exit_code == 0


def test_secrets_in_the_environment_are_for_the_owner_alone(bench: Bench) -> None:
    bench.sh("exit 0")
    bench.exited()
    assert (bench.folder / "p").stat().st_mode & 0o777 == 0o700
    assert (bench.folder / "p" / "command.json").stat().st_mode & 0o777 == 0o600


def test_the_shim_leaves_rusage(bench: Bench) -> None:
    bench.python("sum(range(2_000_000)); x = bytearray(30 << 20)")
    bench.exited()
    usage = bench.record("exit.json")["rusage"]
    assert usage["user_seconds"] > 0.005
    assert usage["max_rss_bytes"] > 30 << 20


def test_the_shim_is_light(bench: Bench) -> None:
    bench.sh("echo running; sleep 600")
    bench.says("running")
    status = Path(f"/proc/{bench.shim()}/status").read_text()
    rss = int(status.partition("VmRSS:")[2].split()[0])
    assert rss < 12_288  # kB; a module like typing or pathlib among its imports would show here
    assert "Threads:\t1\n" in status  # PR_SET_PDEATHSIG follows the thread that forked


@pytest.mark.parametrize("number", range(10))
def test_a_signal_that_comes_before_the_program_is_there_is_not_lost(bench: Bench, number: int) -> None:
    process = f"p{number}"
    bench.supervisor.start(process, bench.command("sleep", "600"))
    until((bench.folder / process / "child.json").exists)  # written while the child waits for its go-ahead
    os.kill(int(bench.record("child.json", process)["child"]["pid"]), signal.SIGTERM)
    assert bench.exited(process).signal == signal.SIGTERM
