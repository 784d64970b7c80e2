"""Lines of text with roles, before any widget or colour: what the views make and the widgets draw.

A role says what a piece means; the style sheet says how that looks in the present theme: ``""`` plain, ``strong``,
``muted``, ``good``, ``warn``, ``bad``, ``accent``, ``head`` (a section's heading), ``focus`` (the heading of the
section that takes the keys), ``cursor`` (the row that enter opens), ``key`` (on the keyboard). Two words are both, the
latter on top.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

from rich.cells import cell_len, set_cell_size

ROLES = ("strong", "muted", "good", "warn", "bad", "accent", "head", "focus", "cursor", "key")
Span = tuple[str, str]
Line = tuple[Span, ...]
Align = Literal["left", "right"]


def line(*parts: str | Span) -> Line:
    """A line of its parts; a bare string is plain."""
    return tuple((part, "") if isinstance(part, str) else part for part in parts)


def plain(spans: Iterable[Span]) -> str:
    """The text alone."""
    return "".join(text for text, _ in spans)


def width_of(spans: Iterable[Span]) -> int:
    """Width in terminal cells."""
    return sum(cell_len(text) for text, _ in spans)


def printable(text: str) -> str:
    """*text* on one line, without control characters: what a daemon or engine said can't move the cursor."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else " " for c in text)


def cut(spans: Line, width: int) -> Line:
    """The first *width* cells of *spans*; half of a wide character becomes a space."""
    kept: list[Span] = []
    left = max(0, width)
    for text, role in spans:
        have = cell_len(text)
        if have > left:
            return (*kept, (set_cell_size(text, left), role)) if left else tuple(kept)
        kept.append((text, role))
        left -= have
    return tuple(kept)


def fit(spans: Line, width: int, align: Align = "left") -> Line:
    """*spans* in exactly *width* cells: padded, or cut with an ellipsis."""
    have = width_of(spans)
    if have > width:
        if width <= 0:
            return ()
        *kept, (text, role) = cut(spans, width - 1) or (("", ""),)
        spans = (*kept, (text.rstrip() + "…", role))
        have = width_of(spans)
    if have == width:
        return spans
    # The padding has its neighbour's role: fewer changes of style, fewer bytes to the terminal.
    beside = (spans[0] if align == "right" else spans[-1])[1] if spans else ""
    pad = (" " * (width - have), beside)
    return (pad, *spans) if align == "right" else (*spans, pad)


def wrap(text: str, width: int) -> list[str]:
    """Break *text* into lines of at most *width* cells, between words where it can."""
    width = max(1, width)
    lines: list[str] = []
    current = ""
    for word in printable(text).split():
        joined = f"{current} {word}" if current else word
        if cell_len(joined) <= width:
            current = joined
            continue
        if current:
            lines.append(current)
        *full, current = chop(word, width)
        lines.extend(full)
    return [*lines, current] if current or not lines else lines


def chop(text: str, width: int) -> list[str]:
    """Cut *text* into pieces of at most *width* cells (one character at least); an empty text is one empty piece."""
    if text.isascii():
        return [text[i : i + width] for i in range(0, len(text), width)] or [""]
    pieces: list[str] = []
    piece, have = "", 0
    for character in text:
        cells = cell_len(character)
        if piece and have + cells > width:
            pieces.append(piece)
            piece, have = "", 0
        piece += character
        have += cells
    return [*pieces, piece]


def wrapped(label: Line, text: str, width: int, role: str = "") -> list[Line]:
    """*text* wrapped to the right of *label*, the following lines indented below it."""
    indent = width_of(label)
    first, *more = wrap(text, width - indent)
    return [(*label, (first, role)), *(((" " * indent, ""), (rest, role)) for rest in more)]
