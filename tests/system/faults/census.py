"""Who lives for a home, read from /proc: the daemon is not asked, since it is what is tested."""

from __future__ import annotations

import os
import threading
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from stokerd.processes.group import PREFIX
from stokerd.processes.groups import name_of

CGROUPS = Path("/sys/fs/cgroup")
EVERY_SECONDS = 0.1
Role = Literal["shim", "gateway", "replica", "run"]


@dataclass(frozen=True, slots=True)
class Found:
    """A living process. ``key`` says whose: of two with the same role and key one is too many (but for shims)."""

    role: Role
    key: str
    pid: int


def fields(pid: int) -> list[str]:
    """/proc/PID/stat from the state on; empty when it is gone."""
    try:
        return Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].decode().split()
    except (FileNotFoundError, ProcessLookupError):
        return []


def lives(pid: int) -> bool:
    """Whether *pid* is there and no zombie."""
    return bool(state := fields(pid)) and state[0] not in ("Z", "X")


def has_let_go(pid: int) -> bool:
    """Whether every thread of *pid* is dead: until then one may hold what a leader that is a zombie listened on."""
    try:
        tasks = os.listdir(f"/proc/{pid}/task")  # noqa: PTH208
    except (FileNotFoundError, ProcessLookupError):
        return True
    return tasks == [str(pid)] and not lives(pid)


def look(home: Path) -> list[Found]:
    """Every worker of the gateway, server, attempt of a run and shim of *home* that lives."""
    return [found for pid in _pids() if (found := _identify(pid, home)) is not None]


def mentions(home: Path) -> dict[int, str]:
    """Every process whose command line, environment or working folder names *home*: pid and command line."""
    needle = os.fsencode(home)
    found = {}
    for pid in _pids():
        if pid == os.getpid():
            continue
        texts = [_read(pid, "cmdline"), _read(pid, "environ"), _link(pid, "cwd")]
        if any(needle in text for text in texts) and lives(pid):
            found[pid] = texts[0].replace(b"\0", b" ").decode(errors="replace")
    return found


def cgroups(home: Path) -> list[Path]:
    """The folders of cgroups that were made for *home*, in all hierarchies, innermost first."""
    base = f"{PREFIX}{name_of(home)}"
    walked = (Path(folder) for folder, _, _ in os.walk(CGROUPS))  # which bears it that those of others come and go
    return sorted((folder for folder in walked if base in folder.parts), reverse=True)


def _identify(pid: int, home: Path) -> Found | None:
    words = _read(pid, "cmdline").decode(errors="replace").split("\0")[:-1]
    if not words:
        return None
    if any(w.endswith("stokerd/processes/shim.py") for w in words):
        folder = Path(os.fsdecode(_link(pid, "cwd")))  # a spare one has none yet, and is nobody's
        return Found("shim", folder.name, pid) if folder.parent == home / "processes" else None
    if "stokerd.gateway" in words:
        control = next((w for w in words if w.startswith(f"{home}/s/gateway-") and w.endswith(".sock")), None)
        return Found("gateway", Path(control).stem, pid) if control is not None else None
    if (state := fields(pid)) and int(state[3]) != pid:
        return None  # what a server or a run started by itself: only session leaders were started by a shim
    socket = next((w for w in words if w.startswith(f"{home}/s/")), None)
    if socket is not None:
        return Found("replica", socket, pid)
    env = _read(pid, "environ")
    if os.fsencode(home) not in env:
        return None
    values = dict(pair.split(b"=", 1) for pair in env.split(b"\0") if b"=" in pair)
    if not values.get(b"STOKER_RUN_DIR", b"").startswith(os.fsencode(home)):
        return None
    return Found("run", f"{values[b'STOKER_RUN'].decode()}/{values[b'STOKER_ATTEMPT'].decode()}", pid)


def _pids() -> Iterator[int]:
    return (int(name) for name in os.listdir("/proc") if name.isdigit())  # noqa: PTH208 (quick, and often)


def _read(pid: int, name: str) -> bytes:
    try:
        return Path(f"/proc/{pid}/{name}").read_bytes()
    except OSError:
        return b""


def _link(pid: int, name: str) -> bytes:
    try:
        return os.fsencode(Path(f"/proc/{pid}/{name}").readlink())
    except OSError:
        return b""


class Census:
    """Looks ten times a second, from `start` to `close`; ``duplicates`` says what must never be."""

    def __init__(self, home: Path) -> None:
        self._home = home
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="census", daemon=True)
        self.duplicates: list[str] = []
        self.seen: set[Found] = set()

    def start(self) -> None:
        self._thread.start()

    def close(self) -> None:
        self._over.set()
        self._thread.join()

    def take_duplicates(self) -> list[str]:
        """What was found since the last call."""
        found, self.duplicates = self.duplicates, []
        return found

    def _watch(self) -> None:
        while not self._over.wait(EVERY_SECONDS):
            now = [f for f in look(self._home) if f.role != "shim"]
            self.seen |= set(now)
            for (role, key), count in Counter((f.role, f.key) for f in now).items():
                if count < 2:
                    continue
                pids = [f.pid for f in now if (f.role, f.key) == (role, key)]
                if sum(lives(pid) for pid in pids) > 1:  # one may have made place for the other during the look
                    self.duplicates.append(f"{count} processes are {role} {key}: {pids}")
