"""How long to wait before something that failed is started again. Pure."""

from __future__ import annotations

import hashlib

JITTER = 0.2  # of the wait, up or down


def backoff_seconds(name: str, failures: int, first: float, cap: float) -> float:
    """Double *first* with each of *failures* in a row, up to *cap* seconds, which the jitter stays within too.

    The jitter keeps things that failed together from coming back together. It follows from *name* and *failures*, so
    whoever asks again is told the same.
    """
    plain = min(first * 2.0 ** min(max(failures - 1, 0), 64), cap / (1 + JITTER))
    share = int.from_bytes(hashlib.sha256(f"{name} {failures}".encode()).digest()[:6], "big") / 2**48
    return plain * (1 + JITTER * (2 * share - 1))
