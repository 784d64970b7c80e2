"""Small disks to fill, to make read-only and to break: mounted by root."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

CHUNK_BYTES = 1 << 16
EXT4_BYTES = 96 << 20


class Disk:
    """A file system of its own; ``folder`` is where it is mounted."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._filler = folder / "filler"

    @contextlib.contextmanager
    def filled(self, leave_bytes: int = 0) -> Iterator[None]:
        """All room is taken but so much (to the last byte where nothing is to be left), until the block ends."""
        try:
            self.fill(leave_bytes)
            yield
        finally:
            self.free()

    def fill(self, leave_bytes: int = 0) -> None:
        """Take what is free now."""
        with self._filler.open("ab", buffering=0) as file, contextlib.suppress(OSError):
            while self.free_bytes() > leave_bytes + CHUNK_BYTES or not leave_bytes:
                file.write(b"\0" * CHUNK_BYTES)

    def free(self) -> None:
        """Give the room back."""
        self._filler.unlink(missing_ok=True)

    def free_bytes(self) -> int:
        disk = os.statvfs(self.folder)
        return disk.f_bavail * disk.f_frsize

    def remount(self, how: str) -> None:
        """``ro`` or ``rw``; refused while a file is open for writing."""
        _run("mount", "-o", f"remount,{how}", self.folder)

    def break_down(self) -> None:
        """Read-only at once, whatever is open: as ext4 does when the device under it fails. Not for tmpfs."""
        _run("mount", "-o", "remount,abort", self.folder)


@contextlib.contextmanager
def disk(size: str) -> Iterator[Disk]:
    """A tmpfs of *size* (``64m``), until the block ends. Skips the test where it can't be made."""
    with short_folder() as folder, _mounted(folder, "-t", "tmpfs", "-o", f"size={size}", "stoker-test"):
        yield Disk(folder)


class Ext4:
    """A file with an ext4 file system in it, which can be mounted as often as is wanted."""

    def __init__(self, image: Path) -> None:
        if os.geteuid() != 0 or shutil.which("mkfs.ext4") is None:
            pytest.skip("an ext4 file system wants root and mkfs.ext4")
        self._image = image
        with image.open("wb") as file:
            file.truncate(EXT4_BYTES)
        _run("mkfs.ext4", "-q", "-F", image)

    @contextlib.contextmanager
    def mounted(self, folder: Path) -> Iterator[Disk]:
        """Mounted on *folder* until the block ends. Skips the test where it can't be."""
        with _mounted(folder, "-o", "loop", str(self._image)):
            yield Disk(folder)


@contextlib.contextmanager
def short_folder() -> Iterator[Path]:
    """An empty folder with a short path: sockets have 107 bytes. It must be empty again in the end."""
    folder = Path(tempfile.mkdtemp(prefix="stk-", dir="/tmp"))
    try:
        yield folder
    finally:
        folder.rmdir()


@contextlib.contextmanager
def _mounted(folder: Path, *arguments: str) -> Iterator[None]:
    if os.geteuid() != 0:
        pytest.skip("only root can mount a disk")
    done = subprocess.run(["mount", *arguments, folder], capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"no disk can be mounted here: {done.stderr.strip()}")
    try:
        yield
    finally:
        _run("umount", folder)


def _run(*argv: str | Path) -> None:
    subprocess.run(argv, check=True, capture_output=True)
