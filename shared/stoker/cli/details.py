"""One resource, whole, as an indented text: every field with its name, times and sizes as people read them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from datetime import datetime
from typing import Any

from pydantic import BaseModel
from rich.text import Text

from stoker.cli import output
from stoker.cli.human import local, moment, size, span
from stoker.types.base import now
from stoker.types.events import Event

_BYTES = frozenset({"bytes", "memory_total", "memory_used", "disk_total", "disk_free", "memory", "device_memory"})
_LONGEST = 300  # characters of a value: the packages of a run's environment fill pages
_SECONDS = frozenset(
    {"timeout", "backoff", "interval", "start_timeout", "drain_timeout", "min_duration", "max_duration"}
    | {"stall_timeout", "backoff_cap", "healthy_after", "hold_limit", "keep_warm", "seconds"}
)


def print_details(resource: BaseModel) -> None:
    """Print every field of *resource*."""
    for depth, name, value in _fields(resource.model_dump(), 0):
        label = f"{'  ' * depth}{name}:" if not name.startswith("-") else f"{'  ' * depth}{name}"
        if len(value) > _LONGEST:
            value = f"{value[:_LONGEST]}… (whole with --json)"
        if name == "phase":
            output.line(label, output.phase(value))
        else:
            output.line(*([label, value] if value else [label]))


def print_events(events: Iterable[Event]) -> None:
    """A line for each event."""
    for event in events:
        print_event(event)


def print_event(event: Event, *, with_id: bool = False) -> None:
    """One event: when, of what, what, and its sentence."""
    number = [f"{event.id:>6}"] if with_id else []
    subject = f"{event.kind}/{event.name}"
    output.line(*number, local(event.time), f"{subject:<24}", Text(event.reason, style="bold"), event.message)


def _fields(value: dict[str, Any], depth: int) -> Iterator[tuple[int, str, str]]:
    for name, inner in value.items():
        yield from _field(name, inner, depth)


def _field(name: str, value: Any, depth: int) -> Iterator[tuple[int, str, str]]:
    if isinstance(value, dict) and value:
        yield depth, name, ""
        yield from _fields(value, depth + 1)
    elif isinstance(value, list | tuple) and any(isinstance(x, dict) for x in value):
        yield depth, name, ""
        for item in value:
            yield depth + 1, "-", ""
            yield from _fields(item, depth + 2) if isinstance(item, dict) else [(depth + 2, "-", _text("", item))]
    elif isinstance(value, list | tuple):
        yield depth, name, " ".join(_text("", x) for x in value) or "-"
    else:
        yield depth, name, _text(name, value)


def _text(name: str, value: Any) -> str:
    if value is None or value == "" or value == {}:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, datetime):
        return moment(value, now())
    if name in _BYTES and isinstance(value, int):
        return f"{size(value)} ({value})"
    if name in _SECONDS and isinstance(value, int | float):
        return span(value)
    return str(value)
