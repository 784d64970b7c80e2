"""Starting shims, and having one started before it is needed: Python and its modules take it 20 ms.

A spare one knows no folder, has done nothing, and waits on its stdin to be told one. When the daemon ends, however it
does, that pipe ends, and so the spare. Nothing that is true of a process depends on whether its shim was one.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import select
import signal
import sys
import threading
from pathlib import Path
from typing import Any

from stokerd.processes import records
from stokerd.processes.watch import Watch

log = logging.getLogger(__name__)

SHIM = Path(__file__).with_name("shim.py")
REFILL_SECONDS = 0.2  # the program that was just started, or the next of many, needs the CPU more


class Spares:
    """Starts shims; keeps one in reserve once `refill_in` was called. `use` may be called from any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._spare: _Spare | None = None
        self._refill: asyncio.TimerHandle | None = None

    def use(self, folder: Path) -> Watch:
        """Have a shim run *folder*: the spare one, or else a new one. Raises OSError."""
        os.close(os.open(folder / records.SHIM_ERR, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600))
        with self._lock:
            spare, self._spare = self._spare, None
        return (spare.tell(folder) if spare else None) or _spawn(folder)

    def refill_in(self, loop: asyncio.AbstractEventLoop) -> None:
        """Have a spare one again when nobody has asked for a while. In the loop's thread."""
        if self._refill is not None:
            self._refill.cancel()
        self._refill = loop.call_later(REFILL_SECONDS, self._fill)

    def close(self) -> None:
        """End the spare one. In the loop's thread."""
        if self._refill is not None:
            self._refill.cancel()
        with self._lock:
            spare, self._spare = self._spare, None
        if spare is not None:
            spare.end()

    def _fill(self) -> None:
        self._refill = None
        if self._spare is None:
            try:
                spare = _Spare()
            except OSError as error:
                log.info("no shim can be kept in reserve: %s", error.strerror)
                return
            with self._lock:
                self._spare = spare


class _Spare:
    """A shim without a folder. Raises OSError when none can be started."""

    def __init__(self) -> None:
        stdin, self._tell = os.pipe2(os.O_CLOEXEC)
        try:
            self._watch = _spawn(None, stdin)
        except OSError:
            os.close(self._tell)
            raise
        finally:
            os.close(stdin)

    def tell(self, folder: Path) -> Watch | None:
        """Have it run *folder*, whose name the pipe takes as a whole or not at all; None when it has ended."""
        name = os.fsencode(folder.absolute())
        try:
            if len(name) <= select.PIPE_BUF:
                os.write(self._tell, name)
                os.close(self._tell)
                return self._watch
        except BrokenPipeError:
            log.info("the spare shim %d has ended", self._watch.pid)
        self.end()
        return None

    def end(self) -> None:
        """Kill and bury it."""
        os.close(self._tell)
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(self._watch.pidfd, signal.SIGKILL)
        with contextlib.suppress(ChildProcessError):
            os.waitid(os.P_PIDFD, self._watch.pidfd, os.WEXITED)
        self._watch.close()


def _spawn(folder: Path | None, stdin: int | None = None) -> Watch:
    """Start a shim, in a session of its own and with nothing of ours open in it. Raises OSError.

    One that knows its *folder* complains there; one that is to be told on *stdin*, where we do, until it knows.
    """
    started_pipe, announce = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
    env = {name: os.environ[name] for name in ("LD_LIBRARY_PATH",) if name in os.environ}  # some Pythons need it
    argv = [sys.executable, "-I", "-S", "-X", "utf8", os.fspath(SHIM)]
    actions: list[tuple[Any, ...]] = [(os.POSIX_SPAWN_DUP2, announce, 1)]
    if stdin is not None:
        actions.append((os.POSIX_SPAWN_DUP2, stdin, 0))
    else:
        actions.append((os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0))
    if folder is not None:
        argv.append(os.fspath(folder.absolute()))
        actions.append((os.POSIX_SPAWN_OPEN, 2, os.fspath(folder / records.SHIM_ERR), os.O_WRONLY | os.O_APPEND, 0))
    try:
        pid = os.posix_spawn(
            sys.executable,
            argv,
            env,
            file_actions=actions,
            setsid=True,
            setsigmask=signal.valid_signals(),  # until it has its handlers: a SIGTERM at once must not kill it
        )
        try:
            return Watch(pid, os.pidfd_open(pid), started_pipe)
        except OSError:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            raise
    except OSError:
        os.close(started_pipe)
        raise
    finally:
        os.close(announce)
