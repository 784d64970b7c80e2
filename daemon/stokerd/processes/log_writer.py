"""The side of a log file that the shim holds: append, move aside, drop what does not fit. Light: each shim loads it."""

# ruff: noqa: PTH103, PTH104, PTH108, PTH116, PTH120, PTH208

from __future__ import annotations

import os
import time


def rotated(path: str) -> list[int]:
    """Where the segments of *path* that were moved aside begin, in bytes from the log's beginning; oldest first.

    The segment that begins at byte N is ``PATH.N``, N with at least 15 digits, so that `ls` has them in order.
    """
    folder, _, name = path.rpartition("/")
    prefix = f"{name}."
    try:
        names = os.listdir(folder or "/")
    except FileNotFoundError:
        return []
    tails = (each[len(prefix) :] for each in names if each.startswith(prefix))
    return sorted(int(tail) for tail in tails if len(tail) >= 15 and tail.isdigit())


def segment(path: str, start: int) -> str:
    """Name the segment of *path* that begins at byte *start*."""
    return f"{path}.{start:015d}"


class LogWriter:
    """A log file that never blocks for long, never raises and never outgrows its bounds: what can't be kept is counted.

    Args:
        path: absolute; appended to. One writer at a time.
        segment_bytes: the file is moved aside (see `rotated`) before it grows beyond this, at a line's end if it can.
        kept: how many segments that were moved aside to keep.
    """

    def __init__(self, path: str, segment_bytes: int, kept: int) -> None:
        self._path, self._segment_bytes, self._kept = path, segment_bytes, kept
        self._fd = -1
        self._size = 0
        self._checked_at = 0.0
        self._pending = memoryview(b"")
        self._unreported_bytes = 0
        self._reason = ""
        self.dropped_bytes = 0

    def write(self, data: bytes) -> None:
        """Append *data*."""
        self._pending = memoryview(data)
        try:
            self._ready()
            if self._unreported_bytes:
                self._append(f"\n[stoker: {self._unreported_bytes} bytes of log dropped: {self._reason}]\n".encode())
                self._unreported_bytes = 0
            while len(self._pending) > (room := max(self._segment_bytes - self._size, 0)):
                begin = len(data) - len(self._pending)
                line_end = data.rfind(b"\n", begin, begin + room) + 1
                if line_end or not self._size:
                    self._flush(line_end - begin if line_end else room)
                self._rotate()
            self._flush(len(self._pending))
        except OSError as error:
            self._reason = error.strerror or str(error)
            self._unreported_bytes += len(self._pending)
            self.dropped_bytes += len(self._pending)
        self._pending = memoryview(b"")

    def _flush(self, count: int) -> None:
        end = len(self._pending) - count
        while len(self._pending) > end:
            self._pending = self._pending[self._append(self._pending[: len(self._pending) - end]) :]

    def _append(self, data: bytes | memoryview) -> int:
        count = os.write(self._fd, data)
        self._size += count
        return count

    def _ready(self) -> None:
        """Open the file, or open it again when somebody deleted or replaced it (looked at once a second)."""
        now = time.monotonic()
        if self._fd >= 0 and now - self._checked_at < 1.0:
            return
        self._checked_at = now
        if self._fd >= 0:
            try:
                there, ours = os.stat(self._path), os.fstat(self._fd)
                if (there.st_dev, there.st_ino) == (ours.st_dev, ours.st_ino):
                    self._size = ours.st_size
                    return
            except FileNotFoundError:
                pass
        self._open()

    def _open(self) -> None:
        self.close()
        os.makedirs(os.path.dirname(self._path), exist_ok=True)
        self._fd = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o640)
        self._size = os.fstat(self._fd).st_size

    def _rotate(self) -> None:
        starts = rotated(self._path)
        start = starts[-1] + os.stat(segment(self._path, starts[-1])).st_size if starts else 0
        os.rename(self._path, segment(self._path, start))
        self._open()
        starts.append(start)
        for old in starts[: max(len(starts) - self._kept, 0)]:
            os.unlink(segment(self._path, old))

    def close(self) -> None:
        """Close the file; a later write opens it again."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
