"""What systemd hands to the daemon and hears from it."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest

from stoker.errors import Unavailable
from stokerd.api.server import listen
from stokerd.notify import JournalFormatter, Notifier, is_journal, prefix, take

READY, BEAT = b"READY=1", b"WATCHDOG=1"


@pytest.fixture(params=["path", "abstract"])
def manager(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[str, socket.socket]]:
    """systemd's end, and its address as NOTIFY_SOCKET names it."""
    address = f"@stoker-{os.getpid()}" if request.param == "abstract" else str(tmp_path / "n")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as end:
        end.bind("\0" + address[1:] if address[0] == "@" else address)
        end.settimeout(20)
        yield address, end


def test_it_says_what_systemd_listens_for(manager: tuple[str, socket.socket]) -> None:
    address, end = manager
    notifier = Notifier(address)
    notifier.status("two\nlines")
    notifier.ready()
    notifier.stopping()
    assert [end.recv(100) for _ in range(3)] == [b"STATUS=two lines", READY, b"STOPPING=1"]


def test_ready_comes_when_it_serves_and_beats_come_from_the_loop_alone(manager: tuple[str, socket.socket]) -> None:
    address, end = manager
    serving: list[bool] = []

    async def live() -> None:
        task = asyncio.create_task(Notifier(address, 0.3).run(lambda: bool(serving), "serves"))
        end.setblocking(False)
        await asyncio.sleep(0.05)
        with pytest.raises(BlockingIOError):
            end.recv(100)
        serving.append(True)
        heard: list[bytes] = []
        while heard.count(BEAT) < 3:
            await asyncio.sleep(0.01)
            with contextlib.suppress(BlockingIOError):
                heard.append(end.recv(100))
        assert heard[:2] == [b"STATUS=serves", READY]
        with contextlib.suppress(BlockingIOError):
            while True:
                end.recv(100)
        end.settimeout(0.5)  # holds the loop: nothing beats
        with pytest.raises(TimeoutError):
            end.recv(100)
        task.cancel()

    asyncio.run(live())


def test_nobody_listens_and_nothing_happens() -> None:
    Notifier().ready()
    Notifier("/nowhere").ready()


def test_what_is_for_the_daemon_is_taken_out_of_the_environment() -> None:
    me = str(os.getpid())
    environ = {"NOTIFY_SOCKET": "/n", "WATCHDOG_USEC": "3000000", "WATCHDOG_PID": me, "LISTEN_FDS": "1", "PATH": "/bin"}
    service = take(environ | {"LISTEN_PID": "1"})
    assert (service.notifier.watchdog_seconds, service.listener) == (3.0, None)
    assert take({"WATCHDOG_USEC": "3000000", "WATCHDOG_PID": "1"}).notifier.watchdog_seconds is None
    assert take({"WATCHDOG_USEC": "3000000"}).notifier.watchdog_seconds == 3.0
    take(environ)
    assert environ == {"PATH": "/bin"}


def run_activated(listener: socket.socket, script: str) -> subprocess.CompletedProcess[str]:
    """As systemd does: the socket is file 3, LISTEN_PID the program's."""
    code = f"""
        import os
        os.dup2({listener.fileno()}, 3)
        os.environ["LISTEN_FDS"], os.environ["LISTEN_PID"] = "1", str(os.getpid())
        from stokerd.notify import take
        {script}
        """
    command = [sys.executable, "-c", textwrap.dedent(code)]
    return subprocess.run(command, pass_fds=[listener.fileno()], capture_output=True, text=True, check=False)


def test_a_listening_socket_is_taken_and_children_do_not_get_it(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "s"))
        listener.listen()
        told = run_activated(listener, "l = take(os.environ).listener; print(l.getsockname(), os.get_inheritable(3))")
    assert (told.stdout, told.stderr) == (f"{tmp_path / 's'} False\n", "")


def test_another_kind_of_socket_is_refused() -> None:
    with socket.socket() as listener:
        told = run_activated(listener, "take(os.environ)")
    assert "takes one listening Unix socket" in told.stderr


def test_a_handed_socket_must_be_where_clients_look(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "s"))
        listener.listen()
        assert listen(tmp_path / "s", listener) is listener
        with pytest.raises(Unavailable, match="listens on"):
            listen(tmp_path / "other", listener)


def test_the_journal_gets_a_priority_on_each_line() -> None:
    record = logging.LogRecord("a.b", logging.ERROR, "", 0, "one\ntwo %s", ("three",), None)
    assert JournalFormatter().format(record) == "<3>a.b: one\n<3>two three"
    levels = (logging.DEBUG, logging.INFO, logging.WARNING, logging.CRITICAL)
    assert [prefix(x) for x in levels] == ["<7>", "<6>", "<4>", "<2>"]


def test_a_file_is_the_journal_when_systemd_says_it_is(tmp_path: Path) -> None:
    with (tmp_path / "f").open("w") as file:
        found = os.fstat(file.fileno())
        assert is_journal({"JOURNAL_STREAM": f"{found.st_dev}:{found.st_ino}"}, file.fileno())
        assert not is_journal({"JOURNAL_STREAM": "1:2"}, file.fileno())
        assert not is_journal({}, file.fileno())
