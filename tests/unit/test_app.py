from __future__ import annotations

import asyncio
from contextlib import closing
from pathlib import Path

import pytest

from stoker.errors import NotFound
from stoker.types.base import now
from stoker.types.serving import AdapterEngine, Deployment, DeploymentSpec, Pending, Ready, Replica, VllmEngine
from stokerd.app import _servers
from stokerd.rollouts.comparisons import Servers
from stokerd.store.store import Store, Transaction
from tests.unit.state import make_state_db


def save(tx: Transaction) -> None:
    """A deployment of three replicas, of which one is ready and one of another version, and an adapter on the first."""
    for name, engine in (("chat", VllmEngine(type="vllm")), ("tone", AdapterEngine(type="adapter", base="chat"))):
        spec = DeploymentSpec(kind="deployment", name=name, model=name, version=2, engine=engine)
        tx.save(Deployment(name=name, spec=spec, version=2), "Made", "")
    ready = Ready(process="p", since=now())
    rows: list[tuple[str, int, int, Ready | Pending]]
    rows = [("chat", 2, 0, ready), ("chat", 2, 1, Pending()), ("chat", 1, 0, ready), ("tone", 2, 0, ready)]
    for deployment, version, index, state in rows:
        address, name = f"unix:/chat-{version}-{index}", f"{deployment}-v{version}-{index}"
        row = Replica(name=name, deployment=deployment, version=version, index=index, address=address, state=state)
        tx.save(row, "Made", "")


def test_a_judge_is_asked_at_its_ready_servers_and_by_the_name_that_they_know(tmp_path: Path) -> None:
    make_state_db(tmp_path)

    async def work(store: Store) -> None:
        await store.write(save)
        assert await _servers(store, "chat") == Servers(["unix:/chat-2-0"], "chat")
        assert await _servers(store, "tone") == Servers(["unix:/chat-2-0"], "tone-v2")
        with pytest.raises(NotFound):
            await _servers(store, "nobody")

    with closing(Store(tmp_path / "state.db")) as store:
        asyncio.run(work(store))
