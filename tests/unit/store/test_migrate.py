from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlmodel import Session, SQLModel

from stoker.errors import Conflict, Unavailable
from stoker.types.serving import Deployment, Replica
from stokerd.serving.engines import launch_digest
from stokerd.store import tables
from stokerd.store.migrate import KEPT_BACKUPS, migrate
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
        assert backup.execute("SELECT version_num FROM alembic_version").fetchone() == ("0002",)


def test_a_newer_schema_is_left_untouched(tmp_path: Path) -> None:
    migrate(tmp_path / "state.db", tmp_path / "backups")
    with closing(sqlite3.connect(tmp_path / "state.db")) as db, db:
        db.execute("UPDATE alembic_version SET version_num = '9999'")
    with closing(sqlite3.connect(tmp_path / "state.db")) as db:
        db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    before = (tmp_path / "state.db").read_bytes()
    with pytest.raises(Conflict, match="schema 9999"):
        migrate(tmp_path / "state.db", tmp_path / "backups")
    assert (tmp_path / "state.db").read_bytes() == before


def test_a_damaged_database_is_refused_and_the_newest_backup_named(tmp_path: Path) -> None:
    migrate(tmp_path / "state.db", tmp_path / "backups")
    saved = migrate(tmp_path / "state.db", tmp_path / "backups")
    (tmp_path / "state.db").write_bytes(b"not a database at all" * 500)
    with pytest.raises(Unavailable) as refused:
        migrate(tmp_path / "state.db", tmp_path / "backups")
    assert str(saved) in refused.value.hint
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
        replica = query.get(Replica, "chat-v1-0")
        assert replica.launch_digest == launch_digest(query.get(Deployment, "chat").spec)  # it need not be started anew
    engine.dispose()
    assert {k.kind for k, resources in found.items() if resources} >= {"job", "run", "schedule", "deployment"}
