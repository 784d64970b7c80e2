"""Samples and the series that they make: drawn by `read`, judged by `moments`."""

from __future__ import annotations

import json
import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from sqlalchemy import Connection, and_, func, select
from sqlalchemy.dialects.sqlite import insert
from sqlmodel import col

from stoker.types.host import Series
from stokerd.telemetry.tables import SampleRow, SeriesRow


@dataclass(frozen=True, slots=True)
class Sample:
    """One value of one series at unix *time* in seconds. *labels* in any order; *unit* belongs to the *name*."""

    name: str
    unit: str
    labels: tuple[tuple[str, str], ...]
    time: float
    value: float


_Key = tuple[str, str, str]
_KEY_COLUMNS = (col(SeriesRow.name), col(SeriesRow.labels), col(SeriesRow.unit))


def write(connection: Connection, samples: Sequence[Sample]) -> None:
    """Store *samples*; a second one of the same series and millisecond replaces the first. Drops NaN and infinities."""
    keyed = [(_key(s), s) for s in samples if math.isfinite(s.value) and math.isfinite(s.time)]
    if not keyed:
        return
    ids = _ids(connection, {key for key, _ in keyed})
    statement = insert(SampleRow)
    statement = statement.on_conflict_do_update(
        index_elements=["series_id", "time_ms"], set_={"value": statement.excluded.value}
    )
    rows = [{"series_id": ids[k], "time_ms": _milliseconds(s.time), "value": s.value} for k, s in keyed]
    connection.execute(statement, rows)


def read(connection: Connection, name: str, *, since: float, until: float, max_points: int) -> list[Series]:
    """Series called *name*, or beginning with it before a closing ``*``, from *since* to *until* (unix seconds).

    A series of at most *max_points* samples comes as it was measured. A longer one is averaged over equal buckets of
    time, each given at the mean time of its samples: that is for drawing, never for judging. Series without samples in
    that time are left out.
    """
    low, high = _milliseconds(since), _milliseconds(until)
    is_wanted = col(SeriesRow.name) == name
    if name.endswith("*"):
        is_wanted = func.substr(col(SeriesRow.name), 1, len(name) - 1) == name[:-1]
    statement = select(*_KEY_COLUMNS, col(SeriesRow.id)).where(is_wanted).order_by(*_KEY_COLUMNS)
    found = []
    for series, labels, unit, number in connection.execute(statement).all():
        points = _points(connection, number, low, high, max_points)
        if points:
            found.append(Series(name=series, unit=unit, labels=json.loads(labels), points=points))
    return found


def moments(
    connection: Connection, name: str, *, since: float, until: float, most: int, devices: Collection[str] = ()
) -> list[float]:
    """What was measured as *name* at each moment from *since* to *until* (unix seconds), in order of time.

    Of several devices it is their mean at that moment; of those in *devices* (UUIDs) alone, where some are given and
    the series has such a label. Of more than *most* moments each second one is left out, or three of four, and so on:
    those that are left are as they were measured, and nearly the same from one call to the next.
    """
    statement = select(col(SeriesRow.id), col(SeriesRow.labels)).where(col(SeriesRow.name) == name)
    found = [(number, json.loads(labels)) for number, labels in connection.execute(statement)]
    wanted = [n for n, labels in found if not devices or "uuid" not in labels or labels["uuid"] in devices]
    time = col(SampleRow.time_ms)
    inside = and_(col(SampleRow.series_id).in_(wanted), time.between(_milliseconds(since), _milliseconds(until)))
    count = connection.execute(select(func.count(time.distinct())).where(inside)).scalar_one()
    place = (func.row_number().over(order_by=time) - 1).label("place")
    each = select(func.avg(col(SampleRow.value)).label("value"), place).where(inside).group_by(time).subquery()
    step = 1 << max(0, -(-count // most) - 1).bit_length()
    judged = select(each.c.value).where(each.c.place % step == 0).order_by(each.c.place)
    return list(connection.execute(judged).scalars())


def bucket_width(first: int, last: int, max_points: int) -> int:
    """The narrowest bucket, in the unit of *first* and *last*, of which at most *max_points* cover both.

    Buckets begin at multiples of their width, so that a drawing doesn't flicker while time goes on.
    """
    if max_points == 1:
        return last + 1
    return max(1, -(-(last - first) // (max_points - 1)))


def _key(sample: Sample) -> _Key:
    return sample.name, json.dumps(dict(sorted(sample.labels)), separators=(",", ":")), sample.unit


def _ids(connection: Connection, wanted: set[_Key]) -> dict[_Key, int]:
    """Find, or give, each series its number."""
    statement = select(*_KEY_COLUMNS, col(SeriesRow.id))
    known: dict[_Key, int] = {(r[0], r[1], r[2]): r[3] for r in connection.execute(statement)}
    for name, labels, unit in sorted(wanted - known.keys()):
        row = insert(SeriesRow).values(name=name, labels=labels, unit=unit).returning(col(SeriesRow.id))
        known[name, labels, unit] = connection.execute(row).scalar_one()
    return known


def _points(connection: Connection, series: int, low: int, high: int, max_points: int) -> list[tuple[float, float]]:
    time, value = col(SampleRow.time_ms), col(SampleRow.value)
    inside = and_(col(SampleRow.series_id) == series, time.between(low, high))
    few = connection.execute(select(time, value).where(inside).order_by(time).limit(max_points + 1)).all()
    if len(few) <= max_points:
        return [(ms / 1000, v) for ms, v in few]
    first = few[0][0]
    last = connection.execute(select(func.max(time)).where(inside)).scalar_one()
    bucket = time.op("/")(bucket_width(first, last, max_points))  # whole division, as SQLite does it
    means = select(func.avg(time), func.avg(value)).where(inside).group_by(bucket).order_by(bucket)
    return [(ms / 1000, v) for ms, v in connection.execute(means)]


def _milliseconds(seconds: float) -> int:
    """Unix time as stored, kept within what SQLite can hold."""
    return round(min(max(seconds, 0.0), 1e12) * 1000)
