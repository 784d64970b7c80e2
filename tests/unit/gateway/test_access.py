"""Names that clients use, who may use them, and what is kept of each request."""

from __future__ import annotations

import hashlib
from typing import Any

import anthropic
import httpx
import openai
import pytest

from stokerd.gateway.wire import Arm, Key, Route, RouteTable, Target
from tests.harness import wait_for
from tests.system.upstream import GatewayProcess, Replica, arm, chat

CHAT = "/v1/chat/completions"
TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"


def put(gateway: GatewayProcess, *routes: Route, keys: tuple[Key, ...] = (), needs_key: bool = False) -> None:
    version = gateway.state()["table_version"] + 1
    table = RouteTable(version, routes, keys, needs_key)
    answer = gateway.control.put("/routes", json=table.as_dict())
    assert answer.status_code == 200, answer.text


def key(name: str, **limits: Any) -> Key:
    return Key(name, hashlib.sha256(f"sk-{name}".encode()).hexdigest(), **limits)


def bearer(name: str) -> dict[str, str]:
    return {"Authorization": f"Bearer sk-{name}"}


def test_a_deployment_has_other_names_and_its_replicas_know_only_one(gateway: GatewayProcess, replica: Replica) -> None:
    words = (("champion", 1), ("next", 2))
    with Replica(2) as candidate, gateway.client() as client:
        arms = (arm("stable", 100, replica), arm("candidate", 0, candidate))
        put(gateway, Route("m", "s", arms, aliases=("gpt-4", "small"), versions=words))
        for asked, server in (("gpt-4", replica), ("m@champion", replica), ("small@next", candidate)):
            answer = client.post(CHAT, json=chat(asked))
            assert answer.headers["x-stoker-version"] == str(server.version)
            assert server.last().json == chat("m")
        assert client.post(CHAT, json=chat("m@gone")).status_code == 404
        assert [m["id"] for m in client.get("/v1/models").json()["data"]] == ["gpt-4", "m", "small"]
    assert {r.deployment for r in gateway.take(3)} == {"m"}


def test_adapters_of_one_server_are_told_apart_by_their_names_there(gateway: GatewayProcess, replica: Replica) -> None:
    stable = Arm("stable", 1, 0, (replica.address,), model="m-v1")
    candidate = Arm("candidate", 2, 100, (replica.address,), model="m-v2")
    shadow = Arm("shadow", 3, 100, (replica.address,), model="m-v3")
    put(gateway, Route("m", "s", (stable, candidate), shadow, aliases=("small",)))
    with gateway.client() as client:
        assert client.post(CHAT, json=chat("small")).json()["model"] == "m-v2"
        assert client.post(CHAT, json=chat("m@1")).json()["model"] == "m-v1"
        gateway.take(3)
    assert sorted(seen.json["model"] for seen in replica.seen) == ["m-v1", "m-v2", "m-v3"]
    assert {str(seen.json | {"model": ""}) for seen in replica.seen} == {str(chat() | {"model": ""})}


def test_stable_takes_over_under_its_own_name(gateway: GatewayProcess, replica: Replica) -> None:
    stable = Arm("stable", 1, 0, (replica.address,), model="m-v1")
    put(gateway, Route("m", "s", (stable, Arm("candidate", 2, 100, ("unix:/tmp/stk-nobody",), model="m-v2"))))
    with gateway.client() as client:
        assert client.post(CHAT, json=chat()).json()["model"] == "m-v1"


def test_targeted_callers_meet_the_candidate_and_nobody_past_the_cap(gateway: GatewayProcess, replica: Replica) -> None:
    with Replica(2) as candidate, gateway.client() as client:
        arms = (arm("stable", 0, replica), arm("candidate", 100, candidate))
        targets = (Target("candidate", header="x-canary"), Target("candidate", key="tester"))
        put(gateway, Route("m", "cap", arms, targets=targets, max_callers=2), keys=(key("tester"),))

        def arm_of(**headers: str) -> str:
            return client.post(CHAT, json=chat(), headers={k.replace("_", "-"): v for k, v in headers.items()}).headers[
                "x-stoker-arm"
            ]

        met = [arm_of(x_stoker_session=f"s{i}") for i in range(6)]
        assert met == ["candidate"] * 2 + ["stable"] * 4
        assert [arm_of(x_stoker_session=f"s{i}") for i in range(6)] == met
        assert arm_of() == "stable"
        assert arm_of(X_Canary="1", x_stoker_session="s5") == "candidate"
        assert arm_of(**bearer("tester")) == "candidate"


def test_keys_open_what_they_may(gateway: GatewayProcess, replica: Replica) -> None:
    routes = (Route("m", "s", (arm("stable", 100, replica),)), Route("n", "s", (arm("stable", 100, replica),)))
    put(gateway, *routes, keys=(key("all"), key("one", models=("m",))), needs_key=True)
    with gateway.client() as client:

        def status(name: str, model: str = "m") -> int:
            return client.post(CHAT, json=chat(model), headers=bearer(name)).status_code

        assert [status("all"), status("all", "n"), status("one"), status("one", "n"), status("bad")] == [
            200, 200, 200, 403, 401,
        ]  # fmt: skip
        nobody = client.post(CHAT, json=chat())
        assert (nobody.status_code, nobody.json()["error"]["code"]) == (401, "missing_api_key")
        assert client.get("/health").status_code == 200
        assert client.get("/v1/models").status_code == 401
        models = client.get("/v1/models", headers=bearer("one")).json()["data"]
        assert [m["id"] for m in models] == ["m"]
        assert client.get("/v1/models/n", headers=bearer("one")).status_code == 404
        assert client.get("/v1/models/m", headers=bearer("one")).status_code == 200
        assert "Known models: m." in client.post(CHAT, json=chat("x"), headers=bearer("one")).text
        assert client.post(CHAT, json=chat(), headers={"x-api-key": "sk-one"}).status_code == 200
    with (
        openai.OpenAI(base_url=f"{gateway.url}/v1", api_key="sk-bad", max_retries=0) as openai_client,
        pytest.raises(openai.AuthenticationError),
    ):
        openai_client.models.list()
    records = gateway.take(4)
    assert [r.key for r in records] == ["all", "all", "one", "one"]


def test_a_keys_limits_hold_and_say_when_to_come_again(gateway: GatewayProcess, replica: Replica) -> None:
    keys = (key("few", requests_per_minute=2), key("thrifty", tokens_per_minute=10), key("narrow", in_flight=1))
    put(gateway, Route("m", "s", (arm("stable", 100, replica),)), keys=keys)
    with gateway.client() as client, gateway.raw() as raw:

        def ask(name: str) -> httpx.Response:
            return client.post(CHAT, json=chat(), headers=bearer(name))

        few = [ask("few") for _ in range(3)]
        assert [a.status_code for a in few] == [200, 200, 429]
        assert 0 < int(few[2].headers["retry-after"]) <= 60
        thrifty = [ask("thrifty") for _ in range(2)]  # an answer costs 12 tokens
        assert [a.status_code for a in thrifty] == [200, 429]
        raw.post(chat(wait="answer"), "Authorization: Bearer sk-narrow")
        wait_for(lambda: len(replica.seen) == 4, "it arrives")
        assert ask("narrow").status_code == 429
        replica.permit()
        assert raw.answer()[0] == 200
        assert ask("narrow").status_code == 200
        raw.post(chat(wait="answer"), "Authorization: Bearer sk-narrow")
        raw.close()
        gateway.take(6)  # the one that left is over, and counts no more
        assert ask("narrow").status_code == 200


def test_anthropics_clients_are_told_in_their_own_words(gateway: GatewayProcess, replica: Replica) -> None:
    put(gateway, Route("m", "s", (arm("stable", 100, replica),)), keys=(key("a"),), needs_key=True)

    def ask(name: str, **body: Any) -> Any:
        with anthropic.Anthropic(base_url=gateway.url, api_key=f"sk-{name}", max_retries=0) as client:
            return client.messages.create(**{"model": "m", "max_tokens": 5, "messages": [], **body})

    ask("a", metadata={"user_id": "u"})
    with pytest.raises(anthropic.AuthenticationError) as denied:
        ask("bad")
    assert denied.value.body == {
        "type": "error",
        "error": {"type": "authentication_error", "message": denied.value.body["error"]["message"]},
    }
    with pytest.raises(anthropic.NotFoundError):
        ask("a", model="x")
    record = gateway.one()
    assert (record.path, record.key, record.status) == ("/v1/messages", "a", 200)


def test_a_record_tells_who_asked_what_and_how_it_ended(gateway: GatewayProcess, replica: Replica) -> None:
    put(gateway, Route("m", "s", (arm("stable", 100, replica),)))
    headers = {"x-stoker-session": "me", "traceparent": f"00-{TRACE}-00f067aa0ba902b7-01"}
    body = b'{"model":"m","messages":[]}'
    with gateway.client() as client:
        answer = client.post(CHAT, content=body, headers=headers)
        assert replica.last().headers["traceparent"] == headers["traceparent"]
        client.post(CHAT, json=chat(stream=True, chunks=4), headers={"x-stoker-session": "me"})
        client.post(CHAT, json=chat())
    whole, streamed, nameless = gateway.take(3)
    assert (whole.request_bytes, whole.response_bytes) == (len(body), len(answer.content))
    assert (whole.finish_reason, whole.trace, whole.key, whole.queued_seconds) == ("stop", TRACE, "", 0.0)
    assert whole.caller == streamed.caller != ""
    assert streamed.inter_token_seconds is not None
    assert streamed.max_gap_seconds is not None
    assert streamed.max_gap_seconds >= streamed.inter_token_seconds
    assert (nameless.caller, nameless.trace, nameless.max_gap_seconds) == ("", "", None)


def test_the_gateways_own_keys_stay_with_it_and_others_are_handed_on(gateway: GatewayProcess, replica: Replica) -> None:
    """An engine may have a key of its own, and writes what it gets into its log."""
    gateway.route(arm("stable", 100, replica))
    text = "sk-stoker-secret"
    ours = Key("ours", hashlib.sha256(text.encode()).hexdigest())
    put(gateway, Route("m", "s", (arm("stable", 100, replica),)), keys=(ours,))
    with gateway.client() as client:
        for _ in range(2):  # parsed, and known from before
            for headers in ({"Authorization": f"Bearer {text}"}, {"X-Api-Key": text}):
                assert client.post(CHAT, json=chat(), headers=headers).status_code == 200
                assert text not in str(replica.last().headers)
        client.post(CHAT, json=chat(), headers=bearer("engine"))
        assert replica.last().headers["authorization"] == "Bearer sk-engine"
