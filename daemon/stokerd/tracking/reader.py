"""Reads what `stoker.log_metric` and its sisters append to ``tracking.jsonl`` in a run's folder.

The file is the record: a run never waits for the daemon, and nothing is lost or doubled when the daemon restarts.
Each file is read once from its beginning, then only where it has grown.
"""

from __future__ import annotations

import asyncio
import json
import math
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from threading import Lock
from typing import Any

from stoker.errors import NotFound
from stoker.types.training import MetricPoint

_KEPT = 64  # runs whose points stay in memory
_READ = 4 << 20


@dataclass
class _Tracked:
    offset: int = 0
    points: list[MetricPoint] = field(default_factory=list)
    params: dict[str, Any] = field(default_factory=dict)
    bad_lines: int = 0
    lock: Lock = field(default_factory=Lock)


class Tracking:
    """What runs reported. Methods that read files do so in a thread."""

    def __init__(self) -> None:
        self._runs: OrderedDict[Path, _Tracked] = OrderedDict()

    async def points(self, folder: Path, *, after: int = 0, key: str | None = None) -> tuple[list[MetricPoint], int]:
        """Points of the run in *folder* from index *after* on, and the index to go on from."""
        tracked = await self._read(folder)
        found = tracked.points[max(after, 0) :]
        return [p for p in found if key is None or p.key == key], max(after, 0) + len(found)

    async def summary(self, folder: Path) -> tuple[dict[str, Any], dict[str, float]]:
        """The params that the run logged, and the last value of each metric."""
        tracked = await self._read(folder)
        return dict(tracked.params), {p.key: p.value for p in tracked.points}

    async def _read(self, folder: Path) -> _Tracked:
        tracked = self._runs.setdefault(folder, _Tracked())
        self._runs.move_to_end(folder)
        while len(self._runs) > _KEPT:
            self._runs.popitem(last=False)
        await asyncio.to_thread(_grow, tracked, folder / "tracking.jsonl")
        return tracked


def _grow(tracked: _Tracked, path: Path) -> None:
    with tracked.lock:
        try:
            with path.open("rb") as file:
                file.seek(tracked.offset)
                while chunk := file.read(_READ):
                    complete, newline, rest = chunk.rpartition(b"\n")
                    if not newline and len(chunk) < _READ:  # half a line: its end is still to be written
                        return
                    tracked.offset += len(chunk) - len(rest) if newline else len(chunk)
                    file.seek(tracked.offset)
                    for line in complete.split(b"\n"):
                        _take(tracked, line)
        except (FileNotFoundError, IsADirectoryError):
            return


def _take(tracked: _Tracked, line: bytes) -> None:
    """Keep one line. The script's process may write anything there: what makes no sense is counted and left out."""
    try:
        entry = json.loads(line)
        match entry["type"]:
            case "metric":
                value = float(entry["value"])
                if not math.isfinite(value):
                    raise ValueError("not finite")
                moment = datetime.fromtimestamp(float(entry["time"]), UTC)
                tracked.points.append(
                    MetricPoint(key=str(entry["key"]), step=int(entry["step"]), value=value, time=moment)
                )
            case "params":
                for name, value in entry["params"].items():
                    if isinstance(value, str | int) or (isinstance(value, float) and math.isfinite(value)):
                        tracked.params[name] = value
                    else:  # versions can be made from text, finite numbers and booleans alone
                        tracked.bad_lines += 1
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError, OSError, RecursionError):
        tracked.bad_lines += 1


def artifacts(folder: Path) -> Iterator[tuple[str, int]]:
    """Relative path and size in bytes of each file that the run logged as an artifact."""
    root = folder / "artifacts"
    for path in sorted(root.rglob("*")):
        if path.is_file():
            yield path.relative_to(root).as_posix(), path.stat().st_size


def artifact(folder: Path, relative: str) -> Path:
    """The file of an artifact. Raises `NotFound`, for a path that leads out of the folder too."""
    root = (folder / "artifacts").resolve()
    if "\0" in relative:
        raise NotFound(f"the run has no artifact {relative!r}.", "List them at …/artifacts.")
    path = (root / relative).resolve()
    if not path.is_relative_to(root) or not path.is_file():
        raise NotFound(f"the run has no artifact {relative!r}.", "List them at …/artifacts.")
    return path
