"""What the verbs write to standard output: JSON, lines, tables; readable without colour and in a pipe."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import typer
from pydantic import BaseModel
from rich.console import Console
from rich.text import Text

EXIT_PIPE = 141  # 128 + SIGPIPE: what a shell reports of a program whose reader went away

_GOOD = frozenset({"ready", "succeeded", "promoted", "pass", "passed", "created"})
_BAD = frozenset(
    {"failed", "rolled-back", "degraded", "fail", "rolling-back", "returning", "lost", "unreachable", "stalled"}
)
_MOVING = frozenset(
    {"starting", "running", "stepping", "preparing", "promoting", "draining", "backing-off", "cancelling", "paused"}
    | {"starved", "changed", "waking"}
)
_MIN_LAST_COLUMN = 16
_MIN_PARAGRAPH = 24
Cell = str | Text


@contextmanager
def _open_pipe() -> Iterator[None]:
    """A reader that has gone (`stoker events | head`) ends the program without a word."""
    try:
        yield
    except BrokenPipeError:
        quiet_stdout()
        raise typer.Exit(EXIT_PIPE) from None


def quiet_stdout() -> None:
    """Let Python's own flush at exit find an open file."""
    try:
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, sys.stdout.fileno())
        os.close(null)
    except (OSError, ValueError):
        pass


def clean(text: str) -> str:
    """*text* with control characters shown instead of obeyed: what others wrote must not move the cursor."""
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


def print_json(value: Any) -> None:
    """One JSON value, on one line if it is to be one of many (a dict or model), else indented for eyes."""
    write(to_json(value, indent=2) + "\n")


def print_json_line(value: Any) -> None:
    """One of a stream of JSON values."""
    write(to_json(value) + "\n")


def to_json(value: Any, indent: int | None = None) -> str:
    """*value*, with pydantic models in it, as JSON."""
    is_unicode = (sys.stdout.encoding or "").lower().replace("-", "") == "utf8"
    return json.dumps(value, indent=indent, ensure_ascii=not is_unicode, default=_plain)


def _plain(value: Any) -> Any:
    if isinstance(value, BaseModel):
        return value.model_dump(mode="json")
    raise TypeError(f"{type(value).__name__} has no JSON form")


def write(text: str) -> None:
    """Put *text* out, at once."""
    with _open_pipe():
        sys.stdout.write(text)
        sys.stdout.flush()


def write_bytes(data: bytes) -> None:
    """Put raw bytes out, at once: a log is what its program wrote."""
    with _open_pipe():
        sys.stdout.flush()
        sys.stdout.buffer.write(data)
        sys.stdout.buffer.flush()


def line(*parts: Cell) -> None:
    """One line of text, of the parts that aren't empty, with a space between.

    Styled parts lose their style where colour isn't wanted.
    """
    texts = [p if isinstance(p, Text) else Text(clean(p)) for p in parts]
    with _open_pipe():
        _console().print(Text(" ").join(t for t in texts if t), soft_wrap=True)
        sys.stdout.flush()


def paragraph(text: Cell, *, label: Cell = "", indent: int = 0) -> None:
    """*label*, and beside it *text*, which on a terminal is broken between words and stays in its column.

    In a pipe it is one line: what is looked for in it isn't torn.
    """
    head = (label if isinstance(label, Text) else Text(clean(label))).copy()
    body = text if isinstance(text, Text) else Text(clean(text))
    if head:
        head.append(" ")
    left = indent + head.cell_len
    console = _console()
    with _open_pipe():
        for i, part in enumerate(body.wrap(console, max(_MIN_PARAGRAPH, console.width - left))):
            whole = Text(" " * indent).append_text(head) if i == 0 else Text(" " * left)
            whole.append_text(part)
            whole.rstrip()
            console.print(whole, soft_wrap=True)
        sys.stdout.flush()


def table(
    headers: Sequence[str], rows: Sequence[Sequence[Cell]], *, indent: int = 0, notes: Sequence[str] = ()
) -> None:
    """Columns under *headers*. On a terminal the last column is cut at the edge; nothing else is, ever.

    *notes*: for each row, what stands below it, whole; empty: nothing.

    Not rich's own table: that one cuts names too when the window is narrow, and pads lines in pipes.
    """
    title = [Text(h, style="bold") for h in headers]
    grid = [title, *([c if isinstance(c, Text) else Text(clean(c)) for c in row] for row in rows)]
    widths = [max(row[i].cell_len for row in grid) for i in range(len(headers) - 1)]
    console = _console()
    left = console.width - indent - sum(widths) - 2 * len(widths)
    with _open_pipe():
        for note_of, row in zip(["", *(notes or [""] * len(rows))], grid, strict=True):
            text = Text(" " * indent)
            for cell, width in zip(row, widths, strict=False):
                text.append_text(cell).append(" " * (width - cell.cell_len + 2))
            if left >= _MIN_LAST_COLUMN:
                row[-1].truncate(left, overflow="ellipsis")
            text.append_text(row[-1])
            text.rstrip()
            console.print(text, soft_wrap=True)
            if note_of:
                paragraph(note_of, indent=indent + 4)
        sys.stdout.flush()


def heading(text: str) -> None:
    """A title over a section, with an empty line before it."""
    line("")
    line(Text(text, style="bold"))


def phase(name: str) -> Text:
    """A phase: the word says it, the colour helps."""
    style = "green" if name in _GOOD else "red" if name in _BAD else "yellow" if name in _MOVING else ""
    return Text(name, style=style)


def note(text: str) -> None:
    """A remark on standard error, beside what was asked for."""
    sys.stdout.flush()
    sys.stderr.write(f"{text}\n")
    sys.stderr.flush()


def is_terminal() -> bool:
    """Whether people look at standard output."""
    return sys.stdout.isatty()


class _Console(Console):
    def on_broken_pipe(self) -> None:
        """Leave it to `_open_pipe`: rich would exit with 1."""
        raise BrokenPipeError


def _console() -> Console:
    # Made for each use: tests and pipes swap sys.stdout. A pipe has no width to fit in.
    width = None if sys.stdout.isatty() else 100_000
    return _Console(file=sys.stdout, highlight=False, markup=False, emoji=False, width=width)
