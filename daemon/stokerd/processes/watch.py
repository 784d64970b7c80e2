"""What this supervisor holds of one living shim: descriptors of the kernel, and their places in the event loop."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Callable

from stokerd.processes.identity import has_ended
from stokerd.processes.kernel import boot_ticks
from stokerd.processes.states import Alive

UNSTARTED = Alive(None, None)


class Watch:
    """A living shim. Holds its pidfd, and for one that we started the pipe that it closes when its program runs.

    Args:
        pid: the shim's.
        pidfd: the same, as a descriptor; closed by `close`.
        started_pipe: readable when the program runs, or could not be started; None for a shim that was adopted.
    """

    def __init__(self, pid: int, pidfd: int, started_pipe: int | None = None) -> None:
        self.pid = pid
        self.pidfd = pidfd
        self.alive_ticks = boot_ticks()  # when it was last seen to live
        self.state = UNSTARTED
        self._started_pipe = started_pipe
        self._loop: asyncio.AbstractEventLoop | None = None

    def attach(
        self, loop: asyncio.AbstractEventLoop, on_started: Callable[[], None], on_ended: Callable[[], None]
    ) -> None:
        """Have *loop* call *on_started* and *on_ended*, each once at most. In the loop's thread."""
        if self.pidfd < 0:
            return  # ended and closed before the loop came to it
        self._loop = loop
        loop.add_reader(self.pidfd, on_ended)
        if self._started_pipe is not None:
            loop.add_reader(self._started_pipe, self._on_started, on_started)

    def _on_started(self, on_started: Callable[[], None]) -> None:
        self._close_started_pipe()
        on_started()

    def has_ended(self) -> bool:
        """Look whether the shim is dead."""
        if has_ended(self.pidfd):
            return True
        self.alive_ticks = boot_ticks()
        return False

    def close(self) -> None:
        """Stop watching, and bury the shim if it is dead and our own child."""
        self._close_started_pipe()
        if self.pidfd < 0:
            return
        if self._loop is not None and not self._loop.is_closed():
            self._loop.remove_reader(self.pidfd)
        with contextlib.suppress(ChildProcessError):
            os.waitid(os.P_PIDFD, self.pidfd, os.WEXITED | os.WNOHANG)
        os.close(self.pidfd)
        self.pidfd = -1

    def _close_started_pipe(self) -> None:
        if self._started_pipe is None:
            return
        if self._loop is not None and not self._loop.is_closed():
            self._loop.remove_reader(self._started_pipe)
        os.close(self._started_pipe)
        self._started_pipe = None
