"""Pairs of answers of stable and shadow to one request, kept for comparison until the daemon has them. Bounded.

An exchange feeds its `Side` of a `Pair` with what it gets from its replica. What is kept is the text that an answer
says, not its bytes: a stream's events are read one by one as they come (3 µs each), so that none holds others up. What
was asked is read once, of a pair that is kept (5 µs for a chat of 10 kB, some tenths of a ms for the largest).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict

import msgspec

from stokerd.gateway.records import Buffer
from stokerd.gateway.wire import PairedAnswer, ShadowPair

TEXT_BYTES = 64 << 10
"""Of each answer; of a longer one, this much is kept."""
HELD_BYTES = 4 << 20
"""Of all texts that wait for the daemon or for the other answer; past it, the oldest whole pairs are dropped."""
BATCH_BYTES = 1 << 20
PAIR_BYTES = 1 << 10
"""What a pair costs besides its texts."""
QUESTION_CHARACTERS = 4000
"""Of what was asked; of more, so much is kept of its two ends: the question stands before a document, or behind it."""
QUESTION_BODY_BYTES = 256 << 10
"""A larger request is not read for what it asks."""


class _Function(msgspec.Struct):
    name: str | None = None
    arguments: str | None = None


class _Call(msgspec.Struct):
    function: _Function | None = None


class _Block(msgspec.Struct):
    """A block of content, or of a piece of it: of text, of a tool call, or of what isn't said (reasoning)."""

    type: str = ""
    name: str | None = None
    text: str | None = None
    arguments: str | None = None
    partial_json: str | None = None
    input: msgspec.Raw = msgspec.Raw()


class _Message(_Block):
    content: str | list[_Block] | None = None
    tool_calls: list[_Call] | None = None


class _Choice(msgspec.Struct):
    index: int = 0
    text: str | None = None
    message: _Message | None = None
    delta: _Message | None = None


class _Event(msgspec.Struct):
    """Of a stream, in any of the APIs."""

    type: str = ""
    choices: list[_Choice] = []
    delta: str | _Message | None = None
    content_block: _Block | None = None


class _Answer(msgspec.Struct):
    """A whole one, in any of the APIs."""

    choices: list[_Choice] = []
    content: list[_Block] = []
    output: list[_Message] = []


_NOTHING = msgspec.Raw()


class _Turn(msgspec.Struct):
    role: str = ""
    content: msgspec.Raw = _NOTHING


class _Part(msgspec.Struct):
    text: str | None = None


class _Asked(msgspec.Struct):
    """A request, in any of the APIs."""

    messages: list[_Turn] = []
    prompt: msgspec.Raw = _NOTHING
    input: msgspec.Raw = _NOTHING


_decode_asked = msgspec.json.Decoder(_Asked).decode
_decode_content = msgspec.json.Decoder(str | list[_Part] | None).decode
_decode_prompt = msgspec.json.Decoder(str | list[str]).decode
_decode_input = msgspec.json.Decoder(str | list[_Turn]).decode
_decode_event = msgspec.json.Decoder(_Event).decode
_decode_answer = msgspec.json.Decoder(_Answer).decode


class Pairs(Buffer):
    """Whole pairs wait here for a reader; ``dropped`` counts those that found no room, whole or not."""

    def __init__(self, epoch: str, bound: int = HELD_BYTES) -> None:
        super().__init__(epoch)
        self._bound = bound
        self._held = self._whole = 0

    @property
    def held_bytes(self) -> int:
        """What all texts hold of memory, those of answers that still go on included."""
        return self._held

    @property
    def fills_batch(self) -> bool:
        """There is as much as a reader gets at once."""
        return self._whole >= BATCH_BYTES

    def open(self, *, time: float, deployment: str, rollout: str, path: str, caller: str) -> Pair:
        """Begin a pair, for a request that came at *time* (unix) and goes to both arms."""
        return Pair(self, (time, deployment, rollout, path, caller))

    def batch(self, *, as_rows: bool = False) -> bytes:
        """The oldest pairs, about `BATCH_BYTES` of them, as a `PairBatch` in JSON."""
        pairs: list[dict[str, object]] = []
        size = 0
        for _, cost, pair in self._rows:
            size += cost
            if pairs and size > BATCH_BYTES:
                break
            pairs.append(asdict(pair))
        return msgspec.json.encode({"epoch": self.epoch, "pairs": pairs, "dropped": self.dropped})

    def add(
        self, request: tuple[float, str, str, str, str], stable: PairedAnswer, shadow: PairedAnswer, question: str
    ) -> None:
        """Keep a pair, if there is room for it."""
        cost = PAIR_BYTES + sum(len(text.encode()) for text in (stable.text, shadow.text, question))
        if not self.take(cost):
            self.dropped += 1
            return
        self._last += 1
        self._whole += cost
        self._rows.append((self._last, cost, ShadowPair(self._last, *request, stable, shadow, question)))
        self._wake()

    def take(self, size: int) -> bool:
        """Make room for so many bytes; whether there is some."""
        while self._held + size > self._bound and self._rows:
            self._forget()
            self.dropped += 1
        if self._held + size > self._bound:
            return False
        self._held += size
        return True

    def has_plenty(self, size: int) -> bool:
        """Whether so many bytes more would leave half of the memory to answers."""
        return self._held + size <= self._bound // 2

    def give(self, size: int) -> None:
        """So many bytes are held no more."""
        self._held -= size

    def _forget(self) -> None:
        cost = self._rows.popleft()[1]
        self._held -= cost
        self._whole -= cost


class Pair:
    """Two answers to one request, both on their way. It is kept when both sides have been closed."""

    __slots__ = ("_body", "_is_over", "_pairs", "_question", "_request", "shadow", "stable")

    def __init__(self, pairs: Pairs, request: tuple[float, str, str, str, str]) -> None:
        self._pairs = pairs
        self._request = request
        self._body: bytes | bytearray = b""
        self._question = ""
        self._is_over = False
        self.stable = Side(self)
        self.shadow = Side(self)

    def ask(self, body: bytes | bytearray) -> None:
        """Keep what *body* asks, too. It is read when both answers are there; now, where memory is short until then."""
        if self._is_over or len(body) > QUESTION_BODY_BYTES:
            return
        if self._pairs.has_plenty(len(body)) and self.take(len(body)):
            self._body = body
            return
        question = _question(self._request[3], body)
        if self.take(len(question.encode())):
            self._question = question

    def drop(self) -> None:
        """There is nothing to compare: the client has gone, the copy wasn't sent or was broken off."""
        if not self._is_over:
            self._is_over = True
            asked = len(self._body) + len(self._question.encode())
            self._body, self._question = b"", ""
            self._pairs.give(asked + self.stable.empty() + self.shadow.empty())

    def take(self, size: int) -> bool:
        """Whether a side may keep so many bytes more. If not, the pair is over, and counted."""
        if self._is_over:
            return False
        if not self._pairs.take(size):
            self._pairs.dropped += 1
            self.drop()
            return False
        return True

    def closed(self) -> None:
        """A side has been closed."""
        stable, shadow = self.stable.answer, self.shadow.answer
        if not self._is_over and stable is not None and shadow is not None:
            question = _question(self._request[3], self._body) if self._body else self._question
            self.drop()
            self._pairs.add(self._request, stable, shadow, question)


class Side:
    """One of the two answers."""

    __slots__ = ("_carry", "_is_cut", "_is_stream", "_kept", "_pair", "answer")

    def __init__(self, pair: Pair) -> None:
        self.answer: PairedAnswer | None = None
        """The answer, when it has been closed."""
        self._pair = pair
        self._kept = bytearray()
        self._carry = b""
        self._is_stream = False
        self._is_cut = False

    def feed(self, piece: bytes, is_stream: bool) -> None:
        """Take the next bytes of the body, as they come; *is_stream*: they are server-sent events."""
        if self._is_cut:
            return
        self._is_stream = is_stream
        if not is_stream:
            self._keep(piece)
            return
        lines = (self._carry + piece).split(b"\n")
        self._carry = lines.pop()
        for line in lines:
            if line.startswith(b"data:"):
                self._keep(_event_text(line[5:]).encode())
        self._is_cut = self._is_cut or len(self._carry) > TEXT_BYTES

    def close(
        self,
        *,
        version: int,
        status: int,
        is_error: bool,
        finish_reason: str,
        ttft_seconds: float | None,
        total_seconds: float,
        completion_tokens: int | None,
    ) -> None:
        """The answer has ended, well or not."""
        text = self._kept.decode(errors="replace")
        if not self._is_stream and not self._is_cut:
            text = _whole_text(self._kept) or text
        self.answer = PairedAnswer(
            version,
            status,
            is_error,
            finish_reason,
            ttft_seconds,
            total_seconds,
            completion_tokens,
            text,
            self._is_cut,
        )
        self._pair.closed()

    def drop(self) -> None:
        """There will be no answer to compare: that ends the pair."""
        self._pair.drop()

    def empty(self) -> int:
        """Let go of the text; how many bytes it held."""
        size, self._kept, self._carry, self._is_cut = len(self._kept), bytearray(), b"", True
        return size

    def _keep(self, words: bytes) -> None:
        room = TEXT_BYTES - len(self._kept)
        if len(words) > room:
            words, self._is_cut = words[:room], True
        if words and self._pair.take(len(words)):
            self._kept += words


def _question(path: str, body: bytes | bytearray) -> str:
    """What the request asks: the text of the user's last message that has some, or the prompt. Empty: no such thing."""
    try:
        text = _asked_text(path, _decode_asked(body))
    except (ValueError, RecursionError):
        return ""
    half = QUESTION_CHARACTERS // 2
    return text if len(text) <= QUESTION_CHARACTERS else f"{text[:half]} […] {text[-half:]}"


def _asked_text(path: str, asked: _Asked) -> str:
    if asked.messages:
        return _last_said(asked.messages)
    if asked.prompt is not _NOTHING:
        prompt = _decode_prompt(asked.prompt)
        return prompt if isinstance(prompt, str) else "".join(prompt[:1])  # its first answer is the one that is kept
    if asked.input is not _NOTHING and path.startswith("/v1/responses"):  # elsewhere it is what is embedded
        said = _decode_input(asked.input)
        return said if isinstance(said, str) else _last_said(said)
    return ""


def _last_said(turns: list[_Turn]) -> str:
    for turn in reversed(turns):
        if turn.role == "user" and turn.content is not _NOTHING:
            content = _decode_content(turn.content)
            text = content if isinstance(content, str) else "\n".join(part.text for part in content or () if part.text)
            if text:  # a user's turn may hold the result of a tool alone
                return text
    return ""


def _event_text(data: bytes) -> str:
    """What an event of a stream adds to the text; nothing if it can't be read, as the closing ``[DONE]``."""
    try:
        return "".join(_event_words(_decode_event(data)))
    except (ValueError, RecursionError):
        return ""


def _event_words(event: _Event) -> Iterator[str]:
    for choice in event.choices:
        if choice.index == 0:
            yield from _choice_words(choice)
    if "reasoning" in event.type:
        return
    if isinstance(event.delta, str):
        yield event.delta
    elif event.delta is not None:
        yield from _message_words(event.delta)
    elif event.content_block is not None and event.content_block.name:
        yield event.content_block.name


def _whole_text(body: bytes | bytearray) -> str:
    """What a whole answer says; empty if it says nothing, or not in a known way."""
    try:
        answer = _decode_answer(body)
    except (ValueError, RecursionError):
        return ""
    words = [word for choice in answer.choices[:1] for word in _choice_words(choice)]
    words += [word for block in answer.content for word in _block_words(block)]
    words += [word for message in answer.output for word in _message_words(message)]
    return "".join(words)


def _choice_words(choice: _Choice) -> Iterator[str]:
    if choice.text:
        yield choice.text
    message = choice.message or choice.delta
    if message is not None:
        yield from _message_words(message)


def _message_words(message: _Message) -> Iterator[str]:
    yield from _block_words(message)
    if isinstance(message.content, str):
        yield message.content
    elif message.content is not None and message.type != "reasoning":
        for block in message.content:
            yield from _block_words(block)
    for call in message.tool_calls or ():
        if call.function is not None:
            yield call.function.name or ""
            yield call.function.arguments or ""


def _block_words(block: _Block) -> Iterator[str]:
    if block.type != "reasoning":
        yield block.name or ""
        yield block.text or ""
        yield block.arguments or ""
        yield block.partial_json or ""
        yield bytes(block.input).decode()
