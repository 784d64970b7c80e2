"""The stream of events: ordered, durable, resumable by id."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Coroutine
from typing import Annotated, Any

from fastapi import APIRouter, Header, Query
from fastapi.responses import StreamingResponse

from stoker.errors import Conflict
from stoker.types.events import Event
from stokerd.store.store import Store

_PING_SECONDS = 15.0


def router(store: Store, closing: asyncio.Event) -> APIRouter:
    """Routes of events. Streams end when *closing* is set, so that the daemon can end."""
    routes = APIRouter(prefix="/v1", tags=["events"])

    @routes.get("/events", response_class=StreamingResponse)
    async def events(
        after: Annotated[int, Query(ge=0)] = 0,
        follow: bool = True,
        kind: str | None = None,
        name: str | None = None,
        last_event_id: Annotated[int | None, Header()] = None,
    ) -> StreamingResponse:
        """Events with an id over *after* (or over the Last-Event-ID header), as server-sent events, in order."""
        start = after if last_event_id is None else last_event_id
        newest = await store.read(lambda q: q.last_event_id())
        if start > newest:
            raise Conflict(
                f"event {start} has not happened yet; the newest is {newest}.",
                "Was the home replaced? List anew, and watch from `last_event_id` of /v1/host.",
                code="unknown-event-id",
            )
        stream = _stream(store, closing, start, follow=follow, kind=kind, name=name)
        return StreamingResponse(stream, media_type="text/event-stream", headers={"Cache-Control": "no-store"})

    return routes


async def _stream(
    store: Store, closing: asyncio.Event, after: int, *, follow: bool, kind: str | None, name: str | None
) -> AsyncIterator[str]:
    loop = asyncio.get_running_loop()
    said = loop.time()
    if follow:
        yield ": watching\n\n"
    wanted: dict[str, str | None] = {} if follow else {"kind": kind, "name": name}  # whoever follows must see ids go by
    while not closing.is_set():
        found = await store.read(lambda q, start=after: q.events(start, **wanted))  # type: ignore[misc]
        for event in found:
            after = event.id
            if kind in (None, event.kind) and name in (None, event.name):
                yield _message(event)
                said = loop.time()
        if not found:
            if not follow:
                return
            await _first_of(store.changed(after, said + _PING_SECONDS - loop.time()), closing.wait())
        if loop.time() - said >= _PING_SECONDS:
            yield ": ping\n\n"
            said = loop.time()


async def _first_of(*waits: Coroutine[Any, Any, object]) -> None:
    """Return when one of them does, and give the others up."""
    tasks = [asyncio.create_task(wait) for wait in waits]
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            task.result()
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def _message(event: Event) -> str:
    return f"id: {event.id}\ndata: {event.model_dump_json()}\n\n"
