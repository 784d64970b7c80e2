"""What keeps the daemon small. `main` imports it before what it is about."""

from __future__ import annotations

import ctypes
import sys

# What httpx and FastAPI load if it is there, and the daemon never uses: httpx's command line, with rich and pygments
# (4 MB); models of Pydantic 1, which FastAPI looks for in order to refuse them (3 MB); and two libraries that other
# packages in the same environment may have brought along (1 MB).
for _optional in ("httpx._main", "pydantic.v1", "zstandard", "orjson"):
    sys.modules.setdefault(_optional, None)  # type: ignore[arg-type]

_ARENA_MAX = -8  # M_ARENA_MAX, of glibc's <malloc.h>


def share_memory_of_threads() -> None:
    """Let all threads take their memory from two heaps: by default each has one, whose free memory no other uses.

    Threads of the daemon wait for disks and drivers nearly always, and seldom for each other's heap. As the variable
    MALLOC_ARENA_MAX, but runs and servers, which calculate in many threads, don't inherit it. Only glibc has it.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_ARENA_MAX, 2)
