"""Bring state.db to this program's schema: look, back up, then let Alembic upgrade."""

from __future__ import annotations

import os
import sqlite3
import subprocess
import sys
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path

from stoker.errors import Conflict, Unavailable

_SCRIPTS = Path(__file__).parent / "migrations"
KEPT_BACKUPS = 5
REFUSED = 3
"""The exit code of `stokerd.store.upgrade` when SQLite can't read or write the file; its stdout has SQLite's word."""


def revisions() -> list[str]:
    """All schema revisions up to this program's own: the numbers with which the files of the migrations begin."""
    return sorted(path.name.partition("_")[0] for path in (_SCRIPTS / "versions").glob("[0-9]*.py"))


def migrate(path: Path, backups: Path) -> Path | None:
    """Upgrade the database at *path*, or make it. Returns the backup that was made first (None for a new database).

    Raises `Conflict` for a database of a newer Stoker and `Unavailable` for one that can't be read or written; neither
    changes it.
    """
    revision, known, saved = None, revisions(), None
    if path.exists() and path.stat().st_size:
        revision = _revision(path, backups)
        if revision is not None and revision not in known:
            raise Conflict(
                f"{path} has schema {revision}, which this version of Stoker doesn't know; it was left untouched.",
                "Start the newer Stoker that made it, or another home.",
                code="schema-too-new",
            )
        saved = _back_up(path, backups, revision or "empty")
    try:
        if revision == known[-1]:
            _try_to_write(path)
        else:
            _upgrade(path)
    except sqlite3.OperationalError as error:
        raise Unavailable(
            f"{path} can't be written: {error}.",
            "See that its disk has room and that this user may write there.",
            code="database-unavailable",
        ) from error
    return saved


def _try_to_write(path: Path) -> None:
    """Raises sqlite3.OperationalError when that can't be done."""
    with closing(sqlite3.connect(path, timeout=10, isolation_level=None)) as connection:
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute("BEGIN IMMEDIATE")


def _upgrade(path: Path) -> None:
    """Raises sqlite3.OperationalError when the file can't be written, CalledProcessError for a bug, told on stderr."""
    ended = subprocess.run(
        [sys.executable, "-m", "stokerd.store.upgrade", os.fspath(path), str(os.getpid())],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        text=True,
        check=False,
        start_new_session=True,  # the Ctrl-C that ends a daemon lets it come to its end
    )
    if ended.returncode == REFUSED:
        raise sqlite3.OperationalError(ended.stdout)
    ended.check_returncode()


def _revision(path: Path, backups: Path) -> str | None:
    """Look at the database, its write-ahead log included, and write to neither.

    A connection that may write would, as the last one to close, move the log into a file that is not ours to change.
    """
    try:
        with closing(_connect_to_look(path)) as connection:
            (healthy,) = connection.execute("PRAGMA quick_check(1)").fetchone()
            if healthy != "ok":
                raise sqlite3.DatabaseError(" ".join(healthy.split()))
            known = connection.execute("SELECT 1 FROM sqlite_master WHERE name = 'alembic_version'").fetchone()
            row = connection.execute("SELECT version_num FROM alembic_version").fetchone() if known else None
    except sqlite3.OperationalError as error:
        raise Unavailable(
            f"{path} can't be opened: {error}.",
            "See that its disk has room and that this user may write there.",
            code="database-unavailable",
        ) from error
    except sqlite3.DatabaseError as error:
        newest = max(backups.glob("state-*.db"), default=None)
        raise Unavailable(
            f"{path} is damaged ({error}); it was left untouched.",
            f"Move {path}, and {path}-wal and {path}-shm where they are, aside; "
            + (f"copy the newest backup, {newest}, to its place." if newest else "no backup is there: it starts anew."),
            code="state-damaged",
        ) from error
    return None if row is None else str(row[0])


def _connect_to_look(path: Path) -> sqlite3.Connection:
    """Raises sqlite3.OperationalError."""
    journal = path.with_name(f"{path.name}-journal")
    if journal.exists() and journal.stat().st_size:
        # Killed in its first moment, before it had a write-ahead log: only who may write can undo what was half done.
        return sqlite3.connect(path)
    return sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True)


def _back_up(path: Path, backups: Path, revision: str) -> Path:
    """Copy through SQLite itself, so that what is still in the write-ahead log comes along; keep the newest few."""
    backups.mkdir(parents=True, exist_ok=True)
    target = backups / f"state-{datetime.now(UTC):%Y%m%dT%H%M%S%f}-{revision}.db"
    partial = target.with_suffix(".partial")
    for killed in backups.glob("state-*.partial"):  # half of one that a kill cut off
        killed.unlink()
    try:
        with closing(sqlite3.connect(path)) as source, closing(sqlite3.connect(partial)) as copy:
            source.backup(copy)
        partial.rename(target)
    except (sqlite3.Error, OSError) as error:
        partial.unlink(missing_ok=True)
        raise Unavailable(
            f"no backup of {path} can be made in {backups}: {error}.",
            "Stoker doesn't start without one: make room there.",
            code="backup-failed",
        ) from error
    for old in sorted(backups.glob("state-*.db"))[:-KEPT_BACKUPS]:
        old.unlink()
    return target
