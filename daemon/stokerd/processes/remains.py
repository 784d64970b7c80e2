"""Find and kill what a killed shim left behind. The kernel killed its child; the child's own children live on.

They are all in the child's cgroup, where there is one. Beside it, and where there is none, each is recognised by what
only the tree can have: the mark in its environment, the pipe to the dead shim, or a place in the child's session since
a time when that session was surely the child's (its number may have passed to others, once its last member was gone).
What cleared its environment, left the session and closed the pipe is not found without a cgroup.
"""

from __future__ import annotations

import logging
import os
import signal
import time
from dataclasses import dataclass
from pathlib import Path

from stokerd.processes.child import MARK
from stokerd.processes.folder import Child
from stokerd.processes.group import Group
from stokerd.processes.identity import Identity, has_ended, send
from stokerd.processes.kernel import all_pids, boot_id, stat_fields

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Seen:
    """A process as /proc shows it."""

    identity: Identity
    group: int
    session: int


def find(child: Child, alive_until_ticks: int) -> list[Identity]:
    """Name every living process that is left of *child*'s tree.

    Args:
        child: as its shim recorded it.
        alive_until_ticks: the last time, in ticks since boot, at which the shim was known to live.
    """
    boot = boot_id()
    if boot != child.identity.boot_id:
        return []
    everybody = {pid: seen for pid in all_pids() if (seen := _look(pid, boot)) is not None}
    leader = everybody.get(child.identity.pid)
    is_session_ours = leader is None or leader.identity == child.identity
    return [
        seen.identity
        for seen in everybody.values()
        if seen.identity == child.identity
        or (
            is_session_ours
            and child.identity.pid in (seen.session, seen.group)
            and child.identity.start_ticks <= seen.identity.start_ticks <= alive_until_ticks
        )
        or (
            seen.identity.start_ticks >= child.identity.start_ticks
            and (_has_mark(seen, child.mark) or _holds_pipe(seen, child.log_pipe_inode))
        )
    ]


def kill(child: Child, group: Group, alive_until_ticks: int, wait_seconds: float) -> bool:
    """SIGKILL what is left of *child*'s tree and wait so long for its end; True when nothing is left."""
    deadline = time.monotonic() + wait_seconds
    if members := group.members():
        log.warning("killing what a killed shim left behind in its cgroup: %s", sorted(members))
    is_empty = group.end(wait_seconds)
    while left := find(child, alive_until_ticks):
        log.warning("killing %d processes that a killed shim left behind: %s", len(left), [each.pid for each in left])
        pidfds = [pidfd for each in left if (pidfd := each.open()) is not None]
        try:
            for pidfd in pidfds:
                send(pidfd, signal.SIGKILL)
            for pidfd in pidfds:
                has_ended(pidfd, max(deadline - time.monotonic(), 0))
        finally:
            for pidfd in pidfds:
                os.close(pidfd)
        if time.monotonic() >= deadline:
            return is_empty and not find(child, alive_until_ticks)
    return is_empty


def _look(pid: int, boot: str) -> Seen | None:
    if pid == os.getpid():
        return None
    try:
        fields = stat_fields(pid)
    except OSError:
        return None
    if fields[0] in "ZX":
        return None
    return Seen(Identity(boot, pid, int(fields[19])), int(fields[2]), int(fields[3]))


def _has_mark(seen: Seen, mark: str) -> bool:
    try:
        environ = Path(f"/proc/{seen.identity.pid}/environ").read_bytes()
    except OSError:
        return False
    return os.fsencode(f"{MARK}={mark}") in environ.split(b"\0")


def _holds_pipe(seen: Seen, inode: int) -> bool:
    target = f"pipe:[{inode}]"
    try:
        with os.scandir(f"/proc/{seen.identity.pid}/fd") as fds:
            return any(_points_to(fd.path, target) for fd in fds)
    except OSError:
        return False


def _points_to(link: str, target: str) -> bool:
    try:
        return os.readlink(link) == target  # noqa: PTH115 (a Path for each descriptor of the host is too dear)
    except OSError:
        return False
