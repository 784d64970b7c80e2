from __future__ import annotations

import json
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stokerd.gateway import shadows
from stokerd.gateway.shadows import (
    BATCH_BYTES,
    PAIR_BYTES,
    QUESTION_BODY_BYTES,
    QUESTION_CHARACTERS,
    TEXT_BYTES,
    Pair,
    Pairs,
    Side,
)
from stokerd.gateway.wire import PairBatch, parse_pairs


def event(data: Any) -> bytes:
    return b"data: " + json.dumps(data, ensure_ascii=False).encode() + b"\n\n"


def open_pair(pairs: Pairs, path: str = "/v1/chat/completions") -> Pair:
    return pairs.open(time=1.5, deployment="chat", rollout="r", path=path, caller="c0ffee")


def close(side: Side, version: int = 1, **changes: Any) -> None:
    told: dict[str, Any] = {"version": version, "status": 200, "is_error": False, "finish_reason": "stop"}
    told |= {"ttft_seconds": 0.1, "total_seconds": 0.5, "completion_tokens": 3}
    side.close(**{**told, **changes})


def whole_pair(pairs: Pairs, text: bytes = b"x") -> None:
    pair = open_pair(pairs)
    for version, side in enumerate((pair.stable, pair.shadow), start=1):
        side.feed(text, False)
        close(side, version)


def read(pairs: Pairs) -> PairBatch:
    return parse_pairs(json.loads(pairs.batch()))


def test_a_pair_comes_out_when_both_answers_have_ended_whichever_was_first() -> None:
    pairs = Pairs("e")
    for first, second in (("stable", "shadow"), ("shadow", "stable")):
        pair = open_pair(pairs)
        for name in (first, second):
            assert not read(pairs).pairs
            side: Side = getattr(pair, name)
            side.feed(name.encode(), False)
            close(side, 1 if name == "stable" else 2, status=200 if name == "stable" else 500)
        (got,) = read(pairs).pairs
        assert (got.time, got.deployment, got.rollout, got.caller) == (1.5, "chat", "r", "c0ffee")
        assert (got.stable.text, got.stable.version, got.stable.status) == ("stable", 1, 200)
        assert (got.shadow.text, got.shadow.version, got.shadow.status) == ("shadow", 2, 500)
        pairs.acknowledge("e", got.seq)
    assert (len(pairs), pairs.held_bytes, pairs.dropped) == (0, 0, 0)


def chat(**delta: Any) -> Any:
    return {"choices": [{"index": 1, "delta": {"content": "no"}}, {"index": 0, "delta": delta}]}


STREAMS = [
    (
        [chat(role="assistant", content=""), chat(content="Hé"), chat(reasoning_content="no"), chat(content="y ✓")],
        "Héy ✓",
    ),
    ([chat(tool_calls=[{"function": {"name": "f"}}]), chat(tool_calls=[{"function": {"arguments": "{}"}}])], "f{}"),
    ([{"choices": [{"index": 0, "text": "a"}]}, {"choices": [{"index": 0, "text": "b"}]}, {"choices": []}], "ab"),
    (
        [
            {"type": "response.reasoning_text.delta", "delta": "no"},
            {"type": "response.output_text.delta", "delta": "yes"},
            {"type": "response.output_text.done", "text": "yes"},
            {"type": "response.completed", "response": {"output": [{"content": [{"text": "yes"}]}]}},
        ],
        "yes",
    ),
    (
        [
            {"type": "message_start", "message": {"content": []}},
            {"type": "content_block_delta", "delta": {"type": "thinking_delta", "thinking": "no"}},
            {"type": "content_block_delta", "delta": {"type": "text_delta", "text": "yes "}},
            {"type": "content_block_start", "content_block": {"type": "tool_use", "name": "f", "input": {}}},
            {"type": "content_block_delta", "delta": {"type": "input_json_delta", "partial_json": "{}"}},
            {"type": "message_delta", "delta": {"stop_reason": "tool_use"}, "usage": {"output_tokens": 2}},
        ],
        "yes f{}",
    ),
]


@pytest.mark.parametrize("stream", STREAMS, ids=range(len(STREAMS)))
@given(cuts=st.lists(st.integers(0, 2000), max_size=20))
def test_a_stream_says_the_same_wherever_it_is_cut(stream: tuple[list[Any], str], cuts: list[int]) -> None:
    sent, text = stream
    whole = b": ping\n\n" + b"".join(event(data) for data in sent) + b"data: [DONE]\n\n"
    pairs = Pairs("e")
    pair = open_pair(pairs)
    for a, b in pairwise(sorted({0, len(whole), *(c for c in cuts if c < len(whole))})):
        pair.stable.feed(whole[a:b], True)
    close(pair.stable)
    close(pair.shadow)
    (got,) = read(pairs).pairs
    assert (got.stable.text, got.stable.is_cut) == (text, False)


@pytest.mark.parametrize(
    ("answer", "text"),
    [
        ({"choices": [{"message": {"content": "yes", "reasoning": "no"}}, {"message": {"content": "no"}}]}, "yes"),
        ({"choices": [{"message": {"content": None, "tool_calls": [{"function": {"name": "f"}}]}}]}, "f"),
        ({"choices": [{"text": "yes"}]}, "yes"),
        (
            {"type": "message", "content": [{"type": "text", "text": "yes"}, {"name": "f", "input": {"a": 1}}]},
            'yesf{"a": 1}',
        ),
        ({"output": [{"type": "reasoning", "content": [{"text": "no"}]}, {"content": [{"text": "yes"}]}]}, "yes"),
        ({"data": [{"embedding": [1.0]}]}, '{"data": [{"embedding": [1.0]}]}'),
        ({"error": {"message": "no"}}, '{"error": {"message": "no"}}'),
    ],
)
def test_of_a_whole_answer_what_it_says_is_kept(answer: Any, text: str) -> None:
    pairs = Pairs("e")
    pair = open_pair(pairs)
    body = json.dumps(answer).encode()
    pair.stable.feed(body[:7], False)
    pair.stable.feed(body[7:], False)
    close(pair.stable)
    close(pair.shadow)
    assert read(pairs).pairs[0].stable.text == text


def test_long_answers_are_cut_and_say_so() -> None:
    pairs = Pairs("e")
    pair = open_pair(pairs)
    for _ in range(100):
        pair.stable.feed(event(chat(content="ab✓" * 1000)), True)
        pair.shadow.feed(b"x" * 10_000, False)
    assert pairs.held_bytes == 2 * TEXT_BYTES
    close(pair.stable)
    close(pair.shadow)
    (got,) = read(pairs).pairs
    assert (got.stable.is_cut, got.shadow.is_cut) == (True, True)
    assert len(got.stable.text.encode()) <= TEXT_BYTES + 2
    assert got.shadow.text == "x" * TEXT_BYTES
    assert pairs.dropped == 0


def test_a_line_that_never_ends_is_not_kept() -> None:
    side = open_pair(Pairs("e")).stable
    for _ in range(40):
        side.feed(b"x" * 65536, True)
    assert len(side._carry) <= TEXT_BYTES + 65536


def test_what_has_no_other_half_is_forgotten_without_being_counted() -> None:
    pairs = Pairs("e")
    pair = open_pair(pairs)
    pair.stable.feed(b"x" * 100, False)
    pair.shadow.drop()
    pair.stable.feed(b"x" * 100, False)
    close(pair.stable)
    close(pair.shadow)
    pair.drop()
    assert (len(pairs), pairs.held_bytes, pairs.dropped) == (0, 0, 0)


def test_whole_pairs_make_room_for_new_ones_and_are_counted() -> None:
    pairs = Pairs("e", 10 * (PAIR_BYTES + 2000))
    for _ in range(30):
        whole_pair(pairs, b"x" * 1000)
    assert len(pairs) + pairs.dropped == 30
    assert len(pairs) >= 9
    assert [pair.seq for pair in read(pairs).pairs][-1] == 30


def test_without_room_for_what_is_on_its_way_a_pair_is_given_up_and_counted() -> None:
    pairs = Pairs("e", 5000)
    first, second = open_pair(pairs), open_pair(pairs)
    first.stable.feed(b"x" * 3000, False)
    second.stable.feed(b"x" * 3000, False)
    assert (pairs.held_bytes, pairs.dropped) == (3000, 1)
    close(second.stable)
    close(second.shadow)
    assert len(pairs) == 0
    first.shadow.feed(b"x", False)
    close(first.stable)
    close(first.shadow)
    assert (len(pairs), pairs.dropped) == (1, 1)


def test_a_batch_is_bounded() -> None:
    pairs = Pairs("e")
    whole_pair(pairs, b"x" * TEXT_BYTES)
    assert pairs.patience > 0
    for _ in range(29):
        whole_pair(pairs, b"x" * TEXT_BYTES)
    assert pairs.patience == 0.0, "a reader who waits needn't wait for more"
    assert 0 < len(pairs.batch()) <= BATCH_BYTES * 1.2
    assert len(read(pairs).pairs) < len(pairs)


def question(asked: Any, path: str = "/v1/chat/completions", *, is_short: bool = False) -> str:
    """What is kept of a request as its question; *is_short*: other pairs hold most of the memory."""
    pairs = Pairs("e", 100_000)
    other = open_pair(pairs)
    other.stable.feed(b"x" * 60_000 * is_short, False)
    pair = open_pair(pairs, path)
    pair.ask(asked if isinstance(asked, bytes) else json.dumps(asked).encode())
    close(pair.stable)
    close(pair.shadow)
    (got,) = read(pairs).pairs
    other.drop()
    pairs.acknowledge("e", got.seq)
    assert pairs.held_bytes == 0
    return got.question


def user(content: Any) -> Any:
    return {"role": "user", "content": content}


TALK = [{"role": "system", "content": "no"}, user("no"), {"role": "assistant", "content": "no"}, user("Héy ✓?")]
IMAGE = {"type": "image_url", "image_url": {"url": "data:"}}


@pytest.mark.parametrize(
    ("asked", "path", "text"),
    [
        ({"messages": TALK}, "/v1/chat/completions", "Héy ✓?"),
        ({"messages": [*TALK, {"role": "tool", "content": "no"}]}, "/v1/chat/completions", "Héy ✓?"),
        (
            {"messages": [user([{"type": "text", "text": "a"}, IMAGE, {"type": "text", "text": "b"}])]},
            "/v1/chat/completions",
            "a\nb",
        ),
        (
            {"system": "no", "messages": [*TALK, user([{"type": "tool_result", "content": "no"}])]},
            "/v1/messages",
            "Héy ✓?",
        ),
        ({"prompt": "Once"}, "/v1/completions", "Once"),
        ({"prompt": ["Once", "Twice"]}, "/v1/completions", "Once"),
        ({"prompt": [1, 2, 3]}, "/v1/completions", ""),
        ({"input": "yes", "instructions": "no"}, "/v1/responses", "yes"),
        (
            {"input": [user("no"), user([{"type": "input_text", "text": "yes"}]), {"type": "function_call_output"}]},
            "/v1/responses",
            "yes",
        ),
        ({"input": "no"}, "/v1/embeddings", ""),
        ({"input": ["no"]}, "/v1/embeddings", ""),
        ({"messages": [{"role": "system", "content": "no"}]}, "/v1/chat/completions", ""),
        ({"messages": [user(None), user(5)]}, "/v1/chat/completions", ""),
        ({"messages": "no"}, "/v1/chat/completions", ""),
        (b'{"messages": [{"role": "user", "content": "\\ud800"}]}', "/v1/chat/completions", ""),
        (b"[" * 100_000, "/v1/chat/completions", ""),
        (b"--x\r\n", "/v1/audio/transcriptions", ""),
        (b"", "/v1/chat/completions", ""),
    ],
)
@pytest.mark.parametrize("is_short", [False, True])
def test_what_was_asked_is_kept_with_its_answers(asked: Any, path: str, text: str, is_short: bool) -> None:
    assert question(asked, path, is_short=is_short) == text


def test_a_worker_of_an_earlier_version_sends_no_question() -> None:
    pairs = Pairs("e")
    whole_pair(pairs)
    sent = json.loads(pairs.batch())
    del sent["pairs"][0]["question"]
    assert parse_pairs(sent).pairs[0].question == ""


def test_of_a_long_question_its_two_ends_are_kept() -> None:
    half = QUESTION_CHARACTERS // 2
    asked = "✓" * half + "no" * 10_000 + "é" * half
    assert question({"prompt": asked}) == "✓" * half + " […] " + "é" * half
    assert question({"prompt": "é" * QUESTION_CHARACTERS}) == "é" * QUESTION_CHARACTERS
    assert question({"prompt": "yes", "pad": "x" * QUESTION_BODY_BYTES}) == ""


def test_a_request_is_not_read_before_both_answers_are_there_unless_memory_is_short(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    decoded: list[object] = []
    decode = shadows._decode_asked

    def note(body: bytes) -> object:
        decoded.append(body)
        return decode(body)

    monkeypatch.setattr(shadows, "_decode_asked", note)
    asked = json.dumps({"prompt": "yes", "pad": "x" * 1000}).encode()
    pairs = Pairs("e", 10_000)
    kept, gone = open_pair(pairs), open_pair(pairs)
    for pair in (kept, gone):
        pair.ask(asked)
    assert pairs.held_bytes == 2 * len(asked)
    close(kept.stable)
    gone.drop()
    gone.ask(asked)
    assert (len(decoded), pairs.held_bytes) == (0, len(asked))
    close(kept.shadow)
    assert len(decoded) == 1
    short = Pairs("e", 1000)
    open_pair(short).ask(asked)
    assert (len(decoded), short.held_bytes) == (2, len("yes"))


STEPS = st.lists(st.tuples(st.integers(0, 3), st.sampled_from(["feed", "close", "drop", "read", "ask"]), st.booleans()))


@given(bound=st.integers(0, 8000), steps=STEPS, is_stream=st.booleans())
def test_memory_stays_within_its_bound_and_is_all_given_back(bound: int, steps: Any, is_stream: bool) -> None:
    pairs = Pairs("e", bound)
    open_ones = [open_pair(pairs) for _ in range(4)]
    asked: set[int] = set()
    for index, step, is_shadow in steps:
        side = open_ones[index].shadow if is_shadow else open_ones[index].stable
        match step:
            case "ask" if index not in asked:
                asked.add(index)
                open_ones[index].ask(json.dumps({"prompt": "x" * 700, "pad": "x" * 700 * is_stream}).encode())
            case "feed":
                side.feed(event(chat(content="x" * 700)), is_stream)
            case "close" if side.answer is None:
                close(side)
            case "drop":
                side.drop()
            case "read":
                got = read(pairs).pairs
                pairs.acknowledge("e", got[-1].seq if got else 0)
        assert 0 <= pairs.held_bytes <= bound
    for pair in open_ones:
        pair.drop()
    pairs.acknowledge("e", 1 << 60)
    assert pairs.held_bytes == 0


@given(st.lists(st.binary(max_size=200)), st.booleans())
def test_any_bytes_can_be_fed(pieces: list[bytes], is_stream: bool) -> None:
    pairs = Pairs("e")
    pair = open_pair(pairs)
    for piece in pieces:
        pair.stable.feed(piece, is_stream)
    close(pair.stable)
    close(pair.shadow)
    assert len(read(pairs).pairs) == 1
