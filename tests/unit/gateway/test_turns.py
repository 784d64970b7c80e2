"""Requests that wait: for their turn where replicas have as much as they may have, or until there is a replica."""

from __future__ import annotations

import select
from collections import Counter
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx

from stokerd.gateway.wire import Route, Target
from tests.harness import DEADLINE, wait_for
from tests.system.upstream import GatewayProcess, Raw, Replica, arm, chat

CHAT = "/v1/chat/completions"


def route(*replicas: Replica | str, **more: Any) -> Route:
    return Route("m", "s", (arm("stable", 100, *replicas, version=1),), **more)


def ask(stack: ExitStack, gateway: GatewayProcess, who: str = "a", **do: Any) -> Raw:
    raw = stack.enter_context(gateway.raw())
    raw.post({**chat(**do), "name": who}, f"Authorization: Bearer {who}")
    return raw


def served(replica: Replica) -> list[str]:
    return [seen.json["name"] for seen in replica.seen]


def test_no_replica_gets_more_at_once_than_it_may(gateway: GatewayProcess, replica: Replica) -> None:
    with ExitStack() as stack:
        gateway.put(route(replica, in_flight=2))
        clients = [ask(stack, gateway, wait="answer") for _ in range(6)]
        wait_for(lambda: gateway.state()["in_flight"] == {replica.address: 2}, "two are there")
        for done in range(6):
            wait_for(lambda: len(replica.seen) == min(6, done + 2), "the next one has its turn")  # noqa: B023
            assert gateway.state()["in_flight"] == {replica.address: min(2, 6 - done)}
            replica.permit()
            wait_for(lambda: sum(s.ended.is_set() for s in replica.seen) == done + 1, "one is answered")  # noqa: B023
        assert [client.answer()[0] for client in clients] == [200] * 6
    records = gateway.take(6)
    waited = sorted(r.queued_seconds for r in records)
    assert waited[:2] == [0.0, 0.0]
    assert waited[2] > 0
    assert all(r.ttft_seconds is not None and r.queued_seconds < r.ttft_seconds <= r.total_seconds for r in records)


def test_turns_go_round_among_keys_however_much_each_asks(gateway: GatewayProcess, replica: Replica) -> None:
    with ExitStack() as stack:
        gateway.put(route(replica, in_flight=1))
        clients = [ask(stack, gateway, "greedy", wait="answer")]
        replica.last()
        for who in ("greedy", "greedy", "greedy", "modest", "other"):
            clients.append(ask(stack, gateway, who, wait="answer"))
            wait_for(lambda: gateway.state()["connections"] == len(clients), "it waits")
        replica.permit(6)
        assert [client.answer()[0] for client in clients] == [200] * 6
        assert served(replica) == ["greedy", "greedy", "modest", "other", "greedy", "greedy"]


def test_arms_that_share_a_replica_have_turns_by_how_long_they_have_waited(
    gateway: GatewayProcess, replica: Replica
) -> None:
    arms = arm("stable", 100, replica), arm("candidate", 0, replica, version=2)
    to_candidate = Target(arm="candidate", header="x-team", value="ml")
    with ExitStack() as stack:
        gateway.put(Route("m", "s", arms, in_flight=1, targets=(to_candidate,)))
        clients = [ask(stack, gateway, "first", wait="answer")]
        replica.last()
        for who in ("stable-1", "candidate-1", "stable-2", "candidate-2"):
            raw = stack.enter_context(gateway.raw())
            raw.post({**chat(wait="answer"), "name": who}, *(["X-Team: ml"] if "candidate" in who else []))
            clients.append(raw)
            wait_for(lambda: gateway.state()["connections"] == len(clients), "it waits")
            gateway.state()  # by now it was heard
        replica.permit(5)
        assert [client.answer()[0] for client in clients] == [200] * 5
        assert served(replica) == ["first", "stable-1", "candidate-1", "stable-2", "candidate-2"]


def test_a_wait_has_an_end_however_often_the_table_changes() -> None:
    with GatewayProcess("first_byte_seconds=1", "sweep_seconds=0.05") as gateway, Replica(1) as replica:
        gateway.put(route(replica, in_flight=1))
        with ExitStack() as stack:
            streaming = ask(stack, gateway, stream=True, chunks=2, wait="chunk")
            assert streaming.head()[0] == 200
            waiting = ask(stack, gateway)

            def has_come() -> bool:
                gateway.put(route(replica, in_flight=1))
                return bool(select.select([waiting.sock], [], [], 0)[0])

            wait_for(has_come, "it is told that all were busy")
            assert waiting.answer()[0] == 503
            replica.permit(2)


def test_past_the_queue_clients_are_told_to_come_again(gateway: GatewayProcess) -> None:
    with Replica(1) as replica, ExitStack() as stack, gateway.client(headers={"Authorization": "Bearer a"}) as client:
        gateway.put(route(replica, in_flight=1, queue=2))
        clients = [ask(stack, gateway, wait="answer")]
        replica.last()
        for count in (2, 3):
            clients.append(ask(stack, gateway, wait="answer"))
            wait_for(lambda: gateway.state()["connections"] == count, "it is connected")  # noqa: B023
            gateway.state()  # by now it was heard, and waits
        refused = wait_for(lambda: too_many(client), "the queue is full")
        assert refused.status_code == 429
        assert int(refused.headers["retry-after"]) >= 1
        assert (refused.json()["error"]["code"], refused.json()["error"]["type"]) == ("too_many_waiting", "requests")
        anthropic = client.post("/v1/messages", json=chat())
        assert anthropic.status_code == 429
        assert anthropic.json()["error"]["type"] == "rate_limit_error"
        other = ask(stack, gateway, "b")  # has no fair share yet: the last of those who have more makes room
        statuses = Counter([clients.pop().answer()[0]])
        replica.permit(3)
        statuses.update(c.answer()[0] for c in (*clients, other))
        assert statuses == {200: 3, 429: 1}
        assert "b" in served(replica)


def too_many(client: httpx.Client) -> httpx.Response | None:
    try:
        answer = client.post(CHAT, json=chat(), timeout=0.2)
    except httpx.TimeoutException:
        return None
    return answer if answer.status_code == 429 else None


def test_who_leaves_while_waiting_leaves_the_queue(gateway: GatewayProcess, replica: Replica) -> None:
    with ExitStack() as stack:
        gateway.put(route(replica, in_flight=1))
        first = ask(stack, gateway, wait="answer")
        replica.last()
        with gateway.raw() as gone:
            gone.post(chat())
            wait_for(lambda: gateway.state()["connections"] == 2, "it is connected")
        record = gateway.one()
        assert (record.client_gone, record.status, record.is_error, record.address) == (True, 0, False, "")
        replica.permit()
        assert first.answer()[0] == 200
        assert len(replica.seen) == 1


def test_requests_are_held_until_a_table_brings_a_replica(gateway: GatewayProcess, replica: Replica) -> None:
    with ExitStack() as stack:
        gateway.put(route(hold_seconds=DEADLINE))
        clients = [ask(stack, gateway, f"k{i}") for i in range(3)]
        wait_for(lambda: gateway.state()["connections"] == 3, "they are connected")
        gateway.put(route(hold_seconds=DEADLINE), Route("n", "n", (arm("stable", 100, replica),)))
        assert replica.seen == []
        gateway.put(route(replica))
        assert [client.answer()[0] for client in clients] == [200] * 3
    assert all(r.queued_seconds > 0 for r in gateway.take(3))


def test_requests_are_held_while_a_replica_is_started_again(gateway: GatewayProcess, tmp_path: Path) -> None:
    path = tmp_path / "r"
    with ExitStack() as stack:
        with Replica(1, path=path) as replica:
            gateway.put(route(replica, hold_seconds=DEADLINE))
            clients = [ask(stack, gateway)]
            assert clients.pop().answer()[0] == 200
            clients = [ask(stack, gateway, wait="answer")]
            wait_for(lambda: len(replica.seen) == 2, "it arrives")
        clients += [ask(stack, gateway, wait="answer") for _ in range(3)]  # one died, the others are refused
        wait_for(lambda: gateway.state()["in_flight"] == {}, "they are held")
        with Replica(1, path=path) as replica:
            replica.permit(4)
            assert [client.answer()[0] for client in clients] == [200] * 4


def test_a_hold_has_an_end(gateway: GatewayProcess) -> None:
    with gateway.client() as client:
        gateway.put(route(hold_seconds=0.3))
        answer = client.post(CHAT, json=chat())
        assert (answer.status_code, answer.json()["error"]["code"]) == (503, "no_healthy_replica")
        assert int(answer.headers["retry-after"]) >= 1
        record = gateway.one()
        assert (record.status, record.is_error) == (503, True)
        assert record.queued_seconds >= 0.3
        gateway.put(route())
        assert client.post(CHAT, json=chat()).status_code == 503
        assert gateway.one().queued_seconds == 0.0


def test_what_waits_for_a_deployment_that_is_taken_away_is_told_so(gateway: GatewayProcess) -> None:
    with ExitStack() as stack:
        gateway.put(route(hold_seconds=DEADLINE))
        client = ask(stack, gateway)
        wait_for(lambda: gateway.state()["connections"] == 1, "it is connected")
        gateway.put()
        status, _, body = client.answer()
        assert status == 404
        assert b"model_not_found" in body


def test_copies_give_way_to_requests(gateway: GatewayProcess, replica: Replica) -> None:
    with ExitStack() as stack, gateway.client() as client:
        shadow = arm("shadow", 100, replica, version=9)
        stable = Route("m", "s", (arm("stable", 100, replica, version=1),), shadow, in_flight=2)
        gateway.put(stable)
        replica.is_silent = True
        first = ask(stack, gateway)
        wait_for(lambda: len(replica.seen) == 2, "the request and its copy are there")
        copy = next(s for s in replica.seen if s is not replica.seen[0])
        replica.is_silent = False
        assert client.post(CHAT, json=chat()).status_code == 200  # takes the copy's place
        assert replica.seen[0].cut.is_set() or copy.cut.wait(DEADLINE)
        assert gateway.state()["in_flight"] == {replica.address: 1}
        first.close()
