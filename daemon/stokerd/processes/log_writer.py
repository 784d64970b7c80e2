"""The side of a log file that the shim holds: append, move aside, drop what does not fit. Light: each shim loads it."""

# ruff: noqa: PTH103, PTH104, PTH108, PTH116, PTH120, PTH208

from __future__ import annotations

import os
import stat
import time

_CHECK_SECONDS = 1.0  # between two looks whether somebody moved or deleted the file


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


def end_of_rotated(path: str) -> int:
    """Where the present file of *path* begins, in bytes from the log's beginning. Raises OSError."""
    starts = rotated(path)
    return starts[-1] + os.stat(segment(path, starts[-1])).st_size if starts else 0


def drop(path: str, kept: int, max_age_seconds: float | None = None) -> None:
    """Remove what is too much of *path*'s segments that were moved aside. Raises OSError.

    Of the newest at least its name is left, on an empty file at its end, so that offsets count on from there.

    Args:
        path: of the log.
        kept: so many of the newest stay,
        max_age_seconds: of those that were last written to since so long; None: of all.
    """
    oldest = 0.0 if max_age_seconds is None else time.time() - max_age_seconds
    starts = rotated(path)
    for place, start in enumerate(starts):
        try:
            status = os.stat(segment(path, start))
            is_last = place == len(starts) - 1
            if is_last and not status.st_size:
                return
            if place < len(starts) - kept or not status.st_size or status.st_mtime < oldest:
                if is_last:
                    _mark(path, start + status.st_size)
                os.unlink(segment(path, start))
        except FileNotFoundError:
            continue  # somebody else was quicker


def _mark(path: str, start: int) -> None:
    """Have the present file begin at *start*."""
    os.close(os.open(segment(path, start), os.O_WRONLY | os.O_CREAT, 0o640))


class LogWriter:
    """A log file that never blocks for long, never raises and never outgrows its bounds: what can't be kept is counted.

    Offsets never go back: where somebody else cuts or deletes the file, what he took counts as written and dropped.

    Args:
        path: absolute; appended to. One writer at a time.
        segment_bytes: the file is moved aside (see `rotated`) before it grows beyond this, at a line's end if it can.
        kept: how many segments that were moved aside to keep.
        max_age_seconds: those that were last written to before so long are dropped too; None: however old they are.
    """

    def __init__(self, path: str, segment_bytes: int, kept: int, max_age_seconds: float | None = None) -> None:
        self._path, self._segment_bytes, self._kept = path, segment_bytes, kept
        self._max_age_seconds = max_age_seconds
        self._fd = -1
        self._is_file = True  # /dev/null, say, is not: it has no size, and must not be moved
        self._size = self._start = 0  # of the file; where it begins, since the log's beginning
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
            while self._is_file and len(self._pending) > (room := max(self._segment_bytes - self._size, 0)):
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

    def tend(self) -> None:
        """Do what is due also without a word to write; now and then."""
        try:
            if self._fd >= 0:
                self._ready()
                self._place()
            if self._max_age_seconds is not None and self._is_file:
                drop(self._path, self._kept, self._max_age_seconds)
        except OSError:
            pass  # it's tried again

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
        if self._fd < 0:
            self._open()
            self._place()
            return
        if not self._is_file:
            return
        ours = os.fstat(self._fd)
        cut_bytes, self._size = max(self._size - ours.st_size, 0), ours.st_size  # what we wrote since is in the latter
        if cut_bytes:
            self._skip(cut_bytes)
        now = time.monotonic()
        if now - self._checked_at < _CHECK_SECONDS:
            return
        self._checked_at = now
        try:
            there = os.stat(self._path)
            is_there = (there.st_dev, there.st_ino) == (ours.st_dev, ours.st_ino)
        except FileNotFoundError:
            is_there = False
        if not is_there:
            self.close()
            self._skip(self._size)
            self._open()

    def _skip(self, count: int) -> None:
        self._start += count
        self._place()

    def _place(self) -> None:
        """Agree with the readers on where the file begins; somebody may have deleted the segments that told them."""
        if not self._is_file:
            return
        begin = end_of_rotated(self._path)
        if begin < self._start:
            _mark(self._path, self._start)
        else:
            self._start = begin

    def _open(self) -> None:
        self.close()
        os.makedirs(os.path.dirname(self._path), exist_ok=True)
        self._fd = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o640)
        status = os.fstat(self._fd)
        self._is_file, self._size = stat.S_ISREG(status.st_mode), status.st_size
        self._checked_at = time.monotonic()

    def _rotate(self) -> None:
        os.rename(self._path, segment(self._path, self._start))
        self._start += self._size
        self._open()
        drop(self._path, self._kept, self._max_age_seconds)

    def close(self) -> None:
        """Close the file; a later write opens it again."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
