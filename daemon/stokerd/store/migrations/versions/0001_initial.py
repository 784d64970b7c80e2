"""The first schema."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

_KEYS: dict[str, list[tuple[str, type[sa.String | sa.Integer]]]] = {
    "dataset": [],
    "dataset_version": [("dataset", sa.String), ("number", sa.Integer), ("digest", sa.String)],
    "job": [],
    "schedule": [],
    "run": [("job", sa.String), ("number", sa.Integer), ("phase", sa.String), ("trigger", sa.String)],
    "model": [],
    "version": [("model", sa.String), ("number", sa.Integer), ("digest", sa.String)],
    "deployment": [],
    "replica": [("deployment", sa.String), ("version", sa.Integer), ("phase", sa.String)],
    "rollout": [("deployment", sa.String), ("phase", sa.String)],
}
_INDEXED = {
    "dataset_version": ["dataset", "digest"],
    "run": ["job", "phase"],
    "version": ["model", "digest"],
    "replica": ["deployment"],
    "rollout": ["deployment", "phase"],
}
_IMMUTABLE = ("dataset_version", "version", "event")


def upgrade() -> None:
    op.create_table(
        "event",
        sa.Column("id", sa.Integer, primary_key=True, autoincrement=True),
        sa.Column("time", sa.String, nullable=False),
        sa.Column("kind", sa.String, nullable=False),
        sa.Column("name", sa.String, nullable=False),
        sa.Column("reason", sa.String, nullable=False),
        sa.Column("message", sa.String, nullable=False),
        sa.Column("data", sa.JSON, nullable=False),
        sqlite_autoincrement=True,
    )
    op.create_index("ix_event_kind", "event", ["kind"])
    op.create_index("ix_event_name", "event", ["name"])
    for table, keys in _KEYS.items():
        op.create_table(
            table,
            sa.Column("name", sa.String, primary_key=True),
            sa.Column("created_at", sa.String, nullable=False),
            sa.Column("document", sa.String, nullable=False),
            *(sa.Column(name, kind, nullable=False) for name, kind in keys),
        )
        for column in _INDEXED.get(table, []):
            op.create_index(f"ix_{table}_{column}", table, [column])
    for table in _IMMUTABLE:
        op.execute(
            f"CREATE TRIGGER {table}_is_immutable BEFORE UPDATE ON {table} "
            f"BEGIN SELECT RAISE(ABORT, 'a {table} can not be changed'); END"
        )


def downgrade() -> None:
    for table in (*_KEYS, "event"):
        op.drop_table(table)
