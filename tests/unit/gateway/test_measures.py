from __future__ import annotations

import json
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stokerd.gateway.measures import TAIL_BYTES, Meter, StreamMeter, read_usage

CHAT = b"/v1/chat/completions"


def event(data: Any) -> bytes:
    return b"data: " + (data.encode() if isinstance(data, str) else json.dumps(data).encode()) + b"\n\n"


def delta(**fields: Any) -> bytes:
    return event({"object": "chat.completion.chunk", "choices": [{"index": 0, "delta": fields, "logprobs": None}]})


OPENING = delta(role="assistant", content="")
CLOSING = event({"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]})
USAGE = event({"choices": [], "usage": {"prompt_tokens": 11, "total_tokens": 14, "completion_tokens": 3}})
DONE = event("[DONE]")


def feed(meter: Meter, *pieces: bytes) -> Meter:
    for time, piece in enumerate(pieces, start=1):
        meter.feed(piece, float(time))
    return meter


def test_the_first_token_is_the_first_event_with_content() -> None:
    meter = StreamMeter(CHAT)
    feed(meter, OPENING, b": ping\n\n", delta(content="a"), delta(content="b"), delta(content="c"), CLOSING, DONE)
    assert meter.first == 3.0
    assert meter.inter_token_seconds == 1.0
    assert meter.tokens() == (None, 3)


def test_a_stream_without_content_has_its_first_byte_as_first_token() -> None:
    meter = StreamMeter(CHAT)
    feed(meter, OPENING, CLOSING, DONE)
    assert (meter.first, meter.inter_token_seconds, meter.tokens()) == (1.0, None, (None, 0))


def test_usage_is_believed_over_counting() -> None:
    assert feed(StreamMeter(CHAT), OPENING, delta(content="several tokens at once"), USAGE, DONE).tokens() == (11, 3)


def test_a_null_usage_after_the_real_one_is_passed_over() -> None:
    assert read_usage(b'{"usage":{"prompt_tokens":1,"completion_tokens":2}} {"usage": null}') == (1, 2)


def test_words_in_a_text_are_not_taken_for_keys() -> None:
    text = json.dumps({"choices": [{"delta": {"content": '"usage": {"prompt_tokens": 99}, "error": {"a": 1}'}}]})
    meter = feed(StreamMeter(CHAT), event(text))
    assert meter.tokens() == (None, 1)
    assert not meter.has_error


TOOL_CALL = {"tool_calls": [{"index": 0, "function": {"name": "f", "arguments": ""}}]}
TEXTS = [{name: "x"} for name in ("content", "reasoning_content", "reasoning", "refusal")]


@pytest.mark.parametrize("fields", [*TEXTS, {"content": '"'}, TOOL_CALL])
def test_every_kind_of_content_counts(fields: dict[str, Any]) -> None:
    assert feed(StreamMeter(CHAT), delta(**fields)).tokens() == (None, 1)


def test_completions_stream_text() -> None:
    pieces = [event({"choices": [{"index": 0, "text": t, "logprobs": None}]}) for t in ("a", "", "b")]
    assert feed(StreamMeter(b"/v1/completions"), *pieces).tokens() == (None, 2)


def test_responses_stream_deltas_and_repeat_the_text_at_the_end_for_nothing() -> None:
    def named(kind: str, **fields: Any) -> bytes:
        return f"event: {kind}\n".encode() + event({"type": kind, **fields})

    pieces = [named("response.created"), named("response.output_text.delta", delta="a", text="x")]
    pieces += [named("response.output_text.delta", delta="b"), named("response.output_text.done", text="ab")]
    pieces += [named("response.completed", response={"usage": {"input_tokens": 4, "output_tokens": 9}})]
    meter = StreamMeter(b"/v1/responses")
    feed(meter, *pieces)
    assert (meter.first, meter.events, meter.tokens()) == (2.0, 2, (4, 9))


@pytest.mark.parametrize("error", [{"error": {"message": "x"}}, {"type": "error"}, {"type": "response.failed"}])
def test_a_stream_that_says_it_failed_is_seen(error: Any) -> None:
    assert feed(StreamMeter(CHAT), OPENING, delta(content="a"), event(error)).has_error
    assert not feed(StreamMeter(CHAT), event({"error": None, "choices": []})).has_error


@given(cuts=st.lists(st.integers(0, 2000), max_size=30), uses_crlf=st.booleans())
def test_where_the_network_cuts_a_stream_changes_no_count(cuts: list[int], uses_crlf: bool) -> None:
    whole = OPENING + b"".join(delta(content=f"wörd {i}") for i in range(5)) + CLOSING + USAGE + DONE
    if uses_crlf:
        whole = whole.replace(b"\n", b"\r\n")
    edges = sorted({0, len(whole), *(c for c in cuts if c < len(whole))})
    pieces = [whole[a:b] for a, b in pairwise(edges)]
    meter = StreamMeter(CHAT)
    feed(meter, *pieces)
    assert meter.events == 5
    assert meter.tokens() == (11, 3)
    assert not meter.has_error


def test_time_that_the_client_held_the_stream_up_is_not_the_engines() -> None:
    meter = StreamMeter(CHAT)
    meter.held(5.0)  # before the first token: counts for nothing
    meter.feed(delta(content="a"), 1.0)
    meter.feed(delta(content="b"), 2.0)
    meter.held(8.0)
    meter.feed(delta(content="c"), 11.0)
    assert meter.inter_token_seconds == pytest.approx(1.0)


def test_a_whole_answer_has_its_usage_read_from_its_tail() -> None:
    answer = json.dumps({"data": "x" * 100_000, "usage": {"prompt_tokens": 5, "completion_tokens": 6}}).encode()
    meter = feed(Meter(), *(answer[i : i + 1000] for i in range(0, len(answer), 1000)))
    assert (meter.first, meter.tokens()) == (1.0, (5, 6))
    assert sum(map(len, meter._tail)) <= TAIL_BYTES + 1000


def test_embeddings_have_no_completion_tokens() -> None:
    assert feed(Meter(), b'{"usage":{"prompt_tokens":5,"total_tokens":5}}').tokens() == (5, None)


@given(st.lists(st.binary(min_size=1, max_size=300)))
def test_any_bytes_can_be_metered(pieces: list[bytes]) -> None:
    for meter in (Meter(), StreamMeter(CHAT), StreamMeter(b"/v1/responses")):
        feed(meter, *pieces).tokens()


def test_a_line_that_never_ends_is_not_kept() -> None:
    meter = StreamMeter(CHAT)
    for i in range(40):
        meter.feed(b"x" * 65536, float(i))
    assert len(meter._carry) <= 1 << 20
