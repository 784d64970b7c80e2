from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stokerd.gateway.bodies import (
    MAX_LENIENT_BYTES,
    MOST_TOKENS,
    BadBody,
    conversation,
    prompt_tokens,
    read_body,
    with_model,
)
from stokerd.gateway.surface import ENDPOINTS

CHAT, RESPONSES, MESSAGES = (ENDPOINTS[p] for p in (b"/v1/chat/completions", b"/v1/responses", b"/v1/messages"))
JSON = b"application/json"
SCALARS = st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats() | st.text()
VALUES = st.recursive(SCALARS, lambda v: st.lists(v, max_size=4) | st.dictionaries(st.text(), v, max_size=4))
BODIES = st.dictionaries(st.sampled_from(["model", "user", "messages", "stream", "x"]), VALUES)


@given(body=BODIES, model=st.text(min_size=1), is_ascii=st.booleans())
def test_the_model_is_read_as_the_engine_will_read_it(body: dict[str, Any], model: str, is_ascii: bool) -> None:
    body["model"] = model
    text = json.dumps(body, ensure_ascii=is_ascii).encode("utf-8", "surrogatepass")
    try:
        expected = json.loads(text)
    except UnicodeDecodeError:  # a bare surrogate in UTF-8: no JSON to anyone
        return
    user, stream = expected.get("user"), expected.get("stream")
    asked = read_body(CHAT, JSON, text)
    assert (asked.model, asked.user) == (expected["model"], user if isinstance(user, str) and len(user) < 500 else None)
    assert asked.is_stream == (stream is True)


@given(st.binary(max_size=200))
def test_any_bytes_give_a_model_or_a_clear_refusal(body: bytes) -> None:
    try:
        for endpoint in (CHAT, MESSAGES):
            read_body(endpoint, JSON, body)
    except BadBody as error:
        assert str(error).startswith("The body")
    assert conversation(body) is None


DEEP = b'{"model": "m", "x": ' + b"[" * 100_000 + b"]" * 100_000 + b"}"
NO_MODEL = [
    b"",
    b"x",
    b"[]",
    b"null",
    b"{}",
    b'{"model": 1}',
    b'{"model": ""}',
    b'{"model": null}',
    b'{"model": "m"} x',
]


@pytest.mark.parametrize("body", [*NO_MODEL, DEEP, b"[" * MAX_LENIENT_BYTES * 2], ids=lambda body: repr(body[:20]))
def test_a_body_without_a_readable_model_is_refused(body: bytes) -> None:
    with pytest.raises(BadBody):
        read_body(CHAT, JSON, body)
    with pytest.raises(BadBody):
        read_body(MESSAGES, JSON, body)


def test_a_doubled_key_counts_as_python_engines_count_it() -> None:
    assert read_body(CHAT, JSON, b'{"model": "a", "model": "b"}').model == "b"
    assert read_body(CHAT, JSON, b'{"model": "a", "m\\u006fdel": "b"}').model == "b"
    assert read_body(CHAT, JSON, b'{"model": 1, "model": "b"}').model == "b"


@pytest.mark.parametrize("odd", ["NaN", "Infinity", '"\\ud800"'])
def test_what_python_engines_take_beyond_strict_json_is_read(odd: str) -> None:
    body = f'{{"x": {odd}, "model": "m", "user": "u"}}'.encode()
    asked = read_body(CHAT, JSON, body)
    assert (asked.model, asked.user) == ("m", "u")
    assert json.dumps(json.loads(with_model(CHAT, JSON, body, "n"))) == json.dumps({**json.loads(body), "model": "n"})


@pytest.mark.parametrize(
    ("endpoint", "body", "expected"),
    [
        (CHAT, {"user": "u", "max_tokens": 5}, ("u", 5, False)),
        (CHAT, {"max_tokens": 5, "max_completion_tokens": 7, "stream": True}, (None, 7, True)),
        (CHAT, {"max_tokens": None, "stream": None, "user": None}, (None, None, False)),
        (CHAT, {"max_tokens": "5", "stream": "yes", "user": 5}, (None, None, False)),
        (CHAT, {"max_tokens": 10**30, "user": "u"}, ("u", 10**30, False)),
        (RESPONSES, {"max_output_tokens": 9, "stream": True}, (None, 9, True)),
        (MESSAGES, {"max_tokens": 5, "metadata": {"user_id": "u"}, "user": "x", "stream": True}, ("u", 5, True)),
        (MESSAGES, {"max_tokens": 5, "metadata": None}, (None, 5, False)),
        (MESSAGES, {"max_tokens": None, "metadata": {"user_id": "u"}}, ("u", None, False)),
        (MESSAGES, {"metadata": {"user_id": ["u"]}}, (None, None, False)),
        (MESSAGES, {"metadata": "x", "max_tokens": 5}, (None, 5, False)),
    ],
)
def test_what_a_request_asks_for_is_read_where_its_api_has_it(endpoint: Any, body: Any, expected: Any) -> None:
    asked = read_body(endpoint, JSON, json.dumps({**body, "model": "m"}).encode())
    assert (asked.model, (asked.user, asked.max_tokens, asked.is_stream)) == ("m", expected)


FINITE = SCALARS.filter(lambda v: v == v and abs(v) != float("inf") if isinstance(v, float) else True)


@given(
    body=st.dictionaries(st.sampled_from(["model", "a", "z", "Model"]) | st.text(), FINITE | st.just({"model": "m@2"})),
    model=st.sampled_from(["m", "wörld", 'with "quotes"', "back\\slash"]),
    is_ascii=st.booleans(),
)
def test_renaming_the_model_changes_nothing_else(body: dict[str, Any], model: str, is_ascii: bool) -> None:
    try:
        text = json.dumps({**body, "model": "m@2"}, ensure_ascii=is_ascii).encode()
    except UnicodeEncodeError:
        return
    assert json.loads(with_model(CHAT, JSON, text, model)) == {**body, "model": model}
    assert with_model(CHAT, JSON, bytearray(text), model) == with_model(CHAT, JSON, text, model)


def test_renaming_keeps_all_other_bytes() -> None:
    body = b'{"temperature": 0.10, "x": [1, 2 ,3],\n "model" : "m@2", "y":1e5}'
    assert with_model(CHAT, JSON, body, "m") == body.replace(b'"m@2"', b'"m"')


@pytest.mark.parametrize(
    "body",
    [
        b'{"tools": [{"model": "m@2"}], "model": "m@2"}',
        b'{"model": "m@2", "tools": [{"model": "m@2"}]}',
        b'{"model": "x", "tools": [{"model": "m@2"}], "model": "m@2"}',
        b'{"tools": [{"model": "m@2"}], "m\\u006fdel": "m@2"}',
        b'{"model": "\\u006d@2", "user": "m@2", "s": "say \\"model\\": \\"m@2\\""}',
        b'{"model": "a\\"b", "x": "model"}',
    ],
)
def test_only_the_models_own_value_is_renamed(body: bytes) -> None:
    renamed = with_model(CHAT, JSON, body, "other")
    assert json.loads(renamed) == {**json.loads(body), "model": "other"}
    assert read_body(CHAT, JSON, renamed).model == "other"


def test_a_model_that_can_not_be_renamed_safely_is_refused() -> None:
    body = b'{"m\\u006fdel": "m", "x": "%b"}' % (b"x" * MAX_LENIENT_BYTES)
    assert read_body(CHAT, JSON, body).model == "m"
    with pytest.raises(BadBody, match="larger"):
        with_model(CHAT, JSON, body, "n")


SYSTEM = {"role": "system", "content": "Be brief."}
FIRST = {"role": "user", "content": "What is Stoker?"}


def digest(**body: Any) -> bytes | None:
    return conversation(json.dumps({"model": "m", **body}).encode())


def test_all_turns_of_a_conversation_have_one_digest() -> None:
    first = digest(messages=[SYSTEM, FIRST])
    assert first is not None
    assert len(first) == 8
    more = [{"role": "assistant", "content": "A daemon."}, {"role": "user", "content": "And?"}]
    assert digest(messages=[SYSTEM, FIRST, *more], temperature=0.5) == first
    assert digest(messages=[SYSTEM, {**FIRST, "content": "What is coal?"}]) != first
    assert digest(messages=[FIRST]) != first


def test_a_conversation_with_large_pictures_is_told_apart_by_its_ends() -> None:
    def image(data: str) -> bytes | None:
        content = [{"type": "image_url", "image_url": {"url": data}}]
        return digest(messages=[{"role": "user", "content": content}, FIRST])

    assert image("a" * 3_000_000 + "x") == image("a" * 3_000_000 + "x")
    assert len({image("a" * 3_000_000 + "x"), image("a" * 3_000_000 + "y"), image("b" * 3_000_001)}) == 3


def test_conversations_of_each_api_are_known() -> None:
    digests = [
        digest(messages=[FIRST]),
        digest(messages=[FIRST], system="Be brief."),
        digest(prompt="What is Stoker?"),
        digest(prompt=["What is Stoker?", "And?"]),
        digest(prompt=[1, 2, 3]),
    ]
    assert None not in digests
    assert len(set(digests)) == len(digests)
    assert digest(input=[FIRST]) == digest(messages=[FIRST])
    assert digest(input=[FIRST], instructions="Be brief.") == digest(messages=[FIRST], system="Be brief.")
    long = "word " * 1000
    assert digest(prompt=long) == digest(prompt=long + "and what follows")
    assert digest(query="q", documents=["d"]) is None
    assert digest(messages=[]) is None


def test_a_body_made_to_cost_memory_has_no_conversation() -> None:
    assert conversation(b'{"messages": [%b{}]}' % (b"{}," * 400_000)) is None


@given(cut=st.integers(0, 200))
def test_a_body_that_is_cut_off_is_refused_and_has_no_conversation(cut: int) -> None:
    body = json.dumps({"model": "m", "messages": [SYSTEM, {"role": "user", "content": "wörld ✓"}]}, ensure_ascii=False)
    part = body.encode()[:cut]
    if len(part) < len(body.encode()):
        assert conversation(part) is None
        with pytest.raises(BadBody):
            read_body(CHAT, JSON, part)


def test_the_estimate_of_a_prompt_is_bounded() -> None:
    assert prompt_tokens(0) == 1
    assert prompt_tokens(4000) == 1001
    assert prompt_tokens(64 << 20) == MOST_TOKENS + 1
