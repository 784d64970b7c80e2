"""The peer: a supervisord of its own, from PyPI, which is installed into a temporary folder for the occasion."""

from __future__ import annotations

import http.client
import os
import shutil
import socket
import subprocess
import sys
import xmlrpc.client
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tests.harness import DEADLINE, wait_for

_LISTENER = """
import os, sys, time
while True:
    sys.stdout.write("READY\\n"); sys.stdout.flush()
    line = sys.stdin.readline()
    now = time.monotonic_ns()
    if not line:
        break
    header = dict(field.split(":") for field in line.split())
    payload = sys.stdin.read(int(header["len"]))
    name = dict(field.split(":") for field in payload.split())["processname"]
    with open(sys.argv[1], "a") as file:
        file.write(f"{now} {name}\\n")
    sys.stdout.write("RESULT 2\\nOK"); sys.stdout.flush()
"""


def install(folder: Path) -> bool:
    """Put supervisord into *folder*; False when it can't be had."""
    command = [sys.executable, "-m", "pip", "install", "-q", "--disable-pip-version-check", "--target", str(folder)]
    done = subprocess.run([*command, "supervisor"], capture_output=True, text=True, check=False)
    if done.returncode:
        shutil.rmtree(folder, ignore_errors=True)
        print(f"without supervisord: {done.stderr.strip().splitlines()[-1:]}", file=sys.stderr)
    return done.returncode == 0


class Supervisord:
    """One, run by the same Python as stokerd. Use it as a context manager: all it started ends with the block.

    Args:
        folder: where it may keep its files; a path short enough for a socket.
        package: the folder of `install`.
        programs: name and command of what it supervises.
        autostart: whether it starts them by itself; they are started again whenever they end, in any case.
    """

    def __init__(
        self, folder: Path, package: Path, programs: Mapping[str, Sequence[str]], *, autostart: bool = True
    ) -> None:
        folder.mkdir()
        self._socket = folder / "s"
        self._events = folder / "events"
        self._package = package
        self._config = folder / "conf"
        listener = folder / "listener.py"
        listener.write_text(_LISTENER)
        parts = [
            f"[supervisord]\nnodaemon=true\nlogfile={folder}/log\npidfile={folder}/pid\nchildlogdir={folder}\n",
            f"[unix_http_server]\nfile={self._socket}\n",
            "[rpcinterface:supervisor]\n"
            "supervisor.rpcinterface_factory=supervisor.rpcinterface:make_main_rpcinterface\n",
        ]
        for name, argv in programs.items():
            parts.append(
                f"[program:{name}]\ncommand={' '.join(argv)}\nautostart={str(autostart).lower()}\n"
                "autorestart=true\nstartsecs=0\n"
            )
        if not autostart:  # then it is latencies that are measured, and not what it costs to do nothing
            parts.append(
                f"[eventlistener:ends]\ncommand={sys.executable} -I -S {listener} {self._events}\n"
                "events=PROCESS_STATE_EXITED\n"
            )
        self._config.write_text("\n".join(parts))
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Supervisord:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "supervisor.supervisord", "-c", self._config],
            env={**os.environ, "PYTHONPATH": str(self._package)},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            start_new_session=True,
        )
        wait_for(self._socket.exists, "supervisord listens")
        return self

    def __exit__(self, *_: object) -> None:
        assert self._process is not None
        self._process.terminate()
        self._process.wait(DEADLINE)

    @property
    def pid(self) -> int:
        """Its process."""
        assert self._process is not None
        return self._process.pid

    def running(self) -> int:
        """How many of its programs run."""
        return sum(each["statename"] == "RUNNING" for each in self._call("supervisor.getAllProcessInfo"))

    def start(self, name: str) -> None:
        """Ask for the start of a program."""
        self._call("supervisor.startProcess", name, False)

    def ends(self, name: str) -> list[float]:
        """When its listener heard of the ends of a program, in seconds of CLOCK_MONOTONIC."""
        try:
            lines = self._events.read_text().splitlines(True)
        except FileNotFoundError:
            return []
        return [int(line.split()[0]) / 1e9 for line in lines if line.endswith(f" {name}\n")]

    def _call(self, method: str, *arguments: Any) -> Any:
        connection = _Connection(str(self._socket))
        try:
            connection.request("POST", "/RPC2", xmlrpc.client.dumps(arguments, method), {"Content-Type": "text/xml"})
            return xmlrpc.client.loads(connection.getresponse().read())[0][0]
        finally:
            connection.close()


class _Connection(http.client.HTTPConnection):
    """HTTP over a Unix socket."""

    def __init__(self, path: str) -> None:
        super().__init__("localhost")
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.connect(self._path)
