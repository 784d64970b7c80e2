"""Curves in braille: each cell holds 2 by 4 dots. Pure: numbers in, strings out."""

from __future__ import annotations

import math
from collections.abc import Sequence

Point = tuple[float, float]
Range = tuple[float, float]

# Bits of the dots in a cell, from U+2800 on: left and right column, top to bottom.
_DOTS = ((0x01, 0x02, 0x04, 0x40), (0x08, 0x10, 0x20, 0x80))
_EMPTY = 0x2800


def plot(points: Sequence[Point], width: int, height: int, xs: Range, ys: Range) -> list[str]:
    """Draw *points* (ascending in x) as a connected line in *height* rows of *width* cells.

    *xs* and *ys* are the values at the edges; what lies outside is drawn at the edge. Each column of dots shows the
    whole span of the values that fall into it, so that no spike is lost.
    """
    cells = [[0] * width for _ in range(height)]
    for x, (top, bottom) in _columns(points, width * 2, height * 4, xs, ys).items():
        for y in range(top, bottom + 1):
            cells[y // 4][x // 2] |= _DOTS[x % 2][y % 4]
    return ["".join(chr(_EMPTY | bits) if bits else " " for bits in row) for row in cells]


def _columns(points: Sequence[Point], across: int, down: int, xs: Range, ys: Range) -> dict[int, tuple[int, int]]:
    """The highest and the lowest dot of each column of dots, neighbours joined by a straight line without gaps."""
    columns: dict[int, tuple[int, int]] = {}

    def draw(x: int, a: int, b: int) -> None:
        top, bottom = columns.get(x, (a, a))
        columns[x] = (min(top, a, b), max(bottom, a, b))

    before: tuple[int, int] | None = None
    for value_x, value_y in points:
        x, y = _dot(value_x, xs, across), down - 1 - _dot(value_y, ys, down)
        x0, y0 = before or (x, y)
        before = (x, y)
        if x <= x0:
            draw(x, y0, y)
            continue
        last = y0
        for column in range(x0 + 1, x + 1):
            here = round(y0 + (y - y0) * (column - x0) / (x - x0))
            # From just beside the left neighbour's dot: steep lines stay unbroken, and as thin as they can be.
            draw(column, last + (here > last) - (here < last), here)
            last = here
    return columns


def _dot(value: float, edges: Range, count: int) -> int:
    low, high = edges
    if high <= low:
        return count // 2
    return min(max(math.floor((value - low) / (high - low) * count), 0), count - 1)


def nice_range(low: float, high: float) -> Range:
    """Round bounds that hold *low* to *high*: multiples of 1, 2 or 5 times a power of ten."""
    if high - low <= 1e-9 * max(abs(low), abs(high)):
        pad = max(abs(high) * 0.1, 1e-6) if high else 1.0
        low, high = low - pad, high + pad
    step = 10.0 ** math.floor(math.log10((high - low) / 5))
    step = next(step * factor for factor in (1, 2, 5, 10) if (high - low) / (step * factor) <= 5)
    return (math.floor(low / step) * step, math.ceil(high / step) * step)


def trend(values: Sequence[float], width: int) -> str:
    """A one-row curve of *values* in *width* cells, from their lowest to their highest."""
    if len(values) < 2:
        return " " * width
    points = [(float(i), v) for i, v in enumerate(values)]
    return plot(points, width, 1, (0.0, float(len(values) - 1)), (min(values), max(values)))[0]
