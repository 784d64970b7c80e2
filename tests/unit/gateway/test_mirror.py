"""Copies for a shadow: pairs of answers are kept whole, or not at all."""

from __future__ import annotations

from typing import Any

from stokerd.gateway.shadows import QUESTION_BODY_BYTES
from stokerd.gateway.wire import PairBatch, Route, parse_pairs
from tests.harness import wait_for
from tests.system.upstream import GatewayProcess, Replica, arm, chat

CHAT = "/v1/chat/completions"


def pairs(gateway: GatewayProcess) -> PairBatch:
    """What is there now; it is forgotten."""
    answer = gateway.control.get("/pairs", params={"wait": 0})
    assert answer.status_code == 200, answer.text
    batch = parse_pairs(answer.json())
    if batch.pairs:
        gateway.control.get("/pairs", params={"epoch": batch.epoch, "after": batch.pairs[-1].seq})
    return batch


def route(stable: Replica, shadow: Replica, **more: Any) -> Route:
    return Route("m", "compare", (arm("stable", 100, stable),), arm("shadow", 100, shadow), keeps_shadow=True, **more)


def test_answers_of_stable_and_shadow_are_kept_in_pairs(gateway: GatewayProcess, replica: Replica) -> None:
    with Replica(9) as shadow, gateway.client(headers={"x-stoker-session": "me"}) as client:
        gateway.put(route(replica, shadow))
        client.post(CHAT, json=chat())
        client.post(CHAT, json=chat(stream=True, chunks=2))
        records = gateway.take(4)
        batch = wait_for(lambda: b if len((b := pairs(gateway)).pairs) == 2 else None, "two pairs")
    whole, streamed = batch.pairs
    assert (whole.deployment, whole.rollout, whole.path, whole.caller) == ("m", "compare", CHAT, records[0].caller)
    assert [(a.version, a.status, a.text, a.completion_tokens) for a in (whole.stable, whole.shadow)] == [
        (1, 200, "version 1" * 2, 5),
        (9, 200, "version 9" * 2, 5),
    ]
    assert streamed.stable.text == streamed.shadow.text == "w0 w1 "
    assert whole.question == streamed.question == "hi"
    assert abs(whole.time - min(r.time for r in records)) < 1


def test_a_request_too_large_to_be_read_for_its_question_is_answered_and_kept_without_it(
    gateway: GatewayProcess, replica: Replica
) -> None:
    with Replica(9) as shadow, gateway.client() as client:
        gateway.put(route(replica, shadow))
        large = [{"role": "user", "content": "x" * QUESTION_BODY_BYTES}]
        assert client.post(CHAT, json=chat() | {"messages": large}).status_code == 200
        assert client.post(CHAT, json=chat() | {"messages": [{"role": "user", "content": 5}]}).status_code == 200
        batch = wait_for(lambda: b if len((b := pairs(gateway)).pairs) == 2 else None, "two pairs")
    assert [(pair.question, pair.stable.text) for pair in batch.pairs] == [("", "version 1" * 2)] * 2


def test_half_a_pair_is_none(gateway: GatewayProcess, replica: Replica) -> None:
    with Replica(9) as shadow, Replica(9) as other, gateway.client() as client:
        gateway.put(route(replica, shadow))
        dropped = pairs(gateway).dropped
        with gateway.raw() as raw:
            raw.post(chat(wait="answer"))
            wait_for(lambda: len(replica.seen) == len(shadow.seen) == 1, "both have it")
        wait_for(lambda: replica.seen[0].cut.is_set(), "the client's own is cancelled")
        shadow.permit()
        gateway.take(2)
        shadow.stop()
        client.post(CHAT, json=chat())  # an answer of stable, and none of shadow: that is told
        gateway.take(2)
        (pair,) = pairs(gateway).pairs
        assert (pair.stable.status, pair.shadow.status, pair.shadow.is_error) == (200, 0, True)
        arms = (arm("stable", 0, replica), arm("candidate", 100, other))
        gateway.put(Route("m", "s", arms, arm("shadow", 100, other), keeps_shadow=True))
        client.post(CHAT, json=chat())  # answered by the candidate: nothing of stable to compare with
        gateway.take(2)
        assert (pairs(gateway).pairs, pairs(gateway).dropped) == ((), dropped)
