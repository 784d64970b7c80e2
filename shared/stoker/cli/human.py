"""Times, sizes and shares as people read them. Pure: the present is an argument."""

from __future__ import annotations

from datetime import datetime

from stoker.words import latency as latency
from stoker.words import span as span

_BINARY = ("B", "KiB", "MiB", "GiB", "TiB", "PiB")


def size(count: float) -> str:
    """Bytes in the largest binary unit that keeps the number at 1 or more: ``12.3 MiB``."""
    unit = 0
    while abs(count) >= 1024 and unit < len(_BINARY) - 1:
        count /= 1024
        unit += 1
    return f"{count:.0f} {_BINARY[unit]}" if unit == 0 or count >= 100 else f"{count:.1f} {_BINARY[unit]}"


def ago(then: datetime, now: datetime) -> str:
    """``2m ago``; ``in 2m`` for what is to come; ``just now`` for the last second."""
    seconds = (now - then).total_seconds()
    if -1 < seconds < 1:
        return "just now"
    return f"{_rough(seconds)} ago" if seconds > 0 else f"in {_rough(-seconds)}"


def age(then: datetime, now: datetime) -> str:
    """How old something is, for a column: ``2m``."""
    return _rough(max(0.0, (now - then).total_seconds()))


def _rough(seconds: float) -> str:
    for name, length in (("d", 86400), ("h", 3600), ("m", 60)):
        if seconds >= length:
            return f"{int(seconds // length)}{name}"
    return f"{int(seconds)}s"


def local(then: datetime) -> str:
    """Date and time in the local zone: ``2026-01-31 08:00:00``."""
    return then.astimezone().strftime("%Y-%m-%d %H:%M:%S")


def moment(then: datetime, now: datetime) -> str:
    """Both: ``2026-01-31 08:00:00 (2m ago)``."""
    return f"{local(then)} ({ago(then, now)})"


def share(part: float, whole: float) -> str:
    """``12 %``; ``-`` of nothing."""
    return f"{100 * part / whole:.0f} %" if whole else "-"


def count(number: int, noun: str) -> str:
    """``1 run``, ``3 runs``."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
