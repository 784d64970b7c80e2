"""What keeps the daemon small. `main` imports it before what it is about."""

from __future__ import annotations

import ctypes
import sys

# httpx loads its command line if it can, and with it rich and pygments, 4 MB: it lets that be where one is missing.
sys.modules.setdefault("httpx._main", None)  # type: ignore[arg-type]

_ARENA_MAX = -8  # M_ARENA_MAX, of glibc's <malloc.h>


def share_memory_of_threads() -> None:
    """Let all threads take their memory from two heaps: by default each has one, whose free memory no other uses.

    Threads of the daemon wait for disks and drivers nearly always, and seldom for each other's heap. As the variable
    MALLOC_ARENA_MAX, but runs and servers, which calculate in many threads, don't inherit it. Only glibc has it.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_ARENA_MAX, 2)
