"""The last good route table, kept in a file, so that the gateway serves after a restart without the daemon."""

from __future__ import annotations

import json
import os
from pathlib import Path

from stokerd.gateway.wire import RouteTable, parse_table


def load(path: Path) -> RouteTable | None:
    """Read the table; None if there is no file. Raises `OSError`, or `ValueError` if it can't be read as a table."""
    try:
        data = json.loads(path.read_bytes())
    except FileNotFoundError:
        return None
    return parse_table(data)


def save(path: Path, table: RouteTable) -> None:
    """Replace the file whole, or not at all, and durably. Blocks on the disk. Raises `OSError`."""
    new = path.with_name(path.name + ".new")
    with new.open("wb") as file:
        file.write(json.dumps(table.as_dict()).encode())
        file.flush()
        os.fsync(file.fileno())
    new.replace(path)
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
