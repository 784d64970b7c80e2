"""How a latency is spread over requests, in blocks, and where its quantiles are. Pure: numbers in, strings out."""

from __future__ import annotations

import math
from collections.abc import Sequence

BLOCKS = " ▁▂▃▄▅▆▇█"
GROUND, MARK = "┄", "┴"


def bars(counts: Sequence[int], each: int, rows: int = 1) -> list[str]:
    """A bar for each count, *each* cells wide and up to *rows* high, the highest full; what isn't 0 is seen."""
    top = max(counts, default=0)
    heights = [0 if count <= 0 else max(1, round(8 * rows * count / top)) for count in counts]
    return [
        "".join(BLOCKS[min(max(height - 8 * below, 0), 8)] * each for height in heights)
        for below in reversed(range(rows))
    ]


def position(value: float, low: float, high: float, width: int) -> int:
    """The cell of *value* on an axis of logarithms from *low* to *high*; the first or last for what lies outside."""
    if value <= low or high <= low or low <= 0:
        return 0
    share = (math.log(value) - math.log(low)) / (math.log(high) - math.log(low))
    return min(int(share * width), width - 1)


def ground(marks: Sequence[tuple[str, int]], width: int) -> str:
    """The line below the bars with its *marks* (label and cell), each label right of its mark where there's room."""
    cells = [GROUND] * width
    for _, at in marks:
        cells[at] = MARK
    for label, at in marks:
        for start in (at + 1, at - len(label)):
            stop = start + len(label)
            around = [cells[x] for x in range(max(0, start - 1), min(width, stop + 1)) if x != at]
            if start >= 0 and stop <= width and set(around) == {GROUND}:
                cells[start:stop] = list(label)
                break
    return "".join(cells)


def ticks(low: float, high: float, width: int) -> list[tuple[float, int]]:
    """Round values (1, 2 and 5 times a power of ten) to write over the axis, and their cells; not too near each other.

    With less than a decade on it, all of them; else the powers of ten, and 3 times those where there's room.
    """
    if not 0 < low < high:
        return []
    decades = math.log10(high / low)
    factors: tuple[float, ...] = (1, 2, 5) if decades < 1.7 else (1, 3) if decades < 3 else (1,)
    found: list[tuple[float, int]] = []
    for exponent in range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1):
        for factor in factors:
            value = factor * 10.0**exponent
            if low <= value <= high:
                at = position(value, low, high, width)
                if not found or at - found[-1][1] >= 8:
                    found.append((value, at))
    return found
