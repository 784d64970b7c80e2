"""The connections' state machines: everything that can happen to one, in any order, against a model of a few lines."""

from __future__ import annotations

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, initialize, invariant, precondition, rule

from stokerd.gateway.limits import Limits
from stokerd.gateway.request import Request
from stokerd.gateway.server import Connection, Server
from stokerd.gateway.upstream import AnswerHead, Pool, UpstreamConnection
from tests.fuzz.memory import AtOnce, Memory

LIMITS = Limits(header_bytes=2000, body_bytes=200, ahead_bytes=100, connections=10)
BAD = [
    b"GET /\n\n",
    b"GET http://a/ HTTP/1.1\r\nHost: g\r\n\r\n",
    b"POST / HTTP/1.1\r\nHost: g\r\nContent-Length: 201\r\n\r\n",
    b"GET / HTTP/1.1\r\nHost: g\r\nX: " + b"y" * 3000 + b"\r\n\r\n",
    b"GET / HTTP/1.1\r\nHost: g\r\n A: b\r\n\r\n",
]
MORE = [
    b"",
    b"Connection: close\r\n",
    b"Expect: 100-continue\r\n",
    b"Upgrade: h2c\r\nConnection: upgrade\r\n",
]


class Working:
    """A handler's work, as the connection calls it."""

    def __init__(self) -> None:
        self.gone = 0
        self.is_paused = False

    def client_gone(self) -> None:
        self.gone += 1

    def client_paused(self) -> None:
        self.is_paused = True

    def client_resumed(self) -> None:
        self.is_paused = False


class ClientMachine(RuleBasedStateMachine):
    """One client's connection: `kernel` is what was sent and not yet read."""

    @initialize()
    def connect(self) -> None:
        self.server = Server(self.handle, LIMITS)
        self.server.outbox = AtOnce()
        self.connection = self.server.connect()
        self.transport = Memory()
        self.connection.connection_made(self.transport)
        self.kernel = b""
        self.written = self.ahead = 0
        self.sent: list[bytes] = []
        self.ends: list[int] = []
        self.served: list[bytes] = []
        self.answered = 0
        self.work: Working | None = None
        self.is_lost = self.is_bad = self.has_closed = False

    def handle(self, connection: Connection, request: Request) -> None:
        assert self.work is None, "two requests at a time"
        assert connection.request is request
        self.served.append(bytes(request.body))
        if request.target == b"/work":
            self.work = connection.work = Working()
        else:
            self.answered += 1
            connection.reply(200, b"now")

    @property
    def takes_bytes(self) -> bool:
        return not self.is_lost and self.transport.is_reading()

    @rule(
        body=st.binary(max_size=60),
        is_work=st.booleans(),
        is_chunked=st.booleans(),
        more=st.sampled_from(
            [b"", b"Connection: close\r\n", b"Expect: 100-continue\r\n", b"Upgrade: h2c\r\nConnection: upgrade\r\n"]
        ),
    )
    def send(self, body: bytes, is_work: bool, is_chunked: bool, more: bytes) -> None:
        framing = b"Transfer-Encoding: chunked\r\n\r\n" if is_chunked else b"Content-Length: %d\r\n\r\n" % len(body)
        framed = (b"%x\r\n%b\r\n" % (len(body), body) if body else b"") + b"0\r\n\r\n" if is_chunked else body
        path = b"/work" if is_work else b"/now"
        self.write(b"POST %b HTTP/1.1\r\nHost: g\r\n%b%b%b" % (path, more, framing, framed))
        if not self.is_bad and not self.has_closed:
            self.sent.append(body)
            self.ends.append(self.written)
            self.has_closed = b"close" in more

    @rule(what=st.sampled_from(BAD))
    def send_what_is_bad(self, what: bytes) -> None:
        self.write(what)
        self.is_bad = True

    def write(self, data: bytes) -> None:
        self.kernel += data
        self.written += len(data)

    @precondition(lambda self: self.kernel and self.takes_bytes)
    @rule(share=st.floats(0.01, 1.0))
    def deliver(self, share: float) -> None:
        size = max(1, int(len(self.kernel) * share))
        data, self.kernel = self.kernel[:size], self.kernel[size:]
        self.ahead = self.ahead + size if self.work else 0
        self.connection.data_received(data)

    @precondition(lambda self: self.work and not self.is_lost)
    @rule(size=st.integers(1, 100))
    def answer_more(self, size: int) -> None:
        self.connection.send(b"x" * size)

    @precondition(lambda self: self.work and not self.is_lost)
    @rule(may_keep=st.booleans(), is_at_once=st.booleans())
    def answer_is_done(self, may_keep: bool, is_at_once: bool) -> None:
        self.work = None
        self.answered += 1
        if is_at_once:
            self.connection.reply(200, b"then", close=not may_keep)
        else:
            self.connection.done(may_keep and self.connection.keeps)

    @precondition(lambda self: not self.is_lost and not self.connection.is_paused)
    @rule()
    def client_is_slow(self) -> None:
        self.connection.pause_writing()
        assert self.work is None or self.work.is_paused

    @precondition(lambda self: not self.is_lost and self.connection.is_paused)
    @rule()
    def client_catches_up(self) -> None:
        work = self.work
        self.connection.resume_writing()
        assert work is None or not work.is_paused

    @precondition(lambda self: not self.is_lost)
    @rule(how=st.sampled_from(["time", "drain", "abort", "client"]))
    def something_ends(self, how: str) -> None:
        """One rule for all ends, so that they are no more likely than what goes on."""
        if how == "drain":
            self.server.drain()
        elif how == "time" and self.connection.deadline:
            self.connection.expire()
        elif how == "abort" and self.work:
            self.connection.abort()
        elif how == "client":
            self.is_lost = True
            work, self.work = self.work, None
            self.transport.close()
            self.connection.connection_lost(None)
            assert work is None or work.gone == 1

    @precondition(lambda self: self.is_lost or self.transport.is_closing())
    @rule()
    def another_client_comes(self) -> None:
        self.connect()

    @invariant()
    def requests_are_served_in_order_and_unchanged(self) -> None:
        assert self.served == self.sent[: len(self.served)]
        assert len(self.served) - self.answered in (0, 1)

    @invariant()
    def nobody_stays_for_nothing(self) -> None:
        if not self.is_lost and not self.transport.is_aborted and self.work is None:
            assert self.connection.deadline > 0.0, "a connection that nothing ends"

    @invariant()
    def whoever_waits_is_read(self) -> None:
        idle = self.work is None and not self.is_lost and not self.connection.is_paused
        assert not idle or self.transport.is_reading() or self.transport.is_closing()

    @invariant()
    def nobody_sends_ahead_without_end(self) -> None:
        is_much = self.work is not None and self.ahead > LIMITS.ahead_bytes
        assert not is_much or not self.takes_bytes or self.transport.has_ended

    @invariant()
    def the_server_knows_who_is_there(self) -> None:
        assert (self.connection in self.server.connections) == (not self.is_lost)


class Heard:
    """A sink: what it was told, and that it is told the end once."""

    def __init__(self) -> None:
        self.body = b""
        self.status = 0
        self.ends = 0
        self.is_whole = False
        self.is_off = False

    def received(
        self, upstream: UpstreamConnection, head: AnswerHead, piece: bytes, is_complete: bool, now: float
    ) -> None:
        assert not self.is_off
        assert not self.ends
        self.status = head.status
        self.body += piece
        self.ends += is_complete
        self.is_whole = is_complete

    def broken(self, upstream: UpstreamConnection, reason: str) -> None:
        assert not self.is_off
        assert not self.ends
        assert reason
        self.ends += 1


class ReplicaMachine(RuleBasedStateMachine):
    """Connections to one replica and the pool that keeps them."""

    ADDRESS = "unix:/r"
    open_ones = Bundle("open_ones")

    @initialize()
    def begin(self) -> None:
        self.pool = Pool(LIMITS)
        self.pool.outbox = AtOnce()
        self.pool.know({self.ADDRESS})
        self.busy: dict[UpstreamConnection, Heard] = {}
        self.truth: dict[UpstreamConnection, bytes | None] = {}
        self.kernel: dict[UpstreamConnection, bytes] = {}
        self.transports: dict[UpstreamConnection, Memory] = {}

    @rule()
    def ask(self) -> None:
        upstream = self.pool.take(self.ADDRESS)
        if upstream is None:
            upstream, transport = UpstreamConnection(self.pool, self.ADDRESS), Memory()
            upstream.connection_made(transport)
            self.transports[upstream] = transport
        assert upstream not in self.busy, "one connection for two requests"
        assert not self.kernel.get(upstream), "kept, though more came than was asked for"
        self.busy[upstream] = sink = Heard()
        self.kernel[upstream] = b""
        self.truth[upstream] = None
        upstream.send(sink, b"POST / HTTP/1.1\r\n\r\n", b"")

    @precondition(lambda self: any(self.truth[u] is None for u in self.busy))
    @rule(
        data=st.data(), body=st.binary(max_size=40), is_chunked=st.booleans(), interim=st.booleans(),
        more=st.sampled_from([b"", b"", b"", b"x", b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"]),
    )  # fmt: skip
    def answer(self, data: st.DataObject, body: bytes, is_chunked: bool, interim: bool, more: bytes) -> None:
        upstream = data.draw(st.sampled_from([u for u in self.busy if self.truth[u] is None]))
        framing = b"Transfer-Encoding: chunked\r\n\r\n" if is_chunked else b"Content-Length: %d\r\n\r\n" % len(body)
        framed = (b"%x\r\n%b\r\n" % (len(body), body) if body else b"") + b"0\r\n\r\n" if is_chunked else body
        first = b"HTTP/1.1 103 Early Hints\r\nLink: a\r\n\r\n" if interim else b""
        self.kernel[upstream] += first + b"HTTP/1.1 201 Made\r\n" + framing + framed + more
        self.truth[upstream] = body

    @precondition(lambda self: any(self.kernel.get(u) for u in self.busy))
    @rule(data=st.data(), share=st.floats(0.01, 1.0))
    def deliver(self, data: st.DataObject, share: float) -> None:
        upstream = data.draw(st.sampled_from([u for u in self.busy if self.kernel[u]]))
        sent = self.kernel[upstream]
        size = max(1, int(len(sent) * share))
        self.kernel[upstream] = sent[size:]
        sink = self.busy[upstream]
        upstream.data_received(sent[:size])
        if sink.ends:
            assert (sink.is_whole, sink.status, sink.body) == (True, 201, self.truth[upstream])
            self.end(upstream)

    def end(self, upstream: UpstreamConnection) -> None:
        del self.busy[upstream]
        left = self.kernel[upstream]
        if left and not self.transports[upstream].is_closing():  # surplus that comes later, while it is kept
            self.kernel[upstream] = b""
            upstream.data_received(left)
            assert self.transports[upstream].is_closing()
        if self.transports[upstream].is_closing():
            upstream.connection_lost(None)

    @precondition(lambda self: self.busy)
    @rule(data=st.data(), is_reset=st.booleans())
    def replica_dies(self, data: st.DataObject, is_reset: bool) -> None:
        upstream = data.draw(st.sampled_from(list(self.busy)))
        sink = self.busy.pop(upstream)
        self.transports[upstream].close()
        upstream.connection_lost(OSError("reset") if is_reset else None)
        assert sink.ends == 1
        assert not sink.is_whole

    @precondition(lambda self: self.busy)
    @rule(data=st.data())
    def client_goes(self, data: st.DataObject) -> None:
        upstream = data.draw(st.sampled_from(list(self.busy)))
        self.busy.pop(upstream).is_off = True
        upstream.cancel()
        assert self.transports[upstream].is_closing()
        upstream.connection_lost(None)

    @rule()
    def table_no_longer_names_it(self) -> None:
        self.pool.know(set())
        assert self.pool.take(self.ADDRESS) is None
        self.pool.know({self.ADDRESS})


TestClientConnection = ClientMachine.TestCase
TestReplicaConnection = ReplicaMachine.TestCase
TestClientConnection.settings = TestReplicaConnection.settings = settings(stateful_step_count=40)
