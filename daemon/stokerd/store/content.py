"""Content-addressed files: datasets, code and model versions are named by what is in them.

A *tree* is a folder's files, named by the SHA-256 of its manifest: one line a file, sorted by path, each
``SHA256 SIZE x|- PATH``. Files are kept once, under their own hash; a tree's folder holds hard links to them.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from stoker.errors import Conflict, Invalid, NotFound, Unavailable

_CHUNK = 1 << 20
_CODE_IGNORED = frozenset({".git", "__pycache__", ".venv", "venv", "node_modules", ".pytest_cache", ".mypy_cache"})


@dataclass(frozen=True, slots=True)
class Tree:
    """A kept body of files. ``bytes`` is the sum of the files' sizes."""

    digest: str
    files: int
    bytes: int


@dataclass(frozen=True, slots=True)
class _Entry:
    path: str
    digest: str
    size: int
    executable: bool

    @property
    def blob(self) -> str:
        return self.digest + ("x" if self.executable else "")

    def line(self) -> str:
        return f"{self.digest} {self.size} {'x' if self.executable else '-'} {self.path}\n"


class ContentStore:
    """The folder ``content/`` of a home. All methods block: call them in a thread."""

    def __init__(self, root: Path) -> None:
        self._blobs = root / "blobs"
        self._manifests = root / "manifests"
        self._trees = root / "trees"
        self._partial = root / "partial"
        try:
            for folder in (self._blobs, self._manifests, self._trees, self._partial):
                folder.mkdir(parents=True, exist_ok=True)
            for left_over in self._partial.iterdir():  # of a daemon that was killed while it copied
                _remove(left_over)
        except OSError as error:
            raise _unwritable(root, error) from error

    def add(self, source: Path, *, is_code: bool = False) -> Tree:
        """Keep the files of the folder (or the one file) *source*, and say their name.

        With *is_code*, version control, caches and environments are left out. Links to files are followed. Raises
        `NotFound`, `Invalid` (nothing in it, or something that is not a file), `Conflict` (a file changed meanwhile)
        or `Unavailable` (disk full); what was kept before stays as it was.
        """
        if not source.exists():
            raise NotFound(f"there is no file or folder {source}.", "Give the path of an existing one.", code="no-path")
        entries = []
        try:
            for relative, path in sorted(_files(source, _CODE_IGNORED if is_code else frozenset())):
                entries.append(self._keep(relative, path))
            if not entries:
                raise Invalid(f"{source} has no files.", "Give a folder with at least one file.", code="empty-folder")
            manifest = "".join(e.line() for e in entries).encode()
            digest = hashlib.sha256(manifest).hexdigest()
            self._write(self._manifests / digest, manifest)
        except PermissionError as error:
            raise Unavailable(f"{error.filename} can't be read by this user.", "Change its permissions.") from error
        except OSError as error:
            raise _unwritable(self._blobs.parent, error) from error
        return Tree(digest, len(entries), sum(e.size for e in entries))

    def folder(self, digest: str) -> Path:
        """A read-only folder with that tree's files. Raises `NotFound` for an unknown digest."""
        target = self._trees / digest
        if target.is_dir():
            return target
        partial = Path(tempfile.mkdtemp(dir=self._partial))
        try:
            for entry in self._entries(digest):
                path = partial / entry.path
                path.parent.mkdir(parents=True, exist_ok=True)
                os.link(self._blob(entry.blob), path)
            for folder, _, _ in os.walk(partial):
                Path(folder).chmod(0o555)
            partial.chmod(0o755)  # a folder that can't be written can't be renamed by another user than root
            try:
                partial.rename(target)
            except OSError:
                if not target.is_dir():  # else another thread was faster
                    raise
        except OSError as error:
            raise _unwritable(self._trees, error) from error
        finally:
            if partial.exists():
                _remove(partial)
        target.chmod(0o555)
        return target

    def copy(self, digest: str, target: Path) -> None:
        """Make *target* a folder with a writable copy of that tree's files, whatever was there before."""
        if target.exists():
            _remove(target)
        try:
            for entry in self._entries(digest):
                path = target / entry.path
                path.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(self._blob(entry.blob), path)
                path.chmod(0o755 if entry.executable else 0o644)
        except OSError as error:
            raise _unwritable(target, error) from error

    def _entries(self, digest: str) -> list[_Entry]:
        try:
            # Only "\n" ends a line here: names may hold every other thing that Python calls a line break.
            lines = (self._manifests / digest).read_bytes().decode().split("\n")[:-1]
        except FileNotFoundError as error:
            raise NotFound(f"no content {digest} is kept.", "Was the home's content folder changed by hand?") from error
        entries = []
        for line in lines:
            sha, size, mode, path = line.split(" ", 3)
            entries.append(_Entry(path, sha, int(size), mode == "x"))
        return entries

    def _blob(self, name: str) -> Path:
        return self._blobs / name[:2] / name

    def _keep(self, relative: str, path: Path) -> _Entry:
        """Copy one file while hashing it, and move the copy to its name."""
        if "\n" in relative or not _is_text(relative):
            raise Invalid(f"the name of {str(path)!r} can't be kept.", "Rename it: no line breaks, only UTF-8.")
        with path.open("rb") as source, self._new_file() as copy:
            before = os.fstat(source.fileno())
            digest = hashlib.sha256()
            while chunk := source.read(_CHUNK):
                digest.update(chunk)
                copy.write(chunk)
            after = path.stat()
            size = copy.tell()
        partial = Path(copy.name)
        if (before.st_size, before.st_mtime_ns, before.st_ino) != (after.st_size, after.st_mtime_ns, after.st_ino):
            partial.unlink()
            raise Conflict(f"{path} changed while it was read.", "Try again when nobody writes there.", code="changing")
        entry = _Entry(relative, digest.hexdigest(), size, bool(before.st_mode & stat.S_IXUSR))
        target = self._blob(entry.blob)
        if target.exists():
            partial.unlink()
        else:
            target.parent.mkdir(exist_ok=True)
            partial.chmod(0o555 if entry.executable else 0o444)
            partial.rename(target)
            _sync_folder(target.parent)
        return entry

    def _write(self, path: Path, data: bytes) -> None:
        with self._new_file() as partial:
            partial.write(data)
        Path(partial.name).chmod(0o444)
        Path(partial.name).rename(path)
        _sync_folder(path.parent)

    @contextmanager
    def _new_file(self) -> Iterator[IO[bytes]]:
        """A file to fill; on the disk when the block ends, gone when it fails: a full disk is not filled further."""
        with tempfile.NamedTemporaryFile(dir=self._partial, delete=False) as file:
            try:
                yield file
                file.flush()
                os.fsync(file.fileno())
            except BaseException:
                Path(file.name).unlink(missing_ok=True)
                raise


def _sync_folder(folder: Path) -> None:
    """Bring renames in *folder* to the disk, before a row speaks of what they brought."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _files(source: Path, ignored: frozenset[str]) -> Iterator[tuple[str, Path]]:
    if source.is_file():
        yield source.name, source
        return
    for folder, folders, names in os.walk(source, onerror=_raise):
        folders[:] = [f for f in folders if f not in ignored]
        for name in folders + names:
            path = Path(folder) / name
            if name in folders and not path.is_symlink():
                continue
            if not path.is_file():
                raise Invalid(
                    f"{path} is not a file (or a link to one).", "Leave it out of the folder.", code="not-a-file"
                )
            yield path.relative_to(source).as_posix(), path


def _is_text(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def _raise(error: OSError) -> None:
    raise error


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        for folder, _, _ in os.walk(path):
            Path(folder).chmod(0o755)
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _unwritable(path: Path, error: OSError) -> Unavailable:
    return Unavailable(
        f"files can't be kept in {path}: {error.strerror or error}.",
        "See that its disk has room and that this user may write there.",
        code="content-unwritable",
    )
