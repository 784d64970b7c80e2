"""What an answer's bytes tell: when its tokens came, how many they were, whether it says that it failed. Pure.

A meter is fed the decoded body in the pieces that came, each with its time. It keeps a bounded tail, never the body.

- **First token** (TTFT): a stream's first event that carries content (a chat stream's opening event has only a role),
  read together with others if they came together; of any other answer, the first byte of the body.
- **Gap**: the mean time between a stream's events with content. Time during which the client, not the engine, held the
  stream up is left out (`held`).
- **Tokens**: the ``usage`` in the body's tail; a stream without one has its events with content counted, which is one
  token each unless the engine sends several at once.
"""

from __future__ import annotations

import re
from collections import deque

TAIL_BYTES = 16 << 10
MAX_LINE_BYTES = 1 << 20

# A JSON string can't hold the bytes `"usage"` (its quotes would be escaped), so the last of them is a real key.
_PROMPT = re.compile(rb'"(?:prompt_tokens|input_tokens)"\s*:\s*(\d{1,12})')
_COMPLETION = re.compile(rb'"(?:completion_tokens|output_tokens)"\s*:\s*(\d{1,12})')
_CONTENT = re.compile(
    rb'"(?:content|text|reasoning|reasoning_content|refusal|arguments)"\s*:\s*"[^"]|"tool_calls"\s*:\s*\[\s*\{'
)
_RESPONSES_CONTENT = re.compile(rb'"type"\s*:\s*"response\.[a-z_.]*\.delta"')
_ERROR = re.compile(rb'data: ?\{\s*"(?:error"\s*:\s*[^n\s]|type"\s*:\s*"error"|type"\s*:\s*"response\.failed")')


def read_usage(tail: bytes) -> tuple[int | None, int | None]:
    """Prompt and completion tokens of the last ``usage`` object in a body's last bytes."""
    start = tail.rfind(b'"usage"')
    while start >= 0 and tail[start + 7 : start + 40].lstrip(b" \t:").startswith(b"null"):
        start = tail.rfind(b'"usage"', 0, start)
    if start < 0:
        return None, None
    prompt, completion = _PROMPT.search(tail, start), _COMPLETION.search(tail, start)
    return int(prompt[1]) if prompt else None, int(completion[1]) if completion else None


class Meter:
    """Meters an answer that comes as a whole."""

    __slots__ = ("_size", "_tail", "first", "has_error")

    inter_token_seconds: float | None = None

    def __init__(self) -> None:
        self.first: float | None = None
        """When the first token came, on the clock of the times fed; None before."""
        self.has_error = False
        """The answer itself says that it failed."""
        self._tail: deque[bytes] = deque()
        self._size = 0

    def feed(self, piece: bytes, now: float) -> None:
        """Take the next bytes, not empty, that came at *now*."""
        if self.first is None:
            self.first = now
        self._keep(piece)

    def _keep(self, piece: bytes) -> None:
        tail = self._tail
        tail.append(piece)
        self._size += len(piece)
        while self._size - len(tail[0]) >= TAIL_BYTES:
            self._size -= len(tail.popleft())

    def held(self, seconds: float) -> None:
        """The client took nothing for *seconds*; what came next is not late by the engine's doing."""

    def tokens(self) -> tuple[int | None, int | None]:
        """Prompt and completion tokens, as far as the answer tells."""
        return read_usage(b"".join(self._tail)[-TAIL_BYTES:])


class StreamMeter(Meter):
    """Meters server-sent events, line by line."""

    __slots__ = ("_carry", "_content", "_first_content", "_held", "_last_content", "events")

    def __init__(self, path: bytes) -> None:
        super().__init__()
        self.events = 0
        """Events with content so far."""
        self._content = _RESPONSES_CONTENT if path.startswith(b"/v1/responses") else _CONTENT
        self._carry = b""
        self._first_content = self._last_content = self._held = 0.0

    def feed(self, piece: bytes, now: float) -> None:
        """Take the next bytes, not empty, that came at *now*."""
        self._keep(piece)
        lines = (self._carry + piece if self._carry else piece).split(b"\n")
        carry = lines.pop()
        self._carry = carry if len(carry) <= MAX_LINE_BYTES else b""
        found = 0
        for line in lines:
            if line.startswith(b"data"):
                if self._content.search(line):
                    found += 1
                elif _ERROR.match(line):
                    self.has_error = True
        if found:
            self._note(found, now)
        elif self.first is None:
            self.first = now

    def _note(self, found: int, now: float) -> None:
        if not self.events:
            self.first = self._first_content = now
            self._held = 0.0
        self.events += found
        self._last_content = now

    def held(self, seconds: float) -> None:
        """The client took nothing for *seconds*; what came next is not late by the engine's doing."""
        self._held += seconds

    @property
    def inter_token_seconds(self) -> float | None:  # type: ignore[override]
        """Mean gap between events with content; None with fewer than two."""
        if self.events < 2:
            return None
        return max(0.0, self._last_content - self._first_content - self._held) / (self.events - 1)

    def tokens(self) -> tuple[int | None, int | None]:
        """Prompt and completion tokens; without ``usage`` the completion's are the events with content."""
        prompt, completion = super().tokens()
        return prompt, self.events if completion is None else completion
