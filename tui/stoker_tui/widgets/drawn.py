"""A widget that draws lines and, when they change, repaints only the run of cells that differ in each.

Textual's DataTable repaints itself whole when one cell changes, and Sparkline colours each cell: over ssh that is what
a screen of live numbers costs. Textual 8 sends a line from the widget's left edge to the end of the repainted run, so
several short runs in a line would cost more than the one from the first to the last change.
"""

from __future__ import annotations

from collections.abc import Callable

from rich.cells import cell_len
from rich.segment import Segment
from rich.style import Style
from textual.geometry import Region, Size
from textual.strip import Strip
from textual.widget import Widget

from stoker_tui.text import Line, fit

Cell = tuple[str, str]


def cells(spans: Line) -> list[Cell]:
    """A line cell by cell; a character two cells wide is followed by an empty one."""
    result: list[Cell] = []
    for text, role in spans:
        if text.isascii():
            result.extend((character, role) for character in text)
            continue
        for character in text:
            result.append((character, role))
            result.extend(("", role) for _ in range(cell_len(character) - 1))
    return result


def damage(old: Line, new: Line, width: int) -> tuple[int, int] | None:
    """Where, in *width* cells, *new* differs from *old*: start and length. A wide character is never cut."""
    if old == new:
        return None
    before, after = cells(fit(old, width)), cells(fit(new, width))
    changed = [x for x in range(width) if before[x] != after[x]]
    if not changed:
        return None
    start, end = changed[0], changed[-1] + 1
    while start > 0 and (before[start][0] == "" or after[start][0] == ""):
        start -= 1
    while end < width and (before[end][0] == "" or after[end][0] == ""):
        end += 1
    return start, end - start


class Drawn(Widget):
    """Shows the lines that *make* returns for a width and a height in cells; `redraw` asks again."""

    ALLOW_SELECT = False

    def __init__(self, make: Callable[[int, int], list[Line]], *, id: str | None = None) -> None:
        super().__init__(id=id)
        self._make = make
        self._lines: list[Line] = []
        self._looks: dict[str, Style] = {}

    @property
    def lines(self) -> list[Line]:
        """What was last drawn."""
        return self._lines

    def redraw(self) -> None:
        """Ask for the lines again and repaint what changed in them."""
        width, height = self.size
        if not width:
            return
        old, self._lines = self._lines, self.made(width, height)
        if len(old) != len(self._lines):
            self.refresh(layout=self.styles.is_auto_height)
            return
        changed = [
            Region(run[0], y, run[1], 1)
            for y, (before, after) in enumerate(zip(old, self._lines, strict=True))
            if (run := damage(before, after, width)) is not None
        ]
        if changed:
            self.refresh(*changed)

    def made(self, width: int, height: int) -> list[Line]:
        """The lines for this size."""
        return self._make(width, height)

    def on_resize(self) -> None:
        """Another width, other lines."""
        self._lines = self.made(*self.size) if self.size.width else []
        self.refresh()

    def get_content_height(self, container: Size, viewport: Size, width: int) -> int:
        """As many rows as there are lines, where the style sheet says ``height: auto``."""
        return len(self.made(width, 0)) if width else 0

    def render_line(self, y: int) -> Strip:
        """One row, in the colours of its roles."""
        width = self.size.width
        base = self.rich_style
        spans = fit(self._lines[y], width) if y < len(self._lines) else ()
        segments = [Segment(text, base + self._style(role)) for text, role in spans if text]
        return Strip(segments).adjust_cell_length(width, base).simplify()

    def notify_style_update(self) -> None:
        """The theme or a class is another: roles look different."""
        self._looks.clear()
        super().notify_style_update()

    def _style(self, role: str) -> Style:
        """A role's style; "good cursor" is both, the latter on top."""
        if role not in self._looks:
            style = Style.null()
            for name in role.split():
                style += self._look(f"role--{name}")
            self._looks[role] = style
        return self._looks[role]

    def _look(self, component: str) -> Style:
        """What the style sheet says of a component; half-transparent colours are mixed with what is below them."""
        styles = self.app.get_component_styles(component)  # the app's: Textual styles each widget's components anew
        style = styles.partial_rich_style
        below = self.background_colors[1]
        if styles.has_rule("background") and styles.background.a < 1:
            style += Style.from_color(bgcolor=(below + styles.background).rich_color)
        if styles.has_rule("color") and styles.color.a < 1:
            style += Style.from_color((below + styles.color).rich_color)
        return style
