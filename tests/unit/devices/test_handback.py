from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from stokerd.devices.handback import MEMORY_PATIENCE_SECONDS, Handback, Handbacks, handback
from stokerd.store.store import Store
from tests.unit.state import make_state_db


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    make_state_db(tmp_path)
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


def reasons(store: Store) -> list[str]:
    return [e.reason for e in asyncio.run(store.read(lambda q: q.events(0)))]


def test_devices_go_back_when_the_driver_asked_after_the_end_says_so(store: Store) -> None:
    driver = Driver()
    handbacks = Handbacks("replica", store, driver)  # type: ignore[arg-type]
    assert asyncio.run(handbacks.is_done("d-v1-0", []))
    assert driver.since == []
    driver.held_by = "GPU 0: pid 7, which has ended, holds 3 GiB."
    assert not asyncio.run(handbacks.is_done("d-v1-0", ["a"]))
    assert not asyncio.run(handbacks.is_done("d-v1-0", ["a"]))
    driver.held_by = ""
    assert asyncio.run(handbacks.is_done("d-v1-0", ["a"]))
    assert len(set(driver.since)) == 1
    driver.held_by = "something"
    handbacks.runs("d-v1-0")
    assert not asyncio.run(handbacks.is_done("d-v1-0", ["a"]))
    assert len(set(driver.since)) == 2
    assert reasons(store) == []


def test_memory_that_never_comes_back_is_told_once_and_waited_for_no_longer(
    store: Store,
) -> None:
    driver = Driver()
    driver.held_by = "GPU 0: pid 7, which has ended, holds 3 GiB."
    moment = 1000.0
    handbacks = Handbacks("replica", store, driver, lambda: moment)  # type: ignore[arg-type]
    assert not asyncio.run(handbacks.is_done("d-v1-0", ["a"]))
    moment += 61
    assert asyncio.run(handbacks.is_done("d-v1-0", ["a"]))
    (event,) = asyncio.run(store.read(lambda q: q.events(0)))
    assert event.reason == "DeviceMemoryHeld"
    assert "pid 7, which has ended, holds 3 GiB" in event.message


def test_devices_go_back_when_their_memory_has_or_when_it_was_waited_for_long_enough() -> None:
    assert handback("", 0) is Handback.DONE
    assert handback("GPU 0 still holds 3 GiB.", MEMORY_PATIENCE_SECONDS - 1) is Handback.WAIT
    assert handback("GPU 0 still holds 3 GiB.", MEMORY_PATIENCE_SECONDS) is Handback.TELL
    assert handback("", MEMORY_PATIENCE_SECONDS) is Handback.DONE
