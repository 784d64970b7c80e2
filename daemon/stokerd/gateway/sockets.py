"""Taking the places where a worker listens, with one clear sentence when they can't be had.

All workers listen on the same port by SO_REUSEPORT. That alone would let any other program of this user, another home's
gateway say, take half of the connections without a word. So a worker holds a lock on a small file in the folder that
the workers share while it listens; where somebody listens already and nobody holds that lock, the port is taken.
"""

from __future__ import annotations

import errno
import fcntl
import os
import socket
import stat
import time
from pathlib import Path

from stokerd.gateway.wire import MAX_SOCKET_PATH

BACKLOG = 2048
LOOPBACK = ("127.", "::1")
PATIENCE_SECONDS = 1.0  # the last owner's end may still be going on
_LOOK_SECONDS = 0.05


class Unavailable(Exception):
    """A place to listen that can't be had, or a file that can't be used; the text is one sentence for a person."""


def place_of(sock: socket.socket) -> str:
    """HOST:PORT, as bound."""
    host, port = sock.getsockname()[:2]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


class Claim:
    """Says to the other workers, as long as this process lives, that it listens on *port*; and whether they do."""

    def __init__(self, folder: Path, port: int) -> None:
        self._path = folder / f"port-{port}"
        self._fd = -1

    def take(self) -> None:
        """Call it when this process listens. Raises `OSError`."""
        if self._fd < 0:
            self._path.parent.mkdir(parents=True, exist_ok=True, mode=0o750)
            self._fd = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            fcntl.flock(self._fd, fcntl.LOCK_SH)

    def is_taken(self) -> bool:
        """Whether another worker holds it."""
        try:
            fd = os.open(self._path, os.O_RDWR | os.O_CLOEXEC)
        except OSError:
            return False
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        finally:
            os.close(fd)
        return False

    def release(self) -> None:
        """This process listens no more."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


def take_address(host: str, port: int, claim: Claim) -> socket.socket:
    """A TCP socket bound to *host*:*port* (0: any free port), for `listen`. Raises `Unavailable`."""
    place = f"{host}:{port}"
    try:
        family, _, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
    except OSError as error:
        raise Unavailable(f"{place} can't be resolved ({error}); name another address.") from error
    sock = socket.socket(family, socket.SOCK_STREAM, protocol)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        if port:
            _await_vacancy(sock, address, claim)
        sock.bind(address)
    except OSError as error:
        sock.close()
        raise _refused(place, error) from error
    sock.setblocking(False)
    return sock


def listen(sock: socket.socket, claim: Claim) -> None:
    """Have the bound *sock* take connections. Raises `Unavailable`."""
    try:
        _await_vacancy(sock, sock.getsockname(), claim)
        sock.listen(BACKLOG)
        claim.take()
    except OSError as error:
        raise _refused(place_of(sock), error) from error


def _await_vacancy(sock: socket.socket, address: object, claim: Claim) -> None:
    """Wait a little until nobody but our own workers listens there. Raises `OSError`."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while True:
        with socket.socket(sock.family, socket.SOCK_STREAM, sock.proto) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(address)  # type: ignore[arg-type]
                return
            except OSError as error:
                if error.errno != errno.EADDRINUSE:
                    raise
                if claim.is_taken():
                    return
                if time.monotonic() > deadline:
                    raise
        time.sleep(_LOOK_SECONDS)


def _refused(place: str, error: OSError) -> Unavailable:
    if error.errno == errno.EADDRINUSE:
        return Unavailable(f"{place} is taken by another program; stop that, or name another port.")
    if error.errno in (errno.EACCES, errno.EPERM):
        return Unavailable(f"{place} may not be used by this user; name a port from 1024 on.")
    return Unavailable(f"{place} can't be listened on ({error.strerror}); name another address.")


def take_path(path: Path) -> socket.socket:
    """A Unix socket that listens at *path*, for this user alone. Raises `Unavailable`.

    A socket file that nobody answers on, as a killed gateway leaves it, is removed first.
    """
    if len(os.fsencode(path)) > MAX_SOCKET_PATH:
        raise Unavailable(f"{path} is longer than the {MAX_SOCKET_PATH} bytes that a socket's path may have.")
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        _remove_stale(path)
        mask = os.umask(0o177)
        try:
            sock.bind(str(path))
        finally:
            os.umask(mask)
        sock.listen(BACKLOG)
    except OSError as error:
        sock.close()
        raise Unavailable(f"{path} can't be listened on ({error.strerror or error}).") from error
    except Unavailable:
        sock.close()
        raise
    sock.setblocking(False)
    return sock


def _remove_stale(path: Path) -> None:
    try:
        if not stat.S_ISSOCK(path.lstat().st_mode):
            raise Unavailable(f"{path} is there and is no socket; move it away, or name another path.")
    except FileNotFoundError:
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(1.0)
        try:
            probe.connect(str(path))
        except ConnectionRefusedError:
            path.unlink(missing_ok=True)
            return
        except FileNotFoundError:
            return
        except TimeoutError:
            pass
    raise Unavailable(f"another gateway answers on {path}; stop it first.")


def release_path(path: Path, inode: int) -> None:
    """Remove the socket file at *path*, unless it meanwhile belongs to another process (another *inode*)."""
    try:
        if path.stat().st_ino == inode:
            path.unlink()
    except OSError:
        pass  # gone already, or its folder is: nothing is left to remove
