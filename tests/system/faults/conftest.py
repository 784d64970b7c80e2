"""Scenes: one for each file that shares a daemon (`shared`), or one for a test alone (`scene`). Both are checked."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.system.faults.scene import Scene


@pytest.fixture
def scene() -> Iterator[Scene]:
    """A daemon of the test's own."""
    with Scene() as running:
        yield running
        running.check()


@pytest.fixture(scope="module")
def shared_scene() -> Iterator[Scene]:
    """A daemon that all tests of a file share; use `shared`, which checks after each."""
    with Scene() as running:
        yield running


@pytest.fixture
def shared(shared_scene: Scene) -> Iterator[Scene]:
    """The file's daemon; whatever the test did, every invariant holds afterwards."""
    yield shared_scene
    shared_scene.check()
