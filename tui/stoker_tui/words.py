"""Numbers and states as words. Every state has a symbol and a word, so that nothing is said by colour alone."""

from __future__ import annotations

from datetime import datetime
from typing import NamedTuple

NOTHING = "–"
"""Shown where there is no value."""


class Mark(NamedTuple):
    """How a state looks: a symbol, a word, and a role (see `stoker_tui.text`)."""

    symbol: str
    word: str
    role: str

    @property
    def text(self) -> str:
        """Symbol and word."""
        return f"{self.symbol} {self.word}"


_PHASES: dict[str, Mark] = {
    "pending": Mark("·", "pending", "muted"),
    "queued": Mark("·", "queued", "muted"),
    "starting": Mark("▲", "starting", "warn"),
    "preparing": Mark("▲", "preparing", "warn"),
    "ready": Mark("✓", "ready", "good"),
    "degraded": Mark("!", "degraded", "warn"),
    "draining": Mark("▽", "draining", "warn"),
    "asleep": Mark("z", "asleep", "muted"),
    "waking": Mark("▲", "waking", "warn"),
    "stopping": Mark("▽", "stopping", "warn"),
    "deleting": Mark("▽", "deleting", "warn"),
    "cancelling": Mark("▽", "cancelling", "warn"),
    "backing-off": Mark("↻", "backing off", "warn"),
    "failed": Mark("✗", "failed", "bad"),
    "stalled": Mark("!", "stalled", "bad"),
    "unreachable": Mark("!", "unreachable", "bad"),
    "lost": Mark("✗", "lost", "bad"),
    "running": Mark("▸", "running", "accent"),
    "succeeded": Mark("✓", "succeeded", "good"),
    "cancelled": Mark("■", "cancelled", "muted"),
    "stepping": Mark("▸", "stepping", "accent"),
    "paused": Mark("=", "paused", "warn"),
    "promoting": Mark("▸", "promoting", "accent"),
    "rolling-back": Mark("◂", "rolling back", "bad"),
    "returning": Mark("◂", "returning", "warn"),
    "promoted": Mark("✓", "promoted", "good"),
    "rolled-back": Mark("◂", "rolled back", "bad"),
    "aborted": Mark("■", "aborted", "warn"),
    "pass": Mark("✓", "holds", "good"),
    "fail": Mark("✗", "fails", "bad"),
    "starved": Mark("?", "starved", "warn"),
}


def mark(phase: str) -> Mark:
    """How *phase* looks. A phase of a newer daemon looks neutral."""
    return _PHASES.get(phase) or Mark("·", phase.replace("-", " "), "")


def legend() -> list[Mark]:
    """Every mark, once."""
    return list(_PHASES.values())


def duration(seconds: float) -> str:
    """*seconds* in the two units that matter: ``12 s``, ``2 min 10 s``, ``1 h 05 min``, ``3 d 4 h``."""
    whole = int(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    if whole < 86400:
        return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
    return f"{whole // 86400} d {whole % 86400 // 3600} h"


def ago(seconds: float) -> str:
    """How long past, in one unit: ``now``, ``12 s ago``, ``2 min ago``, ``3 d ago``."""
    whole = int(seconds)
    for size, unit in ((86400, "d"), (3600, "h"), (60, "min"), (1, "s")):
        if whole >= size:
            return f"{whole // size} {unit} ago"
    return "now"


def latency(seconds: float | None) -> str:
    """A latency of *seconds* to two or three digits: ``9.4 ms``, ``310 ms``, ``1.24 s``, ``75 s``."""
    if seconds is None:
        return NOTHING
    if seconds < 0.01:
        return f"{seconds * 1000:.1f} ms"
    if seconds < 0.9995:
        return f"{seconds * 1000:.0f} ms"
    return f"{seconds:.2f} s" if seconds < 10 else f"{seconds:.0f} s"


def gib(count: float, digits: int = 1) -> str:
    """*count* bytes in GiB."""
    return f"{count / 2**30:.{digits}f} GiB"


def of_gib(part: float, whole: float) -> str:
    """``12.3 of 62.7 GiB``, both in bytes."""
    return f"{part / 2**30:.1f} of {whole / 2**30:.1f} GiB"


def size(count: float) -> str:
    """*count* bytes in the unit that fits: ``512 B``, ``1.9 MiB``."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1024:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} TiB"


def percent(value: float | None, digits: int = 0) -> str:
    """A share that already is in percent."""
    return NOTHING if value is None else f"{value:.{digits}f} %"


def errors(failed: int, requests: int) -> str:
    """``0``, or ``3 (2.1 %)``; nothing without a request."""
    if not requests:
        return NOTHING
    return f"{failed} ({100 * failed / requests:.1f} %)" if failed else "0"


def number(value: float) -> str:
    """A measured value to four digits: ``0.8312``, ``12.35``, ``1.2e-05``, ``1250``."""
    if value == 0 or 1e-3 <= abs(value) < 1e5:
        return f"{value:.4g}" if abs(value) < 1000 else f"{value:.0f}"
    return f"{value:.2g}"


def rate(value: float) -> str:
    """Requests each second: ``0.25``, ``12.3``, ``140``."""
    if value == 0:
        return "0"
    if value < 1:
        return f"{value:.2f}"
    return f"{value:.1f}" if value < 100 else f"{value:.0f}"


def short(digest: str | None) -> str:
    """The first digits of a hash; a ``+dirty`` mark stays."""
    if not digest:
        return NOTHING
    base, plus, mark_ = digest.partition("+")
    return base.removeprefix("sha256:")[:8] + plus + mark_


def clock_time(moment: datetime, present: datetime) -> str:
    """A local time of today as ``14:02:11``, another day's as ``Nov 24`` (both in the same zone)."""
    return f"{moment:%H:%M:%S}" if moment.date() == present.date() else f"{moment:%b} {moment.day}"


def bar(share: float | None, width: int) -> str:
    """A bar of *width* cells for *share* (0 to 1), readable without colour: ``▕███▌    ▏``."""
    if share is None:
        return f"▕{' ' * (width - 2)}▏"
    inner = width - 2
    eighths = round(min(max(share, 0.0), 1.0) * inner * 8)
    full, rest = divmod(eighths, 8)
    drawn = "█" * full + (" ▏▎▍▌▋▊▉"[rest] if rest else "")
    return f"▕{drawn:<{inner}}▏"
