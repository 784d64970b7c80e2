"""Who asks."""

from __future__ import annotations

import asyncio
import pwd
from functools import lru_cache

from fastapi import Request


async def caller(request: Request) -> str:
    """The user's name, by the user id that the kernel tells of the one who called; ``uid:1234`` where it has none."""
    if request.client is None:
        return "somebody"
    return await asyncio.to_thread(_name, request.client.host)  # a directory service may take its time


@lru_cache(maxsize=256)
def _name(who: str) -> str:
    kind, _, number = who.partition(":")
    try:
        return pwd.getpwuid(int(number)).pw_name if kind == "uid" else who
    except (KeyError, ValueError):
        return who
