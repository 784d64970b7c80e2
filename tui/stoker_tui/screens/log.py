"""One log, alone: the gateway's."""

from __future__ import annotations

from typing import ClassVar

from textual import work
from textual.app import ComposeResult
from textual.binding import BindingType

from stoker_tui.actions import bindings
from stoker_tui.screens.base import StokerScreen
from stoker_tui.store import Store
from stoker_tui.widgets.keys import Keys
from stoker_tui.widgets.log import LogView


class LogScreen(StokerScreen):
    """A log from its first line on, followed."""

    BINDINGS: ClassVar[list[BindingType]] = bindings("detail")
    places = ("log", "detail", "everywhere")

    def __init__(self, store: Store, kind: str, name: str) -> None:
        super().__init__(store)
        self._kind = kind
        self._name_of_log = name

    def compose(self) -> ComposeResult:
        """The log below the header."""
        yield self.header()
        yield LogView(id="log")
        yield Keys()

    def on_mount(self) -> None:
        """Start to read."""
        super().on_mount()
        self.query_one(LogView).focus()
        self._follow_log()

    @work(exclusive=True, group="log")
    async def _follow_log(self) -> None:
        await self.read_log(self._kind, self._name_of_log, f"LOG {self._name_of_log}", lambda: False)
