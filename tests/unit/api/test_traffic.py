from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from stoker.client import read_list
from stoker.types.traffic import AnswerPair, Request, Served
from stokerd.api import server, traffic
from stokerd.store.store import Store, Transaction
from stokerd.telemetry.metrics import Metrics
from tests.unit.state import make_state_db
from tests.unit.telemetry.conftest import make_pair, make_record

Ask = Callable[..., Any]


@pytest.fixture
def ask(tmp_path: Path) -> Iterator[Ask]:
    """Asks an API over a metrics.db with five requests and three pairs, of the last minute."""
    metrics = Metrics(tmp_path / "metrics.db", max_age_seconds=1e12, max_bytes=10**9, reserve_bytes=0)
    make_state_db(tmp_path)
    store = Store(tmp_path / "state.db")
    then = time.time() - 60
    records = [make_record(s, then + s, arm="candidate" if s == 3 else "stable", is_error=s > 3) for s in range(1, 6)]

    async def work(path: str, params: dict[str, Any]) -> httpx.Response:
        await metrics.write_records("e", [*records, make_record(6, then - 5000)])
        await metrics.write_pairs("e", [make_pair(s, then + s) for s in range(1, 4)])
        await store.write(_create)
        transport = httpx.ASGITransport(server.build([traffic.router(store, metrics)]))
        async with httpx.AsyncClient(transport=transport, base_url="http://stoker") as client:
            return await client.get(path, params=params)

    yield lambda path, **params: asyncio.run(work(path, params))
    metrics.close()
    store.close()


def _create(tx: Transaction) -> None:
    """A deployment that came and went."""
    tx.record("deployment", "chat", "DeploymentCreated", "", version=1, by="ada")
    tx.record("deployment", "chat", "DeploymentReady", "")
    tx.record("deployment", "chat", "DeploymentDeleting", "", by="bob")


def test_the_last_requests_of_a_deployment_have_all_that_was_measured(ask: Ask) -> None:
    found = read_list(Request, ask("/v1/deployments/chat/requests").json())
    assert [r.status for r in found] == [200, 200, 200, 500, 500]
    last = found[-1]
    assert (last.ttft_seconds, last.max_gap_seconds, last.queued_seconds) == (0.25, 0.0625, 0.125)
    assert (last.finish_reason, last.key, last.response_bytes) == ("stop", "team", 4096)
    assert abs(last.time.timestamp() - time.time()) < 3600


def test_requests_are_narrowed_by_time_arm_fault_and_number(ask: Ask) -> None:
    def count(**params: Any) -> int:
        return len(ask("/v1/deployments/chat/requests", **params).json())

    assert [count(arm="candidate"), count(errors=True), count(limit=2), count(since=0)] == [1, 2, 2, 6]
    assert ask("/v1/deployments/other/requests").json() == []
    assert ask("/v1/deployments/chat/requests", limit=0).status_code == 422


def test_answers_of_a_rollout_come_in_pairs(ask: Ask) -> None:
    found = read_list(AnswerPair, ask("/v1/rollouts/chat-2/shadows", limit=2).json())
    assert len(found) == 2
    assert (found[0].question, found[0].stable.text, found[0].shadow.is_error) == ("Ñ 2?", "Héllo ✓", True)
    assert ask("/v1/rollouts/chat-1/shadows").json() == []


def test_who_got_which_version_and_when_is_known_of_a_deployment_that_is_gone(ask: Ask) -> None:
    (found,) = read_list(Served, ask("/v1/deployments/chat/history").json())
    assert (found.version, found.arm, found.percent, found.by) == (1, "stable", 100, "ada")
    assert found.until is not None
    assert ask("/v1/deployments/chat/history", since=time.time() + 60).json() == []
    assert ask("/v1/deployments/nobody/history").status_code == 404
