from __future__ import annotations

import asyncio
import time
from functools import partial
from pathlib import Path
from typing import Any, cast

import pytest

from stoker.paths import Home
from stoker.types.events import Event
from stokerd.config import GatewayConfig
from stokerd.processes.supervisor import Supervisor
from stokerd.serving.gateway import GatewayLink, _record
from stokerd.serving.gateway_worker import GatewayWorker, WorkerName
from stokerd.store.store import Store
from stokerd.telemetry.metrics import Metrics
from tests.unit.state import make_state_db


class Nobody:
    """What a link is not asked for here."""


@pytest.fixture
def link(tmp_path: Path) -> GatewayLink:
    supervisor = Supervisor(tmp_path / "processes")
    store, metrics = cast(Store, Nobody()), cast(Metrics, Nobody())
    return GatewayLink(Home(tmp_path, tmp_path), GatewayConfig(), 600.0, store, supervisor, metrics)


def former(link: GatewayLink, told_seconds_ago: float, **state: Any) -> GatewayWorker:
    """A worker that others have replaced, which said that of itself."""
    worker = link._make(WorkerName(0, "00000000"), is_leaving=True)
    worker._state, worker.told_at = state, time.monotonic() - told_seconds_ago
    return worker


@pytest.mark.parametrize(
    ("served_seconds", "told_seconds_ago", "state", "may_go"),
    [
        (None, 0, {"listen": "127.0.0.1:1"}, False),  # nobody takes its place yet
        (10, 0, {"listen": "127.0.0.1:1", "connections": 3}, True),  # it was left out: it is told to take nobody more
        (10, 0, {"listen": "", "connections": 0}, False),  # it was taken over from, and ends by itself
        (3000, 0, {"listen": "", "connections": 1}, False),  # it has an answer to finish, however long that takes
        (3000, 0, {"listen": "", "connections": 0}, True),
        (3000, 60, {"listen": "", "connections": 1}, True),  # it says nothing any more
    ],
)
def test_a_replaced_worker_is_let_finish(
    link: GatewayLink, served_seconds: float | None, told_seconds_ago: float, state: dict[str, Any], may_go: bool
) -> None:
    worker = former(link, told_seconds_ago, **state)
    link._served_since = None if served_seconds is None else time.monotonic() - served_seconds
    assert link._may_go(worker.process, worker) is may_go


@pytest.mark.parametrize(
    ("then", "count"),
    [({"worker": 0, "ended_at": 5.0}, 1), ({"worker": 1, "ended_at": 5.0}, 2), ({"worker": 0, "ended_at": 6.0}, 2)],
    ids=["the same end", "of another worker", "its next end"],
)
def test_an_end_is_told_once_by_whichever_daemon(tmp_path: Path, then: dict[str, Any], count: int) -> None:
    async def tell() -> list[Event]:
        store = Store(make_state_db(tmp_path))
        try:
            for data in ({"worker": 0, "ended_at": 5.0}, then):
                await store.write(partial(_record, reason="GatewayFailed", sentence="it ended.", data=data))
            return await store.read(lambda q: q.events(0, kind="gateway"))
        finally:
            store.close()

    assert len(asyncio.run(tell())) == count
