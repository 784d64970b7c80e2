from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stokerd.gateway.bodies import MAX_LENIENT_BYTES, BadBody, read_model, with_model

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
    user = expected.get("user")
    assert read_model(text) == (expected["model"], user if isinstance(user, str) else None)


@given(st.binary(max_size=200))
def test_any_bytes_give_a_model_or_a_clear_refusal(body: bytes) -> None:
    try:
        read_model(body)
    except BadBody as error:
        assert str(error).startswith("The body")


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
        read_model(body)


def test_a_doubled_key_counts_as_python_engines_count_it() -> None:
    assert read_model(b'{"model": "a", "model": "b"}') == ("b", None)
    assert read_model(b'{"model": "a", "m\\u006fdel": "b"}') == ("b", None)


@pytest.mark.parametrize("odd", ["NaN", "Infinity", '"\\ud800"'])
def test_what_python_engines_take_beyond_strict_json_is_read(odd: str) -> None:
    assert read_model(f'{{"x": {odd}, "model": "m"}}'.encode()) == ("m", None)


@given(
    body=st.dictionaries(
        st.text(), SCALARS.filter(lambda v: v == v and abs(v or 0) != float("inf") if isinstance(v, float) else True)
    )
)
def test_renaming_the_model_changes_nothing_else(body: dict[str, Any]) -> None:
    try:
        text = json.dumps({**body, "model": "m@2"}, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return
    assert json.loads(with_model(text, "m")) == {**body, "model": "m"}


def test_renaming_keeps_the_bytes_of_other_values() -> None:
    renamed = with_model(b'{"temperature": 0.10, "x": [1, 2 ,3], "model": "m@2"}', "m")
    assert b"0.10" in renamed
    assert b"[1, 2 ,3]" in renamed
