"""The stream of events: ordered, durable, resumable by id."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Annotated

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
    pinged = loop.time()
    if follow:
        yield ": watching\n\n"
    while not closing.is_set():
        found = await store.read(lambda q, start=after: q.events(start))  # type: ignore[misc]
        for event in found:
            after = event.id
            if kind in (None, event.kind) and name in (None, event.name):
                yield _message(event)
        if found:
            continue
        if not follow:
            return
        await store.changed(after, 1.0)
        if loop.time() - pinged > _PING_SECONDS:
            pinged = loop.time()
            yield ": ping\n\n"


def _message(event: Event) -> str:
    return f"id: {event.id}\ndata: {event.model_dump_json()}\n\n"
