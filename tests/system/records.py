"""What the gateway measured, as the daemon keeps it."""

from __future__ import annotations

import asyncio

from stokerd.gateway.wire import Record
from stokerd.telemetry.metrics import Metrics
from tests.harness import Stokerd


def records_of(daemon: Stokerd, deployment: str = "chat", limit: int = 1_000_000) -> list[Record]:
    """Every request of *deployment* that was recorded, in order of time."""
    metrics = Metrics(daemon.home.metrics_db, max_age_seconds=86400, max_bytes=1 << 30)
    try:
        return asyncio.run(metrics.records(deployment, since=0.0, limit=limit))
    finally:
        metrics.close()
