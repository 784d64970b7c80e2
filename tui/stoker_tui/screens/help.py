"""All keys, from the table of actions."""

from __future__ import annotations

from typing import ClassVar

from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import VerticalScroll
from textual.screen import ModalScreen

from stoker_tui.views import help as words
from stoker_tui.widgets.drawn import Drawn


class Help(ModalScreen[None]):
    """Keys of the screen below first, then all others, then the symbols."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape,q,question_mark,enter", "dismiss", "close"),
        Binding("j", "scroll_down", show=False),
        Binding("k", "scroll_up", show=False),
    ]

    def __init__(self, places: tuple[str, ...]) -> None:
        super().__init__()
        self._places = places

    def compose(self) -> ComposeResult:
        """A box that scrolls."""
        with VerticalScroll(id="box") as box:
            box.border_title = "Keys"
            box.border_subtitle = "esc closes"
            yield Drawn(lambda width, _: words.lines(width, self._places), id="keys")

    def on_mount(self) -> None:
        """Arrows and page keys scroll it."""
        self.query_one("#box").focus()

    def action_scroll_down(self) -> None:
        """A row down."""
        self.query_one("#box").scroll_down()

    def action_scroll_up(self) -> None:
        """A row up."""
        self.query_one("#box").scroll_up()
