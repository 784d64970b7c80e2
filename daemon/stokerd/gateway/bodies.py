"""What the gateway reads of a request's body, and the one thing that it may change in it.

msgspec's struct decoder walks the whole body (so what it accepts is JSON, and a doubled key counts as Python's own
``json`` counts it: the last one) but builds no object for what it skips: half a microsecond for a small chat and 7 ms
for one with 20 MB of images, where ``json.loads`` takes 3.5 µs and 56 ms. Forms are for `forms`.
"""

from __future__ import annotations

import json
import re
from hashlib import blake2b
from typing import Any

import msgspec

from stokerd.gateway import forms
from stokerd.gateway.surface import Endpoint

# Oddities that Python engines take and strict JSON does not (NaN, lone surrogates, a byte order mark) are read by the
# standard library, as the engine will read them; not above this size, because its slowness would hold all streams up.
MAX_LENIENT_BYTES = 1 << 20
MOST_TOKENS = 1 << 17
"""The largest estimate of a prompt: what is larger is pictures or sound, which have fewer tokens than bytes by far."""
BYTES_PER_TOKEN = 4
_END_BYTES = 1024  # of a message, at its beginning and at its end, tell it from others
_MOST_ITEMS = 200_000  # in a body whose conversation is read, as its commas say: each message becomes an object
_MOST_VALUE_BYTES = 4096  # of a model's or user's name
_MOST_TRIES = 8
_IS_MESSAGES = re.compile(rb"[ \t\r\n]*\[[ \t\r\n]*\{").match
_TRUE = frozenset({"true", "1", "on", "t", "y", "yes"})  # as pydantic reads a form's bool
_KEY = b'"model"'
_NOTHING = msgspec.Raw()
_MODEL = re.compile(rb'"model"[ \t\r\n]*:[ \t\r\n]*("(?:[^"\\]|\\.)*")')


class BadBody(ValueError):
    """A body that can't be served. Says why, in a sentence for the client."""


class Asked(msgspec.Struct):
    """What a request asks for. ``max_tokens``: the most that it wants generated, None if it doesn't say."""

    model: str = ""
    user: str | None = None
    max_tokens: int | None = None
    is_stream: bool = msgspec.field(default=False, name="stream")
    max_completion_tokens: int | None = None  # how else APIs call it: read into max_tokens
    max_output_tokens: int | None = None


class _Metadata(msgspec.Struct):
    user_id: str | None = None


class _Loose(msgspec.Struct):
    """The same names, whatever their values are."""

    model: msgspec.Raw = _NOTHING
    user: msgspec.Raw = _NOTHING
    max_tokens: msgspec.Raw = _NOTHING
    stream: msgspec.Raw = _NOTHING
    max_completion_tokens: msgspec.Raw = _NOTHING
    max_output_tokens: msgspec.Raw = _NOTHING
    metadata: msgspec.Raw = _NOTHING


class _AnthropicAsked(msgspec.Struct):
    model: str = ""
    max_tokens: int | None = None
    is_stream: bool = msgspec.field(default=False, name="stream")
    metadata: _Metadata | None = None


class _Message(msgspec.Struct):
    role: str = ""
    content: msgspec.Raw = _NOTHING


class _Talk(msgspec.Struct):
    messages: list[_Message] = []
    input: msgspec.Raw = _NOTHING
    prompt: msgspec.Raw = _NOTHING
    system: msgspec.Raw = _NOTHING
    instructions: msgspec.Raw = _NOTHING


class _Named(msgspec.Struct):
    model: str = ""


_decode = msgspec.json.Decoder(Asked).decode
_decode_anthropic = msgspec.json.Decoder(_AnthropicAsked).decode
_decode_loose = msgspec.json.Decoder(_Loose).decode
_decode_named = msgspec.json.Decoder(_Named).decode
_decode_talk = msgspec.json.Decoder(_Talk).decode
_decode_messages = msgspec.json.Decoder(list[_Message]).decode
_decode_any = msgspec.json.Decoder().decode
_encode = msgspec.json.Encoder().encode


def read_body(endpoint: Endpoint, content_type: bytes, body: bytes | bytearray) -> Asked:
    """Read what *body* asks for. Raises `BadBody` with a sentence for the client.

    Only ``model`` must be there and be right: whatever else is not of its type is left to the engine to refuse.
    """
    if endpoint.multipart:
        asked = _read_form(content_type, body)
    else:
        try:
            if endpoint.shape == "openai":
                asked = _decode(body)
            else:
                read = _decode_anthropic(body)
                user = None if read.metadata is None else read.metadata.user_id
                asked = Asked(read.model, user, read.max_tokens, read.is_stream)
        except (ValueError, RecursionError) as error:
            asked = _read_loosely(endpoint, body, error)
    if not asked.model:
        raise BadBody('The body has no "model": name a deployment there, as GET /v1/models lists them.')
    if asked.max_completion_tokens is not None:
        asked.max_tokens = asked.max_completion_tokens
    elif asked.max_output_tokens is not None:
        asked.max_tokens = asked.max_output_tokens
    return asked


def _read_loosely(endpoint: Endpoint, body: bytes | bytearray, error: Exception) -> Asked:
    """Read a body of which the strict reader said *error*: a value of another type, or JSON that only Python takes."""
    values: dict[str, Any]
    try:
        values = {
            name: _decode_any(raw)
            for name, raw in msgspec.structs.asdict(_decode_loose(body)).items()
            if 0 < len(memoryview(raw)) <= _MOST_VALUE_BYTES
        }
    except (ValueError, RecursionError):
        values = _read_leniently(body, error)
    user = values.get("user")
    if endpoint.shape == "anthropic":
        metadata = values.get("metadata")
        user = metadata.get("user_id") if type(metadata) is dict else None
    model, tokens = values.get("model"), [values.get(f"max_{kind}tokens") for kind in ("completion_", "output_", "")]
    return Asked(
        model if type(model) is str else "",
        user if type(user) is str else None,
        next((n for n in tokens if type(n) is int), None),
        values.get("stream") is True,
    )


def _read_leniently(body: bytes | bytearray, error: Exception) -> dict[str, Any]:
    if len(body) <= MAX_LENIENT_BYTES:
        try:
            value = json.loads(body)
        except (ValueError, RecursionError):
            pass
        else:
            if isinstance(value, dict):
                return value
            raise BadBody("The body is JSON, but not an object.") from None
    raise BadBody(f"The body can't be read as JSON: {error}.") from None


def _read_form(content_type: bytes, body: bytes | bytearray) -> Asked:
    fields = _fields(content_type, body)
    try:
        model, stream = forms.value(body, fields, b"model"), forms.value(body, fields, b"stream")
    except forms.BadForm as error:
        raise BadBody(f"The body can't be read as a form: {error}.") from None
    return Asked(model or "", None, None, stream is not None and stream.lower() in _TRUE)


def _fields(content_type: bytes, body: bytes | bytearray) -> list[forms.Field]:
    try:
        return forms.read_fields(content_type, body)
    except forms.BadForm as error:
        raise BadBody(f"The body can't be read as a form: {error}.") from None


def with_model(endpoint: Endpoint, content_type: bytes, body: bytes | bytearray, model: str) -> bytes:
    """The same body with another ``model``; every other byte is kept. Raises `BadBody`."""
    if endpoint.multipart:
        return forms.with_value(body, _fields(content_type, body), b"model", model.encode())
    new, view, at = _encode(model), memoryview(body), body.find(_KEY)
    for _ in range(_MOST_TRIES):
        found = _MODEL.match(body, at) if at >= 0 else None
        if found is not None:
            renamed = b"".join((view[: found.start(1)], new, view[found.end(1) :]))
            # It may have been another "model", in the schema of a tool: reading it again tells, and costs no more than
            # looking for the right one would.
            try:
                if _decode_named(renamed).model == model:
                    return renamed
            except (ValueError, RecursionError):
                break
        at = body.find(_KEY, at + 1) if at >= 0 else -1
    return _renamed_anew(body, model)


def _renamed_anew(body: bytes | bytearray, model: str) -> bytes:
    """For a key with escapes in it, or oddities that only Python takes: they are kept, but not every byte is."""
    error = ValueError(f"larger than {MAX_LENIENT_BYTES} bytes, and its model's name must be changed on the way")
    values = _read_leniently(body, error)
    try:
        return json.dumps({**values, "model": model}).encode()
    except (ValueError, RecursionError) as refused:
        raise BadBody(f"The body can't be written as JSON again: {refused}.") from None


def conversation(body: bytes | bytearray) -> bytes | None:
    """Digest what stays the same in all turns of a conversation: 8 bytes; None if the body holds none.

    That is all up to the first user's message, that one included, or the beginning of a prompt or input. Of long texts,
    their two ends and their length stand for them.
    """
    if len(body) > MAX_LENIENT_BYTES and body.count(b",") > _MOST_ITEMS:
        return None
    try:
        talk = _decode_talk(body)
        messages, prompt = talk.messages, b""
        if not messages:
            prompt = bytes(memoryview(talk.prompt if talk.input is _NOTHING else talk.input)[:_END_BYTES])
            if not prompt:
                return None
            if _IS_MESSAGES(prompt):
                messages = _decode_messages(talk.input)
    except (ValueError, RecursionError):
        return None
    said = [_ends(raw) for raw in (talk.system, talk.instructions) if raw is not _NOTHING]
    if messages:
        for message in messages:
            said += (message.role.encode("utf-8", "replace"), _ends(message.content))
            if message.role == "user":
                break
    else:
        said.append(prompt)
    return blake2b(b"\0".join(said), digest_size=8).digest()


def _ends(text: msgspec.Raw) -> bytes:
    whole = memoryview(text)
    if len(whole) <= 2 * _END_BYTES:
        return bytes(whole)
    return b"%b%b%d" % (bytes(whole[:_END_BYTES]), bytes(whole[-_END_BYTES:]), len(whole))


def prompt_tokens(body_bytes: int) -> int:
    """Estimate, from its size alone, how many tokens a request's prompt has; good enough to balance by."""
    return min(body_bytes // BYTES_PER_TOKEN, MOST_TOKENS) + 1
