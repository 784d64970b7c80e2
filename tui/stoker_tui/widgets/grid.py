"""A table with a cursor, for a section of a screen: its heading is also the heading of its columns."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

from textual import events
from textual.binding import BindingType
from textual.message import Message

from stoker_tui.actions import bindings
from stoker_tui.table import Row, Table, widths
from stoker_tui.text import Line, cut, fit, width_of
from stoker_tui.widgets.drawn import Drawn

MARGIN = 2
"""Cells for the cursor's mark, left of the first column."""
GAP = 2


class Grid(Drawn, can_focus=True):
    """Rows under a heading, a cursor kept on its row by key while rows come and go."""

    BINDINGS: ClassVar[list[BindingType]] = bindings("grid")

    @dataclass
    class Opened(Message):
        """Enter on a row."""

        grid: Grid
        key: str

    @dataclass
    class Moved(Message):
        """The cursor is on another row, or its row says something else."""

        grid: Grid

    def __init__(self, make: Callable[[], Table], *, id: str | None = None) -> None:
        super().__init__(self._draw, id=id)
        self._make_table = make
        self._table = Table(())
        self._key: str | None = None
        self._top = 0
        self._widest: list[int] = []

    @property
    def table(self) -> Table:
        """What was last shown."""
        return self._table

    @property
    def current(self) -> Row | None:
        """The row under the cursor."""
        return self._table.rows[self._index] if self._table.rows else None

    @property
    def _index(self) -> int:
        found = [i for i, r in enumerate(self._table.rows) if r.key == self._key]
        return found[0] if found else 0

    def renew(self) -> None:
        """Ask for the rows again, and draw them."""
        before, at = self.current, self._index
        self._table = self._make_table()
        keys = {r.key for r in self._table.rows}
        is_at_rest = at == 0 and not self.has_focus  # nobody is about to press enter here: show the newest
        if self._table.rows and (self._key not in keys or is_at_rest):
            # When the row that was there is gone, the cursor stays at its place, not at the top.
            self._key = self._table.rows[min(at, len(self._table.rows) - 1)].key
        self.redraw()
        if self.current != before:
            self.post_message(self.Moved(self))

    def wanted_height(self) -> int:
        """Rows of the terminal that would show all of it."""
        return 1 + max(1, len(self._table.rows))

    def on_resize(self) -> None:
        """Columns are measured anew."""
        self._widest = []
        super().on_resize()

    def _draw(self, width: int, height: int) -> list[Line]:
        table = self._table
        room = max(0, height - 1)
        self._scroll(room)
        columns = self._columns(width - MARGIN)
        lines = [self._heading(columns, width, room)]
        if not table.rows:
            return [*lines, (("  ", ""), (table.empty, "muted"))]
        for row in table.rows[self._top : self._top + room]:
            cells = self._cells(row.cells, columns)
            if self.has_focus and row.key == self._key:
                marked = (("› ", ""), *cells)
                lines.append(tuple((text, f"{role} cursor") for text, role in fit(marked, width)))
            else:
                lines.append((("  ", ""), *cells))
        return lines

    def _scroll(self, room: int) -> None:
        at, count = self._index, len(self._table.rows)
        self._top = min(max(self._top, at - room + 1, 0), at, max(0, count - room))

    def _columns(self, room: int) -> list[int]:
        columns = self._table.columns
        if len(self._widest) != len(columns):
            self._widest = [0] * len(columns)
        for row in self._table.rows:
            self._widest = [max(w, width_of(c)) for w, c in zip(self._widest, row.cells, strict=True)]
        return widths(columns, self._widest, room, GAP)

    def _cells(self, cells: tuple[Line, ...], columns: list[int]) -> Line:
        spans: list[tuple[str, str]] = []
        for cell, width, column in zip(cells, columns, self._table.columns, strict=True):
            if width:
                spans.extend(
                    ((" " * GAP if spans else "", spans[-1][1] if spans else ""), *fit(cell, width, column.align))
                )
        return tuple(spans)

    def _heading(self, columns: list[int], width: int, room: int) -> Line:
        titles = tuple(((c.title, ""),) for c in self._table.columns)
        role = "head focus" if self.has_focus else "head"
        margin = "› " if self.has_focus and not self._table.rows else "  "
        left = ((margin, role), *((text, role) for text, _ in self._cells(titles, columns)))
        count = len(self._table.rows)
        if count > room:
            last = min(self._top + room, count)
            where = f" {self._top + 1}–{last} of {count} "
            return (
                *((text, role) for text, _ in fit(cut(left, width - len(where)), width - len(where))),
                (where, role),
            )
        return tuple((text, role) for text, _ in fit(left, width))

    def _move(self, to: int) -> None:
        if not self._table.rows:
            return
        self._key = self._table.rows[min(max(to, 0), len(self._table.rows) - 1)].key
        self.redraw()
        self.post_message(self.Moved(self))

    def action_cursor_down(self) -> None:
        """One row down; from the last row on to the next section."""
        if self._index + 1 < len(self._table.rows):
            self._move(self._index + 1)
        else:
            self._to_neighbour(1)

    def action_cursor_up(self) -> None:
        """One row up; from the first row on to the section before."""
        if self._index > 0:
            self._move(self._index - 1)
        else:
            self._to_neighbour(-1)

    def _to_neighbour(self, step: int) -> None:
        chain = [w for w in self.screen.focus_chain if isinstance(w, Grid)]
        at = chain.index(self) + step if self in chain else -1
        if 0 <= at < len(chain):
            chain[at].focus()
            chain[at]._move(0 if step > 0 else len(chain[at].table.rows) - 1)

    def action_page_down(self) -> None:
        """A screenful down."""
        self._move(self._index + max(1, self.size.height - 2))

    def action_page_up(self) -> None:
        """A screenful up."""
        self._move(self._index - max(1, self.size.height - 2))

    def action_cursor_home(self) -> None:
        """To the first row."""
        self._move(0)

    def action_cursor_end(self) -> None:
        """To the last row."""
        self._move(len(self._table.rows) - 1)

    def action_open(self) -> None:
        """Open what the row is about."""
        if self.current is not None:
            self.post_message(self.Opened(self, self.current.key))

    def on_focus(self) -> None:
        """The cursor shows."""
        self.redraw()
        self.post_message(self.Moved(self))

    def on_blur(self) -> None:
        """The cursor hides."""
        self.redraw()

    def on_click(self, event: events.Click) -> None:
        """Put the cursor on the row; a second click opens it."""
        at = self._top + event.y - 1
        if event.y >= 1 and at < len(self._table.rows):
            if self._table.rows[at].key == self._key and event.chain > 1:
                self.action_open()
            else:
                self._move(at)

    def on_mouse_scroll_down(self) -> None:
        """The wheel moves the cursor."""
        self._move(self._index + 1)

    def on_mouse_scroll_up(self) -> None:
        """The wheel moves the cursor."""
        self._move(self._index - 1)
