"""Transactions on state.db: one writer thread, many readers, and the event in the same commit as the change.

async with asyncio.TaskGroup(): ...
run = await store.read(lambda q: q.get(Run, "tune-1"))
await store.write(lambda tx: tx.save(run, "RunStarted", "it started"))
"""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from pathlib import Path
from typing import Any, TypeVar

from sqlalchemy import Engine, create_engine, event, func
from sqlalchemy.exc import OperationalError
from sqlmodel import Session, col, select

from stoker.errors import NotFound, Unavailable
from stoker.types.base import Resource, now
from stoker.types.events import Event
from stokerd.store.tables import ROWS, EventRow, Row

T = TypeVar("T")
R = TypeVar("R", bound=Resource)
_HOST_TROUBLES = {
    sqlite3.SQLITE_BUSY,
    sqlite3.SQLITE_LOCKED,
    sqlite3.SQLITE_READONLY,
    sqlite3.SQLITE_IOERR,
    sqlite3.SQLITE_FULL,
    sqlite3.SQLITE_CANTOPEN,
}


def open_engine(path: Path, *, synchronous: str) -> Engine:
    """Open a SQLite file in WAL mode; transactions begin IMMEDIATE when asked to by `Store`."""
    engine = create_engine(f"sqlite:///{path}", connect_args={"check_same_thread": False, "timeout": 10})

    @event.listens_for(engine, "connect")
    def _on_connect(connection: sqlite3.Connection, _record: object) -> None:
        connection.isolation_level = None  # we begin by ourselves: pysqlite's own begin is deferred
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute(f"PRAGMA synchronous={synchronous}")
        connection.execute("PRAGMA foreign_keys=ON")

    @event.listens_for(engine, "begin")
    def _on_begin(connection: Any) -> None:
        immediate = connection.get_execution_options().get("immediate", False)
        connection.exec_driver_sql("BEGIN IMMEDIATE" if immediate else "BEGIN")

    return engine


class Query:
    """Reads. Valid inside the function that it was handed to."""

    def __init__(self, session: Session) -> None:
        self.session = session

    def find(self, kind: type[R], name: str) -> R | None:
        """The resource of that name, or None."""
        row = self.session.get(ROWS[kind], name)
        return None if row is None else kind.model_validate_json(row.document)

    def get(self, kind: type[R], name: str) -> R:
        """The resource of that name. Raises `NotFound`."""
        found = self.find(kind, name)
        if found is None:
            raise NotFound(
                f"there is no {kind.kind} named {name!r}.", f"`stoker get {kind.plural}` lists what there is."
            )
        return found

    def all(self, kind: type[R], **equal: object) -> list[R]:
        """All resources of a kind whose key columns equal the given values (or are in a given set), oldest first."""
        row = ROWS[kind]
        statement = select(row).order_by(col(row.created_at), col(row.name))
        for column, value in equal.items():
            field = getattr(row, column)
            statement = statement.where(field.in_(value) if isinstance(value, set | frozenset) else field == value)
        return [kind.model_validate_json(r.document) for r in self.session.exec(statement)]

    def largest(self, kind: type[Resource], column: str, **equal: object) -> int:
        """The largest value of an integer key column among the resources that fit; 0 when there is none."""
        row = ROWS[kind]
        statement = select(func.max(getattr(row, column)))
        for name, value in equal.items():
            statement = statement.where(getattr(row, name) == value)
        return self.session.exec(statement).one() or 0

    def events(self, after: int, *, limit: int = 500, kind: str | None = None, name: str | None = None) -> list[Event]:
        """Events with an id over *after*, in order, at most *limit*; of a kind or name, if one is given."""
        statement = select(EventRow).where(col(EventRow.id) > after).order_by(col(EventRow.id)).limit(limit)
        if kind is not None:
            statement = statement.where(col(EventRow.kind) == kind)
        if name is not None:
            statement = statement.where(col(EventRow.name) == name)
        return [_event(r) for r in self.session.exec(statement)]

    def last_event_id(self) -> int:
        """The newest event's id; 0 when there is none."""
        row = self.session.exec(select(EventRow).order_by(col(EventRow.id).desc()).limit(1)).first()
        return 0 if row is None or row.id is None else row.id


class Transaction(Query):
    """Reads and writes; all of it commits, or none. ``kinds``: those of the events that it recorded so far."""

    def __init__(self, session: Session) -> None:
        super().__init__(session)
        self.kinds: set[str] = set()

    def save(self, resource: Resource, reason: str = "", message: str = "", **data: Any) -> None:
        """Insert or replace *resource*; with a *reason*, record the event of it too."""
        table = ROWS[type(resource)]
        values: dict[str, Any] = {"document": resource.model_dump_json()}
        for column in table.model_fields:
            if column == "created_at":
                values[column] = resource.created_at.isoformat()
            elif column != "document":
                values[column] = getattr(resource, column)
        self.session.merge(table(**values))
        self.session.flush()
        if reason:
            if "phase" not in data and hasattr(resource, "phase"):
                data["phase"] = resource.phase
            self.record(resource.kind, resource.name, reason, message, **data)

    def delete(self, resource: Resource, reason: str, message: str = "", **data: Any) -> None:
        """Remove *resource* and record it."""
        row: Row | None = self.session.get(ROWS[type(resource)], resource.name)
        if row is not None:
            self.session.delete(row)
            self.session.flush()
            self.record(resource.kind, resource.name, reason, message, **data)

    def record(self, kind: str, name: str, reason: str, message: str, **data: Any) -> None:
        """Append an event."""
        self.session.add(
            EventRow(time=now().isoformat(), kind=kind, name=name, reason=reason, message=message, data=data)
        )
        self.session.flush()
        self.kinds.add(kind)


class Store:
    """state.db. Open it after `stokerd.store.migrate.migrate`; close it at the end.

    ``writes`` grows with each transaction that was committed: as long as it stays, so does all that was read.
    """

    def __init__(self, path: Path) -> None:
        self._engine = open_engine(path, synchronous="FULL")
        self._writer = self._engine.execution_options(immediate=True)
        self._write_thread = ThreadPoolExecutor(1, "state-writer")
        self._read_threads = ThreadPoolExecutor(4, "state-reader")
        self._watchers: set[asyncio.Event] = set()
        self._listeners: list[Callable[[frozenset[str]], None]] = []
        self.writes = 0

    def on_event(self, listener: Callable[[frozenset[str]], None]) -> None:
        """Call *listener* with their kinds, in the loop's thread, after each commit that recorded events."""
        self._listeners.append(listener)

    async def write(self, function: Callable[[Transaction], T]) -> T:
        """Run *function* in one transaction on the writer's thread; wakes watchers if it recorded events.

        Cancellation doesn't tear the transaction: it commits or fails as a whole, and who listens hears of it all the
        same. Raises `Unavailable` when SQLite can't write (disk full, read-only).
        """
        loop = asyncio.get_running_loop()

        def work() -> T:
            with Session(self._writer, expire_on_commit=False) as session:
                tx = Transaction(session)
                result = function(tx)
                session.commit()
            self.writes += 1
            if tx.kinds:
                loop.call_soon_threadsafe(self._tell, frozenset(tx.kinds))
            return result

        return await self._in_thread(self._write_thread, work)

    def _tell(self, kinds: frozenset[str]) -> None:
        for watcher in self._watchers:
            watcher.set()
        for listener in self._listeners:
            listener(kinds)

    async def read(self, function: Callable[[Query], T]) -> T:
        """Run *function* on a consistent snapshot."""

        def work() -> T:
            with Session(self._engine, expire_on_commit=False) as session:
                return function(Query(session))

        return await self._in_thread(self._read_threads, work)

    async def _in_thread(self, pool: ThreadPoolExecutor, work: Callable[[], T]) -> T:
        try:
            return await asyncio.get_running_loop().run_in_executor(pool, work)
        except OperationalError as error:
            if getattr(error.orig, "sqlite_errorcode", 0) & 0xFF not in _HOST_TROUBLES:
                raise  # a statement or table that is wrong is a bug, which no disk space mends
            raise Unavailable(
                f"the database can't be used: {error.orig}.",
                "See that the disk of Stoker's home has room and is writable.",
                code="database-unavailable",
            ) from error

    async def changed(self, after: int, timeout_seconds: float) -> None:
        """Return when there is an event over *after*, or at the timeout."""

        told = asyncio.Event()
        self._watchers.add(told)
        try:
            async with asyncio.timeout(timeout_seconds):
                while await self.read(lambda q: q.last_event_id()) <= after:
                    await told.wait()
                    told.clear()
        except TimeoutError:
            return
        finally:
            self._watchers.discard(told)

    def close(self) -> None:
        """Finish what is queued and close the file."""
        self._write_thread.shutdown()
        self._read_threads.shutdown()
        self._engine.dispose()


def _event(row: EventRow) -> Event:
    return Event(
        id=row.id or 0,
        time=datetime.fromisoformat(row.time),
        kind=row.kind,
        name=row.name,
        reason=row.reason,
        message=row.message,
        data=row.data,
    )
