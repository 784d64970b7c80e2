from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from hashlib import sha256
from pathlib import Path

import pytest

from stoker.errors import Conflict, NotFound
from stoker.types.keys import ApiKey, KeyRequest
from stokerd.serving.keys import create_key, delete_key
from stokerd.store.store import Store
from tests.unit.state import make_state_db


def play(tmp_path: Path, work: Callable[[Store], Awaitable[None]]) -> None:
    make_state_db(tmp_path)

    async def inner() -> None:
        store = Store(tmp_path / "state.db")
        try:
            await work(store)
        finally:
            store.close()

    asyncio.run(inner())


def test_the_text_of_a_key_is_kept_nowhere(tmp_path: Path) -> None:
    async def work(store: Store) -> None:
        made = await store.write(lambda tx: create_key(tx, KeyRequest(name="alice", in_flight=3), "root"))
        assert made.text.startswith("sk-stoker-")
        kept = await store.read(lambda q: q.get(ApiKey, "alice"))
        assert kept == made.key
        assert kept.digest == sha256(made.text.encode()).hexdigest()
        assert kept.in_flight == 3
        events = await store.read(lambda q: q.events(0))
        assert [(e.reason, e.data) for e in events] == [("KeyCreated", {"by": "root"})]
        texts.append(made.text)

    texts: list[str] = []
    play(tmp_path, work)
    secret = texts[0][len("sk-stoker-") :][:8].encode()
    assert not [p for p in tmp_path.rglob("*") if p.is_file() and secret in p.read_bytes()]


def test_names_are_taken_once_and_models_must_be_there(tmp_path: Path) -> None:
    async def work(store: Store) -> None:
        await store.write(lambda tx: create_key(tx, KeyRequest(name="alice"), "root"))
        with pytest.raises(Conflict, match="an API key alice already"):
            await store.write(lambda tx: create_key(tx, KeyRequest(name="alice"), "root"))
        with pytest.raises(NotFound, match="nope"):
            await store.write(lambda tx: create_key(tx, KeyRequest(name="bob", models=["nope"]), "root"))
        await store.write(lambda tx: delete_key(tx, "alice"))
        assert await store.read(lambda q: q.all(ApiKey)) == []
        with pytest.raises(NotFound):
            await store.write(lambda tx: delete_key(tx, "alice"))

    play(tmp_path, work)
