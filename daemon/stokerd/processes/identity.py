"""Who a process is: never its pid alone, for pids are given anew."""

from __future__ import annotations

import contextlib
import os
import select
import signal
from dataclasses import dataclass
from typing import Any

from stokerd.processes.kernel import boot_id, stat_fields


@dataclass(frozen=True, slots=True)
class Identity:
    """A process of one boot of the machine; ``start_ticks`` as /proc/PID/stat counts them."""

    boot_id: str
    pid: int
    start_ticks: int

    @classmethod
    def parse(cls, boot: str, record: dict[str, Any]) -> Identity:
        """Read what the shim recorded. Raises KeyError, TypeError or ValueError when it's something else."""
        return cls(boot, int(record["pid"]), int(record["start_ticks"]))

    @classmethod
    def of(cls, pid: int) -> Identity | None:
        """Who has *pid* now; None when nobody has."""
        try:
            return cls(boot_id(), pid, int(stat_fields(pid)[19]))
        except OSError:
            return None

    def open(self) -> int | None:
        """Return a pidfd of this very process, to be closed by the caller; None when it is gone.

        The pid is held by the pidfd before its start time is compared, so nobody else can slip in between.
        Raises OSError when the kernel has no descriptor left.
        """
        try:
            pidfd = os.pidfd_open(self.pid)
        except ProcessLookupError:
            return None
        if Identity.of(self.pid) == self:
            return pidfd
        os.close(pidfd)
        return None

    def signal(self, number: signal.Signals) -> bool:
        """Send *number* to this very process; False when it's gone or another user's."""
        pidfd = self.open()
        if pidfd is None:
            return False
        try:
            return send(pidfd, number)
        finally:
            os.close(pidfd)


def send(pidfd: int, number: signal.Signals) -> bool:
    """Send *number* to the process behind *pidfd*; False when it's gone or another user's."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        signal.pidfd_send_signal(pidfd, number)
        return True
    return False


def has_ended(pidfd: int, wait_seconds: float = 0.0) -> bool:
    """Say whether the process behind *pidfd* has ended, reaped or not; wait for it so long at most."""
    poll = select.poll()
    poll.register(pidfd, select.POLLIN)
    return bool(poll.poll(wait_seconds * 1000))
