"""The host, series of measurements, and traffic."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from typing import Annotated

from fastapi import APIRouter, Query

from stoker.types.host import Host, Series, TrafficStats
from stokerd.telemetry.metrics import Metrics

_HOUR = 3600.0


def router(host: Callable[[], Awaitable[Host]], metrics: Metrics) -> APIRouter:
    """Routes of telemetry."""
    routes = APIRouter(prefix="/v1", tags=["telemetry"])

    @routes.get("/host")
    async def get_host() -> Host:
        """The machine and its daemon, now."""
        return await host()

    @routes.get("/series")
    async def series(
        name: str = "*",
        since: float | None = None,
        until: float | None = None,
        max_points: Annotated[int, Query(ge=1, le=10_000)] = 500,
    ) -> list[Series]:
        """Series by name, or by prefix with a trailing ``*``, between two unix times; default: the last hour."""
        end = time.time() if until is None else until
        begin = end - _HOUR if since is None else since
        return await metrics.series(name, since=begin, until=end, max_points=max_points)

    @routes.get("/traffic")
    async def traffic(window: Annotated[float, Query(gt=0, le=86_400)] = 60.0) -> list[TrafficStats]:
        """What each deployment, version and arm answered over the last *window* seconds."""
        return await metrics.traffic(window)

    return routes
