"""What people may ask of a supervised process: bounds, and what happens when it ends."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from stoker.types.base import Bytes, Seconds, Spec


class Limits(Spec):
    """Bounds of a process with all that it starts. ``stoker get host`` tells how this host enforces them."""

    memory: Bytes | None = Field(default=None, ge=1 << 20, description="more ends it, as out of memory")
    processes: int | None = Field(default=None, ge=1, description="at the same time, threads included")
    cpu_weight: int | None = Field(default=None, ge=1, le=10_000, description="share when CPUs are short; 100 is usual")


class Restart(Spec):
    """When a server is started again, and when it is given up.

    A server never ends by itself when all is well, so *on-failure* and *always* differ in one thing only: after an
    exit with code 0 that nobody asked for, *always* starts it at once and without counting, as long as it had been
    healthy for ``healthy_after``.
    """

    policy: Literal["always", "on-failure", "never"] = "on-failure"
    backoff: Seconds = Field(default=1.0, description="before the first restart; doubles with each, with jitter")
    backoff_cap: Seconds = Field(default=60.0, description="never longer than this")
    limit: int = Field(default=5, ge=0, le=1000, description="restarts in a row; after one more failure it is given up")
    healthy_after: Seconds = Field(default=60.0, description="ready for so long, it starts counting anew")
