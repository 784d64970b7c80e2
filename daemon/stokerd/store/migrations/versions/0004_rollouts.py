"""Evaluations of versions; rollouts whose steps are of several kinds, and deployments with a version that stands by.

An older Stoker would refuse such documents, so it must not touch this database.
"""

import json
from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None

_JUDGED = ("min_requests", "min_duration", "max_duration")
_FIELDS = {"shadow": ("percent", *_JUDGED), "canary": ("percent", "max_callers", *_JUDGED)}
_OLD_METRICS = ("error_rate", "ttft", "inter_token", "total")
_NEW_GUARD = ("name", "against", "if_measured", "proof")
_NEW_SPEC = (
    "embeddings", "judge", "cold_requests", "placement", "on_pass", "on_fail", "on_starved", "hold_limit", "keep_warm",
)  # fmt: skip
_NEW_ROLLOUT = ("contention", "distributions", "exposure", "plan", "started_by", "began", "led_by", "decided")
_NEW_STATE = ("began", "exposure", "by", "verdict", "warm_until")
_SLEEPS = ("asleep", "waking")
_NEW_STATS = ("ttft_p99", "inter_token_p99", "total_p99", "callers")


def upgrade() -> None:
    op.create_table(
        "evaluation",
        sa.Column("name", sa.String(), primary_key=True),
        sa.Column("created_at", sa.String(), nullable=False),
        sa.Column("document", sa.String(), nullable=False),
        sa.Column("model", sa.String(), nullable=False, index=True),
        sa.Column("number", sa.Integer(), nullable=False),
    )
    for name, document in _documents("rollout"):
        spec = document["spec"]
        spec["steps"] = [{k: v for k, v in s.items() if k in ("type", *_FIELDS[s["type"]])} for s in spec["steps"]]
        spec.setdefault("keep_warm", 0.0)  # it was promised nothing of the kind
        document["exposure"] = {"errors": document.pop("candidate_errors", 0)}
        _save("rollout", name, document)


def downgrade() -> None:
    op.drop_table("evaluation")
    gone = {name for name, document in _documents("rollout") if not _is_old(document)}
    for name, document in _documents("deployment"):
        document.pop("warm", None)
        document.pop("shares", None)
        if document["rollout"] in gone:
            document["rollout"] = None  # its stable version serves on
        _save("deployment", name, document)
    for name, document in _documents("replica"):
        rests = document.pop("rests", False)
        document.pop("start_seconds", None)
        state = document["state"]
        if document["wanted"] and (rests or state["phase"] in _SLEEPS):
            # The version before would wait for a sleeping server's answers. It ends a process that no replica speaks
            # of, and starts another as soon as there is room.
            document["state"] = {"phase": "pending", "message": ""}
        elif state["phase"] in _SLEEPS:
            document["state"] = {"phase": "stopping", "process": state["process"], "since": state["since"]}
        _save("replica", name, document)
        phase = sa.text("UPDATE replica SET phase = :phase WHERE name = :name")
        op.execute(phase.bindparams(phase=document["state"]["phase"], name=name))
    for name, document in _documents("rollout"):
        spec = document["spec"]
        if name in gone:
            op.execute(sa.text("DELETE FROM rollout WHERE name = :name").bindparams(name=name))
            continue
        for field in _NEW_SPEC:
            spec.pop(field, None)
        spec["steps"] = [{"max_callers": 0, **s} for s in spec["steps"] if s["type"] in _FIELDS]
        for step in spec["steps"]:
            step.pop("min_callers", None)
        for guard in [*spec["guards"], *(r["guard"] for r in document["readings"])]:
            for field in _NEW_GUARD:
                guard.pop(field, None)
        for reading in document["readings"]:
            reading.pop("evidence", None)
        for stats in document["arms"].values():
            for field in _NEW_STATS:
                stats.pop(field, None)
        document["candidate_errors"] = document["exposure"]["errors"]
        for field in _NEW_ROLLOUT:
            document.pop(field, None)
        for field in _NEW_STATE:
            document["state"].pop(field, None)
        if document["state"]["phase"] == "promoted":
            document["state"].pop("because", None)
        _save("rollout", name, document)


def _is_old(document: dict[str, Any]) -> bool:
    """Whether the version before can tell of it, and could go on with it: each step counts, and both versions run."""
    spec, state = document["spec"], document["state"]
    kinds = {step["type"] for step in spec["steps"]}
    guards = all(guard["metric"] in _OLD_METRICS and guard["limit"] > 0 for guard in spec["guards"])
    is_swap = (document.get("plan") or {}).get("placement") == "swap"
    knows_steps = kinds <= {*_FIELDS, "promote"} and bool(kinds & set(_FIELDS))
    return state["phase"] != "returning" and knows_steps and guards and not is_swap


def _documents(table: str) -> list[tuple[str, dict[str, Any]]]:
    rows = sa.table(table, sa.column("name"), sa.column("document"))
    found = op.get_bind().execute(sa.select(rows.c.name, rows.c.document)).all()
    return [(name, json.loads(text)) for name, text in found]


def _save(table: str, name: str, document: dict[str, Any]) -> None:
    rows = sa.table(table, sa.column("name"), sa.column("document"))
    text = json.dumps(document, separators=(",", ":"))
    op.get_bind().execute(sa.update(rows).where(rows.c.name == name).values(document=text))
