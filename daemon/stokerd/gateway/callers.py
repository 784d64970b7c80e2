"""How many distinct callers a rollout may expose, counted over all workers of a gateway and over their restarts.

Each rollout has a file: the callers' digests, in the order in which they came. The first N of them, doubles left out,
are let in. Workers append without a lock: the kernel puts one append after the other (on local file systems), and
whoever reads the file sees the same order. So nothing that is stopped or killed can hold up another.
"""

from __future__ import annotations

import os
import time
from collections.abc import Collection
from hashlib import blake2b
from pathlib import Path

_DIGEST_BYTES = 8  # an append of so many never lies across two blocks of the disk: it is whole, or not there
_READ_BYTES = 1 << 16
_KEPT_SECONDS = 3600.0  # a younger file may be of a table that this worker has not seen yet


class Callers:
    """The callers of each rollout, by its salt. Without a *folder*, those of this process alone.

    ``problem`` says why new callers can't be noted, if so: they stay with stable then.
    """

    def __init__(self, folder: Path | None) -> None:
        self.problem = ""
        self._folder = folder
        self._known: dict[bytes, _Known] = {}

    def admit(self, salt: bytes, caller: bytes, cap: int) -> bool:
        """Whether *caller* is among the first *cap* distinct ones that this was asked for; it is noted if so."""
        known = self._known.get(salt)
        if known is None:
            known = self._known[salt] = _Known()
        digest = blake2b(caller, digest_size=_DIGEST_BYTES, salt=_short(salt)).digest()
        place = known.places.get(digest)
        if place is None and len(known.places) < cap:
            place = self._note(salt, known, digest)
        return place is not None and place < cap

    def keep_only(self, salts: Collection[bytes]) -> None:
        """Forget the callers of all other rollouts."""
        for salt in self._known.keys() - set(salts):
            self._known.pop(salt).close()
        if self._folder is None:
            return
        names = {_name(salt) for salt in salts}
        oldest = time.time() - _KEPT_SECONDS
        try:
            for path in self._folder.glob("callers-*"):
                if path.name not in names and path.stat().st_mtime < oldest:
                    path.unlink()
        except OSError:
            return  # another worker was faster, or they are forgotten another time

    def close(self) -> None:
        """Let go of the files."""
        for known in self._known.values():
            known.close()
        self._known.clear()

    def _note(self, salt: bytes, known: _Known, digest: bytes) -> int | None:
        """Append it, and see at which place it came to be; None if it could not be written.

        It is not forced to the disk, which would hold up all requests: a power cut may forget the last few.
        """
        if self._folder is None:
            return known.places.setdefault(digest, len(known.places))
        try:
            if known.file < 0:
                self._folder.mkdir(parents=True, exist_ok=True, mode=0o750)
                known.file = os.open(self._folder / _name(salt), os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o600)
                if torn := os.fstat(known.file).st_size % _DIGEST_BYTES:  # whatever damaged it: make it one caller's
                    os.write(known.file, bytes(_DIGEST_BYTES - torn))
            known.read_on()
            if digest not in known.places:
                os.write(known.file, digest)
                known.read_on()
        except OSError as error:
            self.problem = f"callers of a rollout can't be noted ({error.strerror}): new ones stay with stable"
            return None
        self.problem = ""
        return known.places.get(digest)


class _Known:
    """What is known of one file: each digest's place among the distinct ones."""

    __slots__ = ("file", "offset", "places")

    def __init__(self) -> None:
        self.file = -1
        self.offset = 0
        self.places: dict[bytes, int] = {}

    def read_on(self) -> None:
        while data := os.pread(self.file, _READ_BYTES, self.offset):
            self.offset += len(data)
            for start in range(0, len(data), _DIGEST_BYTES):  # sizes are multiples of it, of reads as of the file
                self.places.setdefault(data[start : start + _DIGEST_BYTES], len(self.places))

    def close(self) -> None:
        if self.file >= 0:
            os.close(self.file)
            self.file = -1


def _short(salt: bytes) -> bytes:
    return salt if len(salt) <= 16 else blake2b(salt, digest_size=16).digest()


def _name(salt: bytes) -> str:
    return f"callers-{blake2b(salt, digest_size=10).hexdigest()}"
