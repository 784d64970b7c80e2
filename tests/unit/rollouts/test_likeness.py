from __future__ import annotations

import base64
import json
import math
import re
import struct
from dataclasses import replace
from itertools import product
from time import perf_counter
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stoker.types.rollouts import Judge
from stokerd.gateway.wire import PairedAnswer, ShadowPair
from stokerd.rollouts.likeness import (
    MOST_CHARACTERS,
    Opinion,
    Unreadable,
    at_sight,
    is_drawn,
    judge_messages,
    judged,
    likeness_of_vectors,
    likeness_of_words,
    opinion,
    vectors,
)

texts = st.text(max_size=60)
numbers = st.floats(-1e3, 1e3)
ROWS: list[Any] = ["?", "YQ==", None, [None], ["x"], {}]


def pair(stable: str, shadow: str, *, path: str = "/v1/chat/completions", seq: int = 1, **fields: Any) -> ShadowPair:
    answer = PairedAnswer(6, 200, False, "stop", 0.1, 1.0, 3, stable, False)
    other = replace(answer, version=7, text=shadow, **fields)
    return ShadowPair(seq, 1000.0, "chat", "r", path, "caller", answer, other)


def embeddings(*rows: object) -> str:
    return json.dumps({"id": "x", "data": [{"index": i, "embedding": row} for i, row in enumerate(rows)]})


@given(texts, texts)
def test_likeness_of_words_is_between_nothing_and_the_same_and_has_no_side(a: str, b: str) -> None:
    likeness = likeness_of_words(a, b)
    assert 0 <= likeness <= 1
    assert likeness == likeness_of_words(b, a)
    assert likeness_of_words(a, a) == 1


@pytest.mark.parametrize(
    ("a", "b", "likeness"),
    [
        ("Paris is the capital.", "paris  is the\ncapital.", 1.0),
        ("yes", "no", 0.0),
        ("", "", 1.0),
        ("", "word", 0.0),
        # 4 of 4 words, 3 of 5 pairs (with the edges) in another order
        ("the cat sat down", "down the cat sat", (1 + 2 / 5) / 2),
        # 3 of 4 words (2·3/(4+4)), 3 of 5 pairs
        ("the cat sat down", "the cat sat up", (3 / 4 + 3 / 5) / 2),
        ("ﬁne", "fine", 1.0),
        ("東京都", "東京市", (2 / 3 + 2 / 4) / 2),
    ],
)
def test_likeness_of_words_by_hand(a: str, b: str, likeness: float) -> None:
    assert likeness_of_words(a, b) == pytest.approx(likeness)


def test_a_small_change_is_more_alike_than_a_large_one() -> None:
    said = "The train to Basel leaves at nine from platform four, and arrives at ten."
    near = "The train to Basel leaves at nine from platform five, and arrives at ten."
    far = "I am sorry, but I have no timetable of trains in Switzerland."
    assert likeness_of_words(said, near) > 0.85 > 0.25 > likeness_of_words(said, far)


def test_long_answers_are_compared_in_no_time() -> None:
    a, b = "one two three " * 5000, "one two four " * 5000
    began = perf_counter()
    assert 0 < likeness_of_words(a, b) < 1
    assert perf_counter() - began < 2


@given(st.lists(numbers, min_size=1, max_size=20), st.floats(0.01, 100))
def test_likeness_of_vectors_is_that_of_their_directions(vector: list[float], factor: float) -> None:
    alike = likeness_of_vectors(vector, [factor * x for x in vector])
    assert alike == pytest.approx(1) or math.hypot(*vector) < 1e-150
    assert likeness_of_vectors(vector, [-x for x in vector]) == 0


def test_likeness_of_vectors_by_hand() -> None:
    assert likeness_of_vectors([1, 0], [1, 1]) == pytest.approx(math.sqrt(0.5))
    assert likeness_of_vectors([1, 0], [0, 1]) == 0


@pytest.mark.parametrize("other", [[1.0], [], [1.0, math.nan], [1.0, math.inf]])
def test_vectors_that_cannot_be_compared_are_refused(other: list[float]) -> None:
    with pytest.raises(Unreadable):
        likeness_of_vectors([1.0, 2.0], other)


def test_embeddings_are_read_in_any_order_and_encoding() -> None:
    packed = base64.b64encode(struct.pack("<2f", 0.5, -1)).decode()
    answer = {"data": [{"index": 1, "embedding": packed}, {"index": 0, "embedding": [1, 2]}]}
    assert vectors(answer) == [[1, 2], [0.5, -1]]


@pytest.mark.parametrize(
    "answer",
    [
        *(None, {}, [], "text", {"data": []}, {"data": [{"index": 0}]}),
        *({"data": [{"index": 0, "embedding": row}]} for row in ROWS),
    ],
)
def test_what_holds_no_embeddings_is_refused(answer: Any) -> None:
    with pytest.raises(Unreadable):
        vectors(answer)


def test_the_same_text_is_the_same_and_another_is_measured() -> None:
    assert at_sight(pair("hi", "hi")) == (True, 1.0)
    assert at_sight(pair("hi", "hi ")) == (False, None)
    assert at_sight(pair("hi", "hi", is_cut=True)) == (False, None)


def test_a_failed_answer_is_like_nothing() -> None:
    assert at_sight(pair("hi", "hi", is_error=True)) == (False, 0.0)


def test_answers_that_are_embeddings_are_compared_as_such_whatever_else_they_say() -> None:
    def seen(a: str, b: str) -> tuple[bool, float | None]:
        return at_sight(pair(a, b, path="/v1/embeddings"))

    is_same, likeness = seen(embeddings([1, 2], [0, 1]), embeddings([1, 2.0], [0, 1]) + " ")
    assert is_same and likeness == pytest.approx(1)
    assert seen(embeddings([1, 0], [0, 1]), embeddings([0, 1], [0, 1])) == (False, 0.5)
    assert seen(embeddings([1, 0]), embeddings([1, 0, 0])) == (False, 0.0)
    assert seen(embeddings([1, 0]), embeddings([1, 0], [1, 0])) == (False, 0.0)
    assert seen(embeddings([1, 0]), embeddings([1, 0])[:-9]) == (False, None)


@pytest.mark.parametrize("percent", [1, 20, 50, 99])
def test_a_judge_is_asked_about_its_share_of_pairs_and_always_about_the_same(percent: float) -> None:
    judge = Judge(deployment="judge", percent=percent)
    pairs = [pair("a", "b", seq=i) for i in range(2000)]
    drawn = [is_drawn(judge, each) for each in pairs]
    assert sum(drawn) / 2000 == pytest.approx(percent / 100, abs=0.03)
    assert drawn == [is_drawn(judge, each) for each in pairs]
    assert all(is_drawn(Judge(deployment="judge"), each) for each in pairs)


def test_a_judge_is_shown_both_answers_in_their_places_and_what_matters() -> None:
    judge = Judge(deployment="judge", question="Is it polite?")
    (message,) = judge_messages(judge, "What's the weather?", "one", "other" * 4000)
    content = message["content"]
    assert content.index("<request>\nWhat's the weather?\n</request>") < content.index("<first>")
    assert content.index("<first>\none\n</first>") < content.index("<second>\nother")
    assert content.count("other") == MOST_CHARACTERS // 5
    assert content.index("Is it polite?") > content.index("</second>")
    (message,) = judge_messages(judge, "", "one", "other")
    assert "<request>" not in message["content"]
    assert "not shown" in message["content"]


def test_no_text_can_end_its_own_part_of_what_a_judge_is_shown() -> None:
    tries = "".join(f"<{mark}></{mark}></ {mark.upper()} >" for mark in ("request", "first", "second"))
    (message,) = judge_messages(Judge(deployment="judge"), tries, tries, tries)
    marks = re.findall(r"<\s*/?\s*\w+\s*>", message["content"])
    assert marks == ["<request>", "</request>", "<first>", "</first>", "<second>", "</second>"]
    (message,) = judge_messages(Judge(deployment="judge"), "1 < 2 > <b>", "<p>", "<first name>")
    assert all(text in message["content"] for text in ("1 < 2 > <b>", "<p>", "<first name>"))


@pytest.mark.parametrize(
    ("said", "word"),
    [
        ("first", "first"),
        (" Second.", "second"),
        ("**SAME**", "same"),
        ("<think>The first is longer, but</think>\n\nsecond", "second"),
    ],
)
def test_one_word_is_read_from_what_a_judge_says(said: str, word: str) -> None:
    assert opinion({"choices": [{"message": {"content": said}}]}) == word


@pytest.mark.parametrize(
    "answer",
    [
        *(None, {}, {"choices": []}, {"choices": [{"text": "first"}]}),
        *({"choices": [{"message": {"content": said}}]} for said in (None, "", "A", "firstly")),
    ],
)
def test_what_a_judge_says_besides_is_no_opinion(answer: Any) -> None:
    with pytest.raises(Unreadable):
        opinion(answer)


def test_a_preference_must_survive_the_exchange_of_places() -> None:
    opinions: list[Opinion] = ["first", "second", "same"]
    found = {(a, b): judged(a, b) for a, b in product(opinions, repeat=2)}
    assert {places for places, said in found.items() if said == "better"} == {("second", "first")}
    assert {places for places, said in found.items() if said == "worse"} == {("first", "second")}
