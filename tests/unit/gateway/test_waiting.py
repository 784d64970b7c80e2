"""What the gateway says of requests that wait: from it the daemon sees whether a replica stalls."""

from __future__ import annotations

from tests.harness import wait_for
from tests.system.upstream import GatewayProcess, Replica, arm, chat


def test_a_request_waits_until_its_next_byte_comes(gateway: GatewayProcess, replica: Replica) -> None:
    gateway.route(arm("stable", 100, replica))
    address = replica.address
    with gateway.raw() as raw:
        raw.post(chat(stream=True, wait="chunk", chunks=2), "Connection: close")
        first = wait_for(lambda: gateway.state()["waiting"].get(address), "it waits")
        wait_for(lambda: gateway.state()["waiting"][address] > first + 0.1, "it waits on")
        received = gateway.state()["received"][address]
        replica.permit()
        wait_for(lambda: gateway.state()["received"][address] > received, "a byte came")
        replica.permit()
        raw.rest()
    assert gateway.state()["waiting"] == {}
    assert gateway.state()["received"][address] > received


def test_a_request_whose_client_takes_nothing_waits_for_no_replica(gateway: GatewayProcess, replica: Replica) -> None:
    gateway.route(arm("stable", 100, replica))
    address = replica.address

    def is_held_up() -> bool:
        state = gateway.state()
        return bool(state["in_flight"] == {address: 1} and state["waiting"] == {})

    with gateway.raw() as raw:
        raw.post(chat(stream=True, chunks=200, size=100_000), "Connection: close")
        replica.last()
        wait_for(is_held_up, "the gateway reads no more")
        assert raw.rest().endswith(b"0\r\n\r\n")


def test_addresses_that_are_gone_are_forgotten(gateway: GatewayProcess, replica: Replica) -> None:
    with Replica() as other, gateway.client() as client:
        gateway.route(arm("stable", 100, other))
        assert client.post("/v1/chat/completions", json=chat()).status_code == 200
        assert other.address in gateway.state()["received"]
    assert other.address not in gateway.route(arm("stable", 100, replica))["received"]
