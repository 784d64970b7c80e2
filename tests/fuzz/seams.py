"""Where bytes from outside enter the gateway, each as a function that takes any bytes and fails on a bug.

`test_seams` feeds them by hypothesis for seconds, `fuzz` by atheris for as long as one likes. The first bytes of an
input say how the rest is cut into pieces. h11, an independent and strict parser, is the judge of what is HTTP.
"""

from __future__ import annotations

import asyncio
import json
import re
import socket
import tempfile
from collections.abc import Callable
from contextlib import suppress
from itertools import pairwise
from pathlib import Path
from typing import Any

import h11
import msgspec

from stokerd.gateway.bodies import Asked, BadBody, conversation, prompt_tokens, read_body, with_model
from stokerd.gateway.call import Call
from stokerd.gateway.front import Front
from stokerd.gateway.gateway import Gateway
from stokerd.gateway.limits import Limits
from stokerd.gateway.measures import Meter, StreamMeter
from stokerd.gateway.request import Request
from stokerd.gateway.routing import Table
from stokerd.gateway.server import Connection, Server
from stokerd.gateway.shadows import QUESTION_CHARACTERS, Pairs
from stokerd.gateway.surface import ENDPOINTS
from stokerd.gateway.upstream import Pool
from stokerd.gateway.wire import Arm, BadTable, Route, RouteTable, parse_pairs, parse_table
from tests.fuzz.memory import AtOnce, Memory

_CUTS = 4
_PATHS = sorted(ENDPOINTS)
_LENGTH = re.compile(rb"(\r\nContent-Length: )\d+")
_PLAIN = b"POST /v1/chat/completions HTTP/1.1\r\nHost: g\r\nContent-Length: 1\r\n\r\na"
_CHAT_ENDPOINT = ENDPOINTS[b"/v1/chat/completions"]
_STATUS_LINE = re.compile(rb"HTTP/1\.1 \d{3} ")
_FORM = b'multipart/form-data; boundary="x"'


def cut(data: bytes) -> tuple[list[bytes], bytes]:
    """The pieces that *data*'s first bytes make of its rest, and the rest whole."""
    marks, rest = data[:_CUTS], data[_CUTS:]
    edges = sorted({0, len(rest), *(mark * (len(rest) + 255) // 256 % (len(rest) + 1) for mark in marks)})
    return [rest[a:b] for a, b in pairwise(edges)], rest


# Requests.


def _serve(pieces: list[bytes], *, known: tuple[bytes, ...] = ()) -> tuple[list[Request], bytes]:
    """What a connection takes for requests, and what it answers; each request is answered by its body's length.

    What is *known* was sent to the same server before, on connections of its own.
    """
    served: list[Request] = []

    def handle(connection: Connection, request: Request) -> None:
        served.append(request)
        connection.reply(200, b"%d" % len(request.body))

    server = Server(handle, Limits(header_bytes=16384, body_bytes=8192))
    server.outbox = AtOnce()
    for before in known:
        _feed(server, [before])
    served.clear()
    return served, _feed(server, pieces)


def _feed(server: Server, pieces: list[bytes]) -> bytes:
    connection, transport = server.connect(), Memory()
    connection.connection_made(transport)
    for piece in pieces:
        if not transport.is_closing():
            connection.data_received(piece)
    return bytes(transport.written).replace(b"HTTP/1.1 100 Continue\r\n\r\n", b"")


def read_by_h11(data: bytes, *, our_role: Any) -> tuple[Any, bytes, bytes] | None:
    """The first message in *data* by h11's word: its head, its body, and what is left over; None if it is none."""
    judge = h11.Connection(our_role, max_incomplete_event_size=1 << 20)
    head, body = None, b""
    try:
        if our_role is h11.CLIENT:
            judge.send(h11.Request(method="POST", target="/", headers=[("host", "g"), ("content-length", "0")]))
            judge.send(h11.EndOfMessage())
        judge.receive_data(data)
        while True:
            event = judge.next_event()
            if event is h11.NEED_DATA and our_role is h11.CLIENT:
                judge.receive_data(b"")
            if isinstance(event, h11.Request | h11.Response):
                head = event
            elif isinstance(event, h11.Data):
                body += bytes(event.data)
            elif isinstance(event, h11.EndOfMessage):
                return head, body, judge.trailing_data[0]
            elif event is h11.NEED_DATA or event is h11.PAUSED or isinstance(event, h11.ConnectionClosed):
                if our_role is h11.CLIENT and event is h11.NEED_DATA:
                    continue
                return None
    except h11.RemoteProtocolError:
        return None


def request(data: bytes) -> None:
    """Requests mean the same wherever they are cut, the same to h11, and one well-made request to a replica."""
    pieces, whole = cut(data)
    served, written = _serve([whole] if whole else [])
    in_pieces, written_in_pieces = _serve(pieces)
    assert [_told(r) for r in served] == [_told(r) for r in in_pieces]
    assert written == written_in_pieces
    again, written_again = _serve(
        [whole] if whole else [], known=(_PLAIN, whole, whole.replace(b"\r\n\r\n", b"\r\n\r\na"))
    )
    assert [_told(r) for r in served] == [_told(r) for r in again]
    assert written == written_again
    assert len(_STATUS_LINE.findall(written)) <= len(served) + 1
    if served and whole[:2] != b"\r\n":  # blank lines before a request: llhttp skips them, h11 doesn't
        judged = read_by_h11(whole, our_role=h11.SERVER)
        if judged is not None:
            assert (judged[0].target, judged[1]) == (served[0].target, bytes(served[0].body))
    for one in served:
        if one.method == b"POST":
            _look_at_the_way_on(one)


def _told(one: Request) -> tuple[object, ...]:
    noted = {name: value for name, value in one.noted.items() if name != b"content-length"}  # the body itself tells
    return one.method, one.target, bytes(one.body), one.lines, noted, one.is_http11, one.keeps


def _look_at_the_way_on(one: Request) -> None:
    head, sent_body = Call(one, _CHAT_ENDPOINT, Asked(model="m"), None).addressed_to("m")
    assert sent_body == one.body
    sent = head + bytes(sent_body)
    judged = read_by_h11(sent, our_role=h11.SERVER)
    if judged is not None:  # h11 is stricter about what a target or a value may hold
        event, text, left = judged
        assert (event.target, text, left) == (one.target, bytes(one.body), b"")
    names = [line.partition(b":")[0].strip().lower() for line in head.split(b"\r\n")[1:-2]]
    assert names.count(b"content-length") == 1
    assert names.count(b"host") == 1
    assert b"transfer-encoding" not in names


# Bodies.


def body(data: bytes) -> None:
    """A body is read as Python's json reads it, or refused; with another model, all else stays."""
    if not data:
        return
    endpoint, text = ENDPOINTS[_PATHS[data[0] % len(_PATHS)]], data[1:]
    kind = _FORM if endpoint.multipart else b"application/json"
    digest = conversation(text)
    assert digest is None or len(digest) == 8
    assert prompt_tokens(len(text)) > 0
    try:
        asked = read_body(endpoint, kind, text)
    except BadBody as error:
        assert str(error)
        return
    assert asked.model
    assert isinstance(asked.model, str)
    assert asked.user is None or isinstance(asked.user, str)
    assert asked.max_tokens is None or isinstance(asked.max_tokens, int)
    if not endpoint.multipart:
        with suppress(ValueError, RecursionError):
            assert json.loads(text)["model"] == asked.model
    try:
        renamed = with_model(endpoint, kind, text, "other")
    except BadBody:
        return
    assert read_body(endpoint, kind, renamed).model == "other"
    if not endpoint.multipart:
        with suppress(ValueError, RecursionError):
            before = json.loads(text)
            assert json.dumps(json.loads(renamed)) == json.dumps({**before, "model": "other"})


# Answers.


class World:
    """A gateway's front in this process, over real sockets, and one replica that says what it is told to."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._folder = tempfile.TemporaryDirectory(prefix="stk-")
        self._path = Path(self._folder.name) / "r"
        self._pieces: list[bytes] = []
        self._loop.run_until_complete(self._start())

    async def _start(self) -> None:
        self._replica = await asyncio.start_unix_server(self._answer, self._path)
        arms = (Arm("stable", 1, 100, (f"unix:{self._path}",)),)
        limits = Limits(first_byte_seconds=20.0, stall_seconds=20.0)
        self._gateway = Gateway("e", RouteTable(1, (Route("m", "s", arms),)), limits)
        self._server = Server(Front(self._gateway).handle, limits)

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError, asyncio.IncompleteReadError):
            head = await reader.readuntil(b"\r\n\r\n")
            length = next(line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:"))
            await reader.readexactly(int(length[15:]))
            for piece in self._pieces:
                writer.write(piece)
                await writer.drain()
                await asyncio.sleep(0)
        writer.close()

    def ask(self, pieces: list[bytes], *, is_stream: bool) -> bytes:
        """All that a client gets who asks for a chat, then for the models, while the replica answers by *pieces*."""
        self._pieces = pieces
        return self._loop.run_until_complete(asyncio.wait_for(self._ask(is_stream), 30.0))

    def close(self) -> None:
        """End it, with all that is open."""
        self._loop.run_until_complete(self._end())
        self._loop.close()
        self._folder.cleanup()

    async def _end(self) -> None:
        self._replica.close()
        self._server.abort()
        await self._gateway.close()
        await asyncio.sleep(0.01)  # transports close in the turns after

    @property
    def patience(self) -> float:
        """How many seconds a reader of what was measured would be left waiting for more."""
        return self._gateway.records.patience

    async def _ask(self, is_stream: bool) -> bytes:
        ours, theirs = socket.socketpair()
        await self._loop.connect_accepted_socket(self._server.connect, ours)
        reader, writer = await asyncio.open_connection(sock=theirs)
        text = json.dumps({"model": "m", "messages": [], "stream": is_stream}).encode()
        head = b"POST /v1/chat/completions HTTP/1.1\r\nHost: g\r\nContent-Length: %d\r\n\r\n" % len(text)
        writer.write(head + text + b"GET /v1/models HTTP/1.1\r\nHost: g\r\nConnection: close\r\n\r\n")
        got = b""
        with suppress(ConnectionError):
            while piece := await reader.read(65536):
                got += piece
        writer.close()
        return got


_worlds: list[World] = []


def answer(data: bytes) -> None:
    """Whatever a replica says, its client gets one answer that is HTTP, and its next request its own answer."""
    if not data:
        return
    if not _worlds:
        _worlds.append(World())
    pieces, whole = cut(data[1:])
    length_0 = _LENGTH.sub(rb"\g<1>0", whole.partition(b"\r\n\r\n")[0]) + b"\r\n\r\n"
    for said in ([whole], [length_0], [whole], pieces):  # the second time, a head may be known
        _judge(_worlds[0].ask(said, is_stream=bool(data[0] % 2)), b"".join(said))


def _judge(got: bytes, said: bytes) -> None:
    assert got.startswith(b"HTTP/1.1 ")
    ours = read_by_h11(got, our_role=h11.CLIENT)
    if ours is None:
        head = got.lower().partition(b"\r\n\r\n")[0]  # cut off in mid-answer: its client must see that
        assert b"content-length:" in head or b"transfer-encoding: chunked" in head
        return
    head, text, left = ours
    assert head.status_code >= 200
    names = [name for name, _ in head.headers]
    assert not (b"content-length" in names and b"transfer-encoding" in names)
    assert names.count(b"content-length") <= 1
    if left:  # else it was closed
        second = read_by_h11(left, our_role=h11.CLIENT)
        assert second is not None, left[:200]
        assert second[1].startswith(b'{"object":"list"'), left[:200]
    theirs = read_by_h11(said, our_role=h11.CLIENT)
    if theirs is not None and b"x-stoker-arm" in names and b"upstream_failed" not in text:
        assert (head.status_code, text) == (theirs[0].status_code, theirs[1])


def meter(data: bytes) -> None:
    """What an answer tells doesn't hang on how the network cuts it."""
    if not data:
        return
    path = _PATHS[data[0] % len(_PATHS)]
    pieces, whole = cut(data[1:])
    for make in (Meter, lambda: StreamMeter(path)):
        once, often = make(), make()
        if whole:
            once.feed(whole, 1.0)
        for number, piece in enumerate(pieces):
            often.feed(piece, float(number))
        assert once.told() == often.told()
        assert once.size == often.size == len(whole)
        assert once.has_error == often.has_error
        prompt, completion, reason = once.told()
        assert prompt is None or prompt >= 0
        assert completion is None or completion >= 0
        assert reason.isascii()


def shadow(data: bytes) -> None:
    """What is kept of an answer doesn't hang on how the network cuts it, and all memory is given back.

    The same bytes are a request, too: whatever it asks is kept, or nothing is.
    """
    if not data:
        return
    pieces, whole = cut(data[1:])
    pairs = Pairs("e")
    pair = pairs.open(time=1.0, deployment="m", rollout="r", path="/v1/responses", caller="")
    pair.ask(data[1:])
    for side, parts in ((pair.stable, [whole]), (pair.shadow, pieces)):
        for part in parts:
            side.feed(part, bool(data[0] % 2))
        side.close(
            version=1,
            status=200,
            is_error=False,
            finish_reason="",
            ttft_seconds=None,
            total_seconds=1.0,
            completion_tokens=None,
        )
    (kept,) = parse_pairs(msgspec.json.decode(pairs.batch())).pairs
    assert kept.stable == kept.shadow
    assert len(kept.question) <= QUESTION_CHARACTERS + len(" […] ")
    pairs.acknowledge("e", kept.seq)
    assert pairs.held_bytes == 0


# Tables.


def table(data: bytes) -> None:
    """A table is refused whole, or can be followed, whatever names are asked of it; and says the same when repeated."""
    try:
        said = msgspec.json.decode(data)
    except (ValueError, RecursionError):
        return
    try:
        read = parse_table(said)
    except BadTable as error:
        assert str(error)
        return
    assert parse_table(msgspec.json.decode(msgspec.json.encode(read.as_dict()))) == read
    ready = Table(read, Pool(Limits()).replica)
    for route in read.routes:
        for name in (route.deployment, *route.aliases):
            assert ready.find(name) is not None or not name
            for arm in route.arms:
                ready.find(f"{name}@{arm.version}")
            for word, _ in route.versions:
                ready.find(f"{name}@{word}")
    assert ready.find("no such name@1") is None or any("no such name" in r.deployment for r in read.routes)


_CHAT = b'{"model":"m","messages":[{"role":"user","content":"hi"}],"stream":true,"user":"u","max_tokens":5}'
_TABLE = RouteTable(
    3,
    (
        Route(
            "m",
            "s",
            (Arm("stable", 1, 90, ("unix:/a", "127.0.0.1:80")), Arm("candidate", 2, 10, ("[::1]:80",), "adapter")),
            Arm("shadow", 3, 5, ()),
            aliases=("n",),
            versions=(("champion", 1),),
            max_callers=3,
        ),
    ),
)
_EVENTS = (
    b'data: {"choices":[{"index":0,"delta":{"content":"a"},"finish_reason":null}]}\n\n'
    b'event: message_delta\ndata: {"type":"content_block_delta","delta":{"text":"a"},"usage":{"output_tokens":3}}\n\n'
    b'data: {"choices":[{"index":0,"delta":{},"finish_reason":"stop"}],"usage":{"prompt_tokens":1}}\n\ndata: [DONE]\n\n'
)

_MARKS = b"\x20\x60\xa0\xe0"  # where seeds are cut


def _requests(*texts: bytes) -> list[bytes]:
    return [_MARKS + text for text in texts]


def _answers(*texts: bytes) -> list[bytes]:
    return [bytes([number % 2]) + _MARKS + text for number, text in enumerate(texts)]


SEAMS: dict[str, tuple[Callable[[bytes], None], list[bytes]]] = {
    "request": (
        request,
        _requests(
            b"POST /v1/chat/completions HTTP/1.1\r\nHost: g\r\nContent-Length: 3\r\n\r\nabc",
            b"POST / HTTP/1.1\r\nHost: g\r\nTransfer-Encoding: chunked\r\n\r\n3;a=b\r\nabc\r\n0\r\nA: b\r\n\r\n"
            b"GET / HTTP/1.1\r\nHost: g\r\nConnection: close, x-a\r\nX-A: b\r\n\r\n",
            b"POST / HTTP/1.0\r\nExpect: 100-continue\r\nContent-Length: 1\r\n\r\na",
            b"GET / HTTP/1.1\r\nHost: g\r\nConnection: Upgrade\r\nUpgrade: h2c\r\n\r\nGET / HTTP/1.1\r\n",
        ),
    ),
    "body": (
        body,
        [
            b"\x00" + _CHAT,
            bytes([_PATHS.index(b"/v1/messages")]) + b'{"model":"m","max_tokens":5,"metadata":{"user_id":"u"}}',
            bytes([_PATHS.index(b"/v1/audio/transcriptions")])
            + b'--x\r\nContent-Disposition: form-data; name="model"\r\n\r\nm\r\n'
            b'--x\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\nabc\r\n--x--\r\n',
        ],
    ),
    "answer": (
        answer,
        _answers(
            b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 2\r\n\r\n{}",
            b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
            b"9\r\ndata: a\n\n\r\n0\r\n\r\n",
            b"HTTP/1.0 200 OK\r\nConnection: close\r\n\r\nabc",
            b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 204 No Content\r\n\r\nHTTP/1.1 200 OK\r\n\r\n",
            b"HTTP/1.1 204 No Content\r\nContent-Length: 6\r\n\r\nforged",
            b"HTTP/1.1 200 O\x00K\r\nContent-Length: 2\r\n\r\n{}",  # what was wrong once
            b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: : chunked\r\n\r\n0\r\n\r\n",
        ),
    ),
    "meter": (meter, _answers(_EVENTS, b'{"usage":{"prompt_tokens":1},"choices":[]}')),
    "shadow": (
        shadow,
        [
            *_answers(b'{"choices":[{"message":{"content":"a"}}]}', _EVENTS),
            *(b"\x00" + text for text in (_CHAT, b'{"prompt":["a"]}', b'{"input":[{"role":"user","content":"a"}]}')),
        ],
    ),
    "table": (
        table,
        [
            msgspec.json.encode(_TABLE.as_dict()),
            b'{"version":1,"routes":[],"keys":[8]}',
            b'{"version":1,"routes":[{"deployment":"m","salt":"s","hold_seconds":"nan","arms":'
            b'[{"name":"stable","version":1,"weight":1,"addresses":[]}]}]}',
        ],
    ),
}
"""By name: what to feed, and what to begin with."""
