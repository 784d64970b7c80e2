from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stokerd.gateway.heads import MOST_BYTES, MOST_HEADS, Heads
from stokerd.gateway.limits import Limits
from stokerd.gateway.request import Request
from stokerd.gateway.server import Connection, Server
from tests.system.upstream import GatewayProcess, Replica, arm, chat

LIMITS = Limits(header_bytes=2000, body_bytes=500)


def message(body: bytes = b"{}", *more: bytes, name: bytes = b"Content-Length", length: bytes | None = None) -> bytes:
    length = b"%d" % len(body) if length is None else length
    return b"\r\n".join((b"POST / HTTP/1.1", b"Host: h", b"%b: %b" % (name, length), *more, b"", body))


def test_a_head_is_known_again_with_any_length() -> None:
    heads: Heads[str] = Heads()
    heads.learn(message(b"{}", b"A: 1"), b"2", "read")
    for body in (b"{}", b"", b"x" * 100, b"\r\n\r\n", message(b"in the body")):
        data = message(body, b"A: 1")
        found = heads.find(data)
        assert found is not None
        assert (found[0], data[found[1] :]) == ("read", body)


@pytest.mark.parametrize(
    "data",
    [
        message(b"{}", b"A: 2"),
        message(b"{}", b"a: 1"),
        message(b"{}", b"A: 1", name=b"content-length"),
        message(b"{}", b"A: 1", length=b"3"),
        message(b"{}", b"A: 1", length=b"1"),
        message(b"{}", b"A: 1", length=b"+2"),
        message(b"{}", b"A: 1", length=b" 2"),
        message(b"{}", b"A: 1", length=b"2 "),
        message(b"{}", b"A: 1", length=b""),
        message(b"{}", b"A: 1", length=b"0" * 9 + b"2"),
        message(b"{}", b"A: 1") + b"G",
        b"\r\n" + message(b"{}", b"A: 1"),
        message(b"{}", b"A: 1", b"Content-Length: 2"),
        message(b"{}", b"A: 1").replace(b"Host", b"Content-Length: 2\r\nHost"),
        message(b"{}", b"A: 1")[:-3],
        message(b"{}", b"A: 1")[:10],
        b"",
    ],
)
def test_whatever_else_differs_is_for_the_parser(data: bytes) -> None:
    heads: Heads[str] = Heads()
    heads.learn(message(b"{}", b"A: 1"), b"2", "read")
    assert heads.find(data) is None


def test_nothing_is_learnt_of_what_could_be_read_in_two_ways() -> None:
    heads: Heads[str] = Heads()
    two = message(b"{}", b"Content-Length: 2")
    heads.learn(two, b"2,2", "read")
    heads.learn(message(b"{}", length=b"3"), b"3", "read")
    heads.learn(message(b"{}", b"A: " + b"x" * MOST_BYTES), b"2", "read")
    heads.learn(b"GET / HTTP/1.1\r\nHost: h\r\n\r\n", b"", "read")
    heads.learn(b"GET / HTT", b"", "read")
    assert [heads.find(data) for data in (two, message(b"{}"))] == [None, None]


def test_no_more_heads_are_kept_than_there_is_room_for() -> None:
    heads: Heads[int] = Heads()
    for number in range(MOST_HEADS + 1):
        heads.learn(message(b"{}", b"A: %d" % number), b"2", number)
    assert heads.find(message(b"{}", b"A: 0")) is None
    assert heads.find(message(b"{}", b"A: %d" % MOST_HEADS)) is not None


class Transport:
    """Takes everything, keeps nothing."""

    def get_extra_info(self, _name: str) -> None:
        return None

    def write(self, _data: bytes) -> None: ...
    def can_write_eof(self) -> bool:
        return True

    def write_eof(self) -> None: ...
    def abort(self) -> None: ...
    def close(self) -> None: ...
    def pause_reading(self) -> None: ...
    def resume_reading(self) -> None: ...
    def is_closing(self) -> bool:
        return False

    def is_reading(self) -> bool:
        return True


class NoHeads(Heads[Any]):
    """Knows nothing."""

    def learn(self, data: bytes, length: bytes, meaning: Any) -> None: ...


def seen(pieces: list[bytes], heads: Heads[Any] | None) -> list[object]:
    """What handlers of one connection get to see of *pieces*, and whether it goes on."""
    requests: list[object] = []

    def handle(client: Connection, request: Request) -> None:
        noted = {name: value for name, value in request.noted.items() if name != b"content-length"}
        requests.append((request.method, request.target, noted, request.lines, bytes(request.body), request.forward))
        requests.append((request.keeps, request.is_http11, request.sender.session, client.keeps))
        client.reply(200, b"{}")

    server = Server(handle, LIMITS)
    if heads is not None:
        server.heads = heads
    connection = Connection(server)
    connection.connection_made(Transport())  # type: ignore[arg-type]
    for piece in pieces:
        connection.data_received(piece)
    return [*requests, connection.is_idle, connection._is_closing]


HEADERS = st.sampled_from(
    [
        b"A: 1", b"A: 2", b"Connection: close", b"Connection: A", b"Connection: keep-alive", b"Expect: 100-continue",
        b"Transfer-Encoding: chunked", b"Content-Length: 2", b"X-Stoker-Session: s", b"Host: i", b"Upgrade: x", b"bad",
        b" folded", b"content-length:2", b"Content-Length: ",
    ]
)  # fmt: skip
MESSAGES = st.builds(
    lambda body, more, before, length: before + message(body, *more, length=length),
    st.sampled_from([b"{}", b"", b"[]", b"x" * 300, b"x" * 600, message()]),
    st.lists(HEADERS, max_size=2),
    st.sampled_from([b"", b"", b"", b"\r\n", b"x"]),
    st.sampled_from([None, None, None, None, b"1", b"3", b"02", b"+2"]),
)


@given(st.lists(MESSAGES, max_size=6), st.lists(st.integers(1, 400), max_size=4))
def test_requests_are_the_same_whether_their_heads_were_known_or_not(messages: list[bytes], cuts: list[int]) -> None:
    pieces = list(messages)
    for cut in cuts:  # join and split them anywhere
        if pieces:
            number = cut % len(pieces)
            piece = pieces.pop(number)
            pieces[number:number] = [piece[:cut], piece[cut:]] if cut < len(piece) else [piece]
    known: Heads[Any] = Heads()
    for data in messages:
        seen([data], known)
    assert seen(pieces, known) == seen(pieces, NoHeads())


def test_answers_are_the_same_whether_their_heads_were_known_or_not(gateway: GatewayProcess, replica: Replica) -> None:
    gateway.route(arm("stable", 100, replica))
    ok = "HTTP/1.1 200 OK\r\nA: 1\r\nContent-Length: %d\r\n\r\n%s"
    with gateway.client() as client:
        for text in ("{}", "[]", "x" * 1000, "HTTP/1.1 200 OK\r\n\r\n"):
            for _ in range(3):
                answer = client.post("/v1/chat/completions", json=chat(raw=ok % (len(text), text)))
                assert (answer.status_code, answer.text, answer.headers["a"]) == (200, text, "1")
        surplus = client.post("/v1/chat/completions", json=chat(raw=ok % (2, "{}") + "forged"))
        assert surplus.text == "{}"
        assert client.post("/v1/chat/completions", json=chat()).json()["usage"]
