"""A program that says when it was executed: the first thing it does is to ask for the time."""

from __future__ import annotations

import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from tests.harness import wait_for

_IN_C = """
#include <fcntl.h>
#include <stdio.h>
#include <time.h>
#include <unistd.h>

int main(int argc, char **argv) {
  struct timespec now;
  clock_gettime(CLOCK_MONOTONIC, &now);
  char line[64];
  int length = snprintf(line, sizeof line, "%lld %d\\n", now.tv_sec * 1000000000LL + now.tv_nsec, (int)getpid());
  int file = open(argv[1], O_WRONLY | O_CREAT | O_APPEND, 0600);
  if (argc < 2 || write(file, line, length) != length) return 1;
  close(file);
  for (;;) pause();
}
"""
_IN_PYTHON = """
import time
now = time.monotonic_ns()
import os, signal, sys
with open(sys.argv[1], "a") as file:
    file.write(f"{now} {os.getpid()}\\n")
while True:
    signal.pause()
"""


@dataclass(frozen=True, slots=True)
class Stamp:
    """One execution: the moment in seconds of CLOCK_MONOTONIC, and the process."""

    moment: float
    pid: int


class Stamper:
    """Commands whose executions are seen. Without a C compiler they are Python, and each stamp is some 10 ms late."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        compiler = shutil.which("cc")
        self.is_exact = compiler is not None
        if compiler is None:
            self._program = [sys.executable, "-I", "-S", "-c", _IN_PYTHON]
            return
        source, program = folder / "stamp.c", folder / "stamp"
        source.write_text(_IN_C)
        subprocess.run([compiler, "-O2", "-o", program, source], check=True)
        self._program = [str(program)]

    def command(self, name: str) -> list[str]:
        """A command that lives until it is killed; its executions are told apart from others by *name*."""
        return [*self._program, str(self._folder / f"{name}.stamps")]

    def stamps(self, name: str) -> list[Stamp]:
        """All executions so far."""
        try:
            text = (self._folder / f"{name}.stamps").read_text()
        except FileNotFoundError:
            return []
        lines = (line.split() for line in text.splitlines(True) if line.endswith("\n"))
        return [Stamp(int(moment) / 1e9, int(pid)) for moment, pid in lines]

    def wait(self, name: str, count: int = 1) -> Stamp:
        """The execution number *count*, once it happened."""
        return wait_for(lambda: self.stamps(name)[count - 1 :], f"execution {count} of {name}")[0]
