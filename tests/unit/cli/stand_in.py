"""A server on a real Unix socket that answers as the daemon does, with resources that a test puts in it."""

from __future__ import annotations

import asyncio
import json
import socket
import threading
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs

import uvicorn
from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse, StreamingResponse

from stoker.errors import NotFound, StokerError
from stoker.types.base import Resource, now
from stoker.types.events import Event
from stoker.types.host import Host
from tests.harness import DEADLINE

Answer = Callable[[dict[str, Any]], Any]
_GRACE_SECONDS = 10  # for a client that holds its answer up; much less than what `stop` waits for the thread
_LOOK_SECONDS = 0.01


class StandIn:
    """Serves lists, single resources, events and logs from its fields; ``answers`` are for everything else.

    Keys of ``answers`` are like ``"POST /v1/jobs/tune/runs"``; a value is JSON, an error, or a function of the body.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.closing = threading.Event()
        self._called = threading.Condition()
        self._server: uvicorn.Server | None = None
        self._thread: threading.Thread | None = None
        self.forget()

    def forget(self) -> None:
        """Be as new."""
        self.host = Host(
            hostname="box", version="0.1.0", pid=1, started_at=now(), home=str(self.path.parent),
            gateway="http://127.0.0.1:1/v1", gateway_phase="ready", cpu_count=2, memory_total=1 << 34,
            disk_total=1 << 40, disk_free=1 << 39, devices_message="there is no NVIDIA driver.",
        )  # fmt: skip
        self.resources: dict[str, dict[str, Resource]] = {}
        self.events: list[Event] = []
        self.logs: dict[str, bytes] = {}
        self.open_logs: set[str] = set()
        self.tells_offsets = True
        self.answers: dict[str, Any] = {}
        self.calls: list[tuple[str, dict[str, str], Any]] = []

    def keep(self, *resources: Resource, event: str = "") -> None:
        """Insert or replace resources; with *event*, record it as that reason."""
        for resource in resources:
            self.resources.setdefault(resource.plural, {})[resource.name] = resource
            if event:
                self.record(resource.kind, resource.name, event)

    def record(self, kind: str, name: str, reason: str, message: str = "", **data: Any) -> None:
        """Append an event."""
        number, said = len(self.events) + 1, message or f"{name}: so."
        plain = json.loads(json.dumps(data, default=_plain))
        self.events.append(Event(id=number, time=now(), kind=kind, name=name, reason=reason, message=said, data=plain))

    def wait_for(self, call: str, **query: str) -> None:
        """Return when somebody has asked *call* with *query* among its parameters."""

        def is_there() -> bool:
            return any(name == call and query.items() <= asked.items() for name, asked, _ in self.calls)

        with self._called:
            assert self._called.wait_for(is_there, timeout=DEADLINE), f"nobody asked {call}"

    def start(self) -> None:
        """Listen and serve, in a thread."""
        self.closing.clear()
        app = FastAPI()
        app.add_api_route("/{rest:path}", self._answer, methods=["GET", "POST", "PUT", "DELETE"], response_model=None)
        config = uvicorn.Config(
            app, lifespan="off", log_config=None, ws="none", loop="asyncio", timeout_graceful_shutdown=_GRACE_SECONDS
        )
        self._server = uvicorn.Server(config)
        self.path.unlink(missing_ok=True)
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(str(self.path))
        listener.listen()  # from here on clients can connect: nobody has to wait for the thread

        def serve(server: uvicorn.Server = self._server) -> None:
            with listener:
                server.run(sockets=[listener])

        self._thread = threading.Thread(target=serve)
        self._thread.start()

    def stop(self) -> None:
        """End every stream and stop listening."""
        assert self._server is not None
        assert self._thread is not None
        self.closing.set()
        self._server.should_exit = True
        self._thread.join(DEADLINE)
        assert not self._thread.is_alive()
        self.path.unlink(missing_ok=True)

    async def _answer(self, request: Request) -> Response:
        query = {k: v[0] for k, v in parse_qs(request.url.query).items()}
        raw = await request.body()
        body = json.loads(raw) if raw else None
        path = request.scope["raw_path"].decode().partition("?")[0]
        with self._called:
            self.calls.append((f"{request.method} {path}", query, body))
            self._called.notify_all()
        try:
            return await self._route(request, query, body)
        except StokerError as error:
            return JSONResponse(error.as_dict(), error.status)

    async def _route(self, request: Request, query: dict[str, str], body: Any) -> Response:
        key = f"{request.method} {request.url.path}"
        if key in self.answers:
            answer = self.answers[key]
            if callable(answer):
                answer = await asyncio.to_thread(answer, body)
            if isinstance(answer, StokerError):
                raise answer
            return _json(answer)
        parts = request.url.path.removeprefix("/v1/").split("/")
        if parts == ["host"]:
            return _json(self.host.model_copy(update={"last_event_id": len(self.events)}))
        if parts == ["events"]:
            return StreamingResponse(self._events(query), media_type="text/event-stream")
        if parts[0] == "logs":
            return self._log("/".join(parts[1:]), query)
        if request.method == "GET" and len(parts) == 1:
            found = self.resources.get(parts[0], {}).values()
            return _json([r for r in found if all(str(getattr(r, k)) == v for k, v in query.items())])
        resource = self.resources.get(parts[0], {}).get(parts[1])
        if resource is None:
            raise NotFound(f"there is no {parts[0]} named {parts[1]!r}.", "See `stoker get`.")
        if request.method == "DELETE":
            del self.resources[parts[0]][parts[1]]
            self.record(resource.kind, resource.name, "Deleted")
            return Response(status_code=204)
        return _json(resource)

    async def _events(self, query: dict[str, str]) -> AsyncIterator[str]:
        after = int(query.get("after", 0))
        while True:
            for event in self.events[after:]:
                after = event.id
                if query.get("kind") in (None, event.kind) and query.get("name") in (None, event.name):
                    yield f"id: {event.id}\ndata: {event.model_dump_json()}\n\n: ping\n\n"
            if query.get("follow") != "true" or self.closing.is_set():
                return
            await asyncio.sleep(_LOOK_SECONDS)

    def _log(self, name: str, query: dict[str, str]) -> Response:
        if name not in self.logs:
            raise NotFound(f"there is no log {name}.")
        size = len(self.logs[name])
        offset = int(query.get("offset", 0))
        start = max(size + offset, 0) if offset < 0 else min(offset, size)
        follow = query.get("follow") == "true"
        headers = {"x-stoker-offset": str(start)} if self.tells_offsets else {}
        return StreamingResponse(self._bytes(name, start, follow), headers=headers)

    async def _bytes(self, name: str, position: int, follow: bool) -> AsyncIterator[bytes]:
        while True:
            is_over = name not in self.open_logs or self.closing.is_set()
            data = self.logs[name][position:]
            if data:
                yield data
            position += len(data)
            if is_over or not follow:
                return
            await asyncio.sleep(_LOOK_SECONDS)


def _plain(value: Any) -> Any:
    return value.model_dump(mode="json")


def _json(value: Any) -> Response:
    return Response(json.dumps(value, default=_plain), media_type="application/json")
