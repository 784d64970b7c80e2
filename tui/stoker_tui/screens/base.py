"""What all screens share: the header, being told of changes, saying what they want polled, asking before acting."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, ClassVar

from textual.message import Message
from textual.screen import Screen

from stoker_tui.model import View
from stoker_tui.screens.confirm import Confirm
from stoker_tui.store import REFUSALS, Store, Watch, owned, sentence
from stoker_tui.views import common
from stoker_tui.widgets.drawn import Drawn
from stoker_tui.widgets.grid import Grid
from stoker_tui.widgets.log import LogView

WIDE = 120
"""Columns from which on two things stand side by side."""
REFUSAL_SECONDS = 12.0


@dataclass
class OpenResource(Message):
    """Show a resource in full, please: the app answers by another screen."""

    kind: str
    name: str


@dataclass
class OpenLog(Message):
    """Show a log alone, please."""

    kind: str
    name: str


class StokerScreen(Screen[None]):
    """A screen over the store's view. ``places`` are the tables of actions (`stoker_tui.actions`) that hold on it."""

    places: ClassVar[tuple[str, ...]] = ()

    def __init__(self, store: Store) -> None:
        super().__init__()
        self.store = store
        self.clock = store.clock
        self._bindings_state: object = None

    @property
    def view(self) -> View:
        """What is known of the daemon."""
        return self.store.view

    def header(self) -> Drawn:
        """The line on top."""
        return Drawn(lambda width, _: common.header(self.view, self.clock, width), id="header")

    def wanted(self) -> Watch:
        """What to poll each second while this screen is in front."""
        return Watch()

    def show(self) -> None:
        """Say what has changed. Cheap when nothing has."""
        self.set_class(not self.view.is_live, "-stale")
        for grid in self.query(Grid):
            grid.renew()
        self.lay_out()
        for drawn in self.query(Drawn):
            if not isinstance(drawn, Grid | LogView):
                drawn.redraw()

    def lay_out(self) -> None:
        """Give each part its rows, now that the tables know theirs."""

    def on_mount(self) -> None:
        """Nothing to wait for: what is known is shown."""
        self.show()

    def on_screen_resume(self) -> None:
        """In front again: what it wants is asked for at once."""
        self.show()
        self.store.hurry()

    def on_resize(self) -> None:
        """Layouts depend on the terminal's size."""
        self.set_class(self.size.width >= WIDE, "-wide")
        self.show()

    def refresh_bindings_if_changed(self, state: object) -> None:
        """Let the footer say what can be done now, but only when *state*, on which that depends, is another."""
        if state != self._bindings_state:
            self._bindings_state = state
            self.refresh_bindings()

    def action_back(self) -> None:
        """To where this screen was opened from."""
        if len(self.app.screen_stack) > 1:
            self.app.pop_screen()

    async def ask_and_do(
        self, title: str, question: str, yes: str, deed: Callable[[], Awaitable[Any]], done: str
    ) -> None:
        """Ask; on yes do *deed* and tell *done*, or the daemon's refusal with its hint. Call it in a worker."""
        if not await self.app.push_screen_wait(Confirm(title, question, yes)):
            return
        try:
            await deed()
        except REFUSALS as error:
            message, hint = sentence(error)
            text = f"{message}\n{hint}".strip()
            self.notify(text, title="Refused", severity="error", timeout=REFUSAL_SECONDS, markup=False)
        else:
            self.notify(done, title=title.rstrip("?"), markup=False)

    async def read_log(self, kind: str, name: str, title: str, is_over: Callable[[], bool]) -> None:
        """Follow a log into this screen's `LogView`. Call it in an exclusive worker of group "log"."""
        log = self.query_one(LogView)
        log.restart(title)
        async with owned(self.store.log(kind, name, is_over)) as chunks:
            async for chunk in chunks:
                log.write(chunk)
        log.say("end of the log" if log.text else "it wrote nothing")
