"""A canned daemon on a real Unix socket: it serves what a test puts into it, in the daemon's own types and routes.

It keeps its home between `stop` and `start`, as a daemon that is restarted does; `asked` says what it was asked for.
"""

from __future__ import annotations

import contextlib
import json
import socket
import socketserver
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from datetime import datetime
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

from pydantic import TypeAdapter

from stoker.errors import NotFound, StokerError
from stoker.types.base import Resource
from stoker.types.events import Event
from stoker.types.host import Host, Series, TrafficStats
from stoker.types.rollouts import Rollout
from stoker.types.serving import Deployment, Replica
from stoker.types.training import MetricPoint, Run

KINDS: dict[str, type[Resource]] = {k.plural: k for k in (Deployment, Replica, Rollout, Run)}
PLURALS = {k.kind: k.plural for k in KINDS.values()}


class _UnixServer(socketserver.ThreadingMixIn, socketserver.UnixStreamServer):
    daemon_threads = False
    block_on_close = True
    request_queue_size = 64

    def __init__(self, path: Path, daemon: CannedDaemon) -> None:
        self.daemon = daemon
        self.connections: set[socket.socket] = set()
        super().__init__(str(path), _Handler)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that goes away is no error."""

    def shutdown_request(self, request: Any) -> None:
        self.connections.discard(request)
        super().shutdown_request(request)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _UnixServer

    def setup(self) -> None:
        super().setup()
        self.server.connections.add(self.connection)

    def address_string(self) -> str:
        return "unix"

    def log_message(self, *_: Any) -> None: ...

    def do_GET(self) -> None:
        self._answer()

    def do_POST(self) -> None:
        self._answer()

    def _answer(self) -> None:
        url = urlsplit(self.path)
        query = {k: v[-1] for k, v in parse_qs(url.query).items()}
        daemon = self.server.daemon
        daemon.asked[f"{self.command} {url.path}"] += 1
        daemon.queries[f"{self.command} {url.path}"] = query
        try:
            refusal = next((e for p, e in daemon.refusals.items() if url.path.startswith(p)), None)
            if isinstance(refusal, bytes):
                return self._send(200, refusal)
            if refusal is not None:
                raise refusal
            parts = url.path.removeprefix("/v1/").split("/")
            if parts[0] == "events":
                return self._stream("text/event-stream", daemon.event_stream(query))
            if parts[0] == "logs":
                return self._stream("application/octet-stream", daemon.log_stream(parts[1], parts[2], query))
            self._send(200, json.dumps(daemon.answer(self.command, parts, query)).encode())
        except StokerError as error:
            self._send(error.status, json.dumps(error.as_dict()).encode())

    def _send(self, status: int, body: bytes) -> None:
        self.send_response(status)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def _stream(self, kind: str, chunks: Iterator[bytes]) -> None:
        self.send_response(200)
        self.send_header("content-type", kind)
        self.send_header("transfer-encoding", "chunked")
        self.end_headers()
        self.close_connection = True
        for chunk in chunks:
            if chunk:
                self.wfile.write(b"%x\r\n%s\r\n" % (len(chunk), chunk))
        self.wfile.write(b"0\r\n\r\n")


class CannedDaemon:
    """See the module's docstring. Thread-safe: a test changes it while it serves."""

    def __init__(self, path: Path, host: Host, clock: Callable[[], datetime]) -> None:
        self.path = path
        self.host = host
        self.clock = clock
        self.resources: dict[str, dict[str, Resource]] = {plural: {} for plural in KINDS}
        self.events: list[Event] = []
        self.logs: dict[str, bytes] = {}
        self.ended: set[str] = set()
        self.metrics: dict[str, list[MetricPoint]] = {}
        self.traffic: list[TrafficStats] = []
        self.series: list[Series] = []
        self.refusals: dict[str, StokerError | bytes] = {}
        self.verbs: dict[str, Callable[[Resource], Resource]] = {}
        self.asked: Counter[str] = Counter()
        self.queries: dict[str, dict[str, str]] = {}
        self._changed = threading.Condition()
        self._server: _UnixServer | None = None
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Serve."""
        self._server = _UnixServer(self.path, self)
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01})
        self._thread.start()

    def stop(self) -> None:
        """Die: all connections break, the socket file is gone."""
        server, self._server = self._server, None
        if server is None or self._thread is None:
            return
        self.path.unlink(missing_ok=True)
        server.shutdown()
        self._thread.join()
        for connection in list(server.connections):
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
        with self._changed:
            self._changed.notify_all()
        server.server_close()

    @property
    def is_on(self) -> bool:
        return self._server is not None

    def put(self, resource: Resource, reason: str = "", message: str = "", **data: Any) -> None:
        """Keep a resource; with a *reason*, tell watchers."""
        self.resources[resource.plural][resource.name] = resource
        if reason:
            self.tell(resource.kind, resource.name, reason, message, phase=getattr(resource, "phase", ""), **data)

    def remove(self, resource: Resource, reason: str = "", message: str = "") -> None:
        del self.resources[resource.plural][resource.name]
        self.tell(resource.kind, resource.name, reason, message)

    def tell(self, kind: str, name: str, reason: str, message: str, at: datetime | None = None, **data: Any) -> None:
        """Record an event."""
        with self._changed:
            event_id = len(self.events) + 1
            self.events.append(
                Event(
                    id=event_id,
                    time=at or self.clock(),
                    kind=kind,
                    name=name,
                    reason=reason,
                    message=message or reason,
                    data=data,
                )
            )
            self._changed.notify_all()

    def at_once(self) -> threading.Condition:
        """A block whose events and log lines reach watchers together."""
        return self._changed

    def write(self, name: str, data: bytes, *, end: bool = False) -> None:
        """Append to a log; with *end*, nothing more will come."""
        with self._changed:
            self.logs[name] = self.logs.get(name, b"") + data
            if end:
                self.ended.add(name)
            self._changed.notify_all()

    def measure(self, run: str, key: str, step: int, value: float) -> None:
        """A run's next metric."""
        self.metrics.setdefault(run, []).append(MetricPoint(key=key, step=step, value=value, time=self.clock()))

    def answer(self, method: str, parts: list[str], query: dict[str, str]) -> Any:
        """Everything that isn't a stream."""
        match method, parts:
            case "GET", ["host"]:
                return self.host.model_copy(update={"last_event_id": len(self.events)}).model_dump(mode="json")
            case "GET", ["traffic"]:
                return TypeAdapter(list[TrafficStats]).dump_python(self.traffic, mode="json")
            case "GET", ["series"]:
                found = [s for s in self.series if s.name == query["name"]]
                return TypeAdapter(list[Series]).dump_python(found, mode="json")
            case "GET", ["runs", name, "metrics"]:
                points = self.metrics.get(name, [])
                after = int(query.get("after", 0))
                dumped = TypeAdapter(list[MetricPoint]).dump_python(points[after:], mode="json")
                return {"points": dumped, "next": len(points)}
            case "GET", [plural] if plural in KINDS:
                return [r.model_dump(mode="json") for r in self.resources[plural].values()]
            case "GET", [plural, name] if plural in KINDS:
                return self._find(plural, name).model_dump(mode="json")
            case "POST", [plural, name, verb]:
                resource = self._find(plural, name)
                changed = self.verbs[verb](resource)
                self.put(changed, verb.capitalize(), f"{name}: {verb}")
                return changed.model_dump(mode="json")
        raise NotFound(f"no such route: {method} {'/'.join(parts)}")

    def _find(self, plural: str, name: str) -> Resource:
        if name not in self.resources[plural]:
            raise NotFound(f"there is no {KINDS[plural].kind} named {name!r}.")
        return self.resources[plural][name]

    def event_stream(self, query: dict[str, str]) -> Iterator[bytes]:
        sent = int(query.get("after", 0))
        server = self._server
        while self._server is server is not None:
            with self._changed:
                fresh = self.events[sent:]
                if not fresh:
                    self._changed.wait(0.5)
            sent = fresh[-1].id if fresh else sent
            wanted = [
                f"id: {e.id}\ndata: {e.model_dump_json()}\n\n"
                for e in fresh
                if query.get("kind", e.kind) == e.kind and query.get("name", e.name) == e.name
            ]
            yield "".join(wanted).encode() if fresh else b": ping\n\n"

    def log_stream(self, kind: str, name: str, query: dict[str, str]) -> Iterator[bytes]:
        if name not in self.logs:
            raise NotFound(f"{kind} {name} has no log yet.")
        return self._log(name, int(query.get("offset", 0)))

    def _log(self, name: str, offset: int) -> Iterator[bytes]:
        server = self._server
        while self._server is server is not None:
            with self._changed:
                fresh = self.logs[name][offset:]
                if not fresh and name in self.ended:
                    return
                if not fresh:
                    self._changed.wait(0.5)
            offset += len(fresh)
            yield fresh
