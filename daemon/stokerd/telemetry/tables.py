"""Tables of metrics.db, on a registry of their own: state.db's tables and migrations know nothing of them.

A change of these tables adds one to `SCHEMA_VERSION`. A file of the version just before is brought up to it in place,
by `UPGRADES`, in the transaction that opens it. One of any other version is set aside: what it holds is expendable, so
there are no migrations beyond that.

Series and requests have one shape: a small table says where figures come from, and a large one, clustered by (origin,
time), holds them. So a range of one origin is read in one sweep, and trimmed in one.
"""

from __future__ import annotations

from sqlalchemy import Index, MetaData, UniqueConstraint
from sqlalchemy.orm import registry
from sqlmodel import Field, SQLModel

SCHEMA_VERSION = 3
UPGRADES = {
    2: (
        "ALTER TABLE pair ADD COLUMN question VARCHAR DEFAULT '' NOT NULL",
        "ALTER TABLE request ADD COLUMN lost_version INTEGER DEFAULT '0' NOT NULL",
        "ALTER TABLE request ADD COLUMN is_pinned BOOLEAN DEFAULT '0' NOT NULL",
    )
}
"""By the version of a file: what makes it one of `SCHEMA_VERSION`, where a new table alone would not."""

_registry = registry(metadata=MetaData())


class MetricsTable(SQLModel, registry=_registry):
    """Base of all tables of metrics.db."""


class SeriesRow(MetricsTable, table=True):
    """A measured series. ``labels`` is a JSON object with its keys in order."""

    __tablename__ = "series"
    __table_args__ = (UniqueConstraint("name", "labels", "unit"),)

    id: int = Field(default=None, primary_key=True)  # SQLite gives it
    name: str
    labels: str
    unit: str


class SampleRow(MetricsTable, table=True):
    """One value of a series; ``time_ms`` is unix time in milliseconds."""

    __tablename__ = "sample"
    __table_args__ = ({"sqlite_with_rowid": False},)

    series_id: int = Field(primary_key=True, foreign_key="series.id")
    time_ms: int = Field(primary_key=True)
    value: float


class SourceRow(MetricsTable, table=True):
    """Where requests were answered: what records of one life of the gateway have in common."""

    __tablename__ = "source"
    __table_args__ = (UniqueConstraint("deployment", "arm", "version", "epoch", "address", "path"),)

    id: int = Field(default=None, primary_key=True)  # SQLite gives it
    deployment: str
    arm: str
    version: int
    epoch: str
    address: str
    path: str


class RequestRow(MetricsTable, table=True):
    """One `stokerd.gateway.wire.Record`. Unix times in ms or µs, durations in µs.

    A record never changes, so its key is as unique as (epoch, seq) is, and writing it twice is seen by the key.
    ``ended_ms`` is rounded up.
    """

    __tablename__ = "request"
    __table_args__ = ({"sqlite_with_rowid": False},)

    source_id: int = Field(primary_key=True, foreign_key="source.id")
    ended_ms: int = Field(primary_key=True)
    seq: int = Field(primary_key=True)
    started_us: int
    status: int
    is_error: bool
    is_stream: bool
    client_gone: bool
    fell_back: bool
    ttft_us: int | None
    inter_token_us: int | None
    total_us: int
    prompt_tokens: int | None
    completion_tokens: int | None
    table_version: int
    max_gap_us: int | None
    queued_us: int
    request_bytes: int
    response_bytes: int
    finish_reason: str
    caller: str
    key: str
    trace: str
    lost_version: int = Field(default=0, sa_column_kwargs={"server_default": "0"})
    is_pinned: bool = Field(default=False, sa_column_kwargs={"server_default": "0"})


class PairRow(MetricsTable, table=True):
    """One `stokerd.gateway.wire.ShadowPair`; its answers as JSON. Its texts are large, so they come last in the row.

    ``time_ms`` is when the request came, ``size_bytes`` about what the row takes.
    """

    __tablename__ = "pair"
    __table_args__ = (
        UniqueConstraint("epoch", "seq"),
        Index("pair_of_rollout", "rollout", "time_ms"),
        Index("pair_by_time", "time_ms", "size_bytes"),
    )

    id: int = Field(default=None, primary_key=True)  # SQLite gives it
    epoch: str
    seq: int
    time_ms: int
    size_bytes: int
    deployment: str
    rollout: str
    path: str
    caller: str
    stable: str
    shadow: str
    question: str = Field(default="", sa_column_kwargs={"server_default": ""})


class EpochRow(MetricsTable, table=True):
    """How far one life of the gateway has been read: kept apart from what was read, which may be trimmed earlier."""

    __tablename__ = "epoch"

    epoch: str = Field(primary_key=True)
    last_seq: int
    last_pair: int
    updated_ms: int
