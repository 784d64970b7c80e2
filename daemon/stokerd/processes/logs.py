"""Read the logs that shims write: by byte offset since the log's beginning, across the files that were moved aside."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Callable
from pathlib import Path

from stokerd.processes.log_writer import rotated, segment

READ_BYTES = 1 << 20
POLL_SECONDS = 0.2
_TAIL_BYTES = 1 << 18


def read_log(path: Path, offset: int, *, limit_bytes: int = READ_BYTES) -> tuple[bytes, int]:
    """Return what stands in the log *path* from byte *offset* on, and the offset to ask for next.

    Args:
        path: the log as its Command named it; one that doesn't exist (yet) is empty.
        offset: counted from the log's beginning, whether or not that is still kept: a read from bytes that were
            dropped begins at the oldest that are kept, one from beyond the end at the end. Negative: so many bytes
            before the end.
        limit_bytes: at most this much at once; more may be there while something is returned.

    Raises OSError when the log is there and can't be read.
    """
    pieces: list[bytes] = []
    while limit_bytes > 0:
        data, end = _read_file(os.fspath(path), offset, limit_bytes)
        if pieces and (not data or end - len(data) != offset):
            break  # what comes next was dropped between our looks: let the hole show as one between two answers
        offset = end
        if not data:
            break
        pieces.append(data)
        limit_bytes -= len(data)
    return b"".join(pieces), offset


def _read_file(name: str, offset: int, limit_bytes: int) -> tuple[bytes, int]:
    """Do as `read_log` does, and stop where a file ends."""
    while True:
        try:
            fd, begin, start = _find(name, offset)
        except FileNotFoundError:
            continue  # moved aside or dropped between two of our looks
        if fd is None:
            return b"", begin
        try:
            data = os.pread(fd, limit_bytes, begin - start)
        finally:
            os.close(fd)
        return data, begin + len(data)


def _find(name: str, offset: int) -> tuple[int | None, int, int]:
    """Return a descriptor of the file to read, the offset to read from, and the offset at which that file begins.

    The descriptor is None, and the offset the log's end, when nothing is there to be read. Raises FileNotFoundError
    when a file was moved while we looked.
    """
    try:
        current: int | None = os.open(name, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        current = None
    try:
        spans = [(start, start + Path(segment(name, start)).stat().st_size) for start in rotated(name)]
        base = end = spans[-1][1] if spans else 0
        if current is not None:
            ours = os.fstat(current)
            if Path(name).stat().st_ino != ours.st_ino:
                raise FileNotFoundError(name)  # then `base` may count it already
            end = base + ours.st_size
        begin = max(end + offset, 0) if offset < 0 else offset
        for first, last in spans:
            if first < last and begin < last:  # an empty one only says where the next begins
                return os.open(segment(name, first), os.O_RDONLY | os.O_CLOEXEC), max(begin, first), first
        if current is None or begin >= end:
            return None, end, end
        fd, current = current, None
        return fd, max(begin, base), base
    finally:
        if current is not None:
            os.close(current)


async def follow(path: Path, offset: int, is_done: Callable[[], bool]) -> AsyncIterator[bytes]:
    """Yield the log *path* from *offset* on (as `read_log` counts), piece by piece, and what is added to it.

    Ends when *is_done* said so before a look that found nothing new: so what was written before is never missed. Ends,
    too, when what comes next was dropped before it could be read: then who counted what came asks again from there, and
    learns from `read_log` where the log goes on. Looks five times a second. Raises OSError when the log is there and
    can't be read.
    """
    seen: tuple[int, int, int] | None = None
    is_placed = False
    while True:
        was_done = is_done()
        stamp = await asyncio.to_thread(_stamp, path)
        if stamp != seen or not is_placed or was_done:
            data, end = await asyncio.to_thread(read_log, path, offset)
            if data:
                if offset >= 0 and end - len(data) != offset:
                    return
                offset, is_placed = end, True
                yield data
                continue
            if not is_placed:
                offset, is_placed = end, True
            # Else an end before our place means that somebody has cut the file: its writer will make up for that.
            seen = stamp
            if was_done:
                return
        await asyncio.sleep(POLL_SECONDS)


def log_end(path: Path) -> int:
    """The offset at which the log *path* ends now; 0 when there's none or it can't be read."""
    try:
        return read_log(path, -1)[1]
    except OSError:
        return 0


def tail_lines(path: Path, n: int, *, since: int = 0) -> list[str]:
    """Return the last *n* lines (of the last 256 KiB) of the log *path*, oldest first, for messages.

    Only what was written from the offset *since* on counts: what stands before it another process said. Of a line that
    was written over (a progress bar) the last state is given. Empty when there's no log or it can't be read.
    """
    try:
        data, end = read_log(path, -_TAIL_BYTES, limit_bytes=_TAIL_BYTES)
    except OSError:
        return []
    data = data[max(since - (end - len(data)), 0) :]
    lines = data.decode(errors="replace").rstrip().split("\n")
    return [line.rstrip("\r").rpartition("\r")[2] for line in lines[-n:]] if n > 0 and data else []


def _stamp(path: Path) -> tuple[int, int, int] | None:
    try:
        stat = path.stat()
    except FileNotFoundError:
        return None
    return stat.st_ino, stat.st_size, stat.st_mtime_ns
