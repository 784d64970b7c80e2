"""Times, sizes and shares as people read them. Pure: the present is an argument."""

from __future__ import annotations

from datetime import datetime, timedelta

_BINARY = ("B", "KiB", "MiB", "GiB", "TiB", "PiB")


def size(count: float) -> str:
    """Bytes in the largest binary unit that keeps the number at 1 or more: ``12.3 MiB``."""
    unit = 0
    while abs(count) >= 1024 and unit < len(_BINARY) - 1:
        count /= 1024
        unit += 1
    return f"{count:.0f} {_BINARY[unit]}" if unit == 0 or count >= 100 else f"{count:.1f} {_BINARY[unit]}"


def span(seconds: float) -> str:
    """A duration in its one or two largest units: ``350ms``, ``12s``, ``3m 20s``, ``2h 5m``, ``4d 1h``."""
    if seconds < 0:
        return f"-{span(-seconds)}"
    if seconds < 1:
        return f"{seconds * 1000:.0f}ms" if seconds else "0s"
    if seconds < 10 and seconds != int(seconds):
        return f"{seconds:.1f}s"
    whole = round(seconds)
    units = (("d", 86400), ("h", 3600), ("m", 60), ("s", 1))
    for i, (name, length) in enumerate(units):
        if whole >= length:
            rest = whole % length // units[i + 1][1] if name != "s" else 0
            return f"{whole // length}{name} {rest}{units[i + 1][0]}" if rest else f"{whole // length}{name}"
    return "0s"


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


def latency(seconds: float | None) -> str:
    """Seconds as milliseconds or seconds, three digits: ``23 ms``, ``1.24 s``; ``-`` when unknown."""
    if seconds is None:
        return "-"
    milliseconds = timedelta(seconds=seconds) / timedelta(milliseconds=1)
    if milliseconds < 10:
        return f"{milliseconds:.1f} ms"
    return f"{milliseconds:.0f} ms" if milliseconds < 1000 else f"{seconds:.2f} s"


def count(number: int, noun: str) -> str:
    """``1 run``, ``3 runs``."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
