"""Every refusal that Stoker utters, on the socket, in the CLI and in the TUI.

Each error has a stable ``code`` (for scripts), a ``message`` (what happened, to what), a ``hint`` (what to do), the
HTTP ``status`` it travels with and the ``exit_code`` that the CLI ends with::

    StokerError
    ├── Invalid              invalid               422  exit 2   input that can't be taken as it is
    │   └── InvalidSpec      invalid-spec          422  exit 2   a spec: `details` names file, line, field, expected
    ├── NotFound             not-found             404  exit 4
    ├── Conflict             conflict              409  exit 5   right in itself, but not in the present state
    ├── Unavailable          unavailable           503  exit 6   something needed can't be had now (disk, port, engine)
    │   └── DaemonUnreachable daemon-unreachable   503  exit 6   nobody answers on the socket
    ├── HomeTaken            home-taken            409  exit 3   another stokerd serves this home
    └── Internal             internal              500  exit 1   a bug: the daemon's log has the traceback
"""

from __future__ import annotations

from typing import Any, ClassVar


class StokerError(Exception):
    """Root of the tree; see the module's docstring.

    Args:
        message: one sentence saying what happened and to what.
        hint: one sentence saying what to do; may be empty.
        code: replaces the class's stable code by a more specific one, e.g. ``port-taken``.
        details: further facts, JSON-serialisable.
    """

    code: str = "error"
    status: ClassVar[int] = 500
    exit_code: ClassVar[int] = 1

    def __init__(self, message: str, hint: str = "", *, code: str | None = None, **details: Any) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.code = code or type(self).code
        self.details = details

    def as_dict(self) -> dict[str, Any]:
        """The one shape of an error on the wire: ``{"code", "message", "hint", "details"}``."""
        return {"code": self.code, "message": self.message, "hint": self.hint, "details": self.details}

    def __str__(self) -> str:
        return f"{self.message} {self.hint}".strip()


class Invalid(StokerError):
    """Input that can't be taken as it is; nothing was changed."""

    code = "invalid"
    status = 422
    exit_code = 2


class InvalidSpec(Invalid):
    """A spec that doesn't fit; ``details`` has ``problems``: a list of ``{file, line, field, message}``."""

    code = "invalid-spec"


class NotFound(StokerError):
    """No resource has that name."""

    code = "not-found"
    status = 404
    exit_code = 4


class Conflict(StokerError):
    """The request is right in itself, but not in the present state."""

    code = "conflict"
    status = 409
    exit_code = 5


class Unavailable(StokerError):
    """Something that is needed can't be had now: a port, disk space, an engine, a replica."""

    code = "unavailable"
    status = 503
    exit_code = 6


class DaemonUnreachable(Unavailable):
    """Nobody answers on the daemon's socket."""

    code = "daemon-unreachable"


class HomeTaken(StokerError):
    """Another stokerd already serves this home."""

    code = "home-taken"
    status = 409
    exit_code = 3


class Internal(StokerError):
    """A bug; the daemon's log has the traceback."""

    code = "internal"


_BY_STATUS: dict[int, type[StokerError]] = {422: Invalid, 400: Invalid, 404: NotFound, 409: Conflict, 503: Unavailable}


def from_dict(body: dict[str, Any], status: int) -> StokerError:
    """Rebuild the error that the daemon sent as *body* with HTTP *status*."""
    kind = InvalidSpec if body.get("code") == InvalidSpec.code else _BY_STATUS.get(status, Internal)
    error = kind(str(body.get("message", f"HTTP {status}")), str(body.get("hint", "")), code=body.get("code"))
    error.details = dict(body.get("details") or {})
    return error
