from __future__ import annotations

import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlmodel import Session, SQLModel

from stoker.errors import Conflict, Unavailable
from stoker.types.serving import Deployment, Replica
from stokerd.serving.engines import launch_digest
from stokerd.store import migrate as migrate_module
from stokerd.store import tables
from stokerd.store.migrate import KEPT_BACKUPS, migrate, revisions
from stokerd.store.store import Query, open_engine

OLD_DATABASES = Path(__file__).parents[2] / "data"


def test_the_migrations_make_exactly_the_tables_that_the_code_uses(tmp_path: Path) -> None:
    assert migrate(tmp_path / "state.db", tmp_path / "backups") is None
    engine = open_engine(tmp_path / "state.db", synchronous="FULL")
    with engine.connect() as connection:
        state = {
            t for t in SQLModel.metadata.tables if t in {r.__tablename__ for r in tables.ROWS.values()} | {"event"}
        }
        options = {"include_name": lambda name, kind, _: kind != "table" or name in state}
        assert compare_metadata(MigrationContext.configure(connection, opts=options), SQLModel.metadata) == []
    engine.dispose()


def test_a_database_is_backed_up_before_anything_touches_it_and_old_backups_go(tmp_path: Path) -> None:
    migrate(tmp_path / "state.db", tmp_path / "backups")
    saved = [migrate(tmp_path / "state.db", tmp_path / "backups") for _ in range(KEPT_BACKUPS + 2)]
    kept = sorted((tmp_path / "backups").iterdir())
    assert kept == saved[-KEPT_BACKUPS:]
    with closing(sqlite3.connect(kept[-1])) as backup:
        assert backup.execute("SELECT version_num FROM alembic_version").fetchone() == (revisions()[-1],)


def test_the_files_names_say_which_schemas_there_are() -> None:
    script = ScriptDirectory(str(Path(migrate_module.__file__).parent / "migrations"))
    assert revisions() == sorted(r.revision for r in script.walk_revisions())
    assert revisions()[-1] == script.get_current_head()


def test_alembic_is_loaded_in_another_process(tmp_path: Path) -> None:
    """It takes memory that a daemon would hold for all its life."""
    program = f"""
import sys
from pathlib import Path
from stokerd.store.migrate import migrate
assert migrate(Path({str(tmp_path)!r}, "state.db"), Path({str(tmp_path)!r}, "backups")) is None
print([m for m in ("alembic", "mako") if m in sys.modules])
"""
    assert subprocess.check_output([sys.executable, "-c", program], text=True) == "[]\n"
    assert migrate(tmp_path / "state.db", tmp_path / "backups") is not None


def test_a_database_that_cant_be_written_is_said_to_be_so(tmp_path: Path) -> None:
    with closing(sqlite3.connect(tmp_path / "state.db")) as db, db:
        db.execute("CREATE TABLE alembic_version (version_num)")
        db.execute("BEGIN IMMEDIATE")  # as another program might that holds the file
        with pytest.raises(Unavailable, match="can't be written: database is locked") as refused:
            migrate(tmp_path / "state.db", tmp_path / "backups")
    assert refused.value.code == "database-unavailable"


def test_an_upgrade_ends_with_its_daemon(tmp_path: Path) -> None:
    """Else the next one would find it still at work."""
    command = [sys.executable, "-m", "stokerd.store.upgrade", str(tmp_path / "state.db"), "1"]
    assert subprocess.run(command, check=False).returncode == 1
    assert not (tmp_path / "state.db").exists()


def kill_after(path: Path, *statements: str) -> dict[Path, bytes]:
    """Do *statements* as a daemon does that is killed then; returns what is in the database and its write-ahead log."""
    with closing(sqlite3.connect(path)) as db:
        for statement in statements:
            db.execute(statement)
        db.commit()
        left = {file: file.read_bytes() for file in path.parent.glob(f"{path.name}*")}
    for file, content in left.items():  # closing has moved the log into the database, which a kill doesn't
        file.write_bytes(content)
    kept = {file: content for file, content in left.items() if not file.name.endswith("-shm")}
    assert len(kept) == 2
    assert all(kept.values())
    return kept


@pytest.mark.parametrize("is_copy", [False, True], ids=["killed", "copied without its -shm"])
def test_a_newer_schema_is_left_untouched(tmp_path: Path, is_copy: bool) -> None:
    path = tmp_path / "a b%c#d" / "state.db"
    path.parent.mkdir()
    migrate(path, tmp_path / "backups")
    before = kill_after(path, "UPDATE alembic_version SET version_num = '9999'")
    if is_copy:
        path.with_name("state.db-shm").unlink()
    with pytest.raises(Conflict, match="schema 9999"):
        migrate(path, tmp_path / "backups")
    assert {file: file.read_bytes() for file in before} == before


def test_what_a_kill_left_in_the_write_ahead_log_is_not_lost(tmp_path: Path) -> None:
    migrate(tmp_path / "state.db", tmp_path / "backups")
    kill_after(tmp_path / "state.db", "CREATE TABLE kept (x)", "INSERT INTO kept VALUES (7)")
    saved = migrate(tmp_path / "state.db", tmp_path / "backups")
    assert saved is not None
    for path in (saved, tmp_path / "state.db"):
        with closing(sqlite3.connect(path)) as db:
            assert db.execute("SELECT x FROM kept").fetchone() == (7,)


def test_a_database_that_was_killed_before_it_had_a_write_ahead_log_is_mended(tmp_path: Path) -> None:
    """Half a transaction lies in it, and a rollback journal beside it, which only who may write can undo."""
    path = tmp_path / "state.db"
    program = f"""
import os, signal, sqlite3
db = sqlite3.connect({str(path)!r})
db.execute("CREATE TABLE half (x)")
db.execute("PRAGMA cache_size = 1")
db.execute("BEGIN")
db.executemany("INSERT INTO half VALUES (?)", [("x" * 4000,)] * 100)
os.kill(os.getpid(), signal.SIGKILL)
"""
    subprocess.run([sys.executable, "-c", program], check=False)
    assert path.with_name("state.db-journal").stat().st_size
    migrate(path, tmp_path / "backups")
    with closing(sqlite3.connect(path)) as db:
        assert db.execute("SELECT count(*) FROM half").fetchone() == (0,)
        assert db.execute("SELECT version_num FROM alembic_version").fetchone() == (revisions()[-1],)


def test_a_damaged_database_is_refused_and_the_newest_backup_named(tmp_path: Path) -> None:
    migrate(tmp_path / "state.db", tmp_path / "backups")
    saved = migrate(tmp_path / "state.db", tmp_path / "backups")
    path = tmp_path / "state.db"
    before = kill_after(path, "CREATE TABLE kept (x)")
    before[path] = before[path][:4096] + b"\xff" * (len(before[path]) - 4096)
    path.write_bytes(before[path])
    with pytest.raises(Unavailable) as refused:
        migrate(path, tmp_path / "backups")
    assert {file: file.read_bytes() for file in before} == before
    assert str(saved) in refused.value.hint
    assert f"{path}-wal" in refused.value.hint, "left beside a backup it would be taken for the backup's"
    assert refused.value.code == "state-damaged"


@pytest.mark.parametrize("dump", sorted(OLD_DATABASES.glob("state-*.sql")), ids=lambda p: p.stem)
def test_a_database_of_every_earlier_schema_is_upgraded_and_says_what_it_said(tmp_path: Path, dump: Path) -> None:
    path = tmp_path / "state.db"
    with closing(sqlite3.connect(path)) as db, db:
        db.executescript(dump.read_text())
        events = db.execute("SELECT * FROM event ORDER BY id").fetchall()
    saved = migrate(path, tmp_path / "backups")
    assert saved is not None
    assert saved.stem.endswith(dump.stem.removeprefix("state-"))
    with closing(sqlite3.connect(path)) as db:
        assert db.execute("SELECT * FROM event ORDER BY id").fetchall() == events
    engine = open_engine(path, synchronous="FULL")
    with Session(engine) as session:
        query = Query(session)
        found = {kind: query.all(kind) for kind in tables.ROWS}  # each document is read by the type of today
        assert query.get(Deployment, "chat").spec.restart.limit == 3
        digests = {replica.launch_digest for replica in query.all(Replica)}
        assert digests == {launch_digest(query.get(Deployment, "chat").spec)}  # none need be started anew
    engine.dispose()
    assert {k.kind for k, resources in found.items() if resources} >= {"job", "run", "schedule", "deployment"}
