"""Logs of runs, replicas and the gateway, by byte offset, and followed live."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Annotated, Literal

from fastapi import APIRouter
from fastapi import Path as PathParameter
from fastapi.responses import StreamingResponse

from stoker.errors import NotFound
from stoker.types.serving import Replica
from stoker.types.training import ACTIVE_PHASES, Run
from stokerd.processes.logs import follow as follow_log
from stokerd.processes.logs import read_log
from stokerd.store.store import Store

Kind = Literal["run", "replica", "gateway"]
_NAME = r"^[a-z0-9][a-z0-9._-]*$"  # it becomes part of a path


def router(
    store: Store,
    closing: asyncio.Event,
    replica_log: Callable[[str], Path],
    gateway_log: Callable[[str], Path | None],
) -> APIRouter:
    """Routes of logs. *replica_log* says where a replica's log lies, *gateway_log* where that of a worker does."""
    routes = APIRouter(prefix="/v1/logs", tags=["logs"])

    async def place(kind: Kind, name: str) -> tuple[Path, Callable[[], Awaitable[bool]]]:
        """The log's path, and how to ask whether more may come."""
        if kind == "run":
            run = await store.read(lambda q: q.get(Run, name))

            async def run_ended() -> bool:
                return (await store.read(lambda q: q.get(Run, name))).phase not in ACTIVE_PHASES

            return Path(run.folder) / "log", run_ended
        if kind == "replica":
            path = replica_log(name)
            known = await store.read(lambda q: q.find(Replica, name))
            if known is None and not path.exists():
                await store.read(lambda q: q.get(Replica, name))

            async def replica_gone() -> bool:
                return await store.read(lambda q: q.find(Replica, name)) is None

            return path, replica_gone
        worker_log = gateway_log(name)
        if worker_log is None:
            raise NotFound(f"the gateway has no worker {name!r}.", "They are called 0, 1, …; `gateway` is the first.")

        async def never() -> bool:
            return False

        return worker_log, never

    @routes.get("/{kind}/{name}", response_class=StreamingResponse)
    async def get_log(
        kind: Kind, name: Annotated[str, PathParameter(pattern=_NAME)], offset: int = 0, follow: bool = False
    ) -> StreamingResponse:
        """Bytes from *offset* on (negative: so many before the end); with *follow*, until nothing more can come.

        The header X-Stoker-Offset has the offset of the first byte, counted from the log's beginning.
        """
        path, ended = await place(kind, name)
        data, following = await asyncio.to_thread(read_log, path, offset)
        start = following - len(data)
        stream = _follow(path, start, ended, closing) if follow else _read(path, start)
        return StreamingResponse(
            stream, media_type="text/plain; charset=utf-8", headers={"X-Stoker-Offset": str(start)}
        )

    return routes


async def _read(path: Path, offset: int) -> AsyncIterator[bytes]:
    while True:
        data, offset = await asyncio.to_thread(read_log, path, offset)
        if not data:
            return
        yield data


async def _follow(
    path: Path, offset: int, ended: Callable[[], Awaitable[bool]], closing: asyncio.Event
) -> AsyncIterator[bytes]:
    is_over = False

    async def watch() -> None:
        nonlocal is_over
        try:
            while not await ended():
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(closing.wait(), 0.3)
                    break
        finally:
            is_over = True

    watcher = asyncio.create_task(watch())
    try:
        async for data in follow_log(path, offset, lambda: is_over):
            yield data
    finally:
        watcher.cancel()
        await asyncio.gather(watcher, return_exceptions=True)
