"""How long to wait before the next attempt. Pure."""

from __future__ import annotations

import hashlib

JITTER = 0.2


def delay(key: str, failures: int, first_seconds: float, cap_seconds: float) -> float:
    """Seconds before the attempt after *failures* (1 or more): doubled with each, at most the cap, 20 % up or down.

    The jitter follows from *key* and the count, so that the same step taken twice says the same, while things that
    fell together don't rise together.
    """
    seconds = min(first_seconds * 2.0 ** min(max(failures, 1) - 1, 32), cap_seconds)
    digest = hashlib.sha256(f"{key} {failures}".encode()).digest()
    share = int.from_bytes(digest[:4], "big") / 0xFFFFFFFF
    return seconds * (1 + JITTER * (2 * share - 1))
