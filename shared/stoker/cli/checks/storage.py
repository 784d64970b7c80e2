"""The home: whether it can be written, on what it lies, how much room is left, what lies about in it."""

from __future__ import annotations

import json
import os
import shutil
import socket
from collections.abc import Iterator
from pathlib import Path

from stoker.cli.checks.finding import Finding, Look
from stoker.cli.human import count, size
from stoker.paths import MAX_SOCKET_PATH

_LITTLE_ROOM, _NO_ROOM = 20 << 30, 1 << 30
_REMOTE = frozenset({"nfs", "nfs4", "cifs", "smb3", "9p", "fuse.sshfs", "lustre", "gpfs", "ceph", "glusterfs"})
_FLEETING = {
    "tmpfs": "is lost at the next boot",
    "ramfs": "is lost at the next boot",
    "overlay": "goes with the container",
}


def home(look: Look) -> Iterator[Finding]:
    """The folder itself and its disk."""
    root = look.home.root
    there = root
    while not there.exists() and there != there.parent:
        there = there.parent
    if look.host is None and not os.access(there, os.W_OK | os.X_OK):  # else the daemon writes there
        message = f"{root} can't be written by this user."
        yield Finding("home", "fail", message, "Choose another with --home or STOKER_HOME, or change its owner.")
        return
    longest = look.home.sockets / "0123456789ab.sock"
    if len(os.fsencode(longest)) > MAX_SOCKET_PATH:
        message = f"{look.home.runtime} is too long a path for sockets."
        yield Finding("home", "fail", message, f"Choose a home whose sockets have under {MAX_SOCKET_PATH} bytes.")
        return
    kind, free = _filesystem(look, there), shutil.disk_usage(there).free
    if kind in _REMOTE:
        message = f"{root} lies on {kind}: databases there may be damaged, and locks don't hold."
        yield Finding(
            "home", "fail", message, "Put the home on a local disk; datasets and weights may stay where they are."
        )
    elif free < _NO_ROOM:
        message = f"{size(free)} are free for {root}."
        yield Finding("home", "fail", message, "Free some room: without it nothing is recorded, so nothing is started.")
    elif free < _LITTLE_ROOM:
        message = f"{size(free)} are free for {root}: few checkpoints and versions."
        yield Finding("home", "warn", message, "Free some room, or put the home on a larger disk.")
    elif kind in _FLEETING:
        message = f"{root} lies on {kind}, which {_FLEETING[kind]}."
        yield Finding("home", "warn", message, "Put the home on a disk, or on a volume of the container.")
    else:
        yield Finding("home", "ok", f"{root} ({kind or 'unknown file system'}, {size(free)} free).")


def _filesystem(look: Look, folder: Path) -> str:
    """The type of what *folder* lies on: of the mount with the longest path above it; the last one there counts."""
    best, kind = -1, ""
    real = folder.resolve()
    for line in look.text("/proc/self/mountinfo").splitlines():
        fields, _, rest = line.partition(" - ")
        place = Path(fields.split()[4].encode().decode("unicode_escape"))
        if real.is_relative_to(place) and len(place.parts) >= best:
            best, kind = len(place.parts), rest.split()[0]
    return kind


def settings(look: Look) -> Iterator[Finding]:
    """stoker.yaml, as far as it can be judged without the daemon."""
    if look.unreadable:
        yield Finding("settings", "fail", look.unreadable, "`stokerd` names line and field when it starts.")
    elif look.settings:
        yield Finding("settings", "ok", f"{look.home.config} sets {', '.join(look.settings)}.")
    else:
        yield Finding("settings", "ok", f"all are the defaults: there is no {look.home.config}.")


def leftovers(look: Look) -> Iterator[Finding]:
    """What a daemon left that doesn't run any more."""
    if look.host is not None:
        return
    alive = _living(look)
    if alive:
        message = f"{count(alive, 'process')} of an earlier daemon go on without one."
        yield Finding("leftovers", "warn", message, "The next stokerd takes them up again: start it.")
    elif look.home.socket.is_socket() and not _is_listening(look.home.socket):
        message = f"{look.home.socket} is of a daemon that was killed."
        yield Finding("leftovers", "ok", f"{message[:-1]}; the next one takes it over.")


def _living(look: Look) -> int:
    """How many shims live: each holds a lock in its folder, but /proc tells it without one."""
    living = 0
    for record in look.home.processes.glob("*/child.json"):
        try:
            shim = json.loads(record.read_text())["shim"]
            fields = look.path(f"/proc/{shim['pid']}/stat").read_bytes().rpartition(b")")[2].split()
            living += int(fields[19]) == shim["start_ticks"]
        except (OSError, ValueError, KeyError, TypeError, IndexError):
            continue
    return living


def _is_listening(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as caller:
        try:
            caller.connect(str(path))
        except OSError:
            return False
    return True
