"""Waiting, the way a person does: until the screen shows it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from functools import partial
from typing import Any, cast

from textual.pilot import Pilot

from stoker_tui.app import StokerApp
from stoker_tui.model import Connecting, View
from stoker_tui.text import plain
from stoker_tui.widgets.drawn import Drawn
from stoker_tui.widgets.log import LogView
from tests.harness import DEADLINE


def app_of(pilot: Pilot[Any]) -> StokerApp:
    return cast(StokerApp, pilot.app)


def shown(app: StokerApp) -> str:
    """All text that the screen in front draws by itself."""
    drawn = [d for d in app.screen.query(Drawn) if d.display and d.region.area]
    return "\n".join(plain(line).rstrip() for d in drawn for line in d.lines)


async def until(pilot: Pilot[Any], condition: Callable[[], bool], what: str = "") -> None:
    """Let the app work until *condition* holds; fails with what it shows when that takes too long."""
    deadline = time.monotonic() + DEADLINE
    while not condition():
        if time.monotonic() > deadline:
            raise AssertionError(f"waited in vain{' for ' + what if what else ''}; shown:\n{shown(app_of(pilot))}")
        await asyncio.sleep(0.003)


def _shows(app: StokerApp, word: str) -> bool:
    return word in shown(app)


async def sees(pilot: Pilot[Any], *words: str) -> None:
    """Wait until all of *words* are shown."""
    app = app_of(pilot)
    for word in words:
        await until(pilot, partial(_shows, app, word), repr(word))


async def settled(pilot: Pilot[Any]) -> None:
    """Wait until the app knows what its daemon knows and has drawn it; or, without a daemon, that there's none."""
    app = app_of(pilot)
    view = app.store.view
    await until(pilot, lambda: not isinstance(view.link, Connecting), "an answer or a refusal")
    if view.is_live:
        await until(pilot, lambda: view.host is not None and _has_feed(view), "the feed")
        before = app.store.rounds

        def asked_twice() -> bool:
            app.store.hurry()
            return app.store.rounds >= before + 2  # the first may have begun before what was just done

        await until(pilot, asked_twice, "a whole round of questions")
    await until(pilot, lambda: not any(log.is_due for log in app.screen.query(LogView)), "the log to be drawn")
    app._show()
    await pilot.pause()


def _has_feed(view: View) -> bool:
    told = view.host.last_event_id if view.host is not None else 0
    return not told or (bool(view.events) and view.events[-1].id >= told)
