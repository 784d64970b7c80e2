"""What becomes of requests whose replica dies, refuses or fails."""

from __future__ import annotations

from contextlib import ExitStack

from stokerd.gateway.wire import Route
from tests.harness import wait_for
from tests.system.upstream import GatewayProcess, Replica, arm, chat

CHAT = "/v1/chat/completions"


def test_what_waits_for_a_replica_that_dies_is_answered_by_the_next(gateway: GatewayProcess) -> None:
    with Replica(1) as one, Replica(1) as other, ExitStack() as stack:
        gateway.route(arm("stable", 100, one, other))
        clients = [stack.enter_context(gateway.raw()) for _ in range(5)]
        for client in clients:
            client.post(chat(wait="answer"))
        wait_for(lambda: len(one.seen) + len(other.seen) == 5, "they arrive")
        dying, left = (one, other) if one.seen else (other, one)
        dying.stop()
        wait_for(lambda: len(left.seen) == 5, "the other one gets them all")
        left.permit(5)
        assert [client.answer()[0] for client in clients] == [200] * 5
        assert {(r.address, r.status, r.is_error) for r in gateway.take(5)} == {(left.address, 200, False)}


def test_a_request_that_kills_its_replicas_kills_two_and_not_all(gateway: GatewayProcess) -> None:
    with ExitStack() as stack, gateway.client() as client:
        replicas = [stack.enter_context(Replica(1)) for _ in range(4)]
        gateway.route(arm("stable", 100, *replicas))
        answer = client.post(CHAT, json=chat(close=True))
        assert (answer.status_code, answer.json()["error"]["code"]) == (502, "upstream_failed")
        assert sorted(len(r.seen) for r in replicas) == [0, 0, 1, 1]
        assert client.post(CHAT, json=chat()).status_code == 200
    records = gateway.take(2)
    assert [(r.status, r.is_error) for r in records] == [(502, True), (200, False)]


def test_an_answer_that_has_begun_is_never_asked_for_again(gateway: GatewayProcess, replica: Replica) -> None:
    with Replica(1) as other, gateway.client() as client:
        gateway.route(arm("stable", 100, replica, other))
        assert "upstream_failed" in client.post(CHAT, json=chat(stream=True, die_after=1)).text
        assert len(replica.seen) + len(other.seen) == 1


def test_a_replica_that_fails_again_and_again_is_left_alone(gateway: GatewayProcess) -> None:
    with Replica(1) as one, Replica(1) as other, gateway.client() as client:
        gateway.route(arm("stable", 100, one, other))
        for _ in range(5):
            assert client.post(CHAT, json=chat(status=500)).status_code == 500
        failing, healthy = (one, other) if one.seen else (other, one)
        assert (len(failing.seen), len(healthy.seen)) == (5, 0)
        assert client.post(CHAT, json=chat()).status_code == 200
        assert len(healthy.seen) == 1
        for _ in range(10):  # half of an arm stays, whatever it answers
            client.post(CHAT, json=chat(status=500))
        wait_for(lambda: client.post(CHAT, json=chat()).is_success and len(failing.seen) > 6, "it comes back")


def test_stable_answers_for_a_candidate_whose_replica_dies_with_the_request(
    gateway: GatewayProcess, replica: Replica
) -> None:
    with Replica(2) as candidate, gateway.raw() as raw:
        gateway.route(arm("stable", 0, replica), arm("candidate", 100, candidate))
        raw.post(chat(wait="answer"))
        candidate.last()
        candidate.stop()
        replica.last()
        replica.permit()
        status, headers, _ = raw.answer()
    assert (status, headers["x-stoker-version"]) == (200, "1")
    record = gateway.one()
    assert (record.arm, record.fell_back, record.is_error) == ("stable", True, False)


def test_a_version_that_just_served_answers_for_stable_when_none_of_its_replicas_can(gateway: GatewayProcess) -> None:
    with Replica() as former, gateway.client() as client:
        with Replica() as stable:
            gateway.route(arm("stable", 100, stable, version=2), arm("former", 0, former, version=1))
            assert client.post(CHAT, json=chat()).headers["x-stoker-version"] == "2"
        answer = client.post(CHAT, json=chat())
    assert (answer.status_code, answer.headers["x-stoker-arm"], answer.headers["x-stoker-version"]) == (
        200,
        "former",
        "1",
    )
    _, record = gateway.take(2)
    assert (record.arm, record.version, record.fell_back, record.is_error) == ("former", 1, True, False)


def test_a_retry_follows_the_table_that_came_meanwhile(gateway: GatewayProcess, replica: Replica) -> None:
    with Replica(2) as old, gateway.raw() as raw:
        gateway.put(Route("m", "s", (arm("stable", 100, old),)))
        raw.post(chat(wait="answer"))
        old.last()
        version = gateway.put(Route("m", "s", (arm("stable", 100, replica),)))["table_version"]
        old.stop()
        replica.last()
        replica.permit()
        assert raw.answer()[0] == 200
    record = gateway.one()
    assert (record.version, record.table_version) == (1, version)
