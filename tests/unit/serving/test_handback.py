from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from stoker.types.serving import Replica
from stokerd.serving import handback
from stokerd.serving.handback import Handbacks
from stokerd.store.migrate import migrate
from stokerd.store.store import Store


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    migrate(tmp_path / "state.db", tmp_path / "backups")
    opened = Store(tmp_path / "state.db")
    yield opened
    opened.close()


class Driver:
    """Says what holds memory, as the inventory does."""

    def __init__(self) -> None:
        self.held_by = ""
        self.since: list[float] = []

    def memory_back(self, _uuids: Sequence[str], since_monotonic: float) -> str:
        self.since.append(since_monotonic)
        return self.held_by


def replica(*devices: str) -> Replica:
    return Replica(name="d-v1-0", deployment="d", version=1, index=0, devices=list(devices))


def reasons(store: Store) -> list[str]:
    return [e.reason for e in asyncio.run(store.read(lambda q: q.events(0)))]


def test_devices_go_back_when_the_driver_asked_after_the_end_says_so(store: Store) -> None:
    driver = Driver()
    handbacks = Handbacks(store, driver)  # type: ignore[arg-type]
    assert asyncio.run(handbacks.is_done(replica()))
    assert driver.since == []
    driver.held_by = "GPU 0: pid 7, which has ended, holds 3 GiB."
    assert not asyncio.run(handbacks.is_done(replica("a")))
    assert not asyncio.run(handbacks.is_done(replica("a")))
    driver.held_by = ""
    assert asyncio.run(handbacks.is_done(replica("a")))
    assert len(set(driver.since)) == 1
    driver.held_by = "something"
    handbacks.runs(replica("a"))
    assert not asyncio.run(handbacks.is_done(replica("a")))
    assert len(set(driver.since)) == 2
    assert reasons(store) == []


def test_memory_that_never_comes_back_is_told_once_and_waited_for_no_longer(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    driver = Driver()
    driver.held_by = "GPU 0: pid 7, which has ended, holds 3 GiB."
    handbacks = Handbacks(store, driver)  # type: ignore[arg-type]
    moment = 1000.0
    monkeypatch.setattr(handback.time, "monotonic", lambda: moment)
    assert not asyncio.run(handbacks.is_done(replica("a")))
    moment += 61
    assert asyncio.run(handbacks.is_done(replica("a")))
    (event,) = asyncio.run(store.read(lambda q: q.events(0)))
    assert event.reason == "DeviceMemoryHeld"
    assert "pid 7, which has ended, holds 3 GiB" in event.message
