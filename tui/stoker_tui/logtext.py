"""A log's bytes as lines: decoded bit by bit, colours taken out, carriage returns obeyed as a terminal would."""

from __future__ import annotations

import codecs
import re

_ESCAPES = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)|[@-Z\\-_])")
_HALF_ESCAPE = re.compile(r"\x1b(?:\[[0-?]*[ -/]*|\][^\x07\x1b]*\x1b?)?$")
MAX_HELD = 4096  # characters; a longer "escape sequence" is no such thing


class LogText:
    """Feed it chunks, cut anywhere; it says which lines are finished and what the unfinished last one is."""

    def __init__(self) -> None:
        self._decode = codecs.getincrementaldecoder("utf-8")("replace").decode
        self._held = ""
        self._raw = ""

    @property
    def unfinished(self) -> str:
        """The last line, as long as no newline has ended it."""
        return _shown(self._raw)

    def feed(self, chunk: bytes) -> list[str]:
        """Take the next bytes; return the lines that they finish."""
        text = self._held + self._decode(chunk)
        self._held = ""
        half = _HALF_ESCAPE.search(text)
        if half and len(text) - half.start() <= MAX_HELD:
            self._held, text = text[half.start() :], text[: half.start()]
        *ended, self._raw = (self._raw + _ESCAPES.sub("", text)).split("\n")
        # A progress bar redraws one line for hours: only what its last redraw shows is kept.
        written = self._raw.rstrip("\r")
        self._raw = written[written.rfind("\r") + 1 :] + "\r" * (written != self._raw)
        return [_shown(line) for line in ended]


def _shown(line: str) -> str:
    """What a terminal would show of a line, at last: the text after the last carriage return that wrote any."""
    line = line.rstrip("\r")
    if "\r" in line:
        line = line[line.rfind("\r") + 1 :]
    line = line.expandtabs()
    return line if line.isprintable() else "".join(c if c.isprintable() else "�" for c in line)
