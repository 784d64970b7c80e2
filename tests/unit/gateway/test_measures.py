from __future__ import annotations

import json
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stokerd.gateway.measures import MAX_REASON, TAIL_BYTES, Meter, StreamMeter, read_usage

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
    assert (meter.events, meter.size) == (5, len(whole))
    assert (meter.tokens(), meter.finish_reason) == ((11, 3), "stop")
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
    assert sum(map(len, meter._tail)) <= 2 * TAIL_BYTES + 1000


def test_embeddings_have_no_completion_tokens() -> None:
    assert feed(Meter(), b'{"usage":{"prompt_tokens":5,"total_tokens":5}}').tokens() == (5, None)


def finish(meter: Meter, *pieces: bytes) -> str:
    return feed(meter, *pieces).finish_reason


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        ({"choices": [{"finish_reason": "stop"}, {"finish_reason": "length"}]}, "stop"),
        ({"choices": [{"index": 0, "text": "x", "finish_reason": "length", "stop_reason": None}]}, "length"),
        ({"choices": [{"finish_reason": "stop", "message": {"content": "", "stop_reason": "x"}}]}, "stop"),
        ({"type": "message", "content": [{"input": {"finish_reason": "x"}}], "stop_reason": "end_turn"}, "end_turn"),
        ({"object": "response", "status": "completed", "incomplete_details": None}, "completed"),
        ({"object": "response", "status": "incomplete", "incomplete_details": {"reason": "max_output_tokens"}}, "max_"),
        ({"object": "list", "data": [], "status": "completed"}, ""),
        ({"object": "error", "message": "no"}, ""),
        ({"choices": [{"finish_reason": "x" * 1000}]}, "x" * 40),
        ([], ""),
    ],
)
def test_a_whole_answer_tells_how_it_ended(answer: Any, reason: str) -> None:
    assert finish(Meter(), json.dumps(answer).encode()).startswith(reason)
    assert bool(finish(Meter(), json.dumps(answer).encode())) == bool(reason)


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        ({"x": "y" * TAIL_BYTES, "choices": [{"finish_reason": "stop", "stop_reason": None}]}, "stop"),
        ({"x": "y" * TAIL_BYTES, "stop_reason": "end_turn", "stop_sequence": None}, "end_turn"),
        ({"x": "y" * TAIL_BYTES, "status": "completed"}, "completed"),
        ({"choices": [{"message": {"content": '"finish_reason":"no" ' * 9999}, "finish_reason": "length"}]}, "length"),
    ],
)
def test_a_large_answer_tells_how_it_ended_by_its_tail(answer: Any, reason: str) -> None:
    assert finish(Meter(), json.dumps(answer).encode()) == reason


def test_a_chat_stream_tells_how_its_first_choice_ended() -> None:
    assert finish(StreamMeter(CHAT), OPENING, delta(content="a"), CLOSING, USAGE, DONE) == "stop"
    assert finish(StreamMeter(CHAT), OPENING, delta(content="a")) == ""
    other = event({"choices": [{"index": 1, "delta": {"content": ""}, "finish_reason": "length"}]})
    assert finish(StreamMeter(CHAT), CLOSING, other, USAGE, DONE) == "stop"
    assert finish(StreamMeter(CHAT), other, USAGE, DONE) == "length"
    assert finish(StreamMeter(CHAT), delta(content='"finish_reason": "no"'), DONE) == ""


def anthropic(kind: str, **fields: Any) -> bytes:
    return f"event: {kind}\n".encode() + event({"type": kind, **fields})


def test_anthropics_streams_are_understood() -> None:
    block = {"index": 0, "content_block": {"type": "text", "text": ""}}
    pieces = [
        anthropic("message_start", message={"role": "assistant", "usage": {"input_tokens": 25, "output_tokens": 1}}),
        anthropic("content_block_start", **block),
        anthropic("ping"),
        anthropic("content_block_delta", index=0, delta={"type": "text_delta", "text": "Hi"}),
        anthropic("content_block_delta", index=0, delta={"type": "input_json_delta", "partial_json": "{}"}),
        anthropic("content_block_stop", index=0),
        anthropic("message_delta", delta={"stop_reason": "end_turn"}, usage={"output_tokens": 15}),
        anthropic("message_stop"),
    ]
    meter = StreamMeter(b"/v1/messages")
    feed(meter, *pieces)
    assert (meter.first, meter.events, meter.tokens(), meter.finish_reason) == (4.0, 2, (25, 15), "end_turn")
    assert not meter.has_error
    broken = feed(StreamMeter(b"/v1/messages"), *pieces[:4], anthropic("error", error={"type": "overloaded_error"}))
    assert broken.has_error
    assert broken.tokens() == (25, 1)


@pytest.mark.parametrize("is_named", [True, False])
@pytest.mark.parametrize(
    ("ending", "details", "reason"),
    [
        ("completed", None, "completed"),
        ("incomplete", {"reason": "max_output_tokens"}, "max_output_tokens"),
        ("incomplete", None, "incomplete"),
        ("completed", {"reason": "max_output_tokens"}, "max_output_tokens"),
        ("failed", None, "failed"),
    ],
)
def test_responses_tell_how_they_ended(is_named: bool, ending: str, details: Any, reason: str) -> None:
    def named(kind: str, **fields: Any) -> bytes:
        return (f"event: {kind}\n".encode() if is_named else b"") + event({**fields, "type": kind})

    item = named("response.output_item.done", item={"status": "completed"})
    last = {"incomplete_details": details, "output": ["x" * 2 * TAIL_BYTES], "status": ending}
    meter = StreamMeter(b"/v1/responses")
    feed(meter, named("response.output_text.delta", delta="x"), item)
    assert meter.told().finish_reason == ""
    meter = StreamMeter(b"/v1/responses")
    feed(meter, named("response.output_text.delta", delta="x"), item, named(f"response.{ending}", response=last))
    assert (meter.finish_reason, meter.has_error) == (reason, ending == "failed")


def test_a_failed_response_says_so_with_its_keys_in_any_order() -> None:
    meter = feed(StreamMeter(b"/v1/responses"), event({"type": "response.failed", "response": {"status": "failed"}}))
    assert (meter.finish_reason, meter.has_error) == ("failed", True)


def test_an_error_event_is_seen_in_responses_as_well() -> None:
    assert feed(StreamMeter(b"/v1/responses"), b"event: error\r\n", b'data: {"code":"x","type":"error"}\r\n').has_error


def test_the_longest_gap_is_the_engines_own() -> None:
    meter = StreamMeter(CHAT)
    assert meter.max_gap_seconds is None
    meter.held(50.0)
    meter.feed(delta(content="a"), 60.0)
    assert meter.max_gap_seconds is None
    for now in (61.0, 64.0, 64.5):
        meter.feed(delta(content="b"), now)
    assert meter.max_gap_seconds == 3.0
    meter.held(100.0)
    meter.feed(delta(content="c"), 166.0)
    meter.feed(delta(content="d"), 167.0)
    meter.held(7.0)  # after the last token: counts for nothing
    assert meter.max_gap_seconds == 3.0
    assert meter.inter_token_seconds == pytest.approx(7.0 / 5)


@given(st.lists(st.binary(min_size=1, max_size=300)))
def test_any_bytes_can_be_metered(pieces: list[bytes]) -> None:
    for meter in (Meter(), StreamMeter(CHAT), StreamMeter(b"/v1/responses"), StreamMeter(b"/v1/messages")):
        feed(meter, *pieces)
        assert meter.size == sum(map(len, pieces))
        assert len(meter.finish_reason) <= MAX_REASON
        meter.tokens()


def test_a_line_that_never_ends_is_not_kept() -> None:
    meter = StreamMeter(CHAT)
    for i in range(40):
        meter.feed(b"x" * 65536, float(i))
    assert len(meter._carry) <= 1 << 20
