from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, closing
from pathlib import Path

import pytest
from sqlalchemy.exc import OperationalError

from stoker.errors import NotFound, Unavailable
from stoker.types.registry import Version
from stoker.types.training import Dataset
from stokerd.store.store import Store, Transaction
from tests.harness import DEADLINE
from tests.unit.state import make_state_db


@pytest.fixture
def path(tmp_path: Path) -> Iterator[Path]:
    make_state_db(tmp_path)
    yield tmp_path / "state.db"


@asynccontextmanager
async def opened(path: Path) -> AsyncIterator[Store]:
    store = Store(path)
    try:
        yield store
    finally:
        store.close()


def test_a_change_and_its_event_are_kept_together_or_not_at_all(path: Path) -> None:
    def broken(tx: Transaction) -> None:
        tx.save(Dataset(name="b"), "DatasetCreated", "b")
        raise RuntimeError("after the change, before the commit")

    async def work() -> None:
        async with opened(path) as store:
            await store.write(lambda tx: tx.save(Dataset(name="a"), "DatasetCreated", "a"))
            with pytest.raises(RuntimeError):
                await store.write(broken)
            assert [d.name for d in await store.read(lambda q: q.all(Dataset))] == ["a"]
            assert [e.name for e in await store.read(lambda q: q.events(0))] == ["a"]

    asyncio.run(work())


def test_a_watcher_wakes_when_an_event_is_committed(path: Path) -> None:
    async def work() -> None:
        async with opened(path) as store:
            waiting = asyncio.create_task(store.changed(0, 3600))
            await store.write(lambda tx: tx.save(Dataset(name="a"), "DatasetCreated", "a"))
            await asyncio.wait_for(waiting, DEADLINE)

    asyncio.run(work())


def test_ids_of_events_grow_and_are_never_used_again(path: Path) -> None:
    async def work() -> None:
        async with opened(path) as store:
            for _ in range(3):
                await store.write(lambda tx: tx.record("x", "x", "X", ""))
        with closing(sqlite3.connect(path)) as db, db:
            db.execute("DELETE FROM event WHERE id = 3")
        async with opened(path) as store:
            await store.write(lambda tx: tx.record("x", "x", "X", ""))
            assert [e.id for e in await store.read(lambda q: q.events(0))] == [1, 2, 4]

    asyncio.run(work())


def test_the_database_itself_refuses_to_change_a_version(path: Path) -> None:
    version = Version(name="m@1", model="m", number=1, digest="d", files=1, bytes=1, folder="/x")

    async def work() -> None:
        async with opened(path) as store:
            await store.write(lambda tx: tx.save(version, "VersionRegistered", ""))
            with pytest.raises(Exception, match="can not be changed"):
                await store.write(lambda tx: tx.save(version.model_copy(update={"folder": "/y"})))

    asyncio.run(work())


def test_what_is_not_there_is_said_with_what_to_do(path: Path) -> None:
    async def work() -> None:
        async with opened(path) as store:
            with pytest.raises(NotFound, match="no dataset named 'nope'"):
                await store.read(lambda q: q.get(Dataset, "nope"))

    asyncio.run(work())


def test_a_host_that_cannot_keep_anything_is_told_from_a_bug(path: Path) -> None:
    async def work() -> None:
        async with opened(path) as store:
            await store.write(lambda tx: tx.session.connection().exec_driver_sql("PRAGMA max_page_count = 1"))
            with pytest.raises(Unavailable, match="full"):
                await store.write(lambda tx: tx.record("x", "x", "X", "y" * 10**6))
            with pytest.raises(OperationalError, match="no such table"):
                await store.read(lambda q: q.session.connection().exec_driver_sql("SELECT 1 FROM absent").all())

    asyncio.run(work())
