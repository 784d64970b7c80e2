"""The gateway's records: every request, kept singly, so that whoever judges sees requests and not averages."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Sequence
from typing import Any, NamedTuple

from sqlalchemy import ColumnElement, Connection, func, select
from sqlalchemy.dialects.sqlite import insert
from sqlmodel import col

from stoker.types.host import TrafficStats
from stokerd.gateway.wire import Record
from stokerd.telemetry.quantiles import arm_stats
from stokerd.telemetry.tables import EpochRow, RequestRow, SourceRow


class _Source(NamedTuple):
    """What is the same in many records; in the order of `_SOURCE`."""

    deployment: str
    version: int
    arm: str
    address: str
    path: str


class _Answer(NamedTuple):
    """What sums are made of; in the order of `_ANSWER`."""

    is_error: bool
    client_gone: bool
    ttft_seconds: float | None
    inter_token_seconds: float | None
    total_seconds: float
    prompt_tokens: int | None
    completion_tokens: int | None
    caller: str = ""


_SOURCE: tuple[Any, ...] = (
    col(SourceRow.deployment),
    col(SourceRow.version),
    col(SourceRow.arm),
    col(SourceRow.address),
    col(SourceRow.path),
)
_ANSWER: tuple[Any, ...] = (
    col(RequestRow.is_error),
    col(RequestRow.client_gone),
    col(RequestRow.ttft_us) / 1e6,
    col(RequestRow.inter_token_us) / 1e6,
    col(RequestRow.total_us) / 1e6,
    col(RequestRow.prompt_tokens),
    col(RequestRow.completion_tokens),
)
_REST: tuple[Any, ...] = (
    col(RequestRow.seq),
    col(RequestRow.started_us) / 1e6,
    col(RequestRow.status),
    col(RequestRow.is_stream),
    col(RequestRow.fell_back),
    col(RequestRow.table_version),
    col(RequestRow.max_gap_us) / 1e6,
    col(RequestRow.finish_reason),
    col(RequestRow.request_bytes),
    col(RequestRow.response_bytes),
    col(RequestRow.caller),
    col(RequestRow.key),
    col(RequestRow.queued_us) / 1e6,
    col(RequestRow.trace),
    col(RequestRow.lost_version),
    col(RequestRow.is_pinned),
)


def write(connection: Connection, epoch: str, records: Sequence[Record], *, now: float) -> None:
    """Store *records* of one life of the gateway; those that are stored already are left as they are."""
    if not records:
        return
    numbers = _numbers(connection, epoch, {_source(r) for r in records})
    rows = [_values(r, numbers[_source(r)]) for r in records]
    connection.execute(insert(RequestRow).on_conflict_do_nothing(), rows)
    mark_read(connection, epoch, now=now, last_seq=max(r.seq for r in records))


def mark_read(connection: Connection, epoch: str, *, now: float, last_seq: int = 0, last_pair: int = 0) -> None:
    """Note how far that life of the gateway has been read, at *now*; never less far than before."""
    mark = insert(EpochRow).values(epoch=epoch, last_seq=last_seq, last_pair=last_pair, updated_ms=round(now * 1000))
    changes = {
        "last_seq": func.max(col(EpochRow.last_seq), mark.excluded.last_seq),
        "last_pair": func.max(col(EpochRow.last_pair), mark.excluded.last_pair),
        "updated_ms": mark.excluded.updated_ms,
    }
    connection.execute(mark.on_conflict_do_update(index_elements=["epoch"], set_=changes))


def last_seq(connection: Connection, epoch: str) -> int:
    """The highest ``seq`` ever stored of that life of the gateway; 0 if there is none."""
    statement = select(col(EpochRow.last_seq)).where(col(EpochRow.epoch) == epoch)
    return connection.execute(statement).scalar_one_or_none() or 0


def read(
    connection: Connection,
    deployment: str,
    *,
    since: float,
    arms: Collection[str] | None,
    errors_only: bool,
    limit: int,
) -> list[Record]:
    """The newest *limit* records of requests that began at *since* or later, in order of their time."""
    wanted = [col(SourceRow.deployment) == deployment]
    if arms is not None:
        wanted.append(col(SourceRow.arm).in_(arms))
    sources = _sources(connection, *wanted)
    since_us = _microseconds(since)
    statement = (
        select(col(RequestRow.source_id), *_REST, *_ANSWER)
        .where(
            col(RequestRow.source_id).in_(sources),
            col(RequestRow.ended_ms) >= since_us // 1000,  # follows from the next one, but is what the key can find
            col(RequestRow.started_us) >= since_us,
        )
        .order_by(col(RequestRow.ended_ms).desc(), col(RequestRow.seq).desc())
        .limit(limit)
    )
    if errors_only:
        statement = statement.where(col(RequestRow.is_error))
    rows = connection.execute(statement)
    return sorted((_record(sources[number], rest) for number, *rest in rows), key=lambda r: (r.time, r.seq))


def stats(connection: Connection, *, window_seconds: float, now: float) -> list[TrafficStats]:
    """What each arm of each deployment answered in the last *window_seconds*: by the end of the answer.

    By its beginning, an answer that takes longer than the window would never be seen.
    """
    sources = _sources(connection)
    since_ms = max(0, round((now - window_seconds) * 1000))
    statement = select(col(RequestRow.source_id), *_ANSWER, col(RequestRow.caller)).where(
        col(RequestRow.source_id).in_(sources), col(RequestRow.ended_ms) > since_ms
    )
    groups: dict[tuple[str, int, str], list[_Answer]] = defaultdict(list)
    for number, *answer in connection.execute(statement):
        groups[sources[number][:3]].append(_Answer._make(answer))
    return [_stats(*key, window_seconds, answers) for key, answers in sorted(groups.items())]


def _stats(deployment: str, version: int, arm: str, window_seconds: float, answers: list[_Answer]) -> TrafficStats:
    return TrafficStats(
        deployment=deployment,
        version=version,
        arm=arm,
        window_seconds=window_seconds,
        requests_per_second=len(answers) / window_seconds,
        prompt_tokens=sum(a.prompt_tokens or 0 for a in answers),
        completion_tokens=sum(a.completion_tokens or 0 for a in answers),
        **arm_stats(answers).model_dump(),
    )


def _sources(connection: Connection, *wanted: ColumnElement[bool]) -> dict[int, _Source]:
    """Sources by number. They are few; naming them lets SQLite seek in each, where a join would scan all requests."""
    rows = connection.execute(select(col(SourceRow.id), *_SOURCE).where(*wanted))
    return {number: _Source._make(source) for number, *source in rows}


def _numbers(connection: Connection, epoch: str, wanted: set[_Source]) -> dict[_Source, int]:
    """Find, or give, each source its number."""
    values = [{**source._asdict(), "epoch": epoch} for source in sorted(wanted)]
    connection.execute(insert(SourceRow).on_conflict_do_nothing(), values)
    return {source: number for number, source in _sources(connection, col(SourceRow.epoch) == epoch).items()}


def _source(record: Record) -> _Source:
    return _Source(record.deployment, record.version, record.arm, record.address, record.path)


def _values(record: Record, source: int) -> dict[str, Any]:
    started, total = _microseconds(record.time), _microseconds(record.total_seconds)
    return {
        "source_id": source,
        "ended_ms": -(-(started + total) // 1000),
        "seq": record.seq,
        "started_us": started,
        "status": record.status,
        "is_error": record.is_error,
        "is_stream": record.is_stream,
        "client_gone": record.client_gone,
        "fell_back": record.fell_back,
        "ttft_us": None if record.ttft_seconds is None else _microseconds(record.ttft_seconds),
        "inter_token_us": None if record.inter_token_seconds is None else _microseconds(record.inter_token_seconds),
        "total_us": total,
        "prompt_tokens": record.prompt_tokens,
        "completion_tokens": record.completion_tokens,
        "table_version": record.table_version,
        "max_gap_us": None if record.max_gap_seconds is None else _microseconds(record.max_gap_seconds),
        "queued_us": _microseconds(record.queued_seconds),
        "request_bytes": record.request_bytes,
        "response_bytes": record.response_bytes,
        "finish_reason": record.finish_reason,
        "caller": record.caller,
        "key": record.key,
        "trace": record.trace,
        "lost_version": record.lost_version,
        "is_pinned": record.is_pinned,
    }


def _record(source: _Source, rest: Sequence[Any]) -> Record:
    seq, started, status, is_stream, fell_back, table_version, *more = rest
    max_gap, finish_reason, request_bytes, response_bytes, caller, key, queued, trace, *more = more
    lost_version, is_pinned, *answer = more
    is_error, client_gone, ttft, inter_token, total, prompt_tokens, completion_tokens = answer
    return Record(
        seq,
        started,
        source.deployment,
        source.arm,
        source.version,
        source.address,
        source.path,
        status,
        is_error,
        is_stream,
        client_gone,
        fell_back,
        ttft,
        inter_token,
        total,
        prompt_tokens,
        completion_tokens,
        table_version,
        max_gap,
        finish_reason,
        request_bytes,
        response_bytes,
        caller,
        key,
        queued,
        trace,
        lost_version,
        is_pinned,
    )


def _microseconds(seconds: float) -> int:
    """As stored, kept within what SQLite can hold."""
    return round(min(max(seconds, 0.0), 1e12) * 1e6)
