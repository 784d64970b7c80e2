"""The cgroups that one process lives in: enter, look, kill, count, remove. Light: each shim loads it.

They are one folder of cgroup v2, or one for each hierarchy of v1 and, where it is mounted beside them, one of v2. What
a folder can do shows in the files that it has, so nothing else is recorded of them. A group that is gone, or never
came to be, is empty, and all that is asked of it does nothing.
"""

# ruff: noqa: PTH106, PTH123

from __future__ import annotations

import contextlib
import os
import signal
import time

PREFIX = "stoker-"  # of the folder that holds the groups of one home
_MEMBER_PREFIX = "p_"  # no controller is called so: else a process named "memory.max" would meet the kernel's own file


def folder_name(process: str) -> str:
    """Name the folder of a process's group."""
    return f"{_MEMBER_PREFIX}{process}"


def process_of(name: str) -> str | None:
    """The process whose folder is called *name*; None when it's not one of ours."""
    return name[len(_MEMBER_PREFIX) :] if name.startswith(_MEMBER_PREFIX) else None


def is_of(path: str, process: str) -> bool:
    """Say whether *path* can be a group of *process* at all: a broken record must not have other groups killed."""
    *above, base, name = ["", *path.split("/")]
    return name == folder_name(process) and base.startswith(PREFIX) and path.startswith("/") and ".." not in above


class Group:
    """The group of one process, with all groups that its program may have made beneath."""

    def __init__(self, folders: list[str]) -> None:
        self._folders = folders
        self._entered: list[str] = []

    def enter(self, pid: int) -> str:
        """Put *pid* into it; whatever it starts from then on is in it too. Returns what failed, if anything did."""
        failures = []
        for folder in self._folders:
            try:
                _write(f"{folder}/cgroup.procs", str(pid))
                self._entered.append(folder)
            except OSError as error:
                failures.append(f"{folder} can't be entered: {error.strerror}.")
        return " ".join(failures)

    def memory_limit(self) -> int | None:
        """The bytes that all who entered it may take together; None without a bound."""
        for folder in self._entered:
            for name in ("memory.max", "memory.limit_in_bytes"):
                text = _read(f"{folder}/{name}").strip()
                if text.isdigit() and int(text) < 1 << 60:  # v1 has no word for none, but a number near 2**63
                    return int(text)
        return None

    def members(self) -> set[int]:
        """The pids of all that live in it, as this process has them."""
        pids: set[int] = set()
        for folder in self._folders:
            for each in _with_inner(folder):
                pids.update(map(int, _read(f"{each}/cgroup.procs").split()))
        pids.discard(0)  # one that lives in a pid namespace we can't see into
        return pids

    def kill(self) -> None:
        """SIGKILL all that live in it. They may need a moment to die, and without cgroup.kill another call."""
        for folder in self._folders:
            with contextlib.suppress(OSError):  # not there: v1, or a kernel before 5.14
                _write(f"{folder}/cgroup.kill", "1")
        pidfds = {}
        try:
            for pid in self.members() - {os.getpid()}:
                with contextlib.suppress(OSError):  # dead; or no descriptor is left, then the next call takes the rest
                    pidfds[pid] = os.pidfd_open(pid)
            for pid in self.members() & set(pidfds):  # else the number has passed to somebody else since it was read
                with contextlib.suppress(OSError):
                    signal.pidfd_send_signal(pidfds[pid], signal.SIGKILL)
        finally:
            for pidfd in pidfds.values():
                os.close(pidfd)

    def oom_kills(self) -> int:
        """How many of its members the kernel has killed for want of memory, theirs or the machine's."""
        count = 0
        for folder in self._folders:
            count += _field(f"{folder}/memory.events", "oom_kill")  # counts what is beneath, too
            for each in _with_inner(folder):
                count += _field(f"{each}/memory.oom_control", "oom_kill")  # does not
        return count

    def remove(self) -> bool:
        """Remove it, if nobody lives in it; and the folder above, when it was the last. True when it's gone."""
        is_gone = True
        for folder in self._folders:
            for each in _with_inner(folder):
                is_gone = _remove(each) and is_gone
            _remove(folder.rpartition("/")[0])
        return is_gone

    def end(self, wait_seconds: float) -> bool:
        """Kill all that live in it and remove it; True when that could be done within so long."""
        deadline = time.monotonic() + wait_seconds
        while not self.remove():
            self.kill()
            if time.monotonic() >= deadline:
                return self.remove()
            time.sleep(0.002)
        return True


def _with_inner(folder: str) -> list[str]:
    """*folder* and all beneath, the innermost first; nothing when it isn't there."""
    return [each for each, _, _ in os.walk(folder, topdown=False)]


def _remove(folder: str) -> bool:
    try:
        os.rmdir(folder)
    except FileNotFoundError:
        return True
    except OSError:
        return False
    return True


def _field(path: str, name: str) -> int:
    for line in _read(path).splitlines():
        key, _, value = line.partition(" ")
        if key == name and value.isdigit():
            return int(value)
    return 0


def _read(path: str) -> str:
    try:
        with open(path, encoding="ascii", errors="replace") as file:
            return file.read()
    except OSError:
        return ""


def _write(path: str, text: str) -> None:
    """Raises OSError."""
    fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(fd, text.encode())
    finally:
        os.close(fd)
