from __future__ import annotations

import asyncio
import os
import sqlite3
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest
from sqlalchemy import Connection, text
from sqlmodel import SQLModel

from stoker.errors import Unavailable
from stokerd.store import tables as state_tables
from stokerd.telemetry import series
from stokerd.telemetry.database import Database
from stokerd.telemetry.metrics import Metrics, Sample
from stokerd.telemetry.tables import SCHEMA_VERSION, MetricsTable
from tests.harness import DEADLINE
from tests.unit.telemetry.conftest import MakePair, MakeRecord, OpenMetrics, Run

DATA = Path(__file__).parents[2] / "data"


def sample(at: float, value: float = 1.0) -> Sample:
    return Sample("host.a", "", (), at, value)


def points(run: Run, metrics: Metrics) -> list[tuple[float, float]]:
    return [p for s in run(metrics.series("host.a", since=0, until=1e9, max_points=10**6)) for p in s.points]


def set_aside(path: Path) -> list[Path]:
    return sorted(path.parent.glob("metrics.db.corrupt-*"))


def test_its_tables_are_not_those_of_state_db() -> None:
    assert state_tables.ROWS
    assert not set(MetricsTable.metadata.tables) & set(SQLModel.metadata.tables)


def test_a_new_file_is_wal_versioned_and_gives_pages_back(run: Run, metrics: Metrics, path: Path) -> None:
    run(metrics.write_samples([sample(1)]))
    with closing(sqlite3.connect(path)) as connection:
        pragmas = [
            connection.execute(f"PRAGMA {p}").fetchone()[0] for p in ("journal_mode", "user_version", "auto_vacuum")
        ]
    assert pragmas == ["wal", SCHEMA_VERSION, 2]


def test_what_was_written_is_there_after_closing(run: Run, open_metrics: OpenMetrics, path: Path) -> None:
    metrics = open_metrics()
    run(metrics.write_samples([sample(1), sample(2)]))
    metrics.close()
    metrics.close()
    assert points(run, open_metrics()) == [(1, 1), (2, 1)]
    assert set_aside(path) == []


def test_after_closing_it_says_so(run: Run, open_metrics: OpenMetrics) -> None:
    metrics = open_metrics()
    metrics.close()
    with pytest.raises(Unavailable, match="stopping"):
        run(metrics.write_samples([sample(1)]))
    with pytest.raises(Unavailable, match="stopping"):
        run(metrics.traffic(1))


def make_garbage(path: Path) -> None:
    path.write_bytes(os.urandom(8192))


def make_short(path: Path) -> None:
    path.write_bytes(b"SQLite format 3\0 but no more than this")


def make_newer(path: Path) -> None:
    with closing(sqlite3.connect(path)) as connection:
        connection.execute(f"PRAGMA user_version={SCHEMA_VERSION + 1}")
        connection.execute("CREATE TABLE something (else_)")


def make_foreign(path: Path) -> None:
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("CREATE TABLE something (else_)")


@pytest.mark.parametrize("make", [make_garbage, make_short, make_newer, make_foreign])
def test_a_file_that_is_damaged_or_of_another_version_is_set_aside(
    run: Run, open_metrics: OpenMetrics, path: Path, make: Callable[[Path], None]
) -> None:
    make(path)
    content = path.read_bytes()
    metrics = open_metrics()
    run(metrics.write_samples([sample(1)]))
    assert points(run, metrics) == [(1, 1)]
    (aside,) = set_aside(path)
    assert aside.read_bytes() == content


def schema(path: Path) -> dict[str, list[tuple[object, ...]]]:
    with closing(sqlite3.connect(path)) as connection:
        names = [name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
        return {name: connection.execute(f"PRAGMA table_info({name})").fetchall() for name in sorted(names)}


def test_a_file_of_the_version_before_goes_on_with_all_that_it_holds(
    run: Run, open_metrics: OpenMetrics, path: Path, tmp_path: Path, record: MakeRecord, pair: MakePair
) -> None:
    with closing(sqlite3.connect(path)) as connection:
        connection.executescript((DATA / f"metrics-{SCHEMA_VERSION - 1}.sql").read_text())
    metrics = open_metrics()
    run(metrics.write_pairs("e", [pair(2), pair(3, 1002)]))
    assert set_aside(path) == []
    assert points(run, metrics) == [(1, 1), (2, 2)]
    assert run(metrics.records("chat", since=0)) == [record(1), record(2, 1001.0, is_error=True)]
    old = [replace(pair(1), question=""), replace(pair(2, 1001.25, text="it's 'quoted'"), question="")]
    assert run(metrics.pairs("chat-2", since=0, limit=9)) == [*old, pair(3, 1002)]
    metrics.close()
    open_metrics(tmp_path / "new.db").close()
    assert schema(path) == schema(tmp_path / "new.db")
    assert run(open_metrics().pairs("chat-2", since=0, limit=9)) == [*old, pair(3, 1002)]  # upgraded once


def test_of_files_set_aside_the_newest_is_kept(open_metrics: OpenMetrics, path: Path) -> None:
    for content in (b"x" * 600, b"y" * 600):
        make_garbage(path)
        path.write_bytes(content)
        open_metrics().close()
    (aside,) = set_aside(path)
    assert aside.read_bytes() == b"y" * 600


def test_an_empty_file_is_started_in_place(run: Run, open_metrics: OpenMetrics, path: Path) -> None:
    path.touch()
    metrics = open_metrics()
    run(metrics.write_samples([sample(1)]))
    assert points(run, metrics) == [(1, 1)]
    assert set_aside(path) == []


@pytest.mark.parametrize("finder", ["reader", "writer"])
def test_a_file_that_gets_damaged_while_it_is_used_is_replaced_while_the_daemon_runs(
    run: Run, open_metrics: OpenMetrics, path: Path, finder: str
) -> None:
    first = open_metrics()
    run(first.write_samples([sample(t) for t in range(1, 20_000)]))
    first.close()
    metrics = open_metrics()
    size = path.stat().st_size
    with path.open("r+b") as file:  # all but the first pages, so that it opens well
        file.seek(32768)
        file.write(os.urandom(size - 32768))
    deadline = time.monotonic() + DEADLINE
    with pytest.raises(Unavailable, match=r"malformed|not a database"):
        if finder == "reader":
            points(run, metrics)
        else:
            run(metrics.write_samples([sample(t) for t in range(1, 20_000)]))
    while not set_aside(path) or points(run, metrics) != [(1, 2)]:
        assert time.monotonic() < deadline
        run(metrics.write_samples([sample(1, 2)]))
    assert len([p for p in set_aside(path) if p.name.endswith("Z")]) == 1


def test_a_folder_that_comes_late_is_used_as_soon_as_it_is_there(
    run: Run, open_metrics: OpenMetrics, tmp_path: Path
) -> None:
    late = tmp_path / "late" / "metrics.db"
    metrics = open_metrics(late)
    for _ in range(2):
        with pytest.raises(Unavailable, match="unable to open"):
            run(metrics.write_samples([sample(1)]))
        with pytest.raises(Unavailable):
            points(run, metrics)
    late.parent.mkdir()
    run(metrics.write_samples([sample(2)]))
    assert points(run, metrics) == [(2, 1)]


def test_a_file_that_another_program_holds_is_unavailable_and_then_works(
    run: Run, open_metrics: OpenMetrics, path: Path
) -> None:
    metrics = open_metrics()
    # Our own time-out is 10 s; a test has no time for it.
    run(metrics._database.write(lambda c: c.exec_driver_sql("PRAGMA busy_timeout=50")))
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(Unavailable, match="locked") as caught:
            run(metrics.write_samples([sample(1)]))
        assert caught.value.code == "metrics-unavailable"
        assert points(run, metrics) == []
        other.execute("ROLLBACK")
    run(metrics.write_samples([sample(2)]))
    assert points(run, metrics) == [(2, 1)]


def test_a_write_that_fails_leaves_nothing_of_itself(run: Run, metrics: Metrics, record: MakeRecord) -> None:
    def write_and_fail(connection: Connection) -> None:
        connection.exec_driver_sql("INSERT INTO series (name, labels, unit) VALUES ('half', '{}', '')")
        connection.exec_driver_sql("INSERT INTO nowhere VALUES (1)")

    with pytest.raises(Unavailable, match="no such table"):
        run(metrics._database.write(write_and_fail))
    count = run(metrics._database.read(lambda c: c.execute(text("SELECT count(*) FROM series")).scalar_one()))
    assert count == 0


def test_a_slow_reader_stops_neither_the_writer_nor_the_loop(run: Run, metrics: Metrics) -> None:
    entered, leave = threading.Event(), threading.Event()

    def linger(connection: Connection) -> None:
        connection.exec_driver_sql("SELECT * FROM series").all()
        entered.set()
        assert leave.wait(DEADLINE)

    async def both() -> None:
        async with asyncio.TaskGroup() as tasks:
            slow = tasks.create_task(metrics._database.read(linger))
            assert await asyncio.to_thread(entered.wait, DEADLINE)
            await metrics.write_samples([sample(1)])
            assert not slow.done()
            leave.set()

    run(both())
    assert points(run, metrics) == [(1, 1)]


def test_metrics_stop_before_the_disk_is_full_and_reads_go_on(run: Run, open_metrics: OpenMetrics, path: Path) -> None:
    metrics = open_metrics()
    run(metrics.write_samples([sample(1)]))
    metrics.close()
    metrics = open_metrics(reserve_bytes=2**60)
    with pytest.raises(Unavailable, match="metrics are not stored until it has") as caught:
        run(metrics.write_samples([sample(2)]))
    assert caught.value.code == "disk-full"
    assert points(run, metrics) == [(1, 1)]
    run(metrics.trim())


def test_what_a_rollout_is_judged_by_is_stored_with_less_room_than_other_metrics(
    run: Run, open_metrics: OpenMetrics, record: MakeRecord, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Disk:
        f_bavail, f_frsize = 16 * 2**20, 1

    metrics = open_metrics(reserve_bytes=32 * 2**20)
    monkeypatch.setattr(os, "statvfs", lambda path: Disk)
    with pytest.raises(Unavailable, match="has 16 MiB free"):
        run(metrics.write_records("e", [record(1)]))
    metrics.keeps_recent = True
    run(metrics.write_records("e", [record(1)]))
    with pytest.raises(Unavailable, match="until it has 32 MiB"):
        run(metrics.write_samples([sample(1)]))
    Disk.f_bavail = 2**20
    with pytest.raises(Unavailable, match="until it has 8 MiB"):
        run(metrics.write_records("e", [record(2)]))
    assert run(metrics.last_record("e")) == 1


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 1 MiB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    if os.geteuid() != 0:
        pytest.skip("only root can mount a small disk")
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", disk], capture_output=True, text=True, check=False
    )
    if mounted.returncode != 0:
        pytest.skip(f"no small disk can be mounted here: {mounted.stderr.strip()}")
    yield disk
    subprocess.run(["umount", "--lazy", disk], check=True)


def test_a_full_disk_is_told_loses_nothing_stored_and_is_used_again_when_it_has_room(
    run: Run, small_disk: Path
) -> None:
    database = Database(small_disk / "metrics.db", reserve_bytes=0)
    try:

        def write(first: int) -> None:
            rows = [sample(t) for t in range(first, first + 1000)]
            run(database.write(lambda c: series.write(c, rows)))

        def stored() -> int:
            found = run(database.read(lambda c: series.read(c, "*", since=0, until=1e9, max_points=10**7)))
            return sum(len(s.points) for s in found)

        (small_disk / "ballast").write_bytes(bytes(500_000))
        written = 0
        with pytest.raises(Unavailable, match=r"full|disk I/O"):
            while written < 10**6:
                write(written)
                written += 1000
        assert 0 < written == stored()
        with pytest.raises(Unavailable):
            write(written)
        (small_disk / "ballast").unlink()
        write(written)
        assert stored() == written + 1000
    finally:
        database.close()
