"""The last good route table, kept in a file, so that the gateway serves after a restart without the daemon.

All workers share it, and each saves what it was told: whoever comes first writes, and the others find it written.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import time
from collections.abc import Iterator
from itertools import count
from pathlib import Path

from stokerd.gateway.wire import RouteTable, parse_table

LOCK_SECONDS = 5.0  # a worker that was stopped while it wrote must not keep the others from ending
_LOOK_SECONDS = 0.005
_numbers = count()


def load(path: Path) -> RouteTable | None:
    """Read the table; None if there is no file. Raises `OSError`, or `ValueError` if it can't be read as a table."""
    try:
        data = json.loads(path.read_bytes())
    except FileNotFoundError:
        return None
    return parse_table(data)


def save(path: Path, table: RouteTable, *, is_return: bool = False) -> None:
    """Replace the file whole, or not at all, and durably. Blocks on the disk. Raises `OSError`.

    A newer table that is there stays, unless the daemon itself went back to *table* (``is_return``), as one does whose
    database was restored from a backup.
    """
    text = json.dumps(table.as_dict()).encode()
    with _locked(path):
        there = _read(path)
        if there == text or (not is_return and _version(there) > table.version):
            return
        for leftover in path.parent.glob(f".{path.name}.*.new"):
            leftover.unlink(missing_ok=True)  # of a worker that was killed: only who has the lock writes
        new = path.with_name(f".{path.name}.{os.getpid()}-{next(_numbers)}.new")
        try:
            with new.open("wb") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
            new.replace(path)
        except OSError:
            new.unlink(missing_ok=True)
            raise
        folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    deadline = time.monotonic() + LOCK_SECONDS
    lock = os.open(path.with_name(f"{path.name}.lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        while True:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise TimeoutError(f"another worker keeps {path.name}.lock") from None
            time.sleep(_LOOK_SECONDS)
        yield
    finally:
        os.close(lock)


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:
        return b""


def _version(text: bytes) -> int:
    """Of the table in *text*; -1 if that is none."""
    try:
        return int(json.loads(text)["version"])
    except (ValueError, KeyError, TypeError, RecursionError):
        return -1
