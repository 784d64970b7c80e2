"""The files through which a shim and the supervisor talk, in the process's folder. Light: each shim loads it.

::

    command.json  what to start, and the cgroups for it; written by the supervisor before it starts the shim
    lock          a record lock, held for the shim's life, so that the kernel says who is alive; holds the last
                  heartbeat, in clock ticks since boot
    child.json    who the shim and its child are; written before the child becomes the program
    stop.json     {"deadline": seconds on CLOCK_BOOTTIME}: what SIGTERM to the shim means; a sooner one shortens
    exit.json     how it ended; written when nothing of the child's tree is left
    shim.err      the shim's own stderr: empty, or the traceback of a bug
"""

# ruff: noqa: PTH104, PTH108, PTH120

from __future__ import annotations

import contextlib
import os

COMMAND, LOCK, CHILD, STOP, EXIT, SHIM_ERR = "command.json", "lock", "child.json", "stop.json", "exit.json", "shim.err"
RESERVE = "exit.json.reserve"  # blocks taken at the start, so that a full disk can't lose the exit status
RESERVE_BYTES = 4096


def replace(path: str, data: bytes, *, durably: bool = False) -> None:
    """Put *data* at *path*, wholly or not at all, and *durably* on the disk. Raises OSError; the old is then there."""
    temporary = f"{path}.{os.getpid()}.tmp"
    fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    try:
        try:
            write_all(fd, data)
            if durably:
                os.fsync(fd)
        finally:
            os.close(fd)
        os.rename(temporary, path)
    except OSError:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise
    if durably:
        sync_file(os.path.dirname(path) or ".")


def sync_file(path: str) -> None:
    """Bring the file, or the folder's list of names, to the disk. Raises OSError."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def write_all(fd: int, data: bytes) -> None:
    """Write *data* to *fd* to its end. Raises OSError."""
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]
