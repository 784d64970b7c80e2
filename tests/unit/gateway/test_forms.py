from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stokerd.gateway.bodies import BadBody, conversation, read_body, with_model
from stokerd.gateway.forms import MOST_FIELD_BYTES, MOST_PARTS, BadForm, read_fields, value, with_value
from stokerd.gateway.surface import ENDPOINTS

AUDIO = ENDPOINTS[b"/v1/audio/transcriptions"]
TYPE = b"multipart/form-data; boundary=X-1"


def part(name: str, data: bytes, more: str = "") -> bytes:
    return b'--X-1\r\nContent-Disposition: form-data; name="%b"%b\r\n\r\n%b\r\n' % (name.encode(), more.encode(), data)


SOUND = part("file", b"RIFF\x00\xff\r\n--X\r\n\r\n" * 50, '; filename="a;name=model.wav"\r\nContent-Type: audio/wav')
END = b"--X-1--\r\n"
FORM = SOUND + part("language", b"de") + part("model", b"ear@2") + END


@pytest.mark.parametrize("kind", [bytes, bytearray])
def test_the_model_of_a_form_is_read_and_renamed_and_the_sound_stays(kind: type[Any]) -> None:
    body = kind(FORM)
    asked = read_body(AUDIO, TYPE, body)
    assert (asked.model, asked.user, asked.is_stream) == ("ear@2", None, False)
    assert with_model(AUDIO, TYPE, body, "ear") == FORM.replace(b"ear@2", b"ear")
    assert conversation(body) is None


@pytest.mark.parametrize(("text", "is_stream"), [("true", True), ("1", True), ("True", True), ("false", False)])
def test_a_form_may_ask_for_a_stream(text: str, is_stream: bool) -> None:
    body = part("model", b"m") + part("stream", text.encode()) + END
    assert read_body(AUDIO, TYPE, body).is_stream is is_stream


def test_of_two_models_the_last_counts_and_both_are_renamed() -> None:
    body = part("model", b"a") + SOUND + part("model", b"b") + END
    assert read_body(AUDIO, TYPE, body).model == "b"
    renamed = with_model(AUDIO, TYPE, body, "c")
    assert renamed == part("model", b"c") + SOUND + part("model", b"c") + END


TYPES = [
    b'Multipart/Form-Data; charset=utf-8; boundary="X-1"',
    b"multipart/form-data;boundary=X-1",
    b"multipart/form-data ; BOUNDARY=X-1;",
]


@pytest.mark.parametrize("content_type", TYPES)
def test_content_types_are_read_as_clients_write_them(content_type: bytes) -> None:
    assert read_body(AUDIO, content_type, FORM).model == "ear@2"


BAD_TYPES = [
    b"",
    b"application/json",
    b"multipart/form-data",
    b"multipart/form-data; boundary=",
    b"multipart/form-data; boundary=X-1; boundary=Y",
    b"multipart/form-data; boundary=X-1; charset=utf-16",
    b"multipart/form-data; boundary=" + b"x" * 71,
    b'multipart/form-data; boundary="X-1',
    b"multipart/form-data; nonsense",
]
BAD_FORMS = [
    b"",
    b"{}",
    END,
    b"preamble\r\n" + FORM,
    FORM[: -len(END)],
    SOUND + END,
    part("model", b"") + END,
    part("model", b"\xff") + END,
    part("model", b"m" * (MOST_FIELD_BYTES + 1)) + END,
    part("model", b"m") + b"--X-1 \r\n\r\n\r\n" + END,
    part("model", b"m\r\n--X-10\r\n") + END,
    part("model", b"m", "; filename=x") + END,
    part("model", b"m", "; name=x") + END,
    part("x", b"m", "; name*=utf-8''model") + END,
    part("x", b"m", "\r\n folded: header") + END,
    part("x", b"m", '\r\nContent-Disposition: form-data; name="model"') + END,
    b"--X-1\r\n\r\nm\r\n" + END,
    b"--X-1\r\nA: b\r\n\r\nm\r\n" + END,
    b"--X-1\r\nContent-Disposition: form-data; name=model\r\nX: " + b"y" * 5000 + b"\r\n\r\nm\r\n" + END,
    part("x", b"") * MOST_PARTS + part("model", b"m") + END,
]


@pytest.mark.parametrize("content_type", BAD_TYPES)
def test_a_content_type_without_one_plain_boundary_is_refused(content_type: bytes) -> None:
    with pytest.raises(BadBody, match="The body"):
        read_body(AUDIO, content_type, FORM)
    with pytest.raises(BadBody, match="The body"):
        with_model(AUDIO, content_type, FORM, "m")


@pytest.mark.parametrize("body", BAD_FORMS, ids=range(len(BAD_FORMS)))
def test_a_form_that_can_not_be_read_in_one_way_only_is_refused(body: bytes) -> None:
    with pytest.raises(BadBody, match="The body"):
        read_body(AUDIO, TYPE, body)


NAMES = st.sampled_from(["model", "file", "a b", 'with "quotes"', "back\\slash", "ö"])


@given(parts=st.lists(st.tuples(NAMES, st.binary(max_size=100)), max_size=8), cut=st.integers(0, 2000))
def test_fields_come_out_as_they_went_in_and_no_cut_form_is_taken_for_whole(
    parts: list[tuple[str, bytes]], cut: int
) -> None:
    parts = [(name, data.replace(b"--X-1", b"")) for name, data in parts]
    body = b"".join(part(name.replace("\\", "\\\\").replace('"', '\\"'), data) for name, data in parts) + END
    fields = read_fields(TYPE, body) if parts else []
    assert [(field.name.decode(), body[field.start : field.end]) for field in fields] == parts
    if fields:
        again = with_value(body, fields, b"model", b"new")
        assert [name for name, *_ in read_fields(TYPE, again)] == [name for name, *_ in fields]
    if cut < len(body) - 2:
        with pytest.raises(BadForm):
            read_fields(TYPE, body[:cut])


ALPHABET = st.sampled_from(
    [b"--X-1", b"\r\n", b"--", b"\r", b"\n", b":", b";", b'"', b"name=", b"model", b" ", b"=", b"\\"]
)
HEAD = st.sampled_from([b'Content-Disposition: form-data; name="model"\r\n\r\n', b"Content-Disposition: form-data;"])


@given(st.lists(ALPHABET | HEAD | st.binary(max_size=3), max_size=40))
def test_any_bytes_are_read_or_refused(pieces: list[bytes]) -> None:
    for body in (b"".join(pieces), b"--X-1" + b"".join(pieces)):
        try:
            fields = read_fields(TYPE, body)
            value(body, fields, b"model")
        except BadForm:
            continue
        assert all(0 <= field.start <= field.end <= len(body) for field in fields)
