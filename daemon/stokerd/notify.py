"""The daemon under systemd: word that it serves, a watchdog that the loop feeds, a socket handed over, the journal.

The whole of sd_notify(3) and sd_listen_fds(3) that is needed, without libsystemd. Everything does nothing elsewhere.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
import sys
from collections.abc import Callable, MutableMapping
from dataclasses import dataclass, field

from stoker.errors import Unavailable

log = logging.getLogger(__name__)
_FIRST_FD = 3  # SD_LISTEN_FDS_START
_SEND_SECONDS = 1.0  # systemd itself hangs when it takes longer; the loop must not wait for it
_LOOK_SECONDS = 0.01
_ADDRESS, _USEC, _WATCHDOG_PID = "NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID"
_LISTEN = ("LISTEN_FDS", "LISTEN_PID", "LISTEN_FDNAMES")


class Notifier:
    """Speaks to the service manager at *address* (``NOTIFY_SOCKET``; empty: nobody listens, nothing is sent).

    *watchdog_seconds*: without a beat for so long, the manager ends the daemon and starts another; None: no watchdog.
    """

    def __init__(self, address: str = "", watchdog_seconds: float | None = None) -> None:
        self.watchdog_seconds = watchdog_seconds
        self._address = "\0" + address[1:] if address.startswith("@") else address
        self._has_failed = False

    def ready(self) -> None:
        """The daemon answers: what waits for it may start."""
        self._send("READY=1")

    def watchdog(self) -> None:
        """It still turns."""
        self._send("WATCHDOG=1")

    def stopping(self) -> None:
        """It ends, as it was asked to."""
        self._send("STOPPING=1")

    def status(self, text: str) -> None:
        """One line for ``systemctl status``."""
        self._send("STATUS=" + " ".join(text.split()))

    async def run(self, is_serving: Callable[[], bool], status: str) -> None:
        """Say ready once *is_serving*; then beat, until cancelled, three times as often as the watchdog wants.

        A task of the daemon's own loop, so that a loop that hangs doesn't beat.
        """
        while not is_serving():  # noqa: ASYNC110 - uvicorn tells of it in no other way
            await asyncio.sleep(_LOOK_SECONDS)
        self.status(status)
        self.ready()
        while self.watchdog_seconds is not None:
            self.watchdog()
            await asyncio.sleep(self.watchdog_seconds / 3)

    def _send(self, message: str) -> None:
        if not self._address:
            return
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sender:
                sender.settimeout(_SEND_SECONDS)
                sender.sendto(message.encode(), self._address)
        except OSError as error:
            if not self._has_failed:
                log.warning("systemd can't be told %s: %s", message, error)
            self._has_failed = True


@dataclass(frozen=True, slots=True)
class Service:
    """What the service manager gave. ``listener``: the control socket, which stays the manager's: don't remove it."""

    notifier: Notifier = field(default_factory=Notifier)
    listener: socket.socket | None = None


def take(environ: MutableMapping[str, str]) -> Service:
    """Read what the service manager put in *environ*, and take it out: it is for this process, not for its children.

    Raises `Unavailable` when it hands over something else than one listening Unix socket.
    """
    address, usec, watched = (environ.pop(name, "") for name in (_ADDRESS, _USEC, _WATCHDOG_PID))
    count, listening, _ = (environ.pop(name, "") for name in _LISTEN)
    watchdog = int(usec) / 1e6 if usec.isdigit() and int(usec) and _is_me(watched or str(os.getpid())) else None
    # vsock and others: for machines, not for services
    notifier = Notifier(address if address.startswith(("/", "@")) else "", watchdog)
    return Service(notifier, _listener(int(count)) if count.isdigit() and int(count) and _is_me(listening) else None)


def _is_me(pid: str) -> bool:
    return pid == str(os.getpid())


def _listener(count: int) -> socket.socket:
    for fd in range(_FIRST_FD, _FIRST_FD + count):
        os.set_inheritable(fd, False)
    wrong = Unavailable(
        f"systemd handed over {count} files where the daemon takes one listening Unix socket.",
        "Give stokerd.socket one ListenStream= with a path, and nothing else.",
        code="wrong-activation",
    )
    if count != 1:
        raise wrong
    try:
        listener = socket.socket(fileno=_FIRST_FD)
    except OSError as error:
        raise wrong from error
    is_listening = listener.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
    if (listener.family, listener.type, is_listening) != (socket.AF_UNIX, socket.SOCK_STREAM, 1):
        listener.detach()
        raise wrong
    return listener


def is_journal(environ: MutableMapping[str, str], fd: int) -> bool:
    """Whether *fd* goes to the journal, as ``JOURNAL_STREAM`` (device:inode) says, which is true of two files only."""
    with contextlib.suppress(OSError):
        found = os.fstat(fd)
        return environ.get("JOURNAL_STREAM") == f"{found.st_dev}:{found.st_ino}"
    return False


class JournalFormatter(logging.Formatter):
    """Lines with the priority that the journal reads (``<4>``), and without the time, which it has itself."""

    def __init__(self) -> None:
        super().__init__("%(name)s: %(message)s")

    def format(self, record: logging.LogRecord) -> str:
        """Each line of a traceback is an entry of its own, with the same priority."""
        priority = prefix(record.levelno)
        return "\n".join(priority + line for line in super().format(record).splitlines())


def prefix(level: int) -> str:
    """The journal's mark of a line, for a level of `logging`: see sd-daemon(3)."""
    for least, priority in ((logging.CRITICAL, 2), (logging.ERROR, 3), (logging.WARNING, 4), (logging.INFO, 6)):
        if level >= least:
            return f"<{priority}>"
    return "<7>"


def log_to_stderr(level: str, environ: MutableMapping[str, str]) -> None:
    """Let `logging` write to standard error, in the form that suits whoever reads it."""
    handler = logging.StreamHandler(sys.stderr)
    if is_journal(environ, handler.stream.fileno()):
        handler.setFormatter(JournalFormatter())
    else:
        handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    logging.basicConfig(level=level.upper(), handlers=[handler])
