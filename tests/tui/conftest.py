from __future__ import annotations

import tempfile
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from textual.pilot import Pilot

from stoker.paths import Home
from stoker_tui.app import StokerApp
from tests.harness import DEADLINE
from tests.tui import world
from tests.tui.pilots import settled
from tests.tui.server import CannedDaemon
from tests.tui.world import StillClock


@pytest.fixture(autouse=True)
def _same_terminal_everywhere(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLORTERM", "truecolor")
    monkeypatch.setenv("TERM", "xterm-256color")
    for name in ("NO_COLOR", "TEXTUAL_THEME", "TEXTUAL_COLOR_SYSTEM"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture(autouse=True)
def _patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """A canned daemon that a busy machine keeps from answering is not one that hangs."""
    monkeypatch.setattr("stoker_tui.store.ANSWER_SECONDS", DEADLINE)


@pytest.fixture
def clock() -> StillClock:
    return StillClock()


@pytest.fixture
def home() -> Iterator[Home]:
    with tempfile.TemporaryDirectory(prefix="tui") as folder:
        yield Home(Path(folder), Path(folder))


@pytest.fixture
def empty_daemon(home: Home, clock: StillClock) -> Iterator[CannedDaemon]:
    """A daemon that knows nothing yet; the test starts it, or not."""
    daemon = world.daemon_at(home.root, clock=clock)
    yield daemon
    daemon.stop()


@pytest.fixture
def daemon(empty_daemon: CannedDaemon) -> CannedDaemon:
    """A daemon on an ordinary afternoon, serving."""
    world.fill(empty_daemon)
    empty_daemon.start()
    return empty_daemon


@pytest.fixture
def app(home: Home, clock: StillClock) -> StokerApp:
    return StokerApp(home, clock)


Snap = Callable[..., bool]
Steps = Callable[[Pilot[Any]], Awaitable[None]]


@pytest.fixture
def looks_right(snap_compare: Snap, app: StokerApp) -> Callable[..., bool]:
    """Compare with the accepted picture, once the app has settled and *steps* were taken."""

    def compare(size: tuple[int, int], steps: Steps | None = None) -> bool:
        async def before(pilot: Pilot[Any]) -> None:
            await settled(pilot)
            if steps is not None:
                await steps(pilot)
                await settled(pilot)

        app.animation_level = "none"
        app.store.client.socket = Path("/run/stoker/stoker.sock")  # what it says, not where it is: always the same
        return snap_compare(app, terminal_size=size, run_before=before)

    return compare
