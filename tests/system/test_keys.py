"""API keys, from `stoker key create` to the gateway's workers and back."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.harness import Stokerd, wait_for
from tests.system.loop import CHAT, add_version, serve

STOKER = Path(sys.executable).with_name("stoker")


@pytest.fixture(scope="module")
def daemon() -> Iterator[Stokerd]:
    stokerd = Stokerd()
    change(stokerd, "gateway: {", "gateway: {keys: required, workers: 2, ")
    with stokerd as running:
        for alias in ("one", "two"):
            add_version(running, alias)
        serve(running)
        yield running


def change(daemon: Stokerd, old: str, new: str) -> None:
    """Change its settings, which it reads when it starts."""
    daemon.home.config.write_text(daemon.home.config.read_text().replace(old, new))


def stoker(daemon: Stokerd, *arguments: str) -> str:
    """What `stoker` prints."""
    command = [str(STOKER), "--home", str(daemon.root), *arguments]
    return subprocess.check_output(command, stderr=subprocess.DEVNULL, text=True).strip()


def ask(daemon: Stokerd, key: str = "", model: str = "chat") -> httpx.Response:
    """The answer to a chat over a connection of its own, so that either worker may get it."""
    with daemon.openai() as client:
        headers = {"authorization": f"Bearer {key}"} if key else {}
        return client.post("/chat/completions", json={**CHAT, "model": model}, headers=headers)


def test_a_key_opens_the_gateway_as_soon_as_it_is_made_and_nothing_once_it_is_deleted(daemon: Stokerd) -> None:
    assert ask(daemon).json()["error"]["code"] == "missing_api_key"
    key = stoker(daemon, "key", "create", "alice")
    assert [ask(daemon, key).status_code for _ in range(10)] == [200] * 10
    stoker(daemon, "key", "delete", "alice")
    assert [ask(daemon, key).json()["error"]["code"] for _ in range(10)] == ["invalid_api_key"] * 10
    events = [(e.reason, e.name) for e in daemon.events() if (e.kind, e.name) == ("key", "alice")]
    assert events == [("KeyCreated", "alice"), ("KeyDeleted", "alice")]


def test_the_text_of_a_key_is_in_no_file(daemon: Stokerd) -> None:
    key = stoker(daemon, "key", "create", "secret")
    assert ask(daemon, key).status_code == 200
    table = json.loads((daemon.home.gateway / "routes.json").read_text())
    assert "secret" in [k["id"] for k in table["keys"]]
    assert key not in stoker(daemon, "get", "key", "secret", "--json") + stoker(daemon, "events")
    part = key.removeprefix("sk-stoker-")[:8].encode()
    assert not [p for p in daemon.root.rglob("*") if p.is_file() and part in p.read_bytes()]


def test_the_limits_of_a_key_hold_over_all_workers_and_their_restarts(daemon: Stokerd) -> None:
    key = stoker(daemon, "key", "create", "limited", "--requests-per-minute", "20", "--model", "chat")
    begun = time.monotonic()
    assert [ask(daemon, key).status_code for _ in range(15)] == [200] * 15
    daemon.terminate()
    change(daemon, "serving: {", "serving: {first_byte_timeout: 5m, ")
    daemon.start()  # with other settings: the workers are replaced
    wait_for(lambda: ask(daemon).status_code == 401, "the gateway is there")
    admitted = 15
    while (refused := ask(daemon, key)).status_code == 200:
        admitted += 1
    assert 20 <= admitted <= 20 + (time.monotonic() - begun) / 3
    assert (refused.status_code, refused.json()["error"]["code"]) == (429, "rate_limit_exceeded")
    assert 0 < int(refused.headers["retry-after"]) <= 3


def test_a_key_may_use_what_it_names_and_sees_nothing_else(daemon: Stokerd) -> None:
    daemon.apply(
        "{kind: deployment, name: other, model: m, version: 1, engine: {type: command, command: ['false', '{socket}']}}"
    )
    key = stoker(daemon, "key", "create", "narrow", "--model", "chat")
    wait_for(lambda: ask(daemon, key, "other").status_code == 403, "it is known, and not for this key")
    with daemon.openai() as client:
        models = client.get("/models", headers={"authorization": f"Bearer {key}"}).json()["data"]
    assert [m["id"] for m in models] == ["chat"]


def test_an_alias_in_the_registry_names_a_version_soon_after_it_was_set(daemon: Stokerd) -> None:
    key = stoker(daemon, "key", "create", "tester")
    assert ask(daemon, key, "chat@champion").status_code == 404
    stoker(daemon, "alias", "m", "champion", "1")
    wait_for(lambda: ask(daemon, key, "chat@champion").status_code == 200, "it names the version", seconds=10)
    stoker(daemon, "alias", "m", "champion", "2")
    wait_for(lambda: ask(daemon, key, "chat@champion").status_code == 404, "that version has no arm", seconds=10)
