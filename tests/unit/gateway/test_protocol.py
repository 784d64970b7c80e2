"""Requests that no well-meaning client sends, over bare sockets, and any bytes, straight into the parser."""

from __future__ import annotations

import asyncio
import json
import re
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stokerd.gateway.limits import Limits
from stokerd.gateway.request import Request
from stokerd.gateway.server import Connection, Server
from tests.system.upstream import GatewayProcess, Replica, arm, chat, refused

CHAT = "/v1/chat/completions"
POST = f"POST {CHAT} HTTP/1.1\r\nHost: g\r\n"
BODY = json.dumps(chat())
GET = "GET /v1/models HTTP/1.1\r\nHost: g\r\n\r\n"
HIDDEN = f"{POST}Content-Length: {len(BODY)}\r\n\r\n{BODY}"
CHUNKED = f"Transfer-Encoding: chunked\r\n\r\n{len(BODY):x}\r\n{BODY}\r\n"

SMUGGLING = {
    "both lengths": f"{POST}Content-Length: 4\r\n{CHUNKED}0\r\n\r\n{HIDDEN}",
    "both lengths, other order": f"{POST}Transfer-Encoding: chunked\r\nContent-Length: 4\r\n\r\n0\r\n\r\n{HIDDEN}",
    "two lengths": f"{POST}Content-Length: {len(BODY)}\r\nContent-Length: 0\r\n\r\n{BODY}",
    "two equal lengths": f"{POST}Content-Length: {len(BODY)}\r\nContent-Length: {len(BODY)}\r\n\r\n{BODY}",
    "length list": f"{POST}Content-Length: {len(BODY)}, {len(BODY)}\r\n\r\n{BODY}",
    "signed length": f"{POST}Content-Length: +{len(BODY)}\r\n\r\n{BODY}",
    "negative length": f"{POST}Content-Length: -1\r\n\r\n{BODY}",
    "hexadecimal length": f"{POST}Content-Length: 0x10\r\n\r\n{BODY}",
    "endless length": f"{POST}Content-Length: {'9' * 40}\r\n\r\n{BODY}",
    "unknown coding": f"{POST}Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n",
    "two codings": f"{POST}Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n{HIDDEN}",
    "coding after chunked": f"{POST}Transfer-Encoding: chunked, identity\r\n\r\n0\r\n\r\n{HIDDEN}",
    "coding twice": f"{POST}Transfer-Encoding: chunked\r\n{CHUNKED}0\r\n\r\n",
    "coding in HTTP/1.0": f"POST {CHAT} HTTP/1.0\r\n{CHUNKED}0\r\n\r\n",
    "blank before the colon": f"{POST}Transfer-Encoding : chunked\r\n\r\n0\r\n\r\n",
    "folded header": f"{POST}X-A: 1\r\n Content-Length: {len(BODY)}\r\n\r\n{BODY}",
    "bare LF": f"POST {CHAT} HTTP/1.1\nHost: g\nContent-Length: {len(BODY)}\n\n{BODY}",
    "bare CR": f"{POST}X-A: 1\rContent-Length: 1\r\n\r\n{BODY}",
    "NUL": f"{POST}X-A: \x00\r\n\r\n",
    "absolute target": f"POST http://other{CHAT} HTTP/1.1\r\nHost: g\r\nContent-Length: {len(BODY)}\r\n\r\n{BODY}",
    "authority target": "CONNECT other:443 HTTP/1.1\r\nHost: g\r\n\r\n",
    "asterisk": "OPTIONS * HTTP/1.1\r\nHost: g\r\n\r\n",
    "no host": f"POST {CHAT} HTTP/1.1\r\nContent-Length: {len(BODY)}\r\n\r\n{BODY}",
    "two hosts": f"{POST}Host: h\r\nContent-Length: {len(BODY)}\r\n\r\n{BODY}",
    "HTTP/0.9": f"POST {CHAT}\r\n\r\n",
    "HTTP/2.0": f"POST {CHAT} HTTP/2.0\r\nHost: g\r\n\r\n",
    "HTTP/2 preface": "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "unknown method": f"BREW {CHAT} HTTP/1.1\r\nHost: g\r\n\r\n",
    "not HTTP": "\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
    "oversized chunk": f"{POST}Transfer-Encoding: chunked\r\n\r\n2\r\nhello\r\n0\r\n\r\n",
    "signed chunk": f"{POST}Transfer-Encoding: chunked\r\n\r\n+2\r\nhi\r\n0\r\n\r\n",
    "endless chunk size": f"{POST}Transfer-Encoding: chunked\r\n\r\n{'f' * 20}\r\nhi",
    "bare LF in chunks": f"{POST}Transfer-Encoding: chunked\r\n\r\n2\nhi\n0\n\n",
    "length as trailer": f"{POST}Transfer-Encoding: chunked\r\n\r\n0\r\nContent-Length: 5\r\n\r\n",
}


@pytest.mark.parametrize("case", SMUGGLING)
def test_what_two_servers_could_read_differently_is_refused(
    gateway: GatewayProcess, replica: Replica, case: str
) -> None:
    assert refused(gateway, replica, SMUGGLING[case]) in (400, 405, 501, 505)


def test_requests_sent_ahead_are_answered_in_order(gateway: GatewayProcess, replica: Replica) -> None:
    gateway.route(arm("stable", 100, replica))
    texts = [json.dumps(chat(size=size, sleep=0.02 * (3 - size))) for size in range(4)]
    with gateway.raw() as raw:
        raw.send("".join(f"{POST}Content-Length: {len(text)}\r\n\r\n{text}{GET}" for text in texts).encode())
        for size in range(4):
            status, _, body = raw.answer()
            assert (status, json.loads(body)["choices"][0]["message"]["content"]) == (200, "version 1" + "x" * size)
            assert json.loads(raw.answer()[2])["object"] == "list"
        raw.send(GET.encode())
        assert raw.answer()[0] == 200
    assert len(gateway.take(4)) == 4


def test_a_good_request_is_answered_before_the_bad_one_behind_it(gateway: GatewayProcess, replica: Replica) -> None:
    gateway.route(arm("stable", 100, replica))
    with gateway.raw() as raw:
        raw.send((HIDDEN + SMUGGLING["both lengths"] + HIDDEN).encode())
        assert [raw.answer()[0], raw.answer()[0]] == [200, 400]
        raw.sock.shutdown(1)
        assert raw.rest() == b""
    assert len(replica.seen) == 1


def test_a_request_may_come_byte_by_byte(gateway: GatewayProcess, replica: Replica) -> None:
    gateway.route(arm("stable", 100, replica))
    with gateway.raw() as raw:
        for byte in HIDDEN.encode():
            raw.send(bytes([byte]))
        assert raw.answer()[0] == 200
    assert replica.last().json == chat()


def test_chunked_bodies_reach_the_replica_with_a_length(gateway: GatewayProcess, replica: Replica) -> None:
    gateway.route(arm("stable", 100, replica))
    chunks = "".join(f"{1:x};ext\r\n{character}\r\n" for character in BODY)
    with gateway.raw() as raw:
        raw.send(f"{POST}Transfer-Encoding: chunked\r\n\r\n{chunks}0\r\nX-Trailer: 1\r\n\r\n{GET}".encode())
        assert [raw.answer()[0], raw.answer()[0]] == [200, 200]
    seen = replica.last()
    assert seen.json == chat()
    assert seen.headers["content-length"] == str(len(BODY))
    assert not seen.headers.keys() & {"transfer-encoding", "x-trailer"}


def test_a_client_that_asks_first_is_told_to_go_on(gateway: GatewayProcess, replica: Replica) -> None:
    gateway.route(arm("stable", 100, replica))
    with gateway.raw() as raw:
        for _ in range(2):
            raw.send(f"{POST}Content-Length: {len(BODY)}\r\nExpect: 100-continue\r\n\r\n".encode())
            assert raw.head()[0] == 100
            raw.send(BODY.encode())
            assert raw.answer()[0] == 200
        assert "expect" not in replica.last().headers
        raw.send(f"{POST}Content-Length: 3000000\r\nExpect: 100-continue\r\n\r\n".encode())
        assert raw.answer()[0] == 413


def test_an_offer_to_upgrade_is_ignored_and_the_body_taken(gateway: GatewayProcess, replica: Replica) -> None:
    gateway.route(arm("stable", 100, replica))
    offer = "Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAEAAEAAAAIAAAABAAMAAABk\r\n"
    with gateway.raw() as raw:
        for _ in range(2):
            raw.send(f"{POST}{offer}X-A: 1\r\nContent-Length: {len(BODY)}\r\n\r\n{BODY}{GET}".encode())
            assert [raw.answer()[0], raw.answer()[0]] == [200, 200]
        head, tail = f"{POST}{offer}{CHUNKED}0\r\n\r\n".encode().split(b"\r\n\r\n", 1)
        raw.send(head + b"\r\n\r\n")
        raw.send(tail)
        assert raw.answer()[0] == 200
    seen = replica.last()
    assert seen.json == chat()
    assert not seen.headers.keys() & {"upgrade", "http2-settings", "connection"}


def test_old_clients_are_served_as_they_expect(gateway: GatewayProcess, replica: Replica) -> None:
    gateway.route(arm("stable", 100, replica))
    with gateway.raw() as raw:
        raw.post(chat(), "Connection: keep-alive", version="1.0")
        status, headers, _ = raw.answer()
        assert (status, headers["connection"]) == (200, "keep-alive")
        raw.post(chat(stream=True), "Connection: keep-alive", version="1.0")
        status, headers = raw.head()
        assert (status, headers["connection"]) == (200, "close")
        assert "transfer-encoding" not in headers
        assert raw.rest().endswith(b"data: [DONE]\n\n")


def test_a_client_that_wants_the_connection_closed_gets_that(gateway: GatewayProcess, replica: Replica) -> None:
    gateway.route(arm("stable", 100, replica))
    with gateway.raw() as raw:
        raw.post(chat(), "Connection: close")
        status, headers, _ = raw.answer()
        assert (status, headers["connection"]) == (200, "close")
        assert raw.rest() == b""


ENDLESS = {
    "target": "GET /",
    "first header": "GET / HTTP/1.1\r\nX-A: ",
    "later header": f"{POST}X-B: 1\r\nX-A: ",
    "trailer": f"{POST}Transfer-Encoding: chunked\r\n\r\n0\r\nX-A: ",
    "chunk extension": f"{POST}Transfer-Encoding: chunked\r\n\r\n2;a=",
}


@pytest.mark.parametrize("case", ENDLESS)
def test_a_line_that_never_ends_is_cut_off(gateway: GatewayProcess, case: str) -> None:
    with gateway.raw() as raw:
        raw.send(ENDLESS[case].encode())
        for _ in range(5):
            raw.send(b"x" * 65536)
        assert raw.answer()[0] == 431


def run_connection(pieces: list[bytes], limits: Limits) -> tuple[list[Request], bytes, bool]:
    """Feed *pieces* to a connection that answers each request with its body's length, over a transport of memory."""

    async def play() -> tuple[list[Request], bytes, bool]:
        served: list[Request] = []

        def handle(connection: Connection, request: Request) -> None:
            served.append(request)
            connection.reply(200, b"%d" % len(request.body))

        connection = Server(handle, limits).connect()
        transport = Memory()
        connection.connection_made(transport)
        for piece in pieces:
            connection.data_received(piece)
        return served, bytes(transport.written), transport.is_closing()

    return asyncio.run(play())


class Memory(asyncio.Transport):
    """Where the kernel would be."""

    def __init__(self) -> None:
        super().__init__()
        self.written = bytearray()
        self._is_closing = False
        self._is_reading = True

    def write(self, data: bytes | bytearray | memoryview) -> None:
        self.written += data

    def is_closing(self) -> bool:
        return self._is_closing

    def close(self) -> None:
        self._is_closing = True

    abort = close

    def can_write_eof(self) -> bool:
        return True

    def write_eof(self) -> None:
        self._is_closing = True

    def is_reading(self) -> bool:
        return self._is_reading

    def pause_reading(self) -> None:
        self._is_reading = False

    def resume_reading(self) -> None:
        self._is_reading = True


@given(
    bodies=st.lists(st.binary(max_size=300), min_size=1, max_size=5),
    is_chunked=st.booleans(),
    cuts=st.lists(st.integers(0, 3000), max_size=30),
)
def test_where_the_network_cuts_requests_changes_nothing(
    bodies: list[bytes], is_chunked: bool, cuts: list[int]
) -> None:
    whole = b""
    for body in bodies:
        if is_chunked:
            framed = b"".join(b"%x\r\n%b\r\n" % (len(p), p) for p in (body[:7], body[7:]) if p) + b"0\r\n\r\n"
            whole += b"POST /p?q HTTP/1.1\r\nHost: g\r\nX-A: b\r\nTransfer-Encoding: chunked\r\n\r\n" + framed
        else:
            whole += b"POST /p?q HTTP/1.1\r\nHost: g\r\nX-A: b\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body)
    edges = sorted({0, len(whole), *(c for c in cuts if c < len(whole))})
    served, written, is_closed = run_connection([whole[a:b] for a, b in pairwise(edges)], Limits())
    assert [bytes(r.body) for r in served] == bodies
    assert {(r.method, r.target, r.path, *r.lines) for r in served} == {(b"POST", b"/p?q", b"/p", b"X-A: b\r\n")}
    assert written.count(b"HTTP/1.1 200 OK\r\n") == len(bodies)
    assert not is_closed


@pytest.mark.parametrize("cut", [len(HIDDEN), None])
@pytest.mark.parametrize("is_slow", [False, True])
def test_the_time_of_a_request_sent_ahead_runs_from_its_turn_on(
    monkeypatch: pytest.MonkeyPatch, cut: int | None, is_slow: bool
) -> None:
    now = 1000.0
    monkeypatch.setattr("stokerd.gateway.server.monotonic", lambda: now)
    limits = Limits(header_seconds=10)
    connection = Server(lambda *_: None, limits).connect()
    transport = Memory()
    connection.connection_made(transport)
    ahead = f"{HIDDEN}GET /health HTTP/1.1\r\n".encode()
    connection.data_received(ahead[:cut])
    if cut is not None:
        connection.data_received(ahead[cut:])
    now += 60  # for the first answer
    if is_slow:
        connection.pause_writing()
    connection.done(keeps=True)
    if is_slow:
        now += 60  # for the client to take it
        connection.resume_writing()
    assert transport.is_reading()
    assert connection.deadline == now + 10
    now += 9
    connection.data_received(b"Host:")
    assert connection.deadline == now + 1  # a drop at a time prolongs nothing


LINES = [b"GET / HTTP/1.1", b"POST /a HTTP/1.1", b"Host: g", b"Content-Length: 3", b"Transfer-Encoding: chunked", b""]
LINES += [b"3\r\nabc", b"0", b"Expect: 100-continue", b"Connection: upgrade\r\nUpgrade: h2c", b"Connection: close"]
LINES += [b"CONNECT a:1 HTTP/1.1", b"X: " + b"y" * 50]
TOKENS = st.sampled_from([line + b"\r\n" for line in LINES] + [b"abc", b" ", b"\n"])


@given(st.lists(TOKENS | st.binary(max_size=20), max_size=40))
def test_no_bytes_whatever_break_the_connection_in_an_unplanned_way(pieces: list[bytes]) -> None:
    served, written, is_closed = run_connection(pieces, Limits(header_bytes=400, body_bytes=50))
    answers = len(re.findall(rb"HTTP/1\.1 [2-5]\d\d ", written))
    assert len(served) <= answers <= len(served) + 1
    assert is_closed or answers == len(served)
    assert all(len(r.body) <= 50 for r in served)
