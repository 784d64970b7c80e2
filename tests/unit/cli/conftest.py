"""The command line in this process, against a stand-in for the daemon on a real socket."""

from __future__ import annotations

import json
import os
import pty
import re
import shutil
import subprocess
import sys
import tempfile
import termios
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from stoker.cli.main import main
from tests.unit.cli.stand_in import StandIn


@dataclass(frozen=True)
class Result:
    """What one command said, and how it ended."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)

    @property
    def lines(self) -> list[Any]:
        return [json.loads(line) for line in self.out.splitlines()]


Stoker = Callable[..., Result]


@pytest.fixture(scope="session")
def _stand_in() -> Iterator[StandIn]:
    folder = Path(tempfile.mkdtemp(prefix="sc."))  # pytest's own folders are too long for a socket
    stand_in = StandIn(folder / "stoker.sock")
    stand_in.start()
    yield stand_in
    stand_in.stop()
    shutil.rmtree(folder)


@pytest.fixture
def home(_stand_in: StandIn, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("STOKER_HOME", str(_stand_in.path.parent))
    return _stand_in.path.parent


@pytest.fixture
def daemon(_stand_in: StandIn, home: Path) -> StandIn:
    _stand_in.forget()
    return _stand_in


@pytest.fixture
def stoker(home: Path, capsys: pytest.CaptureFixture[str]) -> Stoker:
    """Runs `stoker ARGUMENTS` to its end."""

    def run(*arguments: str) -> Result:
        with pytest.raises(SystemExit) as ended:
            main(arguments)
        out, err = capsys.readouterr()
        assert isinstance(ended.value.code, int)
        assert "Traceback" not in err
        return Result(ended.value.code, out, err)

    return run


Terminal = Callable[..., str]


@pytest.fixture
def terminal(home: Path) -> Terminal:
    """What `stoker ARGUMENTS` shows on a terminal that is so many columns wide, without its colours."""

    def show(columns: int, *arguments: str) -> str:
        leader, follower = pty.openpty()
        termios.tcsetwinsize(follower, (40, columns))
        environment = {k: v for k, v in os.environ.items() if k not in ("COLUMNS", "LINES")} | {"TERM": "xterm"}
        command = [sys.executable, "-m", "stoker.cli.main", *arguments]
        with subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=follower, stderr=subprocess.PIPE, env=environment
        ) as process:
            os.close(follower)
            shown = b"".join(iter(lambda: _read(leader), b""))
            assert process.stderr is not None
            assert process.stderr.read() == b""
        os.close(leader)
        return re.sub(r"\x1b\[[0-9;]*m", "", shown.decode()).replace("\r\n", "\n")

    return show


def _read(leader: int) -> bytes:
    try:
        return os.read(leader, 4096)
    except OSError:  # Linux says so when the other end is closed
        return b""
