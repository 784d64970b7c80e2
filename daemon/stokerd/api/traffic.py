"""Single requests, and what stable and shadow answered to the same ones."""

from __future__ import annotations

import time
from dataclasses import asdict
from datetime import UTC, datetime
from functools import partial
from typing import Annotated

from fastapi import APIRouter, Query

from stoker.types.events import Event
from stoker.types.serving import Deployment
from stoker.types.traffic import Answer, AnswerPair, Request, Served
from stokerd.gateway.wire import Record, ShadowPair
from stokerd.rollouts.history import served
from stokerd.store.store import Query as StoreQuery
from stokerd.store.store import Store
from stokerd.telemetry.metrics import Metrics

_HOUR = 3600.0
_INTERNAL = frozenset({"seq", "table_version"})
Since = Annotated[float | None, Query(description="unix seconds; default: an hour ago")]


def router(store: Store, metrics: Metrics) -> APIRouter:
    """Routes of single requests."""
    routes = APIRouter(prefix="/v1", tags=["telemetry"])

    @routes.get("/deployments/{name}/requests")
    async def requests(
        name: str,
        since: Since = None,
        arm: str | None = None,
        errors: Annotated[bool, Query(description="only those that went wrong")] = False,
        limit: Annotated[int, Query(ge=1, le=10_000)] = 100,
    ) -> list[Request]:
        """The last requests of a deployment that began at *since* or later, in order of their time."""
        records = await metrics.records(
            name, since=_begin(since), arms=None if arm is None else [arm], errors_only=errors, limit=limit
        )
        return [_request(record) for record in records]

    @routes.get("/rollouts/{name}/shadows")
    async def shadows(
        name: str, since: Since = None, limit: Annotated[int, Query(ge=1, le=1000)] = 20
    ) -> list[AnswerPair]:
        """The last answers of stable and shadow that a rollout kept, in order of their requests."""
        return [_pair(pair) for pair in await metrics.pairs(name, since=_begin(since), limit=limit)]

    @routes.get("/deployments/{name}/history")
    async def history(
        name: str, since: Annotated[float, Query(description="unix seconds; default: from the beginning")] = 0.0
    ) -> list[Served]:
        """Which version answered whom, and when, by whose decision; of deleted deployments, too."""
        told = await store.read(partial(_told, name=name))
        begin = _time(since)
        return [row for row in served(told, name) if row.until is None or row.until >= begin]

    return routes


def _told(query: StoreQuery, name: str) -> list[Event]:
    """All that was told of a deployment. Raises `NotFound` when nothing ever was."""
    found: list[Event] = []
    while page := query.events(found[-1].id if found else 0, kind="deployment", name=name):
        found += page
    if not found:
        query.get(Deployment, name)
    return found


def _begin(since: float | None) -> float:
    return time.time() - _HOUR if since is None else since


def _time(seconds: float) -> datetime:
    return datetime.fromtimestamp(seconds, UTC)


def _request(record: Record) -> Request:
    fields = {name: value for name, value in asdict(record).items() if name not in _INTERNAL}
    return Request.model_validate({**fields, "time": _time(record.time)})


def _pair(pair: ShadowPair) -> AnswerPair:
    return AnswerPair(
        time=_time(pair.time),
        deployment=pair.deployment,
        rollout=pair.rollout,
        path=pair.path,
        caller=pair.caller,
        question=pair.question,
        stable=Answer(**asdict(pair.stable)),
        shadow=Answer(**asdict(pair.shadow)),
    )
