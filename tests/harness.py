"""A real daemon in a temporary home, and ways to wait for what it does. Nothing sleeps blindly or kills by name."""

from __future__ import annotations

import contextlib
import itertools
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

import httpx

from stoker.client import Client
from stoker.errors import StokerError
from stoker.paths import Home, find_home
from stoker.specs import load_specs
from stoker.types.base import State
from stoker.types.events import Event
from stoker.types.rollouts import Rollout
from stoker.types.serving import Deployment, Replica
from stoker.types.training import Run
from stokerd.processes.states import Alive
from stokerd.processes.supervisor import Supervisor

T = TypeVar("T")
S = TypeVar("S", bound=State)
P = TypeVar("P", bound=Deployment | Replica | Rollout | Run)
STOKERD = Path(sys.executable).with_name("stokerd")
DEADLINE = 90.0
"""Seconds after which a wait has failed. Much, for a machine that is slow or busy: only a failure takes so long."""


def _ports() -> Iterator[int]:
    """Ports that the kernel gives to nobody who asks for any, in an order of this process: tests run side by side."""
    rest = list(range(12_000, 32_000))
    random.Random(os.getpid()).shuffle(rest)
    return itertools.cycle(rest)


_PORTS = _ports()


def free_port() -> int:
    """A port of loopback that is free now, and stays so while a daemon that had it is away."""
    while True:
        port = next(_PORTS)
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port


def wait_for(look: Callable[[], T | None], what: str, *, seconds: float = DEADLINE) -> T:
    """Call *look* until it gives something true; fail saying *what* did not happen."""
    deadline = time.monotonic() + seconds
    while True:
        found = look()
        if found:
            return found
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {seconds:g} s: {what} (last seen: {found!r})")
        time.sleep(0.03)


def state_of(found: Replica | Rollout | Run, kind: type[S]) -> S:
    """The state of what was found, which must be of that kind."""
    assert isinstance(found.state, kind), found.state
    return found.state


class Stokerd:
    """One daemon and its home. Use it as a context manager: everything it started ends with the block."""

    def __init__(
        self,
        *,
        python: str = sys.executable,
        settings: str = "",
        home: Path | None = None,
        env: Mapping[str, str] | None = None,
    ) -> None:
        self.root = home or Path(tempfile.mkdtemp(prefix="stk-", dir="/tmp"))  # short: sockets have 107 bytes
        self.home: Home = find_home(self.root)
        self.port = free_port()
        self.root.mkdir(exist_ok=True)
        self.home.config.write_text(
            f"gateway: {{port: {self.port}}}\ntraining: {{python: {python}, concurrent: 2}}\n"
            f"serving: {{python: {python}}}\n{settings}"
        )
        self._env = env
        self.process: subprocess.Popen[bytes] | None = None
        self.client = Client(self.home.socket)

    def __enter__(self) -> Stokerd:
        try:
            self.start()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def pid(self) -> int:
        """That of the daemon, which was started."""
        assert self.process is not None
        return self.process.pid

    @property
    def log(self) -> str:
        """What the daemon wrote on stderr, over all its lives."""
        with contextlib.suppress(FileNotFoundError):
            return (self.root / "stokerd.log").read_text()
        return ""

    def start(self) -> None:
        """Start it and wait until it answers."""
        with (self.root / "stokerd.log").open("ab") as log:
            self.process = subprocess.Popen(
                [STOKERD, "--home", self.root],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                env=None if self._env is None else dict(self._env),
            )
        wait_for(self.is_up, f"the daemon answers; its log:\n{self.log}")

    def is_up(self) -> bool:
        """Whether it answers. Fails when it has ended."""
        assert self.process is not None
        assert self.process.poll() is None, f"the daemon ended with {self.process.returncode}:\n{self.log}"
        return self.listens() and bool(self.client.host())

    def listens(self) -> bool:
        """Whether its socket takes connections; httpx leaves the socket of a refused one to the garbage collector."""
        with socket.socket(socket.AF_UNIX) as probe:
            return probe.connect_ex(str(self.home.socket)) == 0

    def kill(self) -> None:
        """As the kernel's OOM killer would: at once, with no chance to tidy up."""
        assert self.process is not None
        self.process.kill()
        self.process.wait(DEADLINE)

    def terminate(self) -> int:
        """As systemd would; returns the exit code."""
        assert self.process is not None
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(DEADLINE)

    def close(self) -> None:
        """End the daemon, then everything that it left running, then remove the home."""
        if self.process is not None and self.process.poll() is None:
            self.terminate()
        self.client.close()
        supervisor = Supervisor(self.home.processes)
        for process in supervisor.ids():
            supervisor.stop(process, 0.5)
        wait_for(
            lambda: not any(isinstance(supervisor.observe(p), Alive) for p in supervisor.ids()),
            "all supervised processes end",
        )
        supervisor.close()
        for folder, _, _ in os.walk(self.root):
            Path(folder).chmod(0o755)
        shutil.rmtree(self.root)

    def apply(self, text: str, *, dry_run: bool = False) -> list[dict[str, Any]]:
        """As ``stoker apply -f -`` does."""
        specs = [s.model_dump(mode="json") for s in load_specs(text, "test.yaml", self.root)]
        answer: list[dict[str, Any]] = self.client.request(
            "POST", "/v1/apply", json={"specs": specs, "dry_run": dry_run}
        )
        return answer

    def events(self, after: int = 0) -> list[Event]:
        """All events so far."""
        return list(self.client.events(after, follow=False))

    def wait_event(self, reason: str, name: str, *, seconds: float = DEADLINE, after: int = 0) -> Event:
        """The first event of that reason about that resource."""

        def look() -> Event | None:
            found = [e for e in self.events(after) if (e.reason, e.name) == (reason, name)]
            return found[0] if found else None

        try:
            return wait_for(look, f"{reason} of {name}", seconds=seconds)
        except AssertionError as error:
            told = "\n".join(f"{e.id} {e.reason} {e.name}: {e.message}" for e in self.events())
            raise AssertionError(f"{error}\n{told}\n{self.log[-3000:]}") from None

    def wait_phase(self, kind: type[P], name: str, *phases: str, seconds: float = DEADLINE) -> P:
        """The resource, once it is in one of *phases*."""

        def look() -> P | None:
            with contextlib.suppress(StokerError):
                found = self.client.get(kind, name)
                return found if found.phase in phases else None
            return None

        try:
            return wait_for(look, f"{name} is {' or '.join(phases)}", seconds=seconds)
        except AssertionError as error:
            told = "\n".join(f"{e.id} {e.reason} {e.name}: {e.message}" for e in self.events())
            raise AssertionError(f"{error}\n{told}\n{self.log[-3000:]}") from None

    @contextlib.contextmanager
    def openai(self, timeout: float = DEADLINE) -> Iterator[httpx.Client]:
        """A plain HTTP client of the gateway's OpenAI face."""
        with httpx.Client(base_url=f"http://127.0.0.1:{self.port}/v1", timeout=timeout, trust_env=False) as client:
            yield client
