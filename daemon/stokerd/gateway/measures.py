"""What an answer's bytes tell: when its tokens came, how many they were, how it ended. Pure.

A meter is fed the decoded body in the pieces that came, each with its time. It keeps a bounded tail, never the body.

- **First token** (TTFT): a stream's first event that carries content (a chat stream's opening event has only a role),
  read together with others if they came together; of any other answer, the first byte of the body.
- **Gap**: the time between a stream's events with content, its mean and its longest. Time during which the client, not
  the engine, held the stream up is left out (`held`).
- **Tokens**: the ``usage`` in the body's tail (the prompt's, in Anthropic's streams, in their first event); a stream
  without one has its events with content counted, which is one token each unless the engine sends several at once.
- **Finish reason**: the API's own word for the end of the first choice: ``stop``, ``end_turn``, ``completed``, …
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import msgspec

TAIL_BYTES = 16 << 10
MAX_LINE_BYTES = 128 << 10
MAX_REASON = 40
_NEWLINE = ord("\n")

# A JSON string can't hold the bytes `"usage"` (its quotes would be escaped), so the last of them is a real key.
_PROMPT = re.compile(rb'"(?:prompt_tokens|input_tokens)"\s*:\s*(\d{1,12})')
_COMPLETION = re.compile(rb'"(?:completion_tokens|output_tokens)"\s*:\s*(\d{1,12})')
_WORD = re.compile(rb'\s*:\s*(?:\{\s*"reason"\s*:\s*)?"([a-z_]{1,%d})"' % MAX_REASON).match

_ERROR = re.compile(rb'data: ?\{\s*"(?:error"\s*:\s*[^n\s]|type"\s*:\s*"error"|type"\s*:\s*"response\.failed")').match
_ENDING = re.compile(rb'"type"\s*:\s*"response\.(completed|incomplete|failed)"').search
_ENDING_EVENT = re.compile(rb"event: ?(?:response\.(completed|incomplete|failed)|error)\s*$").match


class _Api(NamedTuple):
    """How an API's streams tell. ``usual`` finds content as most engines write it, in half the time."""

    usual: Callable[[bytes], object]
    content: Callable[[bytes], object]
    reason: bytes


_CHAT = _Api(
    re.compile(rb'"content":"[^"\n]').search,
    re.compile(
        rb'"(?:content|text|reasoning|reasoning_content|refusal|arguments)"\s*:\s*"[^"\n]|"tool_calls"\s*:\s*\[\s*\{'
    ).search,
    b'"finish_reason"',
)
_RESPONSES = _Api(
    re.compile(rb'"type":"response\.[a-z_.]*\.delta"').search,
    re.compile(rb'"type"\s*:\s*"response\.[a-z_.]*\.delta"').search,
    b'"incomplete_details"',
)
_ANTHROPIC = _Api(
    re.compile(rb'"type":"content_block_delta"').search,
    re.compile(rb'"type"\s*:\s*"content_block_delta"').search,
    b'"stop_reason"',
)


class _Usage(msgspec.Struct):
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    input_tokens: int | None = None
    output_tokens: int | None = None


class _Choice(msgspec.Struct):
    index: int = 0
    finish_reason: str | None = None


class _Details(msgspec.Struct):
    reason: str | None = None


class _Answer(msgspec.Struct):
    """What answers of all APIs tell, as far as they have it."""

    usage: _Usage | None = None
    choices: list[_Choice] = []
    stop_reason: str | None = None
    object: str | None = None
    status: str | None = None
    incomplete_details: _Details | None = None


_new = object.__new__
_decode = msgspec.json.Decoder(_Answer).decode


class Told(NamedTuple):
    """How an answer ended, as far as it tells."""

    prompt_tokens: int | None
    completion_tokens: int | None
    finish_reason: str


def read_usage(tail: bytes) -> tuple[int | None, int | None]:
    """Prompt and completion tokens of the last ``usage`` object in a body's last bytes."""
    start = tail.rfind(b'"usage"')
    while start >= 0 and tail[start + 7 : start + 40].lstrip(b" \t:").startswith(b"null"):
        start = tail.rfind(b'"usage"', 0, start)
    if start < 0:
        return None, None
    prompt, completion = _PROMPT.search(tail, start), _COMPLETION.search(tail, start)
    return int(prompt[1]) if prompt else None, int(completion[1]) if completion else None


def _reasons(tail: bytes, key: bytes) -> Iterator[tuple[int, str]]:
    """The words that stand at *key*, quotes included, and where; the last comes first."""
    at = tail.rfind(key)
    while at >= 0:
        word = _WORD(tail, at + len(key))
        if word is not None:
            yield at, word[1].decode()
        at = tail.rfind(key, 0, at)


def _last_reason(tail: bytes, key: bytes) -> str:
    return next((word for _, word in _reasons(tail, key)), "")


def _first_choice_reason(tail: bytes) -> str:
    """How the first of a stream's choices ended, each of which ends in an event of its own; else how another did."""
    last = ""
    for at, word in _reasons(tail, _CHAT.reason):
        line = tail[tail.rfind(b"\n", 0, at) + 1 : at + tail[at:].find(b"\n")]
        try:
            if any(choice.index == 0 and choice.finish_reason == word for choice in _decode(line[5:]).choices):
                return word
        except (ValueError, RecursionError):
            pass
        last = last or word
    return last


def _read_whole(body: bytes) -> Told:
    """Read an answer that is all there. Raises `ValueError` if it is no JSON, or of no known shape."""
    answer = _decode(body)
    usage, prompt, completion = answer.usage, None, None
    if usage is not None:
        prompt = usage.prompt_tokens if usage.prompt_tokens is not None else usage.input_tokens
        completion = usage.completion_tokens if usage.completion_tokens is not None else usage.output_tokens
    if answer.choices:
        reason = answer.choices[0].finish_reason
    elif answer.object == "response":
        details = answer.incomplete_details
        reason = (details is not None and details.reason) or answer.status
    else:
        reason = answer.stop_reason
    return Told(prompt, completion, (reason or "")[:MAX_REASON])


class Meter:
    """Meters an answer that comes as a whole."""

    __slots__ = ("_full", "_tail", "_told", "first", "has_error", "size")

    inter_token_seconds: float | None = None
    max_gap_seconds: float | None = None

    def __init__(self) -> None:
        self.first: float | None = None
        """When the first token came, on the clock of the times fed; None before."""
        self.has_error = False
        """The answer itself says that it failed."""
        self.size = 0
        """Bytes fed."""
        self._tail: deque[bytes] = deque()
        self._full = 2 * TAIL_BYTES
        self._told: Told | None = None

    @classmethod
    def of(cls, body: bytes, now: float) -> Meter:
        """One that was fed all of a *body*, not empty, at *now*."""
        meter: Meter = _new(cls)
        meter.first = now
        meter.has_error = False
        meter.size = len(body)
        meter._told = meter._read(body if len(body) <= TAIL_BYTES else body[-TAIL_BYTES:])
        return meter

    def feed(self, piece: bytes, now: float) -> None:
        """Take the next bytes, not empty, that came at *now*."""
        if self.first is None:
            self.first = now
        self._tail.append(piece)
        self.size += len(piece)
        if self.size > self._full:
            self._forget()

    def _forget(self) -> None:
        """Let go of what came before the tail. Seldom, so that keeping costs little."""
        tail, kept = self._tail, sum(map(len, self._tail))
        while kept - len(tail[0]) >= TAIL_BYTES:
            kept -= len(tail.popleft())
        self._full = self.size + TAIL_BYTES

    def held(self, seconds: float) -> None:
        """The client took nothing for *seconds*; what came next is not late by the engine's doing."""

    def told(self) -> Told:
        """What the answer tells of itself. To be asked when it has ended; reads it once."""
        told = self._told
        if told is None:
            tail = b"".join(self._tail)
            self._told = told = self._read(tail if len(tail) <= TAIL_BYTES else tail[-TAIL_BYTES:])
        return told

    def _read(self, tail: bytes) -> Told:
        if self.size <= TAIL_BYTES:
            try:
                return _read_whole(tail)
            except (ValueError, RecursionError):
                pass
        keys = (_CHAT.reason, _ANTHROPIC.reason, _RESPONSES.reason, b'"status"')
        return Told(*read_usage(tail), next(filter(None, (_last_reason(tail, key) for key in keys)), ""))

    def tokens(self) -> tuple[int | None, int | None]:
        """Prompt and completion tokens, as far as the answer tells."""
        return self.told()[:2]

    @property
    def finish_reason(self) -> str:
        """The answer's own word for how it ended, empty if it has none."""
        return self.told().finish_reason


class StreamMeter(Meter):
    """Meters server-sent events, line by line. *path* tells whose they are."""

    __slots__ = (
        "_api",
        "_carry",
        "_ending",
        "_first_content",
        "_held",
        "_held_before",
        "_last_content",
        "_max_gap",
        "_prompt",
        "_usual",
        "events",
    )

    def __init__(self, path: bytes) -> None:
        super().__init__()
        self.events = 0
        """Events with content so far."""
        api = (
            _RESPONSES
            if path.startswith(b"/v1/responses")
            else _ANTHROPIC
            if path.startswith(b"/v1/messages")
            else _CHAT
        )
        self._api = api
        self._usual = api.usual
        self._carry = b""
        self._ending = ""
        self._prompt: int | None = None
        self._first_content = self._last_content = self._max_gap = 0.0
        self._held = self._held_before = 0.0

    def feed(self, piece: bytes, now: float) -> None:
        """Take the next bytes, not empty, that came at *now*."""
        self._tail.append(piece)
        self.size += len(piece)
        if self.size > self._full:
            self._forget()
        lines: Sequence[bytes]
        if not self._carry and piece.find(b"\n") == len(piece) - 2 and piece[-1] == _NEWLINE:
            lines = (piece,)  # one event of one line, as nearly all are
        else:
            lines = self._whole_lines(piece)
        found, usual = 0, self._usual
        for line in lines:
            if line.startswith(b"data"):
                if usual(line) or self._api.content(line):
                    found += 1
                else:
                    self._read_line(line)
            elif line.startswith(b"event"):
                self._read_event(line)
        if found:
            if self.events:
                gap = now - self._last_content - self._held + self._held_before
                if gap > self._max_gap:
                    self._max_gap = gap
            else:
                self.first = self._first_content = now
                self._held = 0.0
            self.events += found
            self._last_content = now
            self._held_before = self._held
        elif self.first is None:
            self.first = now

    def _whole_lines(self, piece: bytes) -> list[bytes]:
        lines = (self._carry + piece if self._carry else piece).split(b"\n")
        carry = lines.pop()
        self._carry = carry if len(carry) <= MAX_LINE_BYTES else b""
        return lines

    def _read_line(self, line: bytes) -> None:
        """Read a line of data without content: openings, closings, errors."""
        if _ERROR(line):
            self._end("failed")
        elif self._api is _ANTHROPIC:
            if b'"message_start"' in line:
                self._prompt = read_usage(line)[0]
        elif self._api is _RESPONSES:
            ending = _ENDING(line)
            if ending is not None:  # vLLM calls answers completed that were cut off, and says in details that they were
                self._end(_last_reason(line, _RESPONSES.reason) or ending[1].decode())

    def _read_event(self, line: bytes) -> None:
        ending = _ENDING_EVENT(line)
        if ending is not None:
            self._end((ending[1] or b"failed").decode())

    def _end(self, word: str) -> None:
        self._ending = word
        self.has_error = self.has_error or word == "failed"

    def held(self, seconds: float) -> None:
        """The client took nothing for *seconds*; what came next is not late by the engine's doing."""
        self._held += seconds

    @property
    def inter_token_seconds(self) -> float | None:  # type: ignore[override]
        """Mean gap between events with content; None with fewer than two."""
        if self.events < 2:
            return None
        return max(0.0, self._last_content - self._first_content - self._held_before) / (self.events - 1)

    @property
    def max_gap_seconds(self) -> float | None:  # type: ignore[override]
        """The longest of these gaps."""
        return self._max_gap if self.events > 1 else None

    def _read(self, tail: bytes) -> Told:
        prompt, completion = read_usage(tail)
        return Told(
            self._prompt if prompt is None else prompt,
            self.events if completion is None else completion,
            self._reason(tail),
        )

    def _reason(self, tail: bytes) -> str:
        if self._api is _CHAT:
            return _first_choice_reason(tail)
        return _last_reason(tail, _ANTHROPIC.reason) if self._api is _ANTHROPIC else self._ending
