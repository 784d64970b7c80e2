"""The file metrics.db: opened, kept usable, and given up for a new one when it is not."""

from __future__ import annotations

import asyncio
import logging
import os
import sqlite3
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import TypeVar

from sqlalchemy import Connection, Engine
from sqlalchemy.exc import DBAPIError

from stoker.errors import Unavailable
from stokerd.store.store import open_engine
from stokerd.telemetry.tables import SCHEMA_VERSION, UPGRADES, MetricsTable

log = logging.getLogger(__name__)
T = TypeVar("T")

READERS = 3
RESERVE_BYTES = 32 * 2**20  # below this much free disk nothing is stored here, so that state.db can still grow
_DAMAGED = frozenset({sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB})
_FOREIGN = (DBAPIError, sqlite3.Error)
_SIDECARS = ("-wal", "-shm")


class Database:
    """One writer thread, a few readers, and a file that is set aside when it turns out to be damaged.

    Opening never raises: while the file can't be used (no room, no right to write), each call raises `Unavailable`,
    and each write tries anew.

    Args:
        path: the file; set aside as ``NAME.corrupt-TIME`` if it is damaged, or of a schema version that can't be
            brought up to the present one.
        reserve_bytes: writes are refused while the disk has less than this free.
    """

    def __init__(self, path: Path, *, reserve_bytes: int = RESERVE_BYTES) -> None:
        self._path = path
        self._reserve_bytes = reserve_bytes
        self._engine: Engine | None = None
        self._gate = _Gate()
        self._is_closed = False
        self._writer = ThreadPoolExecutor(1, "metrics-writer")
        self._readers = ThreadPoolExecutor(READERS, "metrics-reader")
        try:
            self._open()
        except Unavailable as error:
            log.warning("%s", error)

    async def write(self, function: Callable[[Connection], T], *, reserve_bytes: int | None = None) -> T:
        """Run *function* in one transaction on the writer's thread. Raises `Unavailable`.

        *reserve_bytes*: what the disk must have free for this, where that is less than usual.
        """
        reserve = self._reserve_bytes if reserve_bytes is None else min(reserve_bytes, self._reserve_bytes)
        return await self._run(self._writer, lambda: self._write(function, reserve))

    async def read(self, function: Callable[[Connection], T], *, in_turn: bool = False) -> T:
        """Run *function* on a consistent snapshot on a reader's thread. Raises `Unavailable`.

        *in_turn*: on the writer's thread, so that what was written before and what is written after can be told apart:
        when this returns, every `write` of which it saw something has returned to its caller, and no other one has.
        For writers wait meanwhile, and whoever awaits gets results in the order in which that thread came to them.
        """
        return await self._run(self._writer if in_turn else self._readers, lambda: self._read(function))

    async def shrink(self) -> None:
        """Give free pages back to the disk. Raises `Unavailable`."""
        await self._run(self._writer, self._shrink)

    def close(self) -> None:
        """Finish what is queued and close the file. May be called twice."""
        self._is_closed = True
        self._readers.shutdown()
        self._writer.shutdown()
        if self._engine is not None:
            self._engine.dispose()
            self._engine = None

    async def _run(self, pool: ThreadPoolExecutor, work: Callable[[], T]) -> T:
        if self._is_closed:
            raise Unavailable("metrics.db is closed: the daemon is stopping.", code="metrics-unavailable")
        return await asyncio.get_running_loop().run_in_executor(pool, work)

    def _write(self, function: Callable[[Connection], T], reserve_bytes: int) -> T:
        engine = self._engine or self._open()
        if reserve_bytes:
            self._check_reserve(reserve_bytes)
        try:
            with engine.execution_options(immediate=True).begin() as connection:
                return function(connection)
        except _FOREIGN as error:
            if _is_damage(error):
                self._start_anew(engine)
            raise self._unavailable(error) from error

    def _read(self, function: Callable[[Connection], T]) -> T:
        with self._gate.shared():
            engine = self._engine
            if engine is None:
                raise Unavailable(f"{self._path} can't be opened.", code="metrics-unavailable")
            try:
                with engine.begin() as connection:
                    return function(connection)
            except _FOREIGN as error:
                if _is_damage(error):
                    self._writer.submit(self._start_anew, engine)
                raise self._unavailable(error) from error

    def _shrink(self) -> None:
        engine = self._engine or self._open()
        try:
            with closing(engine.raw_connection()) as connection:
                # executescript runs a statement to its end; execute would stop at the first page given back.
                sqlite = connection.driver_connection
                assert isinstance(sqlite, sqlite3.Connection)
                sqlite.executescript("PRAGMA incremental_vacuum; PRAGMA wal_checkpoint(TRUNCATE)")
        except _FOREIGN as error:
            if _is_damage(error):
                self._start_anew(engine)
            raise self._unavailable(error) from error

    def _check_reserve(self, reserve_bytes: int) -> None:
        try:
            disk = os.statvfs(self._path.parent)
        except OSError as error:
            raise self._unavailable(error) from error
        free = disk.f_bavail * disk.f_frsize
        if free < reserve_bytes:
            raise Unavailable(
                f"the disk of {self._path} has {free // 2**20} MiB free: metrics are not stored until it has "
                f"{reserve_bytes // 2**20} MiB.",
                "Make room on that disk.",
                code="disk-full",
            )

    def _open(self) -> Engine:
        """Open the file, or start it; called by the constructor and on the writer's thread."""
        engine: Engine | None = None
        try:
            if not _is_usable(self._path):
                set_aside(self._path)
            _create_file(self._path)
            engine = open_engine(self._path, synchronous="NORMAL")
            with engine.execution_options(immediate=True).begin() as connection:
                for statement in UPGRADES.get(connection.exec_driver_sql("PRAGMA user_version").scalar_one(), ()):
                    connection.exec_driver_sql(statement)
                MetricsTable.metadata.create_all(connection)
                connection.exec_driver_sql(f"PRAGMA user_version={SCHEMA_VERSION}")
        except (*_FOREIGN, OSError) as error:
            if engine is not None:
                engine.dispose()
            raise self._unavailable(error) from error
        self._engine = engine
        return engine

    def _start_anew(self, damaged: Engine) -> None:
        """Set a damaged file aside, unless another call has done so already. On the writer's thread."""
        with self._gate.alone():
            # All connections must be gone first: SQLite unlinks the -wal of its path when the last one closes.
            if self._engine is not damaged:
                return
            damaged.dispose()
            self._engine = None
            try:
                set_aside(self._path)
                self._open()
            except (OSError, Unavailable) as error:
                log.warning("metrics.db could not be started anew: %s", error)

    def _unavailable(self, error: Exception) -> Unavailable:
        cause = error.orig if isinstance(error, DBAPIError) else error
        return Unavailable(
            f"{self._path} can't be used: {cause}.",
            "See that its disk has room and is writable; metrics are kept again as soon as it is.",
            code="metrics-unavailable",
        )


class _Gate:
    """Many readers, or one who needs to be alone."""

    def __init__(self) -> None:
        self._condition = threading.Condition()
        self._inside = 0

    @contextmanager
    def shared(self) -> Iterator[None]:
        with self._condition:
            self._inside += 1
        try:
            yield
        finally:
            with self._condition:
                self._inside -= 1
                self._condition.notify_all()

    @contextmanager
    def alone(self) -> Iterator[None]:
        with self._condition:
            self._condition.wait_for(lambda: self._inside == 0)
            yield


def set_aside(path: Path) -> Path:
    """Rename *path* and its sidecars to ``NAME.corrupt-TIME``; an older one set aside is deleted. Raises `OSError`."""
    for older in path.parent.glob(f"{path.name}.corrupt-*"):
        older.unlink(missing_ok=True)
    target = path.with_name(f"{path.name}.corrupt-{datetime.now(UTC):%Y%m%dT%H%M%S.%fZ}")
    # The sidecars go first: a crash between leaves a file without its -wal, which is found unusable again.
    for suffix in (*_SIDECARS, ""):
        with_suffix = path.with_name(path.name + suffix)
        if with_suffix.exists():
            with_suffix.rename(target.with_name(target.name + suffix))
    log.warning("%s was damaged or of another version; it is kept as %s.", path, target)
    return target


def _is_usable(path: Path) -> bool:
    """Whether this version can go on with the file, or start in its place. Raises `sqlite3.Error` if nobody can say."""
    if not path.exists() or path.stat().st_size == 0:
        return True
    try:
        with closing(sqlite3.connect(path, timeout=10)) as connection:
            version = connection.execute("PRAGMA user_version").fetchone()[0]
            tables = connection.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]
    except sqlite3.Error as error:
        if _is_damage(error):
            return False
        raise
    return version == SCHEMA_VERSION or version in UPGRADES or (version == 0 and tables == 0)


def _create_file(path: Path) -> None:
    """Choose what can't be changed later, before the first page is written; does nothing to a file that has pages."""
    with closing(sqlite3.connect(path, timeout=10)) as connection:
        connection.execute("PRAGMA auto_vacuum=INCREMENTAL")
        connection.execute("PRAGMA journal_mode=WAL")


def _is_damage(error: Exception) -> bool:
    cause = error.orig if isinstance(error, DBAPIError) else error
    code = getattr(cause, "sqlite_errorcode", None)
    return code is not None and code & 0xFF in _DAMAGED
