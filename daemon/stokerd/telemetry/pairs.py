"""Pairs of answers of stable and shadow, kept whole, so that whoever compares them sees what was asked and said."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from sqlalchemy import Connection, Row, delete, func, select
from sqlalchemy.dialects.sqlite import insert
from sqlmodel import col

from stokerd.gateway.wire import PairedAnswer, ShadowPair
from stokerd.telemetry.tables import EpochRow, PairRow
from stokerd.telemetry.traffic import mark_read

_ROW_BYTES = 300  # what a pair takes besides its texts, its indices included


def write(connection: Connection, epoch: str, pairs: Sequence[ShadowPair], *, now: float) -> None:
    """Store *pairs* of one life of the gateway; those that are stored already are left as they are."""
    if not pairs:
        return
    connection.execute(insert(PairRow).on_conflict_do_nothing(), [_values(epoch, pair) for pair in pairs])
    mark_read(connection, epoch, now=now, last_pair=max(pair.seq for pair in pairs))


def last_seq(connection: Connection, epoch: str) -> int:
    """The highest ``seq`` ever stored of that life of the gateway; 0 if there is none."""
    statement = select(col(EpochRow.last_pair)).where(col(EpochRow.epoch) == epoch)
    return connection.execute(statement).scalar_one_or_none() or 0


def read(connection: Connection, rollout: str, *, since: float, limit: int) -> list[ShadowPair]:
    """The newest *limit* pairs of a rollout's requests that came at *since* or later, in order of their time."""
    statement = (
        select(PairRow)
        .where(col(PairRow.rollout) == rollout, col(PairRow.time_ms) >= round(since * 1000))
        .order_by(col(PairRow.time_ms).desc(), col(PairRow.id).desc())
        .limit(limit)
    )
    return [_pair(row) for row in reversed(connection.execute(statement).all())]


def too_many(connection: Connection, max_bytes: int) -> int | None:
    """Before which unix ms all pairs must go for the rest to fit in *max_bytes*; None if they fit."""
    total = connection.execute(select(func.sum(col(PairRow.size_bytes)))).scalar_one_or_none() or 0
    if total <= max_bytes:
        return None
    oldest_first = (col(PairRow.time_ms), col(PairRow.id))
    gone = func.sum(col(PairRow.size_bytes)).over(order_by=oldest_first).label("gone")
    sums = select(col(PairRow.time_ms), gone).subquery()
    last = select(func.min(sums.c.time_ms)).where(sums.c.gone >= total - max_bytes)
    return int(connection.execute(last).scalar_one()) + 1


def forget(connection: Connection, before_ms: int) -> None:
    """Delete the pairs of requests that came before that time."""
    connection.execute(delete(PairRow).where(col(PairRow.time_ms) < before_ms))


def _values(epoch: str, pair: ShadowPair) -> dict[str, object]:
    stable, shadow = (json.dumps(asdict(answer), ensure_ascii=False) for answer in (pair.stable, pair.shadow))
    return {
        "epoch": epoch,
        "seq": pair.seq,
        "time_ms": round(min(max(pair.time, 0.0), 1e12) * 1000),
        "size_bytes": sum(len(text.encode()) for text in (stable, shadow, pair.question)) + _ROW_BYTES,
        "deployment": pair.deployment,
        "rollout": pair.rollout,
        "path": pair.path,
        "caller": pair.caller,
        "stable": stable,
        "shadow": shadow,
        "question": pair.question,
    }


def _pair(row: Row[Any]) -> ShadowPair:
    return ShadowPair(
        row.seq,
        row.time_ms / 1000,
        row.deployment,
        row.rollout,
        row.path,
        row.caller,
        PairedAnswer(**json.loads(row.stable)),
        PairedAnswer(**json.loads(row.shadow)),
        row.question,
    )
