"""A braille curve with its axes. One colour, so that it costs few bytes; only changed cells go out (see `Drawn`)."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from stoker_tui.braille import Point, Range, nice_range, plot
from stoker_tui.text import Line, fit
from stoker_tui.words import number

AXIS = 9
"""Cells for the labels of the y axis."""


LARGEST = 1e150
"""Values over it are drawn there: a loss that runs away shall not make the arithmetic overflow."""


@dataclass(frozen=True)
class Figure:
    """What a chart shows. *xs* and *ys* are the edges; None: from the points. ``left``/``right`` label the x axis."""

    title: Line
    points: Sequence[Point]
    left: str = ""
    right: str = ""
    xs: Range | None = None
    ys: Range | None = None
    is_log: bool = False
    label: Callable[[float], str] = number
    empty: str = "no values yet"


def draw(figure: Figure, width: int, height: int) -> list[Line]:
    """A title, the curve and its x axis in *height* rows of *width* cells."""
    rows = height - 2
    across = width - AXIS - 2
    if rows < 1 or across < 4:
        return [figure.title]
    points = [(x, min(max(y, -LARGEST), LARGEST)) for x, y in figure.points if math.isfinite(y)]
    is_log = figure.is_log and all(y > 0 for _, y in points)
    if not points:
        blank: list[Line] = [((" " * AXIS, ""), (" │", "muted")) for _ in range(rows)]
        middle = rows // 2
        blank[middle] = fit((*blank[middle], (f"  {figure.empty}", "muted")), width)
        return [figure.title, *blank, ((" " * (AXIS + 1), ""), ("╰" + "─" * across, "muted"))]
    if is_log:
        points = [(x, math.log10(y)) for x, y in points]
    values = [y for _, y in points]
    ys = figure.ys or (nice_range(min(values), max(values)) if not is_log else (min(values), max(values)))
    xs = figure.xs or (points[0][0], points[-1][0])
    curve = plot(points, across, rows, xs, ys)
    lines: list[Line] = [figure.title]
    for i, row in enumerate(curve):
        value = ys[1] if i == 0 else ys[0] if i == rows - 1 else (ys[0] + ys[1]) / 2
        is_labelled = i in (0, rows - 1) or (rows >= 7 and rows % 2 == 1 and i == rows // 2)
        text = figure.label(10**value if is_log else value) if is_labelled else ""
        lines.append(((f"{text:>{AXIS}} ", "muted"), ("┤" if is_labelled else "│", "muted"), (row, "accent")))
    return [*lines, _x_axis(figure, across)]


def _x_axis(figure: Figure, across: int) -> Line:
    spare = across - len(figure.left) - len(figure.right) - 1
    text = f"{figure.left}{' ' * spare}{figure.right}" if spare > 0 else figure.right
    return fit(((" " * (AXIS + 2), ""), (text, "muted")), AXIS + 2 + across)
