"""A new state.db for each test. To make one takes a process with Alembic; to copy it, a millisecond."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

from stokerd.store.migrate import migrate

NAME = "state.db"


def make_state_db(folder: Path) -> Path:
    """Make an empty one of the present schema in *folder*."""
    path = folder / NAME
    path.write_bytes(_empty())
    return path


@cache
def _empty() -> bytes:
    with TemporaryDirectory(prefix="stk-") as name:
        folder = Path(name)
        migrate(folder / NAME, folder / "backups")
        assert [f.name for f in folder.iterdir()] == [NAME]
        return (folder / NAME).read_bytes()
