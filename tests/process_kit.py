"""A bench on which to start real processes, and the promise that none outlives its test."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import pytest

from stokerd.processes.states import Alive, Command, Exited, Lost
from stokerd.processes.supervisor import Supervisor
from tests.harness import DEADLINE

T = TypeVar("T")


def until(condition: Callable[[], T | None], seconds: float = DEADLINE, about: Callable[[], object] = str) -> T:
    """Return what *condition* says once it's true; fail after so many seconds."""
    deadline = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < deadline, f"not within {seconds} s: {about()}"
        time.sleep(0.005)
    return value


def is_running(pid: int) -> bool:
    """Whether *pid* lives; a zombie does not."""
    try:
        state = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state not in (b"Z", b"X")


def running_with(argument: str) -> list[str]:
    """The pids of all processes that have *argument* in their command line."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if argument.encode() in path.read_bytes():
                found.append(path.parent.name)
        except OSError:
            continue
    return found


class Bench:
    """A home for processes; `supervisor` is the daemon's, and `again` makes the one of a daemon that started anew."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.folder = root / "processes"
        self.log = root / "logs" / "p.log"
        self.supervisors: list[Supervisor] = []
        self.supervisor = self.again()

    def again(self, **options: Any) -> Supervisor:
        self.supervisors.append(Supervisor(self.folder, **options))
        return self.supervisors[-1]

    def command(
        self, *argv: str, cwd: str = "/", env: dict[str, str] | None = None, log: Path | None = None
    ) -> Command:
        return Command(argv, cwd, {"PATH": "/usr/bin:/bin"} if env is None else env, os.fspath(log or self.log))

    def sh(self, script: str, process: str = "p") -> None:
        """Start a shell script."""
        self.supervisor.start(process, self.command("sh", "-c", script))

    def python(self, script: str, process: str = "p") -> None:
        """Start a Python script."""
        self.supervisor.start(process, self.command(sys.executable, "-I", "-S", "-c", script))

    def text(self) -> str:
        return self.log.read_text() if self.log.exists() else ""

    def says(self, text: str) -> None:
        """Wait until the log has *text*."""
        until(lambda: text in self.text(), about=self.text)

    def pid_after(self, word: str) -> int:
        """Wait for a line `word PID` in the log."""
        line = until(
            lambda: next((x for x in self.text().splitlines(True) if x.startswith(word) and x[-1] == "\n"), "")
        )
        return int(line.split()[1])

    def record(self, name: str, process: str = "p") -> dict[str, Any]:
        return dict(json.loads((self.folder / process / name).read_text()))

    def alive(self, process: str = "p") -> Alive:
        """Wait until the program was started."""

        def look() -> Alive | None:
            now = self.supervisor.observe(process)
            return now if isinstance(now, Alive) and now.pid else None

        return until(look)

    def end(self, process: str = "p", supervisor: Supervisor | None = None) -> Exited | Lost:
        """Wait for the end."""

        def look() -> Exited | Lost | None:
            now = (supervisor or self.supervisor).observe(process)
            return now if isinstance(now, Exited | Lost) else None

        seen = until(look)
        assert isinstance(seen, Exited | Lost)
        return seen

    def exited(self, process: str = "p", supervisor: Supervisor | None = None) -> Exited:
        seen = self.end(process, supervisor)
        assert isinstance(seen, Exited), seen
        return seen

    def shim(self, process: str = "p") -> int:
        """The pid of the shim that has started its program."""
        until((self.folder / process / "child.json").exists)
        return int(self.record("child.json", process)["shim"]["pid"])

    def clean(self) -> None:
        last = self.again()

        def has_ended(process: str) -> bool:
            last.stop(process, 0)
            return not isinstance(last.observe(process), Alive)

        for process in last.ids():
            until(partial(has_ended, process))
        for each in self.supervisors:
            each.close()


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    bench = Bench(tmp_path)
    yield bench
    bench.clean()


@pytest.fixture
def bystander() -> Iterator[int]:
    """A process of somebody else: the leader of its own session. Killed in the end."""
    pid = os.posix_spawn("/bin/sleep", ["sleep", "600"], {}, setsid=True)
    yield pid
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
