"""Heads of messages that were read before, so that the parser needn't read them again. Pure.

A client or server mostly says the same head again and again, with another ``Content-Length``. What llhttp took once it
would take again: the same bytes mean the same, and another number in the one ``Content-Length`` means just that. This
holds between messages only, and only for data that is exactly one whole message, so that nothing is left to parse.
"""

from __future__ import annotations

import re
from typing import Generic, TypeVar

T = TypeVar("T")

MOST_HEADS = 1024
MOST_BYTES = 2048
_NAME = b"\r\ncontent-length: "
_LENGTH = re.compile(rb"\r\ncontent-length: ?(\d{1,9})\r\n", re.IGNORECASE).search


class Heads(Generic[T]):
    """What was read of heads. Full, it begins anew."""

    __slots__ = ("_known", "_start")

    def __init__(self) -> None:
        self._known: dict[bytes, T] = {}
        self._start = 0  # where the last one had its length, so that it needn't be looked for

    def find(self, data: bytes) -> tuple[T, int] | None:
        """What its head means and where its body begins, if *data* is one whole message whose head is known.

        A head that is known has no other ``Content-Length`` than the one found here, nor an empty line: its key would
        be another one.
        """
        start = self._start
        if data[start - len(_NAME) : start].lower() != _NAME:
            length = _LENGTH(data, 0, MOST_BYTES)
            if length is None:
                return None
            self._start = start = length.start(1)
        stop = data.find(b"\r\n", start)
        end = data.find(b"\r\n\r\n", stop) + 4
        digits = data[start:stop]
        if not digits.isdigit() or not 0 < stop < end <= MOST_BYTES or int(digits) != len(data) - end:
            return None
        known = self._known.get(data[:start] + data[stop:end])
        return (known, end) if known is not None else None

    def learn(self, data: bytes, length: bytes, meaning: T) -> None:
        """Remember a head, if *data* is one whole message. *length*: all values of ``Content-Length`` in its head."""
        end = data.find(b"\r\n\r\n") + 4
        if not 4 <= end <= MOST_BYTES:
            return
        found = _LENGTH(data, 0, end)
        if found is None or found[1] != length or int(length) != len(data) - end:
            return
        if len(self._known) >= MOST_HEADS:
            self._known.clear()
        start, stop = found.span(1)
        self._known[data[:start] + data[stop:end]] = meaning
