from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from stoker.errors import Invalid, NotFound
from stoker.types.registry import Lineage, Model, ModelSpec
from stokerd.registry.apply import apply_model
from stokerd.registry.models import Registry, resolve_reference, resolve_version
from stokerd.store.content import ContentStore
from stokerd.store.store import Store
from tests.unit.state import make_state_db


def play(tmp_path: Path, work: Callable[[Store, Registry], Awaitable[None]]) -> None:
    """Run *work* with a registry that has the empty model ``m``."""
    make_state_db(tmp_path)

    async def inner() -> None:
        store = Store(tmp_path / "state.db")
        try:
            await store.write(lambda tx: apply_model(tx, ModelSpec(kind="model", name="m")))
            await work(store, Registry(store, ContentStore(tmp_path / "content")))
        finally:
            store.close()

    asyncio.run(inner())


def weights(tmp_path: Path, text: str) -> Path:
    folder = tmp_path / text
    folder.mkdir(exist_ok=True)
    (folder / "weights").write_text(text)
    return folder


def test_versions_are_numbered_and_the_same_weights_are_the_same_version(tmp_path: Path) -> None:
    async def work(_: Store, registry: Registry) -> None:
        first = await registry.register("m", weights(tmp_path, "a"), Lineage(run="r-1"), ["champion"])
        second = await registry.register("m", weights(tmp_path, "b"), Lineage(), [])
        again = await registry.register("m", weights(tmp_path, "a"), Lineage(run="r-2"), ["twin"])
        assert (first.number, second.number) == (1, 2)
        assert again == first
        assert again.lineage.run == "r-1"
        assert (Path(first.folder) / "weights").read_text() == "a"
        assert first.lineage.source == str(tmp_path / "a")

    play(tmp_path, work)


def test_aliases_move_with_an_event_and_are_taken_away(tmp_path: Path) -> None:
    async def work(store: Store, registry: Registry) -> None:
        for name in ("a", "b"):
            await registry.register("m", weights(tmp_path, name), Lineage(), ["champion"])
        assert (await store.read(lambda q: q.get(Model, "m"))).aliases == {"champion": 2}
        moved = [e.data for e in await store.read(lambda q: q.events(0)) if e.reason == "AliasMoved"]
        assert moved == [{"before": None, "after": 1}, {"before": 1, "after": 2}]
        assert (await registry.set_alias("m", "champion", 1)).aliases == {"champion": 1}
        assert (await registry.delete_alias("m", "champion")).aliases == {}
        with pytest.raises(NotFound, match="no alias 'champion'"):
            await registry.delete_alias("m", "champion")
        with pytest.raises(Invalid, match="can't be a number"):
            await registry.set_alias("m", "7", 1)

    play(tmp_path, work)


def test_a_reference_is_a_number_or_an_alias_and_what_there_is_is_said_when_it_fits_nothing(tmp_path: Path) -> None:
    async def work(store: Store, registry: Registry) -> None:
        await registry.register("m", weights(tmp_path, "a"), Lineage(), ["champion"])
        for reference in ("m@1", "m@champion"):
            assert (await store.read(lambda q, r=reference: resolve_reference(q, r))).name == "m@1"  # type: ignore[misc]
        with pytest.raises(NotFound, match=r"no version 9.*newest version is 1"):
            await store.read(lambda q: resolve_version(q, "m", 9))
        with pytest.raises(NotFound, match=r"no alias 'nope'.*champion"):
            await store.read(lambda q: resolve_version(q, "m", "nope"))
        with pytest.raises(Invalid, match="names no version"):
            await store.read(lambda q: resolve_reference(q, "m"))

    play(tmp_path, work)


def test_a_model_that_is_not_there_costs_no_copy(tmp_path: Path) -> None:
    async def work(_: Store, registry: Registry) -> None:
        with pytest.raises(NotFound, match="no model named 'other'"):
            await registry.register("other", weights(tmp_path, "a"), Lineage(), [])
        assert not list((tmp_path / "content" / "blobs").iterdir())

    play(tmp_path, work)
