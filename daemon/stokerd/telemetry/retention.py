"""What is forgotten, so that metrics.db stays within its age and its bytes."""

from __future__ import annotations

from dataclasses import dataclass

from sqlalchemy import Connection, delete, func, select
from sqlalchemy.orm import Mapped
from sqlmodel import col

from stokerd.telemetry.tables import EpochRow, PairRow, RequestRow, SampleRow, SeriesRow, SourceRow

FILL = 0.9  # of the bytes allowed is kept when there were too many, so that the next trim has less to do
MAX_KEPT = 0.95  # of the time, at each cut: figures are seldom spread evenly, and a cut must get somewhere
MAX_FREE = 0.25  # of the file may be free pages, which are used again; more is given back to the disk


@dataclass(frozen=True, slots=True)
class Extent:
    """How large the file is, and from when to when it holds figures: unix ms, None when it holds none."""

    file_bytes: int
    used_bytes: int
    oldest_ms: int | None
    newest_ms: int | None


@dataclass(frozen=True, slots=True)
class Origin:
    """A series (of samples) or a source (of requests): what is trimmed in one short transaction."""

    is_series: bool
    number: int


def extent(connection: Connection) -> Extent:
    """Measure the file."""
    page, pages, free = (
        int(connection.exec_driver_sql(f"PRAGMA {name}").scalar_one())
        for name in ("page_size", "page_count", "freelist_count")
    )
    ends = [
        *_ends(connection, SeriesRow, col(SampleRow.series_id), col(SampleRow.time_ms)),
        *_ends(connection, SourceRow, col(RequestRow.source_id), col(RequestRow.ended_ms)),
        *_pair_ends(connection),
    ]
    return Extent(
        file_bytes=page * pages,
        used_bytes=page * (pages - free),
        oldest_ms=min(ends, default=None),
        newest_ms=max(ends, default=None),
    )


def _ends(
    connection: Connection, table: type[SeriesRow] | type[SourceRow], origin: Mapped[int], time: Mapped[int]
) -> list[int]:
    """The first and the last time, by a look at each origin's ends: a plain min() would read the whole table."""
    held = origin == col(table.id)
    first = select(func.min(time)).where(held).correlate(table).scalar_subquery()
    last = select(func.max(time)).where(held).correlate(table).scalar_subquery()
    row = connection.execute(select(func.min(first), func.max(last)).select_from(table)).one()
    return [end for end in row if end is not None]


def _pair_ends(connection: Connection) -> list[int]:
    time = col(PairRow.time_ms)  # two looks at its index, where one statement for both would read it all
    found = [connection.execute(select(end(time))).scalar_one_or_none() for end in (func.min, func.max)]
    return [end for end in found if end is not None]


def cutoff(found: Extent, *, max_bytes: int, now_ms: int) -> int | None:
    """Before which unix ms all must go for the rest to fit in *max_bytes*, were it evenly spread; None if it fits."""
    if found.used_bytes <= FILL * max_bytes or found.oldest_ms is None or found.newest_ms is None:
        return None
    # The clock may have been wrong when a sample was taken, or be wrong now.
    end = now_ms if found.oldest_ms < now_ms < found.newest_ms else found.newest_ms
    kept = min(MAX_KEPT, FILL * max_bytes / found.used_bytes)
    return max(found.oldest_ms + 1, end - int((end - found.oldest_ms) * kept))


def origins(connection: Connection) -> list[Origin]:
    """All that have a number."""
    series = [Origin(True, n) for n in connection.execute(select(col(SeriesRow.id))).scalars()]
    return series + [Origin(False, n) for n in connection.execute(select(col(SourceRow.id))).scalars()]


def forget(connection: Connection, origin: Origin, before_ms: int) -> None:
    """Delete what an origin holds from before that time, and the origin itself when nothing is left."""
    if origin.is_series:
        held = col(SampleRow.series_id) == origin.number
        connection.execute(delete(SampleRow).where(held, col(SampleRow.time_ms) < before_ms))
        rest = select(col(SampleRow.series_id)).where(held).exists()
        connection.execute(delete(SeriesRow).where(col(SeriesRow.id) == origin.number, ~rest))
    else:
        held = col(RequestRow.source_id) == origin.number
        connection.execute(delete(RequestRow).where(held, col(RequestRow.ended_ms) < before_ms))
        rest = select(col(RequestRow.source_id)).where(held).exists()
        connection.execute(delete(SourceRow).where(col(SourceRow.id) == origin.number, ~rest))


def forget_epochs(connection: Connection, before_ms: int) -> None:
    """Delete the marks of lives of the gateway of which nothing came since."""
    connection.execute(delete(EpochRow).where(col(EpochRow.updated_ms) < before_ms))
