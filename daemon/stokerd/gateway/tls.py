"""The certificate that the gateway shows, followed as its files change (as ACME clients renew them)."""

from __future__ import annotations

import ssl
from pathlib import Path

from stokerd.gateway.gateway import say
from stokerd.gateway.sockets import Unavailable

_LOOK_SECONDS = 1.0


class Certificate:
    """A certificate with its key, from PEM files; ``context`` is for servers.

    ``problem`` says why the files that are there now are not what is shown. Raises `Unavailable` when they can't be
    used at the start.
    """

    def __init__(self, certificate: Path, key: Path) -> None:
        self._files = (certificate, key)
        self.problem = ""
        self._looked_at = 0.0
        self._seen = self._look()
        try:
            self.context = self._load()
        except (OSError, ValueError) as error:
            raise Unavailable(_sentence(certificate, key, error)) from error

    def sweep(self, now: float) -> None:
        """Look, now and then, whether the files have changed. A pair that can't be used changes nothing."""
        if now - self._looked_at < _LOOK_SECONDS:
            return
        self._looked_at = now
        seen = self._look()
        if seen == self._seen:
            return
        self._seen = seen
        try:
            self._load()  # elsewhere first: a context that refuses a key has lost its old certificate by then
            self.context.load_cert_chain(*self._files, password="")
        except (OSError, ValueError) as error:
            self.problem = f"the old certificate is shown: {_sentence(*self._files, error)}"
            say(self.problem)
            return
        self.problem = ""
        say(f"the certificate in {self._files[0]} is shown from now on")

    def _load(self) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.set_alpn_protocols(["http/1.1"])
        context.load_cert_chain(*self._files, password="")  # else OpenSSL would ask for one on the terminal
        return context

    def _look(self) -> tuple[tuple[int, int, int], ...]:
        return tuple(_mark(file) for file in self._files)


def _mark(path: Path) -> tuple[int, int, int]:
    try:
        status = path.stat()
    except OSError:
        return (0, 0, 0)
    return (status.st_ino, status.st_size, status.st_mtime_ns)


def _sentence(certificate: Path, key: Path, error: Exception) -> str:
    if isinstance(error, ssl.SSLError):
        why = error.reason or str(error)
    elif isinstance(error, OSError):
        why = error.strerror or str(error)
    else:
        why = str(error)
    return f"the certificate in {certificate} with the key in {key} can't be used ({why}); see both files."
