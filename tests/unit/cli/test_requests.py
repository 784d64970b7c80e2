"""requests, rollout answers: what a person sees of single requests."""

from __future__ import annotations

import re
import time
from datetime import UTC, datetime
from typing import Any

import pytest

from stoker.cli.human import local
from stoker.types.traffic import Answer, AnswerPair, Request
from tests.unit.cli import samples
from tests.unit.cli.conftest import Stoker
from tests.unit.cli.stand_in import StandIn

THEN = datetime(2026, 1, 31, 8, 0, tzinfo=UTC)


def request(**changes: Any) -> Request:
    told: dict[str, Any] = {
        "time": THEN, "deployment": "chat", "version": 2, "arm": "candidate", "path": "/v1/chat/completions",
        "address": "unix:/a", "status": 200, "is_error": False, "is_stream": True, "client_gone": False,
        "fell_back": False, "finish_reason": "stop", "ttft_seconds": 0.023, "inter_token_seconds": 0.01,
        "max_gap_seconds": 0.04, "total_seconds": 1.25, "queued_seconds": 0.0, "prompt_tokens": 7,
        "completion_tokens": None, "request_bytes": 1, "response_bytes": 2, "caller": "0123456789abcdef", "key": "",
        "trace": "",
    }  # fmt: skip
    return Request(**{**told, **changes})


REQUESTS = "GET /v1/deployments/chat/requests"
SHADOWS = "GET /v1/rollouts/chat-1/shadows"


def test_requests_are_shown_each_with_its_measures(daemon: StandIn, stoker: Stoker) -> None:
    gone = request(client_gone=True, status=0, is_error=True, caller="")
    daemon.answers[REQUESTS] = [request(), gone]
    shown = stoker("requests", "chat").out.splitlines()
    columns = [re.split(r"  +", line) for line in shown[:2]]
    assert dict(zip(*columns, strict=True)) == {
        "TIME": local(THEN), "VERSION": "@2", "ARM": "candidate", "STATUS": "200", "QUEUED": "-", "TTFT": "23 ms",
        "GAP": "40 ms", "TOTAL": "1.25 s", "TOKENS": "7/-", "END": "stop", "CALLER": "01234567",
        "PATH": "/v1/chat/completions",
    }  # fmt: skip
    assert "none" in shown[2]
    assert "client gone" in shown[2]
    assert len(stoker("requests", "chat", "--json").json) == 2


def test_requests_are_asked_for_as_the_options_say(daemon: StandIn, stoker: Stoker) -> None:
    daemon.answers[REQUESTS] = []
    told = stoker("requests", "chat", "--since", "10m", "--arm", "shadow", "--errors", "-n", "5")
    assert (told.code, told.out, told.err) == (0, "", "no requests of chat in the last 10m\n")
    _, query, _ = daemon.calls[-1]
    assert (query["arm"], query["errors"], query["limit"]) == ("shadow", "true", "5")
    assert abs(time.time() - 600 - float(query["since"])) < 60
    stoker("requests", "chat")
    assert abs(time.time() - 3600 - float(daemon.calls[-1][1]["since"])) < 60


@pytest.mark.parametrize("wrong", [["--since", "soon"], ["-n", "0"]])
def test_options_that_can_not_be_read_are_refused(daemon: StandIn, stoker: Stoker, wrong: list[str]) -> None:
    assert stoker("requests", "chat", *wrong).code == 2


def test_what_was_asked_and_both_answers_are_shown_one_below_the_other(daemon: StandIn, stoker: Stoker) -> None:
    def answer(version: int, text: str) -> Answer:
        return Answer(
            version=version, status=200, is_error=False, finish_reason="stop", ttft_seconds=0.1, total_seconds=0.5,
            completion_tokens=3, text=text, is_cut=version == 2,
        )  # fmt: skip

    def pair(text: str, question: str = "") -> AnswerPair:
        return AnswerPair(
            time=THEN, deployment="chat", rollout="chat-1", path="/v1/completions", caller="", stable=answer(1, "one"),
            shadow=answer(2, text), question=question,
        )  # fmt: skip

    daemon.keep(samples.deployment(rollout="chat-1"), samples.rollout())
    daemon.answers[SHADOWS] = [pair("one"), pair("a\nb\x1b[2J", "two\nor\x1b[2J?")]
    shown = stoker("rollout", "answers", "chat").out
    assert shown.count("same") == shown.count("different") == 1
    assert "stable @1" in shown
    assert "shadow @2" in shown
    assert "a\\nb\\x1b[2J…" in shown
    assert shown.count("asked") == 1
    assert shown.index("asked") < shown.index("two\\nor\\x1b[2J?") < shown.index("a\\nb")
    told = stoker("rollout", "answers", "chat-1", "--json").json
    assert [pair["question"] for pair in told] == ["", "two\nor\x1b[2J?"]


def test_a_rollout_without_kept_answers_says_how_to_get_some(daemon: StandIn, stoker: Stoker) -> None:
    daemon.keep(samples.rollout())
    daemon.answers[SHADOWS] = []
    told = stoker("rollout", "answers", "chat-1")
    assert (told.code, told.out) == (0, "")
    assert "keep_answers" in told.err
