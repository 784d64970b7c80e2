"""A log that is followed and read back: nothing that was written is left out, long lines wrap."""

from __future__ import annotations

from typing import ClassVar

from textual.binding import BindingType

from stoker_tui.actions import bindings
from stoker_tui.logtext import LogText
from stoker_tui.text import Line, chop, fit
from stoker_tui.widgets.drawn import Drawn

MAX_LINES = 100_000
"""Kept in memory; of a longer log the oldest tenth is let go at a time, and the heading says so."""
REDRAW_SECONDS = 0.05
MARGIN = 2


class LogView(Drawn, can_focus=True):
    """Give it bytes with `write`. It follows the end until it is scrolled back."""

    BINDINGS: ClassVar[list[BindingType]] = bindings("log")

    def __init__(self, *, id: str | None = None) -> None:
        super().__init__(self._draw, id=id)
        self._title = "LOG"
        self._note = ""
        self._start_over()

    def _start_over(self) -> None:
        self._text = LogText()
        self._lines_read: list[str] = []
        self._rows: list[str] = []
        self._width = 0
        self._dropped = 0
        self._top: int | None = None
        self.is_due = False
        """Whether something was written that isn't drawn yet."""

    @property
    def is_following(self) -> bool:
        """Whether the end is shown as it grows."""
        return self._top is None

    @property
    def text(self) -> str:
        """All that was read, as it is shown."""
        return "\n".join([*self._lines_read, *([self._text.unfinished] if self._text.unfinished else [])])

    def restart(self, title: str) -> None:
        """Forget all lines: another log comes."""
        self._start_over()
        self._title, self._note = title, ""
        self.redraw()

    def say(self, note: str) -> None:
        """A sentence beside the title: that the log has ended, or why there's none."""
        if note != self._note:
            self._note = note
            self.redraw()

    def write(self, chunk: bytes) -> None:
        """Take the next bytes of the log."""
        ended = self._text.feed(chunk)
        self._lines_read.extend(ended)
        if self._width:
            for line in ended:
                self._rows.extend(chop(line, self._width))
        if len(self._lines_read) > MAX_LINES:
            self._drop(len(self._lines_read) // 10)
        if not self.is_due:
            self.is_due = True
            self.set_timer(REDRAW_SECONDS, self._redraw_due)

    def _redraw_due(self) -> None:
        self.is_due = False
        self.redraw()

    def _drop(self, count: int) -> None:
        rows_before = len(self._rows)
        self._dropped += count
        del self._lines_read[:count]
        self._wrap(self._width)
        if self._top is not None:
            self._top = max(0, self._top - (rows_before - len(self._rows)))

    def _wrap(self, width: int) -> None:
        self._width = width
        self._rows = [row for line in self._lines_read for row in chop(line, width)] if width else []

    def _draw(self, width: int, height: int) -> list[Line]:
        if width - MARGIN != self._width:
            self._wrap(max(1, width - MARGIN))
        room = max(0, height - 1)
        tail = self._tail()
        total = len(self._rows) + len(tail)
        last_top = max(0, total - room)
        if self._top is not None and self._top >= last_top:
            self._top = None
        top = last_top if self._top is None else self._top
        rows = self._rows[top : top + room]
        rows += tail[max(0, top - len(self._rows)) :][: room - len(rows)]
        if not total:
            rows = [""] if self._note else ["no output yet"]
        role = "muted" if not total else ""
        return [self._heading(width, top, room, total), *(((" " * MARGIN, ""), (row, role)) for row in rows)]

    def _heading(self, width: int, top: int, room: int, total: int) -> Line:
        role = "head focus" if self.has_focus else "head"
        if self._top is None:
            where = self._note or "following"
        else:
            where = f"line {top + 1}–{min(top + room, total)} of {total} · end follows again"
        if self._dropped:
            where += f" · {self._dropped} older lines: see `stoker logs`"
        title = f"  {self._title}  "
        return ((title, role), *((text, role) for text, _ in fit(((where, ""),), width - len(title))))

    def _tail(self) -> list[str]:
        """The rows of the line that isn't finished."""
        return chop(self._text.unfinished, self._width) if self._text.unfinished and self._width else []

    def _page(self) -> int:
        return max(1, self.size.height - 2)

    def _scroll_by(self, rows: int) -> None:
        total = len(self._rows) + len(self._tail())
        last_top = max(0, total - max(0, self.size.height - 1))
        top = last_top if self._top is None else self._top
        to = max(0, top + rows)
        self._top = None if to >= last_top else to
        self.redraw()

    def action_follow(self) -> None:
        """Follow the end."""
        self._top = None
        self.redraw()

    def action_scroll_up(self) -> None:
        """A row up."""
        self._scroll_by(-1)

    def action_scroll_down(self) -> None:
        """A row down."""
        self._scroll_by(1)

    def action_page_up(self) -> None:
        """A screenful up."""
        self._scroll_by(-self._page())

    def action_page_down(self) -> None:
        """A screenful down."""
        self._scroll_by(self._page())

    def action_scroll_home(self) -> None:
        """To the first line."""
        self._scroll_by(-len(self._rows) - 1_000_000)

    def on_mouse_scroll_up(self) -> None:
        """The wheel scrolls three rows."""
        self._scroll_by(-3)

    def on_mouse_scroll_down(self) -> None:
        """The wheel scrolls three rows."""
        self._scroll_by(3)

    def on_focus(self) -> None:
        """The heading shows it."""
        self.redraw()

    def on_blur(self) -> None:
        """The heading shows it."""
        self.redraw()
