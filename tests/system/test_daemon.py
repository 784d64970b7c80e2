"""The daemon itself: one per home, its socket, its events, and what it says when it can't start."""

from __future__ import annotations

import contextlib
import socket
import stat
import subprocess
import threading
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from stoker.errors import Conflict, DaemonUnreachable, InvalidSpec, NotFound
from stoker.types.events import Event
from stoker.types.training import Job
from tests.harness import DEADLINE, STOKERD, Stokerd, free_port, wait_for


@pytest.fixture
def daemon() -> Iterator[Stokerd]:
    with Stokerd() as running:
        yield running


def stokerd(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([STOKERD, *arguments], capture_output=True, text=True, timeout=DEADLINE, check=False)


def test_a_second_daemon_of_the_same_home_says_so_and_exits_with_3(daemon: Stokerd) -> None:
    second = stokerd("--home", daemon.root)
    assert second.returncode == 3
    assert f"pid {daemon.pid}" in second.stderr
    assert daemon.is_up()


def test_the_socket_is_for_owner_and_group_and_is_taken_over_from_a_dead_daemon(daemon: Stokerd) -> None:
    assert stat.S_IMODE(daemon.home.socket.stat().st_mode) == 0o660
    daemon.kill()
    assert daemon.home.socket.exists()
    daemon.start()
    assert daemon.terminate() == 0
    assert not daemon.home.socket.exists()
    daemon.start()


def test_what_stops_it_from_starting_is_one_sentence_and_an_exit_code(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("")
    refused = stokerd("--home", file)
    assert (refused.returncode, refused.stderr.count("\n")) == (6, 1)
    assert "can't be used" in refused.stderr
    long = stokerd("--home", tmp_path / ("x" * 120))
    assert long.returncode == 6
    assert "107 bytes" in long.stderr
    home = tmp_path / "home"
    home.mkdir()
    (home / "stoker.yaml").write_text("gateway:\n  prot: 8700\n")
    bad = stokerd("--home", home)
    assert bad.returncode == 2
    assert "stoker.yaml:2" in bad.stderr
    assert "port" in bad.stderr
    assert stokerd("--config", tmp_path / "none.yaml", "--home", home).returncode == 6
    (home / "stoker.yaml").unlink()
    (home / "state.db").write_bytes(b"damaged" * 1000)
    damaged = stokerd("--home", home)
    assert damaged.returncode == 6
    assert "damaged" in damaged.stderr
    assert (home / "state.db").read_bytes() == b"damaged" * 1000


def test_events_are_neither_missed_nor_doubled_over_restarts(daemon: Stokerd) -> None:
    seen: list[Event] = []
    total = 60

    def watch() -> None:
        while len([e for e in seen if e.kind == "job"]) < total:
            wait_for(daemon.listens, "the daemon listens")
            with contextlib.suppress(DaemonUnreachable):
                for event in daemon.client.events(seen[-1].id if seen else 0):
                    seen.append(event)
                    if len([e for e in seen if e.kind == "job"]) == total:
                        return

    watcher = threading.Thread(target=watch)
    watcher.start()
    for number in range(total):
        daemon.apply(f"{{kind: job, name: j{number}, command: [x]}}")
        if number in (20, 40):
            daemon.kill()
            daemon.start()
    watcher.join(DEADLINE)
    assert not watcher.is_alive()
    assert [e.name for e in seen if e.kind == "job"] == [f"j{n}" for n in range(total)]
    assert [e.id for e in seen] == sorted({e.id for e in seen})


def test_a_watcher_can_ask_for_one_resource_and_is_told_of_an_id_that_never_was(daemon: Stokerd) -> None:
    for name in ("a", "b"):
        daemon.apply(f"{{kind: job, name: {name}, command: [x]}}")
    assert [e.name for e in daemon.client.events(0, follow=False, kind="job", name="b")] == ["b"]
    with pytest.raises(Conflict, match="has not happened yet"):
        list(daemon.client.events(10**9, follow=False))


def test_apply_is_all_or_nothing_and_a_dry_run_changes_nothing(daemon: Stokerd) -> None:
    job = "{kind: job, name: a, command: [x]}"
    specs = f"{job}\n---\n{{kind: deployment, name: d, model: nope, version: 1, engine: {{type: vllm}}}}"
    with pytest.raises(NotFound, match="nope"):
        daemon.apply(specs)
    with pytest.raises(NotFound):
        daemon.client.get(Job, "a")
    before = daemon.client.host().last_event_id
    (dry,) = daemon.apply("{kind: job, name: a, command: [x]}", dry_run=True)
    assert dry["action"] == "created"
    assert daemon.client.list(Job) == []
    daemon.apply("{kind: job, name: a, command: [x]}")
    (same,) = daemon.apply("{kind: job, name: a, command: [x]}")
    assert same["action"] == "unchanged"
    (changed,) = daemon.apply("{kind: job, name: a, command: [y], timeout: 5m}")
    assert changed["changes"] == {"command": [["x"], ["y"]], "timeout": [None, 300.0]}
    assert [e.reason for e in daemon.events(before) if e.kind == "job"] == ["JobCreated", "JobChanged"]


def test_every_refusal_has_the_same_shape(daemon: Stokerd) -> None:
    transport = httpx.HTTPTransport(uds=str(daemon.home.socket))
    with httpx.Client(transport=transport, base_url="http://stoker", timeout=DEADLINE) as raw:
        document = raw.get("/openapi.json").json()
        assert "/v1/runs/{name}/metrics" in document["paths"]
        asked = 0
        for path, operations in document["paths"].items():
            concrete = path.format_map(defaultdict(lambda: "none", kind="run", verb="abort", plural="jobs"))
            for method in operations:
                body: dict[str, Any] | None = {} if method in ("post", "put") else None
                params = {"after": "x"} if path.endswith("events") else {}
                response = raw.request(method, concrete, json=body, params=params)
                if response.is_error:
                    asked += 1
                    assert set(response.json()) == {"code", "message", "hint", "details"}, (method, path)
        assert asked >= 20
        for response in (raw.get("/nowhere"), raw.post("/v1/host"), raw.get("/v1/runs?colour=red")):
            assert set(response.json()) == {"code", "message", "hint", "details"}


def test_a_refused_spec_names_what_was_expected(daemon: Stokerd) -> None:
    with pytest.raises(InvalidSpec, match=r"{datset} can't be filled in"):
        daemon.apply('{kind: job, name: a, command: ["{datset}"]}')
    with pytest.raises(InvalidSpec, match="no folder"):
        daemon.apply("{kind: job, name: a, command: [x], code: /no/such/folder}")


def test_host_and_gateway_are_described_and_a_taken_port_is_said_in_one_sentence(daemon: Stokerd) -> None:
    daemon.wait_event("GatewayReady", "gateway")
    host = daemon.client.host()
    assert (host.pid, host.gateway_phase) == (daemon.pid, "ready")
    assert host.memory_total > 0
    assert host.devices or host.devices_message
    with socket.socket() as squatter:
        squatter.bind(("127.0.0.1", 0))
        squatter.listen()
        port = squatter.getsockname()[1]
        with Stokerd(settings="") as other:
            other.terminate()
            other.home.config.write_text(f"gateway: {{port: {port}}}\n")
            other.start()
            failed = other.wait_event("GatewayFailed", "gateway")
            assert f"127.0.0.1:{port}" in failed.message
            assert other.client.host().gateway_phase == "backing-off"


def test_a_gateway_follows_changed_settings_when_the_daemon_starts_again(daemon: Stokerd) -> None:
    daemon.wait_event("GatewayReady", "gateway")
    daemon.terminate()
    daemon.port = free_port()
    daemon.home.config.write_text(f"gateway: {{port: {daemon.port}}}\n")
    daemon.start()
    wait_for(lambda: daemon.client.host().gateway_phase == "ready", "the gateway is ready")
    with daemon.openai() as client:
        assert client.get("/models").status_code == 200


def test_telemetry_is_kept_while_somebody_looks(daemon: Stokerd) -> None:
    def look() -> bool:
        daemon.client.host()
        series = daemon.client.request("GET", "/v1/series", params={"name": "host.*"})
        return len(series) >= 4 and all(len(s["points"]) >= 3 for s in series)

    wait_for(look, "three samples of each host series")


def test_ephemeral_daemons_end_what_they_started_and_others_do_not() -> None:
    with Stokerd() as daemon:
        daemon.wait_event("GatewayReady", "gateway")
        daemon.terminate()
        with daemon.openai() as client:
            assert client.get("/models").status_code == 200
        process = subprocess.Popen([STOKERD, "--home", daemon.root, "--ephemeral"], stderr=subprocess.DEVNULL)
        daemon.process = process
        wait_for(daemon.is_up, "it answers")
        assert daemon.terminate() == 0
        with daemon.openai() as client, pytest.raises(httpx.ConnectError):
            client.get("/models")
    assert not daemon.root.exists()
