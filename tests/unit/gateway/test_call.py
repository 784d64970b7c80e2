from __future__ import annotations

import pytest

from stokerd.gateway.bodies import Asked, BadBody, read_body
from stokerd.gateway.call import Call, trace_id
from stokerd.gateway.request import Request
from stokerd.gateway.sender import caller_name
from stokerd.gateway.surface import ENDPOINTS

TRACE = b"4bf92f3577b34da6a3ce929d0e0e4736"


def call_of(body: bytes, path: bytes = b"/v1/chat/completions", **noted: bytes) -> Call:
    request = Request(0.0)
    request.target, request.body = path + b"?q=1", body
    request.noted = {name.replace("_", "-").encode(): value for name, value in noted.items()}
    request.lines = [b"A: 1\r\n", b"X-Hop: 2\r\n"]
    endpoint = ENDPOINTS[path]
    try:
        asked = read_body(endpoint, request.noted.get(b"content-type", b""), body)
    except BadBody:
        asked = Asked("m")
    return Call(request, endpoint, asked, None)


def test_a_caller_is_known_by_session_then_user_then_key() -> None:
    user = b'{"model": "m", "user": "me"}'
    assert call_of(user, x_stoker_session=b"session", authorization=b"Bearer key").caller == b"session"
    assert call_of(user, authorization=b"Bearer key").caller == b"me"
    assert call_of(b"{}", authorization=b"bearer key", x_api_key=b"other").caller == b"key"
    assert call_of(b"{}", x_api_key=b"other").caller == b"other"
    assert call_of(b"{}", authorization=b"Basic abc", x_api_key=b"other").caller == b"other"
    assert call_of(b'{"model": "m", "user": "\\ud800"}').caller is not None
    for body, headers in ((b"{}", b"Basic abc"), (b'{"model": "m", "user": ""}', b"")):
        assert call_of(body, authorization=headers).caller is None


def test_a_placeholder_instead_of_a_key_names_nobody() -> None:
    for placeholder in (b"EMPTY", b"none", b"-", b"", b"dummy"):
        assert call_of(b"{}", authorization=b"Bearer " + placeholder, x_api_key=placeholder).caller is None


def test_records_tell_callers_apart_without_their_names() -> None:
    assert len({caller_name(b"%d" % i) for i in range(100)}) == 100
    assert "secret" not in caller_name(b"secret")
    assert call_of(b"{}").caller_name == ""


def test_turns_of_a_conversation_belong_together() -> None:
    first = b'{"model": "m", "messages": [{"role": "user", "content": "a"}]}'
    second = first[:-2] + b', {"role": "assistant", "content": "b"}, {"role": "user", "content": "c"}]}'
    assert call_of(first).affinity == call_of(second).affinity != call_of(first.replace(b'"a"', b'"x"')).affinity
    assert call_of(first, x_stoker_session=b"s").affinity == call_of(b"{}", x_stoker_session=b"s").affinity
    assert call_of(b"{}").affinity == 0


@pytest.mark.parametrize(
    ("header", "trace"),
    [
        (b"00-" + TRACE + b"-00f067aa0ba902b7-01", TRACE.decode()),
        (b"cc-" + TRACE + b"-00f067aa0ba902b7-01-what-comes-later", TRACE.decode()),
        (b"00-" + b"0" * 32 + b"-00f067aa0ba902b7-01", ""),
        (b"00-" + TRACE.upper() + b"-00f067aa0ba902b7-01", ""),
        (b"00-" + TRACE[:31] + b"-00f067aa0ba902b7-01", ""),
        (b"00-" + TRACE, ""),
        (b"", ""),
        (b"nonsense", ""),
    ],
)
def test_a_trace_is_known_by_its_id(header: bytes, trace: str) -> None:
    assert trace_id(header) == trace
    assert call_of(b"{}", traceparent=header).trace == trace


def test_the_body_is_sent_as_it_came_but_for_the_models_name() -> None:
    body = b'{"messages" : [],  "model":"small@2", "x": "model"}'
    call = call_of(body, host=b"h", connection=b"x-hop")
    head, sent = call.addressed_to("small@2")
    assert sent is body
    assert head == b"POST /v1/chat/completions?q=1 HTTP/1.1\r\nhost: h\r\nA: 1\r\ncontent-length: %d\r\n\r\n" % len(
        body
    )
    head, sent = call.addressed_to("m-v2")
    assert sent == body.replace(b"small@2", b"m-v2")
    assert b"content-length: %d\r\n" % len(sent) in head
    assert call.body is body


def test_a_form_is_sent_with_another_model_too() -> None:
    form = b'--b\r\nContent-Disposition: form-data; name="model"\r\n\r\nwhisper\r\n--b--\r\n'
    call = call_of(form, b"/v1/audio/transcriptions", content_type=b"multipart/form-data; boundary=b")
    assert call.conversation == b""
    assert call.addressed_to("w-v1")[1] == form.replace(b"whisper", b"w-v1")


def test_what_a_request_costs_grows_with_its_body_and_its_bound() -> None:
    small, large = call_of(b'{"model": "m"}'), call_of(b'{"model": "m", "max_tokens": 900, "x": "%b"}' % (b"y" * 4000))
    assert small.tokens < 300 < large.tokens
    assert large.prompt_tokens > 1000
