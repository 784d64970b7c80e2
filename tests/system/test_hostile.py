"""Clients and replicas that mean harm, or are broken as if they did: what each gets, and that nobody else notices."""

from __future__ import annotations

import contextlib
import json
import resource
import socket
import tempfile
import threading
import time
import uuid
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from tests.harness import DEADLINE, wait_for
from tests.system.upstream import GatewayProcess, Replica, arm, chat

CHAT = "/v1/chat/completions"
FAST = "sweep_seconds=0.05"
GET = b"GET /health HTTP/1.1\r\nHost: g\r\n\r\n"
MIB = 1 << 20
IDLE_CONNECTIONS = 10_000
HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n"
STREAM = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"


def rss(gateway: GatewayProcess) -> int:
    return int(psutil.Process(gateway.process.pid).memory_info().rss)


class Liar:
    """A replica that reads a request's head and then does whatever *act* does with the bare socket."""

    def __init__(self, act: Callable[[socket.socket], None]) -> None:
        self.address = f"unix:{Path(tempfile.gettempdir()) / f'stk-{uuid.uuid4().hex[:12]}'}"
        self.connections = 0
        self._act = act
        self._listener = socket.socket(socket.AF_UNIX)
        self._threads: list[threading.Thread] = []
        self._socks: list[socket.socket] = []

    def __enter__(self) -> Liar:
        self._listener.bind(self.address.removeprefix("unix:"))
        self._listener.listen(100)
        self._run(self._accept)
        return self

    def __exit__(self, *_: object) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        for sock in list(self._socks):
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
        for thread in list(self._threads):
            thread.join(DEADLINE)
        self._listener.close()
        Path(self.address.removeprefix("unix:")).unlink()

    def _run(self, what: Callable[..., None], *arguments: object) -> None:
        thread = threading.Thread(target=what, args=arguments, daemon=True)
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        while True:
            try:
                sock, _ = self._listener.accept()
            except OSError:
                return
            self._socks.append(sock)
            self._run(self._serve, sock)

    def _serve(self, sock: socket.socket) -> None:
        self.connections += 1
        with sock, contextlib.suppress(OSError):
            got = b""
            while b"\r\n\r\n" not in got:
                piece = sock.recv(65536)
                if not piece:
                    return
                got += piece
            self._act(sock)


def says(*pieces: bytes, then: str = "close") -> Callable[[socket.socket], None]:
    """Send *pieces*; then close, or wait until the gateway does."""

    def act(sock: socket.socket) -> None:
        for piece in pieces:
            sock.sendall(piece)
        if then == "wait":
            while sock.recv(65536):
                pass

    return act


class Endless:
    """Sends a beginning, then the same piece for ever; knows how much was taken, and when it was cut off."""

    def __init__(self, beginning: bytes, piece: bytes, *, pause_seconds: float = 0.0) -> None:
        self._beginning = beginning
        self._piece = piece
        self._pause_seconds = pause_seconds
        self.sent = 0
        self.is_cut = threading.Event()

    def __call__(self, sock: socket.socket) -> None:
        try:
            sock.sendall(self._beginning)
            while True:
                sock.sendall(self._piece)
                self.sent += len(self._piece)
                time.sleep(self._pause_seconds)
        except OSError:
            self.is_cut.set()


def still_serves(gateway: GatewayProcess) -> None:
    """A client that does nothing wrong is answered."""
    with gateway.client() as client:
        assert client.get("/health").status_code == 200


# Clients.


def test_slow_clients_keep_their_places_no_longer_than_allowed() -> None:
    limits = ("connections=50", "header_seconds=2", "linger_seconds=0.2")
    with GatewayProcess(FAST, *limits) as gateway, contextlib.ExitStack() as stack:
        is_ended = threading.Event()
        with gateway.frozen():  # however long it takes to come: their clocks start when all are there
            raws = [stack.enter_context(gateway.raw()) for _ in range(50)]
            for raw in raws:
                raw.send(b"GET /health HTTP/1.1\r\nX-A: ")
            late = stack.enter_context(gateway.raw())

        def dribble() -> None:
            while not is_ended.wait(0.1):
                for raw in raws:
                    with contextlib.suppress(OSError):
                        raw.send(b"x")

        thread = threading.Thread(target=dribble)
        thread.start()
        try:
            assert late.answer()[0] == 503, "all places are taken"
            wait_for(lambda: gateway.state()["connections"] == 0, "they are cut off, though bytes come")
            still_serves(gateway)
        finally:
            is_ended.set()
            thread.join()


def test_ten_thousand_idle_connections_cost_little_and_hinder_nobody() -> None:
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    if hard != resource.RLIM_INFINITY and hard < IDLE_CONNECTIONS + 1_000:
        pytest.skip(f"a process may have {hard} open files here: ulimit -Hn must be {IDLE_CONNECTIONS + 1_000} or more")
    before_limit = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    socks: list[socket.socket] = []
    try:
        with GatewayProcess("connections=12000") as gateway, Replica() as replica:
            gateway.route(arm("stable", 100, replica))
            before = rss(gateway)
            for number in range(IDLE_CONNECTIONS):
                sock = socket.create_connection(gateway.place, timeout=DEADLINE)
                socks.append(sock)
                if number % 2:
                    sock.sendall(GET)
            for sock in socks[1::2]:
                assert sock.recv(4096).startswith(b"HTTP/1.1 200")
            wait_for(lambda: gateway.state()["connections"] == IDLE_CONNECTIONS, "they are there")
            assert rss(gateway) - before < 120 * MIB
            cpu = psutil.Process(gateway.process.pid).cpu_times()
            time.sleep(2.0)  # nothing happens: what is measured is what that costs
            later = psutil.Process(gateway.process.pid).cpu_times()
            assert later.user + later.system - cpu.user - cpu.system < 0.2
            with gateway.client() as client:
                assert client.post(CHAT, json=chat()).status_code == 200
            for sock in socks:
                sock.close()
            wait_for(lambda: gateway.state()["connections"] <= 1, "they are forgotten")
            still_serves(gateway)
    finally:
        for sock in socks:
            sock.close()
        resource.setrlimit(resource.RLIMIT_NOFILE, before_limit)


def test_a_client_that_sends_ahead_without_end_and_reads_nothing_fills_no_memory() -> None:
    with GatewayProcess() as gateway, gateway.raw() as raw:
        still_serves(gateway)
        before, sent = rss(gateway), 0
        raw.sock.settimeout(1.0)
        with contextlib.suppress(OSError):
            while sent < 400 * MIB:
                raw.send(GET * 10_000)
                sent += len(GET) * 10_000
        assert sent < 400 * MIB, "the gateway takes all that it is sent"
        assert rss(gateway) - before < 20 * MIB
        still_serves(gateway)


def test_a_client_that_resets_in_mid_request_leaves_nothing_behind() -> None:
    with GatewayProcess(FAST) as gateway, Replica() as replica:
        gateway.route(arm("stable", 100, replica))
        text = json.dumps(chat(wait="answer"))
        whole = f"POST {CHAT} HTTP/1.1\r\nHost: g\r\nContent-Length: {len(text)}\r\n\r\n{text}".encode()
        for size in (1, 20, len(whole) - len(text), len(whole) - 1, len(whole)):
            with gateway.raw() as raw:
                raw.send(whole[:size])
                raw.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        wait_for(lambda: gateway.state()["connections"] == 0, "they are gone")
        wait_for(lambda: not gateway.state()["in_flight"], "and so is what they asked for")
        records = gateway.batch().records  # only the last was a request; the replica may have seen it or not
        assert len(records) <= 1
        assert all(r.client_gone and not r.is_error for r in records)


# Replicas that never end.


ENDLESS = {
    "header": (HEAD + b"X-A: ", b"x" * 4096),
    "headers": (HEAD, b"X-A: b\r\n" * 512),
    "reason": (b"HTTP/1.1 200 ", b"x" * 4096),
    "interim answers": (b"", b"HTTP/1.1 100 Continue\r\n\r\n" * 100),
    "trailer": (STREAM + b"0\r\nX-A: ", b"x" * 4096),
    "trailers": (STREAM + b"0\r\n", b"X-A: b\r\n" * 512),
    "chunk extension": (STREAM + b"1;a=", b"x" * 4096),
    "chunk size": (STREAM + b"0", b"0" * 4096),
}


@pytest.mark.parametrize("case", ENDLESS)
def test_a_replica_whose_framing_never_ends_is_cut_off(case: str) -> None:
    endless = Endless(*ENDLESS[case])
    with GatewayProcess(FAST) as gateway, Liar(endless) as liar, gateway.raw() as raw:
        gateway.route(arm("stable", 100, liar.address))
        before = rss(gateway)
        raw.post(chat(stream=True))
        wait_for(lambda: endless.is_cut.is_set() or endless.sent > 64 * MIB, "it is cut off, or has sent a lot")
        assert endless.is_cut.is_set(), "the gateway takes framing without end"
        assert rss(gateway) - before < 20 * MIB
        answer = raw.line()
        assert answer.startswith((b"HTTP/1.1 502", b"HTTP/1.1 200"))
        record = gateway.one()
        assert record.is_error
        still_serves(gateway)


@pytest.mark.parametrize("piece", [b"data: x\n\n", b"x", b"\n"], ids=["events", "one line", "empty lines"])
def test_a_stream_that_never_ends_fills_no_memory_and_ends_with_its_client(piece: bytes) -> None:
    endless = Endless(STREAM, b"8000\r\n" + (piece * 0x8000)[:0x8000] + b"\r\n")
    with GatewayProcess() as gateway, Liar(endless) as liar:
        gateway.route(arm("stable", 100, liar.address))
        still_serves(gateway)
        before = rss(gateway)
        with gateway.raw() as raw:
            raw.post(chat(stream=True))
            taken = 0
            while taken < 24 * MIB:
                taken += len(raw.sock.recv(1 << 20))
        assert endless.is_cut.wait(DEADLINE)
        assert rss(gateway) - before < 12 * MIB
        assert gateway.one().client_gone


def test_interim_answers_are_no_answer() -> None:
    endless = Endless(b"", b"HTTP/1.1 102 Processing\r\n\r\n", pause_seconds=0.05)
    with GatewayProcess(FAST, "first_byte_seconds=1") as gateway, Liar(endless) as liar, gateway.client() as client:
        gateway.route(arm("stable", 100, liar.address))
        assert client.post(CHAT, json=chat()).status_code == 504
        assert endless.is_cut.wait(DEADLINE)


# Replicas that lie.


LIES = {
    "nothing": b"",
    "half a head": b"HTTP/1.1 200 OK\r\nContent-Ty",
    "not HTTP": b"+OK ready\r\n",
    "TLS": b"\x16\x03\x03\x00\x4a\x02\x00\x00\x46\x03\x03",
    "HTTP/0.9": b"<html></html>",
    "HTTP/2": b"HTTP/2 200\r\ncontent-length: 2\r\n\r\n{}",
    "HTTP/3.7": b"HTTP/3.7 200 OK\r\nContent-Length: 2\r\n\r\n{}",
    "status 20": b"HTTP/1.1 20 OK\r\nContent-Length: 2\r\n\r\n{}",
    "status 2000": b"HTTP/1.1 2000 OK\r\nContent-Length: 2\r\n\r\n{}",
    "status 099": b"HTTP/1.1 099 OK\r\nContent-Length: 2\r\n\r\n{}",
    "switching protocols": b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\nanything",
    "only an interim answer": b"HTTP/1.1 103 Early Hints\r\nLink: a\r\n\r\n",
    "a request": b"POST / HTTP/1.1\r\nHost: g\r\nContent-Length: 0\r\n\r\n",
}


@pytest.mark.parametrize("case", LIES)
def test_what_is_no_answer_is_told_as_one_clear_error(case: str) -> None:
    with GatewayProcess(FAST) as gateway, Liar(says(LIES[case])) as liar, gateway.raw() as raw:
        gateway.route(arm("stable", 100, liar.address))
        raw.post(chat())
        status, _, body = raw.answer()
        assert (status, json.loads(body)["error"]["code"]) == (502, "upstream_failed")
        assert gateway.one().is_error
        raw.send(GET)
        assert raw.answer()[0] == 200


CUT = {
    "a length that is too large": HEAD + b'Content-Length: 100\r\n\r\n{"a',
    "a chunk that is cut off": HEAD + b'Transfer-Encoding: chunked\r\n\r\n64\r\n{"a',
    "chunks without an end": HEAD + b'Transfer-Encoding: chunked\r\n\r\n3\r\n{"a\r\n',
    "a bad chunk": HEAD + b'Transfer-Encoding: chunked\r\n\r\n3\r\n{"a\r\nzz\r\n',
}


@pytest.mark.parametrize("case", CUT)
def test_an_answer_that_is_cut_off_does_not_look_whole(case: str) -> None:
    with GatewayProcess(FAST) as gateway, Liar(says(CUT[case])) as liar, gateway.raw() as raw:
        gateway.route(arm("stable", 100, liar.address))
        raw.post(chat(), "Connection: close")
        status, headers = raw.head()
        text = raw.rest()
        assert status in (200, 502)
        if "content-length" in headers:
            is_whole = len(text) == int(headers["content-length"])
        else:
            is_whole = text.endswith(b"0\r\n\r\n")
        assert is_whole == (status == 502)
        assert gateway.one().is_error


@pytest.mark.parametrize("status", [204, 304])
def test_an_answer_that_may_have_no_body_has_none(status: int) -> None:
    act = says(b"HTTP/1.1 %d X\r\nContent-Length: 6\r\n\r\nforged" % status, then="wait")
    with GatewayProcess(FAST) as gateway, Liar(act) as liar, gateway.raw() as raw:
        gateway.route(arm("stable", 100, liar.address))
        raw.post(chat())
        assert raw.head()[0] == status
        raw.send(GET)
        assert raw.line() == b"HTTP/1.1 200 OK\r\n"


def test_a_replica_that_answers_before_it_has_the_request_is_heard() -> None:
    early = HEAD.replace(b"200 OK", b"413 Too Large") + b"Content-Length: 2\r\nConnection: close\r\n\r\n{}"
    with GatewayProcess(FAST) as gateway, Liar(says(early)) as liar, gateway.raw() as raw:
        gateway.route(arm("stable", 100, liar.address))
        raw.post({**chat(), "image": "x" * (20 * MIB)})
        assert raw.answer()[0] in (413, 502)  # closing with bytes unread may reset what was said
        raw.send(GET)
        assert raw.answer()[0] == 200


def test_a_replica_that_takes_nothing_is_given_up() -> None:
    is_over = threading.Event()

    def act(_: socket.socket) -> None:
        is_over.wait(DEADLINE)

    with GatewayProcess(FAST, "first_byte_seconds=1") as gateway, Liar(act) as liar, gateway.raw() as raw:
        gateway.route(arm("stable", 100, liar.address))
        raw.post({**chat(), "image": "x" * (20 * MIB)})
        assert raw.answer()[0] == 504
        wait_for(lambda: not gateway.state()["in_flight"], "it is off the books")
        is_over.set()
