"""The gateway as a process: how it starts, what it keeps, how it ends."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import ssl
import stat
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from tests.harness import DEADLINE, free_port, wait_for
from tests.system.certificates import certificate, needs_openssl
from tests.system.upstream import GatewayProcess, Knockers, Replica, arm, chat

CHAT = "/v1/chat/completions"


def run_gateway(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "stokerd.gateway", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=DEADLINE, check=False)


def places(folder: Path) -> list[str]:
    return ["--control", str(folder / "c2.sock"), "--table-file", str(folder / "t2.json")]


def test_a_killed_gateway_serves_again_from_its_table_file_without_the_daemon() -> None:
    with GatewayProcess() as gateway, Replica(3) as replica:
        gateway.route(arm("stable", 100, replica))
        first = gateway.state()
        with gateway.client() as client:
            assert client.post(CHAT, json=chat()).status_code == 200
        gateway.kill()
        assert gateway.control_path.exists()  # the stale socket that a killed process leaves
        gateway.start()
        second = gateway.state()
        assert second["table_version"] == first["table_version"]
        assert second["epoch"] != first["epoch"]
        with gateway.client() as client:
            assert client.post(CHAT, json=chat()).headers["x-stoker-version"] == "3"
        assert gateway.one().seq == 1


def test_a_table_file_that_cannot_be_read_stops_nothing() -> None:
    with GatewayProcess() as gateway, Replica() as replica:
        gateway.stop()
        gateway.table_file.write_text('{"version": 1, "routes": [{')
        gateway.start()
        assert "can't be read" in gateway.log
        assert gateway.state()["table_version"] == 0
        gateway.route(arm("stable", 100, replica))
        with gateway.client() as client:
            assert client.post(CHAT, json=chat()).status_code == 200
        assert json.loads(gateway.table_file.read_text())["version"] == gateway.state()["table_version"]


def test_a_table_holds_even_when_it_cannot_be_saved() -> None:
    with GatewayProcess() as gateway, Replica() as replica:
        gateway.table_file.mkdir()  # as good as a full disk, and works for root too
        gateway.route(arm("stable", 100, replica))
        wait_for(lambda: "could not be saved" in gateway.state()["problem"], "it says so")
        with gateway.client() as client:
            assert client.post(CHAT, json=chat()).status_code == 200
        gateway.table_file.rmdir()
        wait_for(lambda: gateway.state()["problem"] == "", "it is saved without being told again")
        assert json.loads(gateway.table_file.read_text())["version"] == gateway.state()["table_version"]


def test_a_taken_port_is_said_in_one_sentence(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        place = f"127.0.0.1:{other.getsockname()[1]}"
        ended = run_gateway("--listen", place, *places(tmp_path))
    assert ended.returncode == 6
    assert ended.stderr == f"gateway: {place} is taken by another program; stop that, or name another port.\n"
    assert not (tmp_path / "c2.sock").exists()


def test_a_port_that_is_shared_by_another_homes_gateway_is_taken(tmp_path: Path) -> None:
    """With SO_REUSEPORT the kernel would let both listen, and give each half of the connections."""
    with GatewayProcess() as gateway:
        ended = run_gateway("--listen", gateway.listen, *places(tmp_path))
        assert ended.returncode == 6
        assert "is taken by another program" in ended.stderr


def test_a_second_gateway_on_one_control_socket_gives_up_and_harms_nothing() -> None:
    with GatewayProcess() as gateway:
        ended = run_gateway("--listen", "127.0.0.1:0", "--control", str(gateway.control_path), "--table-file", "/tmp/t")
        assert ended.returncode == 6
        assert "another gateway answers on" in ended.stderr
        assert gateway.state()["table_version"] == 0


@pytest.mark.parametrize(
    ("control", "says"), [("/proc/none/c.sock", "can't be listened on"), ("/tmp/" + "x" * 200, "107 bytes")]
)
def test_a_control_socket_that_cannot_be_is_said(tmp_path: Path, control: str, says: str) -> None:
    ended = run_gateway("--listen", "127.0.0.1:0", "--control", control, "--table-file", str(tmp_path / "t"))
    assert ended.returncode == 6
    assert says in ended.stderr
    assert len(ended.stderr.splitlines()) == 1


def test_a_file_in_the_way_of_the_control_socket_is_left_alone(tmp_path: Path) -> None:
    precious = tmp_path / "c2.sock"
    precious.write_text("mine")
    ended = run_gateway("--listen", "127.0.0.1:0", *places(tmp_path))
    assert (ended.returncode, precious.read_text()) == (6, "mine")


@pytest.mark.parametrize("bad", [["--listen", "x"], ["--limit", "nonsense=1"], ["--limit", "body_bytes=x"], []])
def test_a_wrong_command_line_ends_with_2(bad: list[str], tmp_path: Path) -> None:
    assert run_gateway(*bad, *(places(tmp_path) if bad else [])).returncode == 2


def test_the_control_socket_is_its_owners_alone_and_goes_with_the_process() -> None:
    with GatewayProcess() as gateway:
        assert stat.S_IMODE(gateway.control_path.stat().st_mode) == 0o600
        assert gateway.stop() == 0
        assert not gateway.control_path.exists()


def test_it_loads_nothing_heavy() -> None:
    code = "import sys, stokerd.gateway.__main__; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    heavy = {
        "pydantic",
        "fastapi",
        "sqlmodel",
        "sqlalchemy",
        "httpx",
        "textual",
        "torch",
        "stokerd.app",
        "stokerd.store",
    }
    assert not heavy & set(loaded)


def test_sigterm_lets_streams_end_and_takes_nothing_new() -> None:
    with GatewayProcess() as gateway, Replica() as replica:
        gateway.route(arm("stable", 100, replica))
        with gateway.raw() as idle, gateway.client() as client:
            wait_for(lambda: gateway.state()["connections"] == 1, "the idle connection is there")
            with client.stream("POST", CHAT, json=chat(stream=True, chunks=3, wait="chunk")) as answer:
                lines = answer.iter_lines()
                next(lines)
                gateway.process.send_signal(signal.SIGTERM)
                assert idle.rest() == b""
                with pytest.raises(ConnectionRefusedError):
                    wait_for(lambda: socket.create_connection(gateway.place).close(), "it refuses")
                replica.permit(3)
                assert list(lines)[-2:] == ["data: [DONE]", ""]
        assert gateway.process.wait(DEADLINE) == 0
        assert "stopped" in gateway.log


@pytest.mark.parametrize("is_impatient", [False, True], ids=["drain time is up", "second signal"])
def test_draining_has_an_end(is_impatient: bool) -> None:
    with GatewayProcess(f"drain_seconds={600 if is_impatient else 0.3}") as gateway, Replica() as replica:
        gateway.route(arm("stable", 100, replica))
        with gateway.raw() as raw:
            raw.post(chat(wait="answer"))
            seen = replica.last()
            gateway.process.terminate()
            if is_impatient:
                wait_for(lambda: "draining" in gateway.log, "it drains")
                gateway.process.terminate()
            status, _, body = raw.answer()
            assert (status, json.loads(body)["error"]["code"]) == (503, "gateway_restarting")
            assert raw.rest() == b""
            assert gateway.process.wait(DEADLINE) == 0
            assert seen.cut.wait(DEADLINE)


def test_records_beyond_the_bound_are_dropped_and_counted() -> None:
    with GatewayProcess("records=5") as gateway, Replica() as replica:
        gateway.route(arm("stable", 100, replica))
        with gateway.client() as client:
            for _ in range(12):
                client.post(CHAT, json=chat())
        batch = gateway.batch()
        assert ([r.seq for r in batch.records], batch.dropped) == ([8, 9, 10, 11, 12], 7)


def test_who_reads_the_records_gets_the_last_ones_before_the_process_ends() -> None:
    with GatewayProcess() as gateway, Replica() as replica:
        gateway.route(arm("stable", 100, replica))
        with ThreadPoolExecutor() as pool:
            reading = pool.submit(gateway.batch, wait=60)
            with gateway.client() as client:
                assert client.post(CHAT, json=chat()).status_code == 200
                gateway.process.terminate()
            batch = reading.result()
            assert gateway.batch(epoch=batch.epoch, after=batch.records[-1].seq).records == ()
        assert gateway.process.wait(DEADLINE) == 0


def successor(gateway: GatewayProcess, name: str, **more: Any) -> GatewayProcess:
    """One that is to take the place of *gateway*."""
    take_over = ["--take-over", f"{gateway.control_path}.hand"]
    return GatewayProcess(root=gateway.root, listen=gateway.listen, worker=name, more=take_over, **more)


def test_workers_share_a_port_and_are_replaced_without_a_refused_connection() -> None:
    with GatewayProcess() as first, contextlib.ExitStack() as stack:
        first.stop()
        port = free_port()
        workers = [
            stack.enter_context(GatewayProcess(root=first.root, listen=f"127.0.0.1:{port}", worker=f"w{n}"))
            for n in range(2)
        ]
        with Knockers(("127.0.0.1", port)) as knockers:
            knockers.more(200)
            for generation in range(3):
                for n in range(2):
                    new = stack.enter_context(successor(workers[n], f"g{generation}-{n}"))
                    assert workers[n].process.wait(DEADLINE) == 0
                    assert "another worker takes over" in workers[n].log
                    workers[n] = new
                    knockers.more(100)
        assert set(knockers.heard) == {"200"}


def test_streams_and_kept_connections_outlive_the_hand_over() -> None:
    listen = f"127.0.0.1:{free_port()}"
    with GatewayProcess(listen=listen) as old, Replica() as replica, old.raw() as idle, old.client() as client:
        old.route(arm("stable", 100, replica))
        wait_for(lambda: old.state()["connections"] == 1, "the idle connection is there")
        with client.stream("POST", CHAT, json=chat(stream=True, chunks=3, wait="chunk")) as answer:
            lines = answer.iter_lines()
            next(lines)
            with successor(old, "new") as new:
                wait_for(lambda: old.state()["listen"] == "", "it takes no new connection")
                assert new.state()["listen"] == old.listen
                assert new.state()["table_version"] == old.state()["table_version"]
                idle.post(chat())
                status, headers, _ = idle.answer()
                assert (status, headers["connection"]) == (200, "close")
                replica.permit(3)
                assert list(lines)[-2:] == ["data: [DONE]", ""]
                with new.client() as other:
                    assert other.post(CHAT, json=chat()).status_code == 200
                assert len(new.batch().records) == 1
        client.close()
        assert old.process.wait(DEADLINE) == 0


def test_who_takes_over_and_dies_before_it_serves_changes_nothing() -> None:
    with GatewayProcess() as gateway:
        with socket.socket(socket.AF_UNIX) as taker:
            taker.connect(f"{gateway.control_path}.hand")
            said, fds, _, _ = socket.recv_fds(taker, 1024, 8)
            assert json.loads(said) == {"place": "127.0.0.1:0"}
            for fd in fds:
                os.close(fd)
        with gateway.client() as client:
            assert client.get("/health").status_code == 200
        assert gateway.state()["listen"] == gateway.listen


def test_a_predecessor_that_does_not_answer_is_worked_around() -> None:
    with GatewayProcess() as first:
        first.stop()
        listen = f"127.0.0.1:{free_port()}"
        with (
            GatewayProcess(root=first.root, listen=listen, worker="old") as old,
            old.frozen(),
            successor(old, "new") as new,
        ):
            assert new.state()["listen"] == listen
            assert "taken over" not in new.log


def test_a_worker_that_awaits_its_table_takes_nobody_before() -> None:
    with GatewayProcess(more=["--await-table", "600"], waits_for_clients=False) as gateway, Replica() as replica:
        assert gateway.state()["listen"] == ""
        assert gateway.route(arm("stable", 100, replica))["listen"]
        gateway.know_place()
        with gateway.client() as client:
            assert client.post(CHAT, json=chat()).status_code == 200


# TLS.


def shown(gateway: GatewayProcess) -> str:
    """The certificate that clients see."""
    return ssl.get_server_certificate(gateway.place, timeout=DEADLINE)


@needs_openssl
def test_with_a_certificate_https_is_served_and_a_renewed_one_is_followed(tmp_path: Path) -> None:
    (cert, key), (newer, newer_key) = certificate(tmp_path, "one"), certificate(tmp_path, "two")
    first = cert.read_text()
    trusting = ssl.create_default_context(cafile=str(cert))
    options = ["--tls-certificate", str(cert), "--tls-key", str(key)]
    with GatewayProcess(more=options) as gateway, Replica() as replica:
        gateway.route(arm("stable", 100, replica))
        with gateway.client(verify=trusting) as client:
            assert client.post(CHAT, json=chat()).status_code == 200
            with client.stream("POST", CHAT, json=chat(stream=True)) as answer:
                assert list(answer.iter_lines())[-2:] == ["data: [DONE]", ""]
        with gateway.raw() as plain:
            plain.post(chat())
            assert not plain.rest().startswith(b"HTTP/1.1 200")
        cert.write_text("nonsense")
        wait_for(lambda: "the old certificate is shown" in gateway.state()["problem"], "a bad one is told")
        assert shown(gateway) == first
        newer_key.replace(key)
        newer.replace(cert)
        wait_for(lambda: shown(gateway) == cert.read_text(), "the new one is shown")
        wait_for(lambda: gateway.state()["problem"] == "", "all is well again")
        assert gateway.stop() == 0


@needs_openssl
def test_with_a_certificate_deadlines_run_on_whatever_a_client_did(tmp_path: Path) -> None:
    cert, key = certificate(tmp_path, "one")
    trusting = ssl.create_default_context(cafile=str(cert))
    options = ["--tls-certificate", str(cert), "--tls-key", str(key)]
    limits = ("header_seconds=1", "first_byte_seconds=1", "linger_seconds=1", "sweep_seconds=0.05")
    with GatewayProcess(*limits, more=options) as gateway, Replica() as replica:
        gateway.route(arm("stable", 100, replica))
        for begins, status in (("GET /health HTTP/1.1\r\nHost:", 408), ("GET /health HTTP/9\r\n\r\n", 400)):
            with gateway.raw(trusting) as raw:
                raw.send(begins.encode())
                assert raw.answer()[0] == status
                wait_for(lambda: gateway.state()["connections"] == 0, "it is closed, though the client stays")
        with gateway.client(verify=trusting) as client:
            assert client.post(CHAT, json=chat(wait="answer")).status_code == 504
        assert "Traceback" not in gateway.log


@needs_openssl
def test_with_a_certificate_a_slow_client_gets_the_whole_of_a_last_answer(tmp_path: Path) -> None:
    cert, key = certificate(tmp_path, "one")
    trusting = ssl.create_default_context(cafile=str(cert))
    options = ["--tls-certificate", str(cert), "--tls-key", str(key)]
    size = 1 << 20
    with GatewayProcess("linger_seconds=0.05", "sweep_seconds=0.02", more=options) as gateway, Replica() as replica:
        gateway.route(arm("stable", 100, replica))
        with gateway.raw(trusting, receive_bytes=4096) as raw:
            raw.post(chat(size=size), "Connection: close")
            record = gateway.one()  # all was handed to its connection, which may not take it yet
            wait_for(lambda: gateway.state()["connections"], "it is there")
            gateway.state()
            assert len(raw.answer()[2]) > size
        assert record.status == 200


@needs_openssl
def test_a_certificate_that_cannot_be_used_is_said_in_one_sentence(tmp_path: Path) -> None:
    (cert, _), (_, other_key) = certificate(tmp_path, "one"), certificate(tmp_path, "two")
    for key, says in ((other_key, "KEY_VALUES_MISMATCH"), (tmp_path / "none", "No such file")):
        ended = run_gateway("--tls-certificate", str(cert), "--tls-key", str(key), *places(tmp_path))
        assert ended.returncode == 6
        assert says in ended.stderr
        assert len(ended.stderr.splitlines()) == 1


def open_files(gateway: GatewayProcess) -> int:
    return len(list(Path(f"/proc/{gateway.process.pid}/fd").iterdir()))


def test_two_hundred_streams_at_once_are_whole_and_counted_and_leave_nothing_behind() -> None:
    count, chunks = 200, 10  # more than the replica's backlog of 100
    # The replica takes them all in its own time.
    with GatewayProcess(f"connect_seconds={DEADLINE}") as gateway, Replica() as replica:
        gateway.route(arm("stable", 100, replica))
        files = open_files(gateway)
        with contextlib.ExitStack() as stack:
            raws = [stack.enter_context(gateway.raw()) for _ in range(count)]
            for raw in raws:
                raw.post(chat(stream=True, chunks=chunks, gap=0.01), "Connection: close")
            texts = [raw.rest() for raw in raws]
        assert {text.count(b"data: ") for text in texts} == {chunks + 2}
        assert all(text.endswith(b"data: [DONE]\n\n\r\n0\r\n\r\n") for text in texts)
        records = gateway.take(count)
        assert {(r.completion_tokens, r.is_error) for r in records} == {(chunks, False)}
        assert sorted(r.seq for r in records) == list(range(1, count + 1))
        assert gateway.state()["in_flight"] == {}
        # Idle connections to the replica are let go after some seconds.
        wait_for(lambda: open_files(gateway) <= files + 1, "all are closed")
