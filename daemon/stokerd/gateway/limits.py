"""Every bound of the gateway, in one place. Whatever comes from outside is held by one of these."""

from __future__ import annotations

from dataclasses import dataclass

MIB = 1 << 20


@dataclass(frozen=True, slots=True)
class Limits:
    """Sizes in bytes, times in seconds.

    ``ahead_bytes``: so much of the next requests is read while one is answered. ``body_seconds``: without one new byte
    of a request's body. ``stall_seconds``: without one new byte of an answer that has begun, or with a client that
    takes none. ``upstream_idle_seconds`` stays under the 5 s after which vLLM's server closes an idle connection, so
    that few requests meet a connection that is being closed. ``stale_seconds``: a kept connection that closes without
    an answer this soon after a request was idle too long; later, it died of it. ``eject_seconds``: how long a replica
    is left alone for the first time, ``eject_most_seconds`` at the most; ``eject_errors``: after so many answers with
    5xx, broken answers or timeouts in a row. ``drain_seconds`` is what a request may take after its worker was asked to
    end, or taken over from: others serve, and whoever is in a hurry kills it.
    """

    header_bytes: int = 64 << 10
    body_bytes: int = 64 * MIB
    ahead_bytes: int = 64 << 10
    connections: int = 16_384
    header_seconds: float = 30.0
    body_seconds: float = 30.0
    idle_seconds: float = 75.0
    linger_seconds: float = 2.0
    connect_seconds: float = 5.0
    first_byte_seconds: float = 600.0
    stall_seconds: float = 300.0
    eject_seconds: float = 1.0
    eject_most_seconds: float = 30.0
    eject_errors: int = 5
    upstream_idle_seconds: float = 4.0
    stale_seconds: float = 1.0
    upstream_header_bytes: int = 256 << 10
    drain_seconds: float = 3600.0
    shadow_in_flight: int = 64
    shadow_bytes: int = 64 * MIB
    records: int = 10_000
    sweep_seconds: float = 0.5
