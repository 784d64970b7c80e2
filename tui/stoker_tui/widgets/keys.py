"""The line of keys at the bottom: what can be done here and now, from the table of actions.

Textual's own Footer is made of a widget for each key and is composed anew with each change of the focus.
"""

from __future__ import annotations

from textual import events
from textual.binding import Binding
from textual.screen import Screen

from stoker_tui.text import Line, cut, fit, width_of
from stoker_tui.widgets.drawn import Drawn


class Keys(Drawn):
    """Shows the bindings that hold, in the order of the table; a click does what the key does."""

    def __init__(self) -> None:
        super().__init__(self._draw)
        self._places: list[tuple[int, int, str]] = []

    def on_mount(self) -> None:
        """Told by the screen when other keys hold."""
        self.screen.bindings_updated_signal.subscribe(self, self._bindings_changed)

    def _bindings_changed(self, screen: Screen[object]) -> None:
        if screen is self.screen:
            self.redraw()

    def _draw(self, width: int, _: int) -> list[Line]:
        active = self.screen.active_bindings
        shown = {b.action: b for _, b, enabled, _ in active.values() if b.show and enabled}
        palette = active.get(self.app.COMMAND_PALETTE_BINDING)
        right = self._piece(palette.binding) if palette is not None else ()
        self._places = []
        spans: list[tuple[str, str]] = [(" ", "")]
        room = width - width_of(right) - 1
        for binding in shown.values():
            piece = self._piece(binding)
            start = width_of(tuple(spans))
            if start + width_of(piece) > room - 1:
                break  # half a word helps nobody; the help has them all
            self._places.append((start, start + width_of(piece), binding.key))
            spans.extend((*piece, ("  ", "")))
        if palette is not None:
            self._places.append((room, width, palette.binding.key))
        return [(*fit(cut(tuple(spans), room), max(0, room)), *right)]

    def _piece(self, binding: Binding) -> Line:
        return ((self.app.get_key_display(binding), "key"), (f" {binding.description}", ""))

    def on_click(self, event: events.Click) -> None:
        """As if the key had been pressed."""
        for start, end, key in self._places:
            if start <= event.x < end:
                self.app.simulate_key(key)
