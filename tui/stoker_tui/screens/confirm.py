"""A question before something happens to traffic or a run."""

from __future__ import annotations

from typing import ClassVar

from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Horizontal, Vertical
from textual.screen import ModalScreen
from textual.widgets import Button, Static


class Confirm(ModalScreen[bool]):
    """Says what will happen; returns True only for a yes. The safe answer has the focus."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("y", "answer(True)", "yes"),
        Binding("n,escape,q", "answer(False)", "no"),
        Binding("left,right,h,l", "app.focus_next", show=False),
    ]

    def __init__(self, title: str, question: str, yes: str) -> None:
        super().__init__()
        self._title = title
        self._question = question
        self._yes = yes

    def compose(self) -> ComposeResult:
        """A box with a title, a sentence and two answers."""
        with Vertical(id="box") as box:
            box.border_title = self._title
            yield Static(self._question, id="question", markup=False)
            with Horizontal(id="answers"):
                yield Button(f"y  {self._yes}", id="yes", compact=True)
                yield Button("n  leave it as it is", id="no", compact=True)

    def on_mount(self) -> None:
        """Enter, pressed by habit, changes nothing."""
        self.query_one("#no").focus()

    def on_button_pressed(self, event: Button.Pressed) -> None:
        """Mouse or enter."""
        self.dismiss(event.button.id == "yes")

    def action_answer(self, yes: bool) -> None:
        """A key."""
        self.dismiss(yes)
