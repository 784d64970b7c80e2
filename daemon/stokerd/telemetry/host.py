"""What is measured of the host, by psutil."""

from __future__ import annotations

import os
from pathlib import Path

import psutil

HostValues = dict[str, float | int | None]
"""Fields of `stoker.types.host.Host` that are measured; bytes and percent."""


class HostReader:
    """Reads the host's figures; no call of it blocks."""

    def __init__(self) -> None:
        self._cpu_count = psutil.cpu_count() or 0
        psutil.cpu_percent()  # of the time since the last call: this one begins it

    def read(self) -> HostValues:
        """Figures of now; ``cpu_percent`` is that since the last call, or since the reader was made. Raises OSError."""
        memory = psutil.virtual_memory()
        return {
            "cpu_percent": psutil.cpu_percent(),
            "cpu_count": self._cpu_count,
            "load_1m": os.getloadavg()[0],
            "memory_total": memory.total,
            "memory_used": memory.total - memory.available,
        }


def read_disk(root: Path) -> HostValues:
    """Ask for the disk that *root* is, or will be, on; blocks as long as it does. Raises `OSError`."""
    while not root.exists() and root != root.parent:
        root = root.parent
    disk = psutil.disk_usage(str(root))
    return {"disk_total": disk.total, "disk_free": disk.free}
