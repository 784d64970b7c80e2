"""Taking the two places where the gateway listens, with one clear sentence when they can't be had."""

from __future__ import annotations

import errno
import os
import socket
import stat
from pathlib import Path

from stokerd.gateway.wire import MAX_SOCKET_PATH

BACKLOG = 2048
LOOPBACK = ("127.", "::1")


class Unavailable(Exception):
    """A place to listen that can't be had; the text is one sentence for a person."""


def take_address(host: str, port: int) -> socket.socket:
    """A TCP socket that listens on *host*:*port* (0: any free port). Raises `Unavailable`."""
    place = f"{host}:{port}"
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
    except OSError as error:
        raise Unavailable(f"{place} can't be resolved ({error}); name another address.") from error
    sock = socket.socket(family, kind, protocol)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind(address)
        sock.listen(BACKLOG)
    except OSError as error:
        sock.close()
        if error.errno == errno.EADDRINUSE:
            raise Unavailable(f"{place} is taken by another program; stop that, or name another port.") from error
        if error.errno in (errno.EACCES, errno.EPERM):
            raise Unavailable(f"{place} may not be used by this user; name a port from 1024 on.") from error
        raise Unavailable(f"{place} can't be listened on ({error.strerror}); name another address.") from error
    sock.setblocking(False)
    return sock


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
