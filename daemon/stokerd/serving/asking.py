"""Asks a server one thing over HTTP, at little cost."""

from __future__ import annotations

import asyncio

from stokerd.gateway.wire import BadTable, split_address

MAX_BYTES = 8 << 20


async def ask(address: str, path: str, seconds: float) -> str | None:
    """GET *path* and return what came, head and all; None when no HTTP answer began within *seconds*.

    HTTP/1.0, so that the answer ends with its connection. By hand: a client of httpx, made for each look at each of
    many servers, or one that asks so seldom that it connects anew, would be most of what an idle daemon does.
    """
    data = bytearray()
    try:
        async with asyncio.timeout(seconds):
            place = split_address(address)
            if isinstance(place, str):
                reader, writer = await asyncio.open_unix_connection(place)
            else:
                reader, writer = await asyncio.open_connection(*place)
            try:
                writer.write(f"GET {path} HTTP/1.0\r\nHost: localhost\r\n\r\n".encode())
                while len(data) < MAX_BYTES and (piece := await reader.read(1 << 16)):
                    data += piece
            finally:
                writer.transport.abort()
    except (OSError, BadTable):  # TimeoutError is one of the former; what has come until then counts
        pass
    return data.decode(errors="replace") if data.startswith(b"HTTP/") else None
