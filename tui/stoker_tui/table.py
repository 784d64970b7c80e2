"""Tables before any widget: columns, rows, and how wide each column is in the room that there is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from rich.cells import cell_len

from stoker_tui.text import Align, Line, plain


@dataclass(frozen=True)
class Column:
    """A column of a table. Widths in cells.

    ``minimum`` is kept however little is in it (so that columns don't jump); ``flex`` columns are cut down to it when
    there's too little room, and take what is left over when there's too much. Then those with the highest ``drop``
    go, one after another; 0 stays.
    """

    title: str
    minimum: int = 0
    align: Align = "left"
    flex: bool = False
    drop: int = 0


def widths(columns: Sequence[Column], natural: Sequence[int], room: int, gap: int = 2) -> list[int]:
    """The width of each column in *room* cells with *gap* between them; 0 hides a column.

    *natural* is the width of the widest content of each. Columns with nothing but an empty content aren't hidden.
    """
    shown = list(range(len(columns)))
    wish = [max(c.minimum, n, cell_len(c.title)) for c, n in zip(columns, natural, strict=True)]
    least = [max(c.minimum, cell_len(c.title)) if c.flex else w for c, w in zip(columns, wish, strict=True)]

    def total(of: list[int]) -> int:
        return sum(of[i] for i in shown) + gap * (len(shown) - 1)

    while total(least) > room and any(columns[i].drop for i in shown):
        shown.remove(max(shown, key=lambda i: columns[i].drop))
    result = [0] * len(columns)
    spare = room - total(least)
    for i in shown:
        extra = min(max(spare, 0), wish[i] - least[i])
        result[i] = least[i] + extra
        spare -= extra
    flexible = [i for i in shown if columns[i].flex]
    if spare > 0 and flexible:
        result[flexible[-1]] += spare
    return result


@dataclass(frozen=True)
class Row:
    """A line of a table: what it is about (its ``key``), its cells, and a sentence that says more."""

    key: str
    cells: tuple[Line, ...]
    more: str = ""


@dataclass(frozen=True)
class Table:
    """What a grid shows; ``empty`` stands where there is no row."""

    columns: tuple[Column, ...]
    rows: list[Row] = field(default_factory=list)
    empty: str = ""

    def only(self, word: str) -> Table:
        """The rows that have *word* in them, in any case of letters."""
        if not word:
            return self
        wanted = word.lower()
        rows = [r for r in self.rows if any(wanted in plain(c).lower() for c in r.cells) or wanted in r.more.lower()]
        return Table(
            self.columns, rows, f"nothing here has “{word}” in it (esc shows all)" if self.rows else self.empty
        )
