"""A real gateway process before real servers: what a client may rely on."""

from __future__ import annotations

import itertools
import json
import socket
from collections import Counter
from contextlib import ExitStack
from time import monotonic
from typing import Any

import httpx
import openai
import pytest

from tests.harness import DEADLINE, wait_for
from tests.system.upstream import GatewayProcess, Replica, arm, chat

CHAT = "/v1/chat/completions"


def said(text: str, **do: Any) -> dict[str, Any]:
    """A chat that begins with *text*."""
    return {**chat(**do), "messages": [{"role": "user", "content": text}]}


def test_an_answer_passes_untouched_and_is_measured(gateway: GatewayProcess, replica: Replica) -> None:
    gateway.route(arm("stable", 100, replica))
    body = chat()
    with gateway.client(headers={"X-Mine": "kept", "Authorization": "Bearer k"}) as client:
        began = monotonic()
        answer = client.post(f"{CHAT}?a=b", json=body)
    assert (answer.status_code, answer.reason_phrase) == (200, "Whatever")
    assert answer.json()["choices"][0]["message"]["content"] == "version 1"
    assert answer.headers["x-engine"] == "1"
    assert (answer.headers["x-stoker-arm"], answer.headers["x-stoker-version"]) == ("stable", "1")
    seen = replica.last()
    assert seen.line == f"POST {CHAT}?a=b HTTP/1.1"
    assert seen.json == body
    assert (seen.headers["x-mine"], seen.headers["authorization"]) == ("kept", "Bearer k")
    assert "connection" not in seen.headers
    record = gateway.one()
    ended = monotonic()
    assert (record.deployment, record.arm, record.version, record.path) == ("m", "stable", 1, CHAT)
    assert (record.status, record.is_error, record.is_stream, record.client_gone) == (200, False, False, False)
    assert (record.prompt_tokens, record.completion_tokens, record.address) == (7, 5, replica.address)
    assert record.ttft_seconds is not None
    assert 0 < record.ttft_seconds <= record.total_seconds < ended - began
    assert record.inter_token_seconds is None


@pytest.mark.parametrize(
    ("path", "tokens"), [("/v1/completions", (7, 5)), ("/v1/embeddings", (7, None)), ("/v1/responses", (3, 4))]
)
def test_every_inference_path_is_served(
    gateway: GatewayProcess, replica: Replica, path: str, tokens: tuple[int, int | None]
) -> None:
    gateway.route(arm("stable", 100, replica))
    with gateway.client() as client:
        assert client.post(path, json={"model": "m"}).status_code == 200
    record = gateway.one()
    assert (record.path, record.prompt_tokens, record.completion_tokens) == (path, *tokens)


def test_a_stream_arrives_event_by_event(gateway: GatewayProcess, replica: Replica) -> None:
    gateway.route(arm("stable", 100, replica))
    with openai.OpenAI(base_url=f"{gateway.url}/v1", api_key="EMPTY") as client:
        began = monotonic()
        stream = client.chat.completions.create(
            model="m",
            messages=[{"role": "user", "content": "hi"}],
            stream=True,
            stream_options={"include_usage": True},
            extra_body={"do": {"chunks": 4, "wait": "chunk"}},
        )
        asked, came = [], []
        for number in range(4):  # each is here before the replica may say the next
            next_words = (c.choices[0].delta.content for c in stream if c.choices[0].delta.content)
            asked.append(monotonic())
            replica.permit()
            assert next(next_words) == f"w{number} "
            came.append(monotonic())
        (last,) = stream
    assert last.usage is not None
    record = gateway.one()
    assert (record.is_stream, record.is_error, record.prompt_tokens, record.completion_tokens) == (True, False, 7, 5)
    assert record.ttft_seconds is not None
    assert record.inter_token_seconds is not None
    assert 0 < record.ttft_seconds < came[0] - began
    assert (asked[3] - came[0]) / 3 <= record.inter_token_seconds <= (came[3] - asked[0]) / 3
    assert record.total_seconds >= asked[3] - came[0]


def test_a_stream_without_usage_has_its_content_counted(gateway: GatewayProcess, replica: Replica) -> None:
    gateway.route(arm("stable", 100, replica))
    with gateway.client() as client:
        assert client.post(CHAT, json=chat(stream=True, chunks=6)).text.count("data: ") == 8
    record = gateway.one()
    assert (record.prompt_tokens, record.completion_tokens) == (None, 6)


def test_models_are_listed_as_openai_lists_them(gateway: GatewayProcess, replica: Replica) -> None:
    gateway.route(arm("stable", 100, replica))
    with openai.OpenAI(base_url=f"{gateway.url}/v1", api_key="EMPTY") as client:
        assert [m.id for m in client.models.list()] == ["m"]
        assert client.models.retrieve("m").owned_by == "stoker"
        with pytest.raises(openai.NotFoundError):
            client.models.retrieve("x")
    with gateway.client() as client:
        assert client.get("/health").status_code == 200
        head = client.head("/v1/models")
        assert (head.status_code, head.content) == (200, b"")
        assert int(head.headers["content-length"]) > 0


def test_refusals_have_openais_shape_and_say_what_to_do(gateway: GatewayProcess, replica: Replica) -> None:
    gateway.route(arm("stable", 100, replica))
    with openai.OpenAI(base_url=f"{gateway.url}/v1", api_key="EMPTY", max_retries=0) as client:
        with pytest.raises(openai.NotFoundError) as not_found:
            client.completions.create(model="gpt-9", prompt="x")
        assert not_found.value.code == "model_not_found"
        assert "Known models: m" in not_found.value.message
    with gateway.client() as client:
        wanted = [
            (client.post(CHAT, content=b"{nonsense"), 400, "invalid_body"),
            (client.post(CHAT, json={"messages": []}), 400, "invalid_body"),
            (client.post(CHAT, content=b'{"model": "\\ud800"}'), 404, "model_not_found"),
            (client.post(CHAT, json={"model": "m" * 100_000}), 404, "model_not_found"),
            (client.get("/v1/models/%ff%00"), 404, "model_not_found"),
            (client.post("/v1/nowhere", json={}), 404, "unknown_path"),
            (client.get(CHAT), 405, "method_not_allowed"),
            (client.head(CHAT), 405, None),
            (client.delete("/v1/models"), 405, "method_not_allowed"),
            (client.post(CHAT, content=b'{"model": "m", "x": "' + b"x" * 3_000_000 + b'"}'), 413, "body_too_large"),
            (client.get("/health", headers={"X-Large": "x" * 20_000}), 431, "header_too_large"),
        ]
        assert client.get(CHAT).headers["allow"] == "POST"
    for answer, status, code in wanted:
        assert answer.status_code == status, answer.text
        if code:
            assert {"message", "type", "param", "code"} == answer.json()["error"].keys()
            assert answer.json()["error"]["code"] == code
    assert not replica.seen
    assert gateway.batch().records == ()


def test_an_arm_without_any_replica_is_said_at_once(gateway: GatewayProcess) -> None:
    gateway.route(arm("stable", 100))
    with gateway.client() as client:
        answer = client.post(CHAT, json=chat())
    assert (answer.status_code, answer.headers["retry-after"]) == (503, "1")
    assert answer.json()["error"]["code"] == "no_healthy_replica"
    record = gateway.one()
    assert (record.arm, record.status, record.is_error, record.address) == ("stable", 503, True, "")


def test_an_engines_error_passes_and_counts(gateway: GatewayProcess, replica: Replica) -> None:
    gateway.route(arm("stable", 100, replica))
    with gateway.client() as client:
        for status in (400, 500):
            answer = client.post(CHAT, json=chat(status=status))
            assert (answer.status_code, answer.json()["error"]["code"]) == (status, "as_asked")
    assert [(r.status, r.is_error) for r in gateway.take(2)] == [(400, True), (500, True)]


def test_callers_keep_their_arm_and_nameless_ones_are_split_by_what_they_say(
    gateway: GatewayProcess, replica: Replica
) -> None:
    with Replica(2) as other:
        gateway.route(arm("stable", 50, replica), arm("candidate", 50, other))
        with gateway.client() as client:
            by_caller = {
                i: {
                    client.post(CHAT, json=chat(), headers={"x-stoker-session": f"s{i}"}).headers["x-stoker-arm"]
                    for _ in "123"
                }
                for i in range(20)
            }
            nameless = [
                {client.post(CHAT, json=said(f"question {i}")).headers["x-stoker-arm"] for _ in "12"} for i in range(30)
            ]
            by_user = {client.post(CHAT, json={**chat(), "user": "u"}).headers["x-stoker-arm"] for _ in range(10)}
            by_key = {
                client.post(CHAT, json=chat(), headers={"Authorization": "Bearer k"}).headers["x-stoker-arm"]
                for _ in range(10)
            }
    assert all(len(arms) == 1 for arms in by_caller.values())
    assert set().union(*by_caller.values()) == {"stable", "candidate"}
    assert all(len(arms) == 1 for arms in nameless)
    assert set().union(*nameless) == {"stable", "candidate"}
    assert len(by_user) == len(by_key) == 1


def test_stable_answers_for_a_candidate_that_cannot(gateway: GatewayProcess, replica: Replica) -> None:
    gone = f"unix:/tmp/stk-{replica.version}-nobody"
    for addresses in ((), (gone,), (gone, gone + "2")):
        gateway.route(arm("stable", 0, replica), arm("candidate", 100, *addresses, version=2))
        with gateway.client() as client:
            assert client.post(CHAT, json=chat()).headers["x-stoker-arm"] == "stable"
        record = gateway.one()
        assert (record.arm, record.fell_back, record.is_error, record.status) == ("stable", True, False, 200)


def test_a_replica_that_refuses_is_passed_over_for_a_while(gateway: GatewayProcess, replica: Replica) -> None:
    with Replica(1) as other:
        gateway.route(arm("stable", 100, other, replica))
        other.stop()
        with gateway.client() as client:
            assert {client.post(CHAT, json=chat()).status_code for _ in range(20)} == {200}
        other.start()
        with gateway.client() as client:
            texts = map(str, itertools.count())  # conversations of one kind would all be the other replica's
            wait_for(lambda: client.post(CHAT, json=said(next(texts))).is_success and other.seen, "it comes back")


def test_a_conversation_stays_with_one_replica_until_that_has_too_much_to_do(
    gateway: GatewayProcess, replica: Replica
) -> None:
    with Replica(1) as other, ExitStack() as stack, gateway.client() as client:
        gateway.route(arm("stable", 100, replica, other))
        for _ in range(6):
            client.post(CHAT, json=said("hi"))
        busy = replica if replica.seen else other
        free = other if busy is replica else replica
        assert (len(busy.seen), len(free.seen)) == (6, 0)
        for count in range(2):
            stack.enter_context(gateway.raw()).post({**said("hi", wait="answer"), "max_tokens": 900})
            wait_for(lambda: len(busy.seen) == 7 + count, "it arrives")  # noqa: B023
        assert gateway.state()["in_flight"] == {busy.address: 2}
        client.post(CHAT, json=said("hi"))
        assert len(free.seen) == 1
    wait_for(lambda: gateway.state()["in_flight"] == {}, "the count returns to nothing")


def test_conversations_spread_over_replicas(gateway: GatewayProcess, replica: Replica) -> None:
    with Replica(1) as other, gateway.client() as client:
        gateway.route(arm("stable", 100, replica, other))
        for number in range(30):
            client.post(CHAT, json=said(f"question {number}"))
            client.post("/v1/embeddings", json={"model": "m"})  # of which nobody knows where they belong
        assert min(len(replica.seen), len(other.seen)) >= 10


def test_a_version_can_be_asked_for_by_name(gateway: GatewayProcess, replica: Replica) -> None:
    with Replica(2) as candidate, Replica(3) as shadow:
        gateway.route(arm("stable", 100, replica), arm("candidate", 0, candidate), shadow=arm("shadow", 0, shadow))
        with gateway.client() as client:
            for asked in (replica, candidate, shadow):
                body = {**chat(), "temperature": 0.25}
                answer = client.post(CHAT, json={**body, "model": f"m@{asked.version}"})
                assert answer.headers["x-stoker-version"] == str(asked.version)
                assert asked.last().json == body
            assert [record.is_pinned for record in gateway.take(3)] == [True] * 3
            assert client.post(CHAT, json=chat("m@4")).status_code == 404
            shadow.stop()
            assert client.post(CHAT, json=chat("m@3")).status_code == 503


def test_tcp_replicas_are_served_too(gateway: GatewayProcess) -> None:
    with Replica(1, tcp=True) as replica, gateway.client() as client:
        gateway.route(arm("stable", 100, replica))
        assert client.post(CHAT, json=chat()).status_code == 200
        assert client.post(CHAT, json=chat(stream=True)).text.endswith("data: [DONE]\n\n")


def test_connections_to_replicas_are_used_again(gateway: GatewayProcess) -> None:
    with Replica(1) as replica, gateway.client() as client:
        gateway.route(arm("stable", 100, replica))
        for _ in range(10):
            client.post(CHAT, json=chat())
        assert replica.connections == 1


def test_a_kept_connection_that_the_replica_closed_fails_nobody(gateway: GatewayProcess, replica: Replica) -> None:
    gateway.route(arm("stable", 100, replica))
    with gateway.client() as client:
        for _ in range(5):  # the replica answers, then closes without having said so
            assert client.post(CHAT, json=chat(then_close=True)).status_code == 200
        for _ in range(5):  # it takes the request on a kept connection, and closes without an answer: once is stale
            assert client.post(CHAT, json=chat()).status_code == 200
            replica.seen.clear()
            assert client.post(CHAT, json=chat(close=True)).status_code == 502
            assert len(replica.seen) == 2


def test_a_replica_that_dies_before_its_answer_is_a_502(gateway: GatewayProcess) -> None:
    with Replica(1) as replica, gateway.client() as client:
        gateway.route(arm("stable", 100, replica))
        answer = client.post(CHAT, json=chat(close=True))
        assert len(replica.seen) == 1
    assert (answer.status_code, answer.json()["error"]["code"]) == (502, "upstream_failed")
    record = gateway.one()
    assert (record.status, record.is_error, record.ttft_seconds) == (502, True, None)


def test_a_replica_that_dies_in_a_stream_ends_it_with_an_error_event(gateway: GatewayProcess, replica: Replica) -> None:
    gateway.route(arm("stable", 100, replica))
    with gateway.client() as client:
        text = client.post(CHAT, json=chat(stream=True, die_after=2)).text
    events = [e for e in text.split("\n\n") if e]
    assert json.loads(events[-1].removeprefix("data: "))["error"]["code"] == "upstream_failed"
    assert len(events) == 4
    record = gateway.one()
    assert (record.status, record.is_error, record.completion_tokens) == (200, True, 2)
    with openai.OpenAI(base_url=f"{gateway.url}/v1", api_key="EMPTY") as openai_client:
        stream = openai_client.chat.completions.create(
            model="m", messages=[], stream=True, extra_body={"do": {"die_after": 1}}
        )
        with pytest.raises(openai.APIError, match="closed the connection"):
            list(stream)


def test_an_answer_that_is_cut_off_is_not_passed_off_as_whole(gateway: GatewayProcess, replica: Replica) -> None:
    gateway.route(arm("stable", 100, replica))
    with gateway.client() as client, pytest.raises(httpx.RemoteProtocolError):
        client.post(CHAT, json=chat(cut=50))
    record = gateway.one()
    assert (record.status, record.is_error) == (200, True)


def test_an_answer_without_a_length_ends_with_its_connection(gateway: GatewayProcess, replica: Replica) -> None:
    gateway.route(arm("stable", 100, replica))
    with gateway.client() as client:
        for _ in range(2):
            assert client.post(CHAT, json=chat(until_close=True, size=200_000)).json()["usage"]
    assert [(r.is_error, r.completion_tokens) for r in gateway.take(2)] == [(False, 5)] * 2


OK = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n"


@pytest.mark.parametrize(
    "lie",
    [
        "nonsense",
        "HTTP/1.1 101 Switching\r\nConnection: upgrade\r\nUpgrade: x\r\n\r\n",
        "HTTP/1.1 200 OK\r\nContent-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhi\r\n0\r\n\r\n",
        "HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\nhi",
        "HTTP/1.1 200 OK\nContent-Length: 2\n\nhi",
        "HTTP/1.1 200 OK\r\nX-Large: " + "x" * 300_000,
    ],
    ids=lambda lie: lie[:60],
)
def test_a_replica_that_does_not_speak_http_is_a_502(gateway: GatewayProcess, replica: Replica, lie: str) -> None:
    gateway.route(arm("stable", 100, replica))
    with gateway.client() as client:
        assert client.post(CHAT, json=chat(raw=lie)).status_code == 502
        assert client.post(CHAT, json=chat()).status_code == 200


@pytest.mark.parametrize("surplus", ["extra", OK + "\r\nno", "HTTP/1.1 200 OK\r\n\r\nforever"])
def test_what_a_replica_sends_after_its_answer_reaches_nobody(
    gateway: GatewayProcess, replica: Replica, surplus: str
) -> None:
    gateway.route(arm("stable", 100, replica))
    with gateway.client() as client:
        assert client.post(CHAT, json=chat(raw=f"{OK}\r\nhi{surplus}")).text == "hi"
        for _ in range(3):
            assert client.post(CHAT, json=chat()).json()["usage"]


def test_interim_answers_and_trailers_and_hop_by_hop_headers_stay_here(
    gateway: GatewayProcess, replica: Replica
) -> None:
    gateway.route(arm("stable", 100, replica))
    raw = (
        "HTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\n"
        "HTTP/1.1 200 Fine\r\nConnection: X-Hop\r\nX-Hop: 1\r\nKeep-Alive: 5\r\n"
        "X-End: 2\r\nTransfer-Encoding: chunked\r\n\r\n2;ext=1\r\nhi\r\n0\r\nX-Trailer: 1\r\n\r\n"
    )
    with gateway.client() as client:
        answer = client.post(CHAT, json=chat(raw=raw))
    assert (answer.status_code, answer.reason_phrase, answer.text) == (200, "Fine", "hi")
    assert answer.headers["x-end"] == "2"
    assert not answer.headers.keys() & {"link", "x-hop", "keep-alive", "x-trailer"}


def test_an_answer_without_a_body_has_none(gateway: GatewayProcess, replica: Replica) -> None:
    gateway.route(arm("stable", 100, replica))
    with gateway.client() as client:
        for _ in range(2):
            answer = client.post(CHAT, json=chat(raw="HTTP/1.1 204 No Content\r\n\r\n"))
            assert (answer.status_code, answer.content) == (204, b"")
            assert "transfer-encoding" not in answer.headers


def test_a_client_that_leaves_is_seen_by_the_replica(gateway: GatewayProcess, replica: Replica) -> None:
    gateway.route(arm("stable", 100, replica))
    with (
        gateway.client() as client,
        client.stream("POST", CHAT, json=chat(stream=True, wait="chunk")) as answer,
    ):
        pieces = answer.iter_raw()
        next(pieces)
        seen = replica.last()
        assert not seen.cut.is_set()
    assert seen.cut.wait(DEADLINE)
    record = gateway.one()
    assert (record.status, record.client_gone, record.is_error) == (200, True, False)
    replica.seen.clear()
    with gateway.raw() as raw:
        raw.post(chat(wait="answer"))
        seen = replica.last()
    assert seen.cut.wait(DEADLINE)
    record = gateway.one()
    assert (record.status, record.client_gone, record.is_error) == (0, True, False)
    assert gateway.state()["in_flight"] == {}


def test_a_new_table_holds_at_once_and_breaks_no_stream(gateway: GatewayProcess) -> None:
    with Replica(1) as old, Replica(2) as new, gateway.client() as client:
        gateway.route(arm("stable", 100, old))
        with client.stream("POST", CHAT, json=chat(stream=True, wait="chunk")) as answer:
            lines = answer.iter_lines()
            next(lines)
            assert gateway.route(arm("stable", 100, new))["in_flight"] == {old.address: 1}
            assert client.post(CHAT, json=chat()).headers["x-stoker-version"] == "2"
            old.permit(3)
            assert list(lines)[-2:] == ["data: [DONE]", ""]
        state = gateway.state()
        assert state["in_flight"] == {}
        assert (state["epoch"], state["problem"]) == (gateway.batch().epoch, "")


def test_a_bad_table_is_refused_and_the_old_one_stays(gateway: GatewayProcess, replica: Replica) -> None:
    gateway.route(arm("stable", 100, replica))
    before = gateway.state()["table_version"]
    for bad in (b"{", b"[]", b'{"version": 99, "routes": [{}]}'):
        answer = gateway.control.put("/routes", content=bad)
        assert (answer.status_code, answer.json()["code"]) == (400, "bad-table")
    assert gateway.state()["table_version"] == before
    with gateway.client() as client:
        assert client.post(CHAT, json=chat()).status_code == 200
    assert gateway.control.get("/nowhere").status_code == 404
    assert gateway.control.post("/routes").status_code == 405
    assert gateway.control.get("/records", params={"after": "x"}).status_code == 400


def test_copies_go_to_the_shadow_and_hurt_nobody(gateway: GatewayProcess, replica: Replica) -> None:
    with Replica(9) as shadow, gateway.client() as client:
        gateway.route(arm("stable", 100, replica), shadow=arm("shadow", 100, shadow))
        assert client.post(CHAT, json=chat()).headers["x-stoker-version"] == "1"
        assert shadow.last().json == replica.last().json
        assert sorted((r.arm, r.version, r.completion_tokens) for r in gateway.take(2)) == [
            ("shadow", 9, 5),
            ("stable", 1, 5),
        ]
        shadow.stop()
        for _ in range(3):
            assert client.post(CHAT, json=chat()).status_code == 200
        records = gateway.take(6)
    assert [(r.status, r.is_error) for r in records if r.arm == "shadow"] == [(0, True)] * 3
    assert [(r.status, r.is_error) for r in records if r.arm == "stable"] == [(200, False)] * 3


def test_no_more_copies_are_made_than_can_be_borne(gateway: GatewayProcess, replica: Replica) -> None:
    with Replica(9) as shadow, gateway.client() as client:
        gateway.route(arm("stable", 100, replica), shadow=arm("shadow", 100, shadow))
        shadow.is_silent = True
        for _ in range(8):
            assert client.post(CHAT, json=chat()).status_code == 200
        assert gateway.state()["in_flight"] == {shadow.address: 3}
        shadow.stop()
        assert Counter(r.arm for r in gateway.take(11)) == {"stable": 8, "shadow": 3}


def test_records_wait_for_a_reader_and_are_forgotten_when_it_has_them(
    gateway: GatewayProcess, replica: Replica
) -> None:
    gateway.route(arm("stable", 100, replica))
    with gateway.client() as client:
        for _ in range(3):
            client.post(CHAT, json=chat())
    first = gateway.batch(wait=5)
    assert len(first.records) == 3
    assert gateway.batch(epoch="of another life", after=10**9).records == first.records
    last = first.records[-1].seq
    assert [r.seq for r in first.records] == [last - 2, last - 1, last]
    assert [r.seq for r in gateway.batch(epoch=first.epoch, after=last - 1).records] == [last]
    assert gateway.batch(epoch=first.epoch, after=last).records == ()
    assert gateway.batch().records == ()
    assert gateway.batch().dropped == 0


def test_a_reader_that_waits_gets_what_comes(gateway: GatewayProcess, replica: Replica) -> None:
    gateway.route(arm("stable", 100, replica))
    with socket.socket(socket.AF_UNIX) as reader:
        reader.settimeout(DEADLINE)
        reader.connect(str(gateway.control_path))
        reader.sendall(b"GET /records?wait=600 HTTP/1.1\r\nHost: g\r\n\r\n")
        with gateway.client() as client:
            client.post(CHAT, json=chat())
        assert b'"completion_tokens":5' in reader.recv(65536)
