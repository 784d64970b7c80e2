"""Levels of token buckets that the workers of a gateway share, over their restarts: one small file, in memory of all.

A bucket is one number, the moment at which it would be full again if nothing more were taken (GCRA); so nothing has to
run to fill it, and an unused bucket needs no care. The file is mapped by each worker and changed under ``flock``. Its
moments are those of the monotonic clock, which all processes of a boot share: each boot has a file of its own.
"""

from __future__ import annotations

import fcntl
import mmap
import os
from collections.abc import Iterable
from pathlib import Path
from time import monotonic

BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
_ID_BYTES = 16
_SLOT_BYTES = 32  # an id, and two levels
_CHUNK_SLOTS = 128
_FREE = bytes(_ID_BYTES)
_LEVELS = _SLOT_BYTES // 8
_FIRST_LEVEL = _ID_BYTES // 8
_PATIENCE_SECONDS = 0.002  # a holder needs a few us; one that is stopped must not stop the others
_RESIGNED_SECONDS = 1.0


class Ledger:
    """Two levels, of requests and of tokens, for each of any number of ids. ``with ledger:`` before changing one.

    Without a *folder*, or when it can't be used (``problem`` says why then), levels are those of this process alone.
    Where another worker was stopped while it held the lock, the others go on without it: levels may be a little off.
    """

    def __init__(self, folder: Path | None) -> None:
        self.problem = ""
        self.in_flight: dict[str, int] = {}
        """Requests under way in this process, by their key's digest."""
        self.drawn: dict[int, int] = {}
        """Requests charged in advance for this process, by slot."""
        self.owed: dict[int, int] = {}
        """Tokens used in this process and not charged yet, by slot."""
        self._slots: dict[bytes, int] = {}
        self._file = -1
        self._is_held = False
        self._resigned_until = 0.0
        if folder is not None:
            try:
                self._file = _open(folder)
            except OSError as error:
                self._only_here(error)
        self._map(_CHUNK_SLOTS * _SLOT_BYTES)

    def close(self) -> None:
        """Let go of the file."""
        self._levels.release()
        self._memory.close()
        if self._file >= 0:
            os.close(self._file)
            self._file = -1

    def slots(self, ids: Iterable[bytes]) -> list[int]:
        """Where each id of 16 bytes has its levels: in `level` and `set_level`, plus 0 for requests, 1 for tokens."""
        wanted = list(ids)
        if any(i not in self._slots for i in wanted):
            with self:
                self._find(wanted)
        return [self._slots[i] * _LEVELS + _FIRST_LEVEL for i in wanted]

    def level(self, slot: int) -> float:
        """When that bucket is full again, on the monotonic clock."""
        return self._levels[slot]

    def set_level(self, slot: int, moment: float) -> None:
        """Set it; inside ``with ledger:``."""
        self._levels[slot] = moment

    def __enter__(self) -> None:
        if self._file < 0:
            return
        begun = 0.0
        while True:
            try:
                fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                moment = monotonic()
                begun = begun or moment
                if moment < self._resigned_until or moment - begun > _PATIENCE_SECONDS:
                    self._resigned_until = moment + _RESIGNED_SECONDS
                    return
                os.sched_yield()
            else:
                self._is_held = True
                return

    def __exit__(self, *_: object) -> None:
        if self._is_held:
            self._is_held = False
            fcntl.flock(self._file, fcntl.LOCK_UN)

    def _find(self, wanted: list[bytes]) -> None:
        """Read which slots others took meanwhile, and take free ones for what is missing yet."""
        self._grow(os.fstat(self._file).st_size if self._file >= 0 else 0)
        while (slot := self._id_at(len(self._slots))) != _FREE:
            self._slots[slot] = len(self._slots)
        for name in wanted:
            if name not in self._slots:
                taken = len(self._slots)
                self._grow((taken + 2) * _SLOT_BYTES)  # so that a free one is always left, as the end
                self._memory[taken * _SLOT_BYTES : taken * _SLOT_BYTES + _ID_BYTES] = name
                self._slots[name] = taken

    def _id_at(self, slot: int) -> bytes:
        return bytes(self._memory[slot * _SLOT_BYTES : slot * _SLOT_BYTES + _ID_BYTES])

    def _grow(self, size: int) -> None:
        if size > len(self._memory):
            kept = bytes(self._memory)
            self._levels.release()
            self._memory.close()
            chunk = _CHUNK_SLOTS * _SLOT_BYTES
            self._map(-(-size // chunk) * chunk)
            if self._file < 0:
                self._memory[: len(kept)] = kept

    def _map(self, size: int) -> None:
        if self._file >= 0:
            try:
                os.posix_fallocate(self._file, 0, size)  # a page that finds no room when it is written ends the process
                self._memory = mmap.mmap(self._file, size)
            except OSError as error:
                self._only_here(error)
        if self._file < 0:
            self._memory = mmap.mmap(-1, size)
        self._levels = memoryview(self._memory).cast("d")

    def _only_here(self, error: OSError) -> None:
        self.problem = f"the limits of API keys hold for each worker alone: their file can't be used ({error.strerror})"
        if self._file >= 0:
            os.close(self._file)
            self._file = -1
            self._is_held = False


def _open(folder: Path) -> int:
    folder.mkdir(parents=True, exist_ok=True, mode=0o750)
    path = folder / f"keys-{BOOT_ID.read_text().strip()}.ledger"
    for old in folder.glob("keys-*.ledger"):
        if old != path:
            old.unlink(missing_ok=True)
    return os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
