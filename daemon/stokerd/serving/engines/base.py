"""The one small interface of an engine: how to start it, how to ask it for a real inference, and how it does."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from stokerd.processes.states import Bounds, Command

ENGINE_DRAIN_SECONDS = 5
"""What an engine may still finish by itself after SIGTERM, where it has an option for that. The gateway has drained it
before: this is for who asks it directly, and for when the whole host goes down."""


@dataclass(frozen=True, slots=True)
class Launch:
    """What a replica is to serve, and where. ``devices`` are UUIDs; ``socket`` is where it must listen.

    ``memory_share``: the part of each device's memory that it may have, 0 to 1; None: all of it. ``options``: those of
    the engine's options that the installed one takes (see `Engine.options`).
    """

    deployment: str
    version: int
    model: Path
    socket: Path
    port: int | None
    devices: tuple[str, ...]
    log: Path
    inherited: Mapping[str, str]
    memory_share: float | None = None
    options: frozenset[str] = frozenset()
    bounds: Bounds = field(default_factory=Bounds)


@dataclass(frozen=True, slots=True)
class Probe:
    """A smallest real inference: POST *body* to *path*; any answer with status 200 counts."""

    path: str
    body: dict[str, Any]


@dataclass(frozen=True, slots=True)
class SleepPaths:
    """Where a server is told to give its devices' memory back, or to take it again (POST), and where it says whether
    it sleeps (GET: ``{"is_sleeping": true}``).
    """

    sleep: str
    wake: str
    is_sleeping: str


class Engine(Protocol):
    """An adapter; made from the engine's part of a deployment's spec.

    ``health_path``: any answer to a GET of it shows that the server lives. ``metrics_path``: a GET of it gives the text
    that `steps` reads; None where there is no such thing.
    """

    @property
    def health_path(self) -> str:
        """See above."""
        ...

    @property
    def metrics_path(self) -> str | None:
        """See above."""
        ...

    @property
    def sleep_paths(self) -> SleepPaths | None:
        """None where its servers can't sleep."""
        ...

    def command(self, launch: Launch) -> Command:
        """The process to start."""
        ...

    def probes(self, deployment: str) -> Sequence[Probe]:
        """Inferences of which one must be answered before the replica counts as ready."""
        ...

    def needs_port(self) -> bool:
        """Whether it must be reached over loopback TCP, for want of a Unix socket."""
        ...

    def problem(self) -> str:
        """Why this host can't run it, in one sentence; empty when it can. May start a short process."""
        ...

    def options(self) -> frozenset[str]:
        """Which options the installed engine takes, of those that not every version has. May start a short process."""
        ...

    def steps(self, metrics: str) -> float | None:
        """A counter that grows with every step that it computes, out of its metrics; None when they don't tell."""
        ...

    def progress(self, lines: Sequence[str]) -> str:
        """How far its start has come, out of the last *lines* of its log (oldest first); empty when they don't tell."""
        ...


def probe_body(path: str, model: str) -> dict[str, Any]:
    """The smallest request that an OpenAI *path* takes."""
    if path.endswith("/chat/completions"):
        return {"model": model, "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 1}
    if path.endswith(("/embeddings", "/responses")):
        return {"model": model, "input": "Hi"}
    return {"model": model, "prompt": "Hi", "max_tokens": 1}
