"""An interval against its limit, on one axis. Pure: numbers in, a line out.

The limit stands in the same column whatever its value, so that several of them under one another can be compared, and
what lies beyond it is hatched: which side is the bad one is said without colour. The scale only changes by factors of
two, so that it rests while the numbers move.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import groupby
from typing import Literal

from stoker_tui.text import Line

BEYOND, LIMIT, ALIKE = "░", "┃", "┊"
"""Worse than the limit allows; the limit; no difference from what it is compared with."""
LARGEST_ZOOM = 8
TINY = 1e-12
MARGIN = 2
"""Cells that the scale leaves free at both ends, so that the ground on which an interval ends can be seen."""
_LIMIT_AT = 0.62
_SIGN = {"above": 1.0, "below": -1.0, "outside": 1.0}


@dataclass(frozen=True)
class Interval:
    """What is known of a value (each None: nothing is), and its limit.

    ``bad``: values *above* or *below* the limit are; or those *outside* of 1/limit to limit, on an axis of ratios.
    ``alike``: the value that says there's no difference; None where nothing is compared. ``is_ratio``: twice as much
    and half as much are equally far from that.
    """

    limit: float
    low: float | None = None
    estimate: float | None = None
    high: float | None = None
    alike: float | None = None
    bad: Literal["above", "below", "outside"] = "above"
    is_ratio: bool = False


def draw_interval(interval: Interval, width: int, role: str) -> Line:
    """The axis in *width* cells: ``├──●──┤  ┃░░░``; an end that isn't bounded, or off the axis, is an arrow."""
    axis = _Axis(interval, width)
    cells = [_ground(axis, x) for x in range(width)]
    if interval.estimate is not None or interval.low is not None or interval.high is not None:
        start, end = axis.end(interval.low, -1), axis.end(interval.high, 1)
        for x in range(start, end + 1):
            cells[x] = (_over(axis, x), role)
        cells[start] = ("◂" if axis.is_off(interval.low, -1) else "├", role)
        cells[end] = ("▸" if axis.is_off(interval.high, 1) else "┤", role)
        middle = axis.shown(interval.estimate)
        if middle is not None and 0 <= middle < width:
            cells[middle] = ("●", f"{role} strong".strip())
    runs = groupby(cells, key=lambda cell: cell[1])
    return tuple(("".join(text for text, _ in run), run_role) for run_role, run in runs)


def _ground(axis: _Axis, x: int) -> tuple[str, str]:
    if x in (axis.limit, axis.other_limit):
        return LIMIT, "strong"
    if axis.is_beyond(x):
        return BEYOND, "muted"
    return (ALIKE, "muted") if x == axis.alike else (" ", "muted")


def _over(axis: _Axis, x: int) -> str:
    """The interval's line, heavy where it lies beyond the limit."""
    if x in (axis.limit, axis.other_limit):
        return "╂"
    if axis.is_beyond(x):
        return "━"
    return "┼" if x == axis.alike else "─"


class _Axis:
    """Which value stands in which cell."""

    def __init__(self, interval: Interval, width: int) -> None:
        self._interval = interval
        self._width = width
        self._sign = _SIGN[interval.bad]
        limit = self._value(interval.limit) or 0.0
        alike = self._value(interval.alike)
        self._origin = 0.0 if interval.bad == "outside" else limit
        self._at = (width - 1) * self._limit_share()
        span = abs(limit - alike) if alike is not None else abs(limit)
        if span < TINY:  # the limit is to be no worse at all: a scale is needed all the same
            span = math.log(1.5) if interval.is_ratio else 0.05
        room = (width - 1) * (0.27 if alike is not None else 0.5)
        self._cells_each = room / span
        self._zoom_out()
        self.limit = self.cell(interval.limit)
        self._other = 1 / interval.limit if interval.bad == "outside" and interval.limit > TINY else None
        self.other_limit = self.cell(self._other)
        self.alike = self.cell(interval.alike)

    def _limit_share(self) -> float:
        shares = {"above": _LIMIT_AT, "below": 1 - _LIMIT_AT, "outside": 0.5}
        return shares[self._interval.bad]

    def _zoom_out(self) -> None:
        """Until the interval fits, or it is no use."""
        shown = (self._interval.low, self._interval.estimate, self._interval.high)
        zoom = 1
        while zoom < LARGEST_ZOOM and any(self._is_outside(value) for value in shown):
            self._cells_each /= 2
            zoom *= 2

    def _value(self, value: float | None) -> float | None:
        """As it is on the axis: ratios by their logarithm."""
        if value is None or not math.isfinite(value):
            return None
        if not self._interval.is_ratio:
            return value
        return math.log(value) if value > 0 else None

    def cell(self, value: float | None) -> int | None:
        """The cell of a value, be it off the axis; None without one."""
        found = self._value(value)
        if found is None:
            return None
        return round(self._at + min(max((found - self._origin) * self._cells_each, -1e6), 1e6))

    def shown(self, value: float | None) -> int | None:
        """The cell in which a value is drawn: never that of a limit, which shall be seen, but on the side it is on."""
        at, found = self.cell(value), self._value(value)
        for cell, limit in ((self.limit, self._interval.limit), (self.other_limit, self._other)):
            edge = self._value(limit)
            if at is not None and at == cell and found is not None and edge is not None and found != edge:
                return at + (1 if found > edge else -1)
        return at

    def _is_outside(self, value: float | None) -> bool:
        at = self.cell(value)
        return at is not None and not MARGIN <= at < self._width - MARGIN

    def is_off(self, bound: float | None, side: int) -> bool:
        """Whether an end of the interval isn't bounded or can't be shown."""
        at = self.cell(bound)
        return at is None or (at < 0 if side < 0 else at >= self._width)

    def end(self, bound: float | None, side: int) -> int:
        """The cell at which the interval is drawn to end."""
        at = self.shown(bound)
        if at is None:
            return 0 if side < 0 else self._width - 1
        return min(max(at, 0), self._width - 1)

    def is_beyond(self, x: int) -> bool:
        """Whether a cell lies where values shouldn't."""
        if self.limit is None:
            return False
        if self.other_limit is not None:
            return x > self.limit or x < self.other_limit
        return (x - self.limit) * self._sign > 0
