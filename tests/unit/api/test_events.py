from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from stokerd.api import events
from stokerd.store.store import Store
from tests.harness import DEADLINE
from tests.unit.state import make_state_db


@asynccontextmanager
async def opened(folder: Path) -> AsyncIterator[Store]:
    make_state_db(folder)
    store = Store(folder / "state.db")
    try:
        yield store
    finally:
        store.close()


async def following(store: Store, closing: asyncio.Event, kind: str | None = None) -> AsyncIterator[str]:
    async with asyncio.timeout(DEADLINE):
        async for message in events._stream(store, closing, 0, follow=True, kind=kind, name=None):
            yield message


def test_a_stream_that_waits_ends_when_the_daemon_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(events, "_PING_SECONDS", 10 * DEADLINE)

    async def work() -> None:
        closing = asyncio.Event()
        async with opened(tmp_path) as store:
            said = []
            async for message in following(store, closing):
                said.append(message)
                asyncio.get_running_loop().call_later(0.05, closing.set)
        assert said == [": watching\n\n"]

    asyncio.run(work())


def test_a_stream_has_what_happens_while_it_waits(tmp_path: Path) -> None:
    async def work() -> None:
        async with opened(tmp_path) as store:
            number, writing = 0, []
            async for message in following(store, asyncio.Event()):
                assert number == 0 or message.startswith(f"id: {number}\n")
                number += 1
                if number == 4:
                    break
                writing.append(asyncio.create_task(store.write(lambda tx: tx.record("x", "x", "X", ""))))
            await asyncio.gather(*writing)

    asyncio.run(work())


def test_a_stream_of_one_kind_is_pinged_while_only_others_happen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(events, "_PING_SECONDS", 0.05)

    async def work() -> None:
        async with opened(tmp_path) as store:

            async def go_on() -> None:
                while True:
                    await store.write(lambda tx: tx.record("x", "x", "X", ""))

            writing = asyncio.create_task(go_on())
            said = []
            async for message in following(store, asyncio.Event(), kind="y"):
                said.append(message)
                if len(said) == 4:
                    break
            writing.cancel()
            await asyncio.gather(writing, return_exceptions=True)
        assert said == [": watching\n\n"] + [": ping\n\n"] * 3

    asyncio.run(work())
