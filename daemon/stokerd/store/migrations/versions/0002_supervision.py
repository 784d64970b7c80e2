"""Supervision: a deployment's ``max_restarts`` becomes the limit of its restart policy.

Documents have gained fields with defaults besides (limits, shares of devices, checkpoints, the phase *lost*), so that
an older Stoker must not touch this database.
"""

import json
from collections.abc import Callable
from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

_DEPLOYMENT = sa.table("deployment", sa.column("name"), sa.column("document"))


def upgrade() -> None:
    def change(spec: dict[str, Any]) -> None:
        if "max_restarts" in spec:
            spec["restart"] = {"limit": min(spec.pop("max_restarts"), 1000)}

    _change_specs(change)


def downgrade() -> None:
    def change(spec: dict[str, Any]) -> None:
        spec["max_restarts"] = spec.pop("restart", {}).get("limit", 5)
        for name in ("stall_timeout", "limits", "device_memory"):
            spec.pop(name, None)

    _change_specs(change)


def _change_specs(change: Callable[[dict[str, Any]], None]) -> None:
    connection = op.get_bind()
    for name, text in connection.execute(sa.select(_DEPLOYMENT.c.name, _DEPLOYMENT.c.document)).all():
        document = json.loads(text)
        change(document["spec"])
        statement = sa.update(_DEPLOYMENT).where(_DEPLOYMENT.c.name == name)
        connection.execute(statement.values(document=json.dumps(document, separators=(",", ":"))))
