"""What the gateway does when someone is slow, silent or greedy."""

from __future__ import annotations

import contextlib
import json
import select
from collections import deque
from collections.abc import Callable

import psutil
import pytest

from tests.harness import DEADLINE, wait_for
from tests.system.upstream import GatewayProcess, Replica, arm, chat

CHAT = "/v1/chat/completions"
FAST = "sweep_seconds=0.05"
MIB = 1 << 20


def rss(gateway: GatewayProcess) -> int:
    return int(psutil.Process(gateway.process.pid).memory_info().rss)


def test_a_client_that_reads_slowly_slows_the_replica_and_fills_no_memory() -> None:
    with GatewayProcess() as gateway, Replica() as replica:
        gateway.route(arm("stable", 100, replica))
        with gateway.client() as client:
            client.post(CHAT, json=chat(stream=True))
        before = rss(gateway)
        with gateway.raw() as slow:
            slow.post(chat(stream=True, chunks=2_000, size=65_536))  # 125 MiB, if anybody took it
            wait_for(lambda: replica.sent_bytes > MIB // 2, "it begins")
            sent = deque([-1], maxlen=20)

            def has_stopped() -> bool:
                sent.append(replica.sent_bytes)
                return len(sent) == 20 and len(set(sent)) == 1

            wait_for(has_stopped, "the replica is held up")
            assert replica.sent_bytes < 40 * MIB  # what sockets hold on the way
            assert rss(gateway) - before < 20 * MIB
            with gateway.client() as client:  # and nobody else is held up
                assert client.post(CHAT, json=chat()).status_code == 200
            status, _ = slow.head()
            got = sum(len(piece) for piece in iter(lambda: slow.read(MIB), b"") if piece)
            assert status == 200
            assert got > 2_000 * 65_536
        records = {r.completion_tokens: r for r in gateway.take(3)}
        held = records[2_000]
        assert held.inter_token_seconds is not None
        assert held.inter_token_seconds < 0.02  # the time that the client took is not the engine's
        assert rss(gateway) - before < 30 * MIB


def test_large_bodies_pass_whole_both_ways() -> None:
    with GatewayProcess() as gateway, Replica() as replica, gateway.client() as client:
        gateway.route(arm("stable", 100, replica))
        image = "x" * (40 * MIB)
        answer = client.post(CHAT, json={**chat(size=20 * MIB), "image": image})
        assert len(answer.json()["choices"][0]["message"]["content"]) > 20 * MIB
        assert replica.last().json["image"] == image
        assert gateway.one().completion_tokens == 5
        answer = client.post(CHAT, content=json.dumps({**chat(), "image": "x" * (64 * MIB)}))
        assert (answer.status_code, answer.json()["error"]["code"]) == (413, "body_too_large")


def test_a_replica_that_never_answers_is_given_up() -> None:
    with GatewayProcess(FAST, "first_byte_seconds=0.3") as gateway, Replica() as replica, gateway.client() as client:
        gateway.route(arm("stable", 100, replica))
        answer = client.post(CHAT, json=chat(wait="answer"))
        assert (answer.status_code, answer.json()["error"]["code"]) == (504, "upstream_timeout")
        assert replica.last().cut.wait(DEADLINE)
        record = gateway.one()
        assert (record.status, record.is_error) == (504, True)


def test_a_stream_that_stalls_is_ended_with_an_error_event() -> None:
    with GatewayProcess(FAST, "stall_seconds=0.3") as gateway, Replica() as replica, gateway.client() as client:
        gateway.route(arm("stable", 100, replica))
        text = client.post(CHAT, json=chat(stream=True, stall_after=2)).text
        assert "upstream_timeout" in text.split("\n\n")[-2]
        assert replica.last().cut.wait(DEADLINE)
        record = gateway.one()
        assert (record.status, record.is_error, record.completion_tokens) == (200, True, 2)


def test_a_replica_that_takes_no_connection_in_time_is_passed_over() -> None:
    limits = ("connect_seconds=3", "eject_seconds=600")  # the gateway itself may need a second to reach the good one
    with GatewayProcess(*limits) as gateway, Replica() as replica, gateway.client() as client:
        # A reserved address from which nothing comes back, or which can't be reached: refused or silent, both count.
        gateway.route(arm("stable", 50, replica), arm("candidate", 50, "192.0.2.1:9", version=2))
        for _ in range(6):
            assert client.post(CHAT, json=chat()).headers["x-stoker-arm"] == "stable"
        assert {r.status for r in gateway.take(6)} == {200}


def test_a_client_that_is_too_slow_with_its_request_is_told_and_cut_off() -> None:
    limits = ("header_seconds=0.3", "body_seconds=0.3", "linger_seconds=0.3")
    with GatewayProcess(FAST, *limits) as gateway, contextlib.ExitStack() as stack:
        with gateway.frozen():
            raw = stack.enter_context(gateway.raw())
            raw.send(b"GET /health HTTP/1.1\r\nHost:")

        def after_another_drop(has_come: Callable[[], object]) -> Callable[[], object]:
            def look() -> object:
                with contextlib.suppress(ConnectionError):
                    raw.send(b" ")  # a drop at a time prolongs nothing
                return has_come()

            return look

        wait_for(after_another_drop(lambda: select.select([raw.sock], [], [], 0)[0]), "it is told")
        wait_for(after_another_drop(lambda: gateway.state()["connections"] == 0), "it is cut off")
        assert raw.answer()[0] == 408
        with gateway.frozen():
            raw = stack.enter_context(gateway.raw())
            raw.send(b"POST /health HTTP/1.1\r\nHost: g\r\nContent-Length: 10\r\n\r\nabc")
        assert raw.answer()[0] == 408
        raw = stack.enter_context(gateway.raw())
        assert raw.rest() == b""  # nothing was asked: nothing to say


def test_an_idle_connection_is_closed_and_a_busy_one_is_not() -> None:
    limits = ("idle_seconds=0.3", "header_seconds=4", "body_seconds=0.3")
    with GatewayProcess(FAST, *limits) as gateway, Replica() as replica, contextlib.ExitStack() as stack:
        gateway.route(arm("stable", 100, replica))
        with gateway.frozen():
            raw = stack.enter_context(gateway.raw())
            raw.post(chat(sleep=5.0))  # longer than any limit
            raw.send(b"GET /health HTTP/1.1\r\n")  # sent ahead, and not yet whole: its clock runs from its turn on
        assert raw.answer()[0] == 200
        raw.send(b"Host: g\r\n\r\n")  # within header_seconds
        assert raw.answer()[0] == 200
        assert raw.rest() == b""


@pytest.mark.parametrize("ahead", ["\r\n", "GET /health HTTP/1.1\r\nHost: g\r\n\r\n", "GET /he"])
def test_a_client_that_sent_something_ahead_is_seen_to_leave(ahead: str) -> None:
    with GatewayProcess() as gateway, Replica() as replica:
        gateway.route(arm("stable", 100, replica))
        with gateway.raw() as raw:
            raw.post(chat(wait="answer"))
            seen = replica.last()
            raw.send(ahead.encode())
            gateway.state()  # by now it was read
        assert seen.cut.wait(DEADLINE)
        assert gateway.one().client_gone


def test_a_gateway_that_may_open_no_more_files_does_not_blame_the_replica() -> None:
    with GatewayProcess("eject_seconds=600") as gateway, Replica() as replica, gateway.client() as client:
        gateway.route(arm("stable", 100, replica))
        assert client.get("/health").status_code == 200
        process = psutil.Process(gateway.process.pid)
        limits = process.rlimit(psutil.RLIMIT_NOFILE)
        process.rlimit(psutil.RLIMIT_NOFILE, (process.num_fds(), limits[1]))
        refused = client.post(CHAT, json=chat())
        assert (refused.status_code, refused.json()["error"]["code"]) == (503, "gateway_overloaded")
        process.rlimit(psutil.RLIMIT_NOFILE, limits)
        assert client.post(CHAT, json=chat()).status_code == 200


def test_a_client_that_never_reads_is_cut_off() -> None:
    with GatewayProcess(FAST, "stall_seconds=4") as gateway, Replica() as replica:  # the replica itself must not stall
        gateway.route(arm("stable", 100, replica))
        with gateway.raw() as raw:
            raw.post(chat(stream=True, chunks=1_000, size=65_536))
            assert replica.last().cut.wait(DEADLINE)
        record = gateway.one()
        assert (record.client_gone, record.is_error) == (True, False)


def test_there_are_no_more_connections_than_allowed() -> None:
    with GatewayProcess("connections=3") as gateway, contextlib.ExitStack() as stack:
        raws = [stack.enter_context(gateway.raw()) for _ in range(3)]
        wait_for(lambda: gateway.state()["connections"] == 3, "they are there")
        with gateway.raw() as fourth:
            assert fourth.answer()[0] == 503
        for raw in raws:
            raw.send(b"GET /health HTTP/1.1\r\nHost: g\r\n\r\n")
            assert raw.answer()[0] == 200


def test_thousands_of_idle_connections_cost_little() -> None:
    with GatewayProcess() as gateway, contextlib.ExitStack() as stack:
        before = rss(gateway)
        count = 2_000
        raws = [stack.enter_context(gateway.raw()) for _ in range(count)]
        wait_for(lambda: gateway.state()["connections"] == count, "they are there")
        assert rss(gateway) - before < 30 * MIB
        assert rss(gateway) < 80 * MIB
        raws[0].send(b"GET /health HTTP/1.1\r\nHost: g\r\n\r\n")
        assert raws[0].answer()[0] == 200
