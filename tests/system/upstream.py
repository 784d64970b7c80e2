"""A small raw OpenAI-like server to put behind the gateway, and the gateway's own process to put before it.

What a replica does is said by the request itself, in the body's ``"do"``, so that one serves many tests::

    {"model": "m", "stream": true, "do": {"chunks": 5, "die_after": 3}}

A test must never have to be quick: what has to happen while a request is under way is ordered by ``"wait"`` (the
replica goes on when `Replica.permit` says so) and by `GatewayProcess.frozen`, not by pauses.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import signal
import socket
import ssl
import subprocess
import sys
import tempfile
import threading
import uuid
from collections import Counter
from collections.abc import Callable, Coroutine, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import psutil

from stokerd.gateway.wire import Arm, Record, RecordBatch, Route, RouteTable, parse_batch
from tests.harness import DEADLINE, wait_for

USAGE = {"prompt_tokens": 7, "total_tokens": 12, "completion_tokens": 5, "prompt_tokens_details": None}


@dataclass
class Seen:
    """A request as the replica saw it. ``ended`` is set when its answer is out; ``cut`` when the peer left before."""

    line: str
    headers: dict[str, str]
    body: bytes
    connection: int
    ended: threading.Event = field(default_factory=threading.Event)
    cut: threading.Event = field(default_factory=threading.Event)

    @property
    def json(self) -> Any:
        return json.loads(self.body)


class _Peer(asyncio.StreamReaderProtocol):
    """A stream that also says when its peer has gone; reading to find out could swallow the next request."""

    def __init__(
        self, serve: Callable[[asyncio.StreamReader, asyncio.StreamWriter], Coroutine[Any, Any, None]]
    ) -> None:
        super().__init__(asyncio.StreamReader(), serve)
        self.gone = asyncio.Event()

    def eof_received(self) -> bool:
        self.gone.set()
        return bool(super().eof_received())

    def connection_lost(self, exc: Exception | None) -> None:
        self.gone.set()
        super().connection_lost(exc)


class Replica:
    """One server, on a Unix socket (or loopback TCP), in a thread with its own loop. Use it as a context manager."""

    def __init__(self, version: int = 1, *, tcp: bool = False, path: Path | None = None) -> None:
        self.version = version
        self.seen: list[Seen] = []
        self.connections = 0
        self.sent_bytes = 0
        self.is_silent = False
        """It takes requests and answers none."""
        self._permits = asyncio.Semaphore(0)
        self._path = path or Path(tempfile.gettempdir()) / f"stk-{uuid.uuid4().hex[:12]}"
        self._tcp = tcp
        self._port = 0
        self._open: set[asyncio.StreamWriter] = set()
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self._port}" if self._tcp else f"unix:{self._path}"

    def __enter__(self) -> Replica:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        asyncio.run_coroutine_threadsafe(self._listen(), self._loop).result(DEADLINE)

    def stop(self) -> None:
        """Die: listener and connections closed at once."""
        if self._loop.is_closed():
            return
        asyncio.run_coroutine_threadsafe(self._die(), self._loop).result(DEADLINE)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(DEADLINE)
        self._loop.close()

    def last(self) -> Seen:
        """The latest request, once there is one."""
        return wait_for(lambda: self.seen[-1] if self.seen else None, "a request reaches the replica")

    def permit(self, steps: int = 1) -> None:
        """Let an answer that waits go on, by so many steps."""
        for _ in range(steps):
            self._loop.call_soon_threadsafe(self._permits.release)

    async def _listen(self) -> None:
        loop = asyncio.get_running_loop()
        if self._tcp:
            self._server = await loop.create_server(lambda: _Peer(self._serve), "127.0.0.1", self._port)
            self._port = self._server.sockets[0].getsockname()[1]
        else:
            self._path.unlink(missing_ok=True)
            self._server = await loop.create_unix_server(lambda: _Peer(self._serve), self._path)

    async def _die(self) -> None:
        self._server.close()
        self._path.unlink(missing_ok=True)
        for writer in list(self._open):
            writer.transport.abort()
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        self._open.add(writer)
        self.connections += 1
        number = self.connections
        try:
            while await self._serve_one(reader, writer, number):
                pass
        except (ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass
        finally:
            self._tasks.discard(task)
            self._open.discard(writer)
            writer.transport.abort()

    async def _serve_one(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, number: int) -> bool:
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
        headers = {k.lower(): v.strip() for k, _, v in (line.partition(":") for line in head[1:] if line)}
        seen = Seen(head[0], headers, await reader.readexactly(int(headers.get("content-length", 0))), number)
        self.seen.append(seen)
        answering = asyncio.ensure_future(self._answer(seen, writer))
        peer = writer.transport.get_protocol()
        assert isinstance(peer, _Peer)
        watching = asyncio.ensure_future(peer.gone.wait())
        try:
            await asyncio.wait({answering, watching}, return_when=asyncio.FIRST_COMPLETED)
            if not answering.done() or isinstance(answering.exception(), ConnectionError):
                seen.cut.set()
                return False
            return answering.result()
        finally:
            for task in (answering, watching):
                task.cancel()
            await asyncio.gather(answering, watching, return_exceptions=True)
            seen.ended.set()

    async def _answer(self, seen: Seen, writer: asyncio.StreamWriter) -> bool:
        body = seen.json
        do = body.get("do", {})
        if do.get("close"):
            return False
        if self.is_silent:
            await asyncio.Event().wait()
        if do.get("wait") == "answer":
            await self._permits.acquire()
        await asyncio.sleep(do.get("sleep", 0.0))
        if "raw" in do:
            writer.write(do["raw"].encode("latin-1"))
            await writer.drain()
            return not do.get("then_close")
        if body.get("stream"):
            return await self._stream(body, do, writer)
        text = json.dumps(self._plain(seen.line, body, do)).encode()
        head = (
            f"HTTP/1.1 {do.get('status', 200)} Whatever\r\nContent-Type: application/json\r\nX-Engine: {self.version}"
        )
        if do.get("until_close"):
            writer.write(f"{head}\r\n\r\n".encode() + text)
            await writer.drain()
            return False
        writer.write(f"{head}\r\nContent-Length: {len(text)}\r\n\r\n".encode() + text[: do.get("cut", len(text))])
        await writer.drain()
        return "cut" not in do and not do.get("then_close")

    def _plain(self, line: str, body: Any, do: Any) -> Any:
        if do.get("status", 200) >= 400:
            return {"error": {"message": "as asked", "type": "server_error", "param": None, "code": "as_asked"}}
        if "embeddings" in line:
            data = [{"object": "embedding", "index": 0, "embedding": [0.5, 1.0]}]
            return {
                "object": "list",
                "data": data,
                "model": body["model"],
                "usage": {"prompt_tokens": 7, "total_tokens": 7},
            }
        if "responses" in line:
            return {"id": "r", "object": "response", "output": [], "usage": {"input_tokens": 3, "output_tokens": 4}}
        message = {"role": "assistant", "content": f"version {self.version}" + "x" * do.get("size", 0)}
        choice = {"index": 0, "message": message, "text": f"version {self.version}", "finish_reason": "stop"}
        kind = "chat.completion" if "chat" in line else "text_completion"
        return {"id": "c", "object": kind, "created": 1, "model": body["model"], "choices": [choice], "usage": USAGE}

    async def _stream(self, body: Any, do: Any, writer: asyncio.StreamWriter) -> bool:
        head = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
        opening = _framed(_delta(body, {"role": "assistant", "content": ""}))
        if "stall_after" in do:  # at one stroke, so that it stalls nowhere else
            words = (_framed(_delta(body, {"content": f"w{number} "})) for number in range(do["stall_after"]))
            writer.write(b"".join((head, opening, *words)))
            await asyncio.Event().wait()
        writer.write(head + opening)
        await writer.drain()
        for number in range(do.get("chunks", 3)):
            if number == do.get("die_after"):
                return False
            if do.get("wait") == "chunk":
                await self._permits.acquire()
            await asyncio.sleep(do.get("gap", 0.0))
            await self._event(writer, _delta(body, {"content": f"w{number} " + "x" * do.get("size", 0)}))
        if body.get("stream_options", {}).get("include_usage"):
            await self._event(writer, {**_delta(body, None), "choices": [], "usage": USAGE})
        await self._event(writer, "[DONE]")
        writer.write(b"0\r\n\r\n")
        await writer.drain()
        return True

    async def _event(self, writer: asyncio.StreamWriter, data: Any) -> None:
        event = _framed(data)
        writer.write(event)
        await writer.drain()
        self.sent_bytes += len(event)


def _framed(data: Any) -> bytes:
    event = f"data: {data if isinstance(data, str) else json.dumps(data)}\n\n".encode()
    return b"%x\r\n%b\r\n" % (len(event), event)


def _delta(body: Any, delta: Any) -> dict[str, Any]:
    choice = {"index": 0, "delta": delta, "finish_reason": None}
    return {"id": "c", "object": "chat.completion.chunk", "created": 1, "model": body["model"], "choices": [choice]}


def arm(name: str, weight: float, *replicas: Replica | str, version: int | None = None) -> Arm:
    """An arm of those replicas (or addresses), with the first one's version."""
    known = [r.version for r in replicas if isinstance(r, Replica)]
    addresses = tuple(r if isinstance(r, str) else r.address for r in replicas)
    return Arm(name, version if version is not None else (known[0] if known else 1), weight, addresses)


def chat(model: str = "m", *, stream: bool = False, **do: Any) -> dict[str, Any]:
    """A chat's body that asks the replica to *do* things."""
    return {"model": model, "messages": [{"role": "user", "content": "hi"}], "stream": stream, "do": do}


class GatewayProcess:
    """``python -m stokerd.gateway`` on a free port. Use it as a context manager: it is ended with the block.

    Args:
        limits: as ``--limit`` takes them.
        root: its folder; workers of one gateway share it.
        listen: as ``--listen`` takes it.
        worker: names it in that folder.
        more: of the command line.
        waits_for_clients: `start` waits until it takes some; else, until it answers at all.
    """

    def __init__(
        self,
        *limits: str,
        root: Path | None = None,
        listen: str = "127.0.0.1:0",
        worker: str = "c",
        more: Sequence[str] = (),
        waits_for_clients: bool = True,
    ) -> None:
        self._owned = tempfile.TemporaryDirectory(prefix="stk-") if root is None else None
        self.root = Path(self._owned.name) if self._owned else root
        assert self.root is not None
        self.control_path = self.root / f"{worker}.sock"
        self.table_file = self.root / "table.json"
        self._log = self.root / ("log" if worker == "c" else f"log-{worker}")
        self._scheme = "https" if "--tls-certificate" in more else "http"
        self._command = [sys.executable, "-m", "stokerd.gateway", "--listen", listen]
        self._command += ["--control", str(self.control_path), "--table-file", str(self.table_file), *more]
        for limit in limits:
            self._command += ["--limit", limit]
        self._waits_for_clients = waits_for_clients
        self._version = 0

    def __enter__(self) -> GatewayProcess:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()
        if self._owned:
            self._owned.cleanup()

    @property
    def log(self) -> str:
        return self._log.read_text()

    def start(self) -> None:
        with self._log.open("ab") as log:
            self.process = subprocess.Popen(self._command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        self.control = httpx.Client(
            transport=httpx.HTTPTransport(uds=str(self.control_path)), base_url="http://gateway", timeout=DEADLINE
        )
        wait_for(self._is_up, "the gateway answers")
        if self._waits_for_clients:
            self.know_place()

    def know_place(self) -> None:
        """Wait until it takes clients, and note where."""
        self.listen = wait_for(lambda: str(self.state()["listen"]), "the gateway takes clients")
        host, _, port = self.listen.rpartition(":")
        self.place = (host, int(port))
        self.url = f"{self._scheme}://{self.listen}"

    def _is_up(self) -> bool:
        assert self.process.poll() is None, self.log
        with socket.socket(socket.AF_UNIX) as probe:  # httpx would leave an unclosed socket when it is refused
            return probe.connect_ex(str(self.control_path)) == 0

    def stop(self) -> int:
        """SIGTERM, and the exit code."""
        self.control.close()
        if self.process.poll() is None:
            self.process.terminate()
        return self.process.wait(DEADLINE)

    @contextlib.contextmanager
    def frozen(self) -> Iterator[None]:
        """Hold the process still: what is sent meanwhile lies in the kernel, and is there when its clocks start."""
        process = psutil.Process(self.process.pid)
        self.process.send_signal(signal.SIGSTOP)
        wait_for(lambda: process.status() == psutil.STATUS_STOPPED, "the gateway stands still")
        try:
            yield
        finally:
            self.process.send_signal(signal.SIGCONT)

    def kill(self) -> None:
        self.control.close()
        self.process.kill()
        self.process.wait(DEADLINE)

    def state(self) -> dict[str, Any]:
        answer = self.control.get("/state")
        assert answer.status_code == 200, answer.text
        return dict(answer.json())

    def put(self, *routes: Route) -> dict[str, Any]:
        """Set the table."""
        self._version += 1
        answer = self.control.put("/routes", json=RouteTable(self._version, routes).as_dict())
        assert answer.status_code == 200, answer.text
        return dict(answer.json())

    def route(self, *arms: Arm, name: str = "m", shadow: Arm | None = None, salt: str = "s") -> dict[str, Any]:
        """Set a table of one route."""
        return self.put(Route(name, salt, arms, shadow))

    def batch(self, *, epoch: str = "", after: int = 0, wait: float = 0.0) -> RecordBatch:
        answer = self.control.get("/records", params={"epoch": epoch, "after": after, "wait": wait, "as": "rows"})
        assert answer.status_code == 200, answer.text
        return parse_batch(answer.json())

    def take(self, count: int) -> list[Record]:
        """Fetch and acknowledge records until *count* are there."""
        records: list[Record] = []

        def look() -> bool:
            batch = self.batch(wait=0.2)
            records.extend(batch.records)
            if batch.records:
                self.batch(epoch=batch.epoch, after=batch.records[-1].seq)
            return len(records) >= count

        wait_for(look, f"{count} records")
        assert len(records) == count, records
        return records

    def one(self) -> Record:
        """The one record that is there."""
        return self.take(1)[0]

    def forget(self) -> None:
        """Acknowledge all records that are there."""
        batch = self.batch()
        while batch.records:
            batch = self.batch(epoch=batch.epoch, after=batch.records[-1].seq)

    def client(self, **options: Any) -> httpx.Client:
        """A plain HTTP client of the front."""
        return httpx.Client(base_url=self.url, timeout=DEADLINE, trust_env=False, **options)

    @contextlib.contextmanager
    def raw(self, trusting: ssl.SSLContext | None = None, *, receive_bytes: int = 0) -> Iterator[Raw]:
        """A bare TCP connection to the front, under TLS if it is *trusting*; its window may be small."""
        sock = socket.socket()
        sock.settimeout(DEADLINE)
        if receive_bytes:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_bytes)
        sock.connect(self.place)
        raw = Raw(sock if trusting is None else trusting.wrap_socket(sock, server_hostname=self.place[0]))
        try:
            yield raw
        finally:
            raw.close()


def refused(gateway: GatewayProcess, replica: Replica, text: str) -> int:
    """The status with which the gateway refuses a request: with a reason, and as the last on its connection."""
    gateway.route(arm("stable", 100, replica))
    with gateway.raw() as raw:
        raw.send(text.encode("latin-1"))
        status, headers, body = raw.answer()
        assert headers["connection"] == "close"
        assert json.loads(body)["error"]["message"]
        raw.sock.shutdown(socket.SHUT_WR)
        assert raw.rest() == b""
    assert not replica.seen
    return status


class Raw:
    """A bare connection, for what no HTTP client would send."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self._file = sock.makefile("rb")
        self._is_ended = False

    def send(self, data: bytes) -> None:
        self.sock.sendall(data)

    def post(self, body: Any, *headers: str, path: str = "/v1/chat/completions", version: str = "1.1") -> None:
        text = json.dumps(body).encode()
        lines = [f"POST {path} HTTP/{version}", "Host: g", f"Content-Length: {len(text)}", *headers]
        self.send("\r\n".join(lines).encode() + b"\r\n\r\n" + text)

    def line(self) -> bytes:
        """Read a line, its end included."""
        return self._file.readline()

    def head(self) -> tuple[int, dict[str, str]]:
        """Read a head: status, and headers by lower-case name."""
        status = int(self._file.readline().split()[1])
        headers: dict[str, str] = {}
        while line := self._file.readline().rstrip(b"\r\n").decode("latin-1"):
            name, _, value = line.partition(":")
            headers[name.lower()] = value.strip()
        return status, headers

    def answer(self) -> tuple[int, dict[str, str], bytes]:
        """Read a whole answer with a length."""
        status, headers = self.head()
        return status, headers, self._file.read(int(headers["content-length"]))

    def read(self, size: int) -> bytes:
        """Up to *size* next bytes of a chunked answer, framing included; nothing after its last chunk."""
        if self._is_ended:
            return b""
        piece = self._file.read1(size)
        self._is_ended = piece.endswith(b"0\r\n\r\n")
        return piece

    def rest(self) -> bytes:
        """Everything until the peer closes."""
        with contextlib.suppress(ConnectionResetError):
            return self._file.read()
        return b""

    def close(self) -> None:
        self._file.close()
        self.sock.close()


class Knockers:
    """Clients that connect, ask once and leave, one after another; ``heard`` counts what came of it.

    With *trust*, they speak TLS.
    """

    def __init__(self, place: tuple[str, int], count: int = 4, trust: ssl.SSLContext | None = None) -> None:
        self._place = place
        self._trust = trust
        self._over = threading.Event()
        self._threads = [threading.Thread(target=self._knock, daemon=True) for _ in range(count)]
        self.heard: Counter[str] = Counter()

    def __enter__(self) -> Knockers:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join()

    def more(self, count: int) -> None:
        """Wait until so many more have been answered."""
        wanted = self.heard["200"] + count
        wait_for(lambda: self.heard["200"] >= wanted, f"{count} more answers; heard: {self.heard}")

    def _knock(self) -> None:
        while not self._over.is_set():
            self.heard[self._ask()] += 1

    def _connect(self) -> socket.socket:
        plain = socket.create_connection(self._place, timeout=DEADLINE)
        return plain if self._trust is None else self._trust.wrap_socket(plain, server_hostname=self._place[0])

    def _ask(self) -> str:
        try:
            with self._connect() as sock:
                sock.sendall(b"GET /health HTTP/1.1\r\nHost: g\r\nConnection: close\r\n\r\n")
                answer = b""
                while piece := sock.recv(4096):
                    answer += piece
        except OSError as error:
            return type(error).__name__
        return answer[9:12].decode() if answer.endswith(b'{"status":"ok"}') else f"cut off: {answer!r}"
