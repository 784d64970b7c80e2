"""Durations and latencies as people read them, the same in every message, table and screen."""

from __future__ import annotations

from datetime import timedelta


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


def latency(seconds: float | None) -> str:
    """Seconds as milliseconds or seconds, three digits: ``23 ms``, ``1.24 s``; ``-`` when unknown."""
    if seconds is None:
        return "-"
    milliseconds = timedelta(seconds=seconds) / timedelta(milliseconds=1)
    if milliseconds < 10:
        return f"{milliseconds:.1f} ms"
    return f"{milliseconds:.0f} ms" if milliseconds < 1000 else f"{seconds:.2f} s"
