"""An `Inventory` in a process of its own, since the binding finds its library once, when a process starts."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from stoker.types.host import Device
from stokerd.devices.events import DeviceEvent
from tests.harness import DEADLINE

PROGRAM = Path(__file__).with_name("ask_inventory.py")


class Answer:
    """What the program says."""

    def __init__(self, data: dict[str, Any]) -> None:
        self.message: str = data["message"]
        self.devices = [Device(**d) for d in data["devices"]]
        self.events = [DeviceEvent(**e) for e in data["events"]]
        self.back: str = data["back"]

    @property
    def reasons(self) -> list[tuple[int, str]]:
        """What was told so far: index and reason of each."""
        return [(e.index, e.reason) for e in self.events]


class Program:
    """ask_inventory.py, running."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process

    def ask(self, what: str = "") -> Answer:
        """Send one line; see ask_inventory.py."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(what + "\n")
        self._process.stdin.flush()
        return Answer(json.loads(self._process.stdout.readline()))

    def until(self, condition: Callable[[Answer], Any], *, asking: str = "") -> Answer:
        """Ask until the answer is as wanted."""
        deadline = time.monotonic() + DEADLINE
        while True:
            answer = self.ask(asking)
            if condition(answer):
                return answer
            assert time.monotonic() < deadline, vars(answer)
            time.sleep(0.005)


@contextmanager
def inventory(
    env: Mapping[str, str], *, interval: float = 0.02, retry: float = 0.05, hang: float = 60, close: float = 60
) -> Iterator[Program]:
    """A program that takes a call for hung after *hang* seconds, and waits *close* for its threads in the end."""
    argv = [sys.executable, "-W", "error", str(PROGRAM), *map(str, (interval, retry, hang, close))]
    with subprocess.Popen(argv, env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        program = Program(process)
        try:
            program.ask("start")
            yield program
            program.ask("close")
            assert process.stdin is not None
            process.stdin.close()
            assert process.wait(DEADLINE) == 0
        finally:
            process.kill()
