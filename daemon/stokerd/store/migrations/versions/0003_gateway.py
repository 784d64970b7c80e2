"""API keys; and documents gain fields with defaults: a deployment's other names, its queue, adapters.

An older Stoker would refuse such documents, so it must not touch this database.
"""

import json

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None

_NEW_FIELDS = {
    "deployment": ("aliases", "hold_timeout", "max_in_flight", "max_queue"),
    "rollout": ("targets", "keep_answers"),
}


def upgrade() -> None:
    op.create_table(
        "api_key",
        sa.Column("name", sa.String(), primary_key=True),
        sa.Column("created_at", sa.String(), nullable=False),
        sa.Column("document", sa.String(), nullable=False),
        sa.Column("digest", sa.String(), nullable=False, unique=True),
    )


def downgrade() -> None:
    op.drop_table("api_key")
    op.execute("""DELETE FROM replica WHERE json_extract(document, '$.host') != ''""")  # adapters, and where they are
    op.execute("""DELETE FROM deployment WHERE json_extract(document, '$.spec.engine.type') = 'adapter'""")
    op.execute("UPDATE replica SET document = json_remove(document, '$.host')")
    connection = op.get_bind()
    for name, fields in _NEW_FIELDS.items():
        table = sa.table(name, sa.column("name"), sa.column("document"))
        for row, text in connection.execute(sa.select(table.c.name, table.c.document)).all():
            document = json.loads(text)
            for field in fields:
                document["spec"].pop(field, None)
            for step in document["spec"].get("steps", ()):
                step.pop("max_callers", None)
            statement = sa.update(table).where(table.c.name == row)
            connection.execute(statement.values(document=json.dumps(document, separators=(",", ":"))))
