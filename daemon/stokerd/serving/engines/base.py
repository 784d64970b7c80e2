"""The one small interface of an engine: how to start it, and how to ask it for a real inference."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from stokerd.processes.states import Command


@dataclass(frozen=True, slots=True)
class Launch:
    """What a replica is to serve, and where. ``devices`` are UUIDs; ``socket`` is where it must listen."""

    deployment: str
    version: int
    model: Path
    socket: Path
    port: int | None
    devices: tuple[str, ...]
    log: Path
    inherited: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Probe:
    """A smallest real inference: POST *body* to *path*; any answer with status 200 counts."""

    path: str
    body: dict[str, Any]


class Engine(Protocol):
    """An adapter; made from the engine's part of a deployment's spec."""

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


def probe_body(path: str, model: str) -> dict[str, Any]:
    """The smallest request that an OpenAI *path* takes."""
    if path.endswith("/chat/completions"):
        return {"model": model, "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 1}
    if path.endswith(("/embeddings", "/responses")):
        return {"model": model, "input": "Hi"}
    return {"model": model, "prompt": "Hi", "max_tokens": 1}
