"""A client's request, and whether its head can be served. Pure."""

from __future__ import annotations

from stokerd.gateway.http1 import HOP_BY_HOP, without_nominated
from stokerd.gateway.keys import KEY_PREFIX
from stokerd.gateway.limits import Limits
from stokerd.gateway.sender import Sender

_new = object.__new__
_ONCE = HOP_BY_HOP - {b"connection"} | {b"expect"}
FORWARDED_TOO = frozenset({b"authorization", b"content-type", b"traceparent", b"x-api-key", b"x-stoker-session"})
NOTED = HOP_BY_HOP | FORWARDED_TOO | {b"content-length", b"expect", b"host"}
"""Headers that mean something here; they are kept by name, and not forwarded but for `FORWARDED_TOO`."""


class Request:
    """A request, whole. ``noted`` has the headers that mean something here, ``lines`` those to forward as they are."""

    __slots__ = ("_forward", "_sender", "body", "is_http11", "keeps", "lines", "method", "noted", "started", "target")

    def __init__(self, started: float) -> None:
        self.started = started
        """When its first byte came (monotonic)."""
        self.method = b""
        self.target = b""
        self.noted: dict[bytes, bytes] = {}
        self.lines: list[bytes] = []
        self.body: bytes | bytearray = b""
        self.is_http11 = True
        self.keeps = False
        """The client lets the connection be used again."""
        self._forward = b""
        self._sender: Sender | None = None

    def template(self) -> Request:
        """Its head, for others that have the same."""
        self._forward, self._sender = self.forward, self.sender
        return self.again(0.0, b"")

    def again(self, started: float, body: bytes) -> Request:
        """Another one with the same head, but for the length of its body."""
        other: Request = _new(Request)
        other.started = started
        other.method = self.method
        other.target = self.target
        other.noted = self.noted
        other.lines = self.lines
        other.body = body
        other.is_http11 = self.is_http11
        other.keeps = self.keeps
        other._forward = self._forward
        other._sender = self._sender
        return other

    @property
    def path(self) -> bytes:
        """The target without its query."""
        return self.target.partition(b"?")[0]

    @property
    def sender(self) -> Sender:
        """Who sent it, as far as its head tells."""
        if self._sender is None:
            self._sender = Sender(self.noted)
        return self._sender

    @property
    def forward(self) -> bytes:
        """The head as it is sent on, all but the length of the body."""
        if not self._forward:
            noted, lines = self.noted, self.lines
            if b"connection" in noted:
                lines = without_nominated(lines, noted[b"connection"])
            if KEY_PREFIX in noted.get(b"authorization", b"") + noted.get(b"x-api-key", b""):
                lines = [line for line in lines if not _is_own_key(line)]
            self._forward = b"POST %b HTTP/1.1\r\nhost: %b\r\n%bcontent-length: " % (
                self.target,
                noted.get(b"host") or b"localhost",
                b"".join(lines),
            )
        return self._forward


def _is_own_key(line: bytes) -> bool:
    """It has one of the gateway's keys, which is nothing to an engine, whose log it might end up in."""
    return KEY_PREFIX in line and line.partition(b":")[0].lower() in (b"authorization", b"x-api-key")


class Refusal(Exception):
    """Why a request is answered by an error. It ends the connection if its rest can't be trusted or isn't wanted."""

    def __init__(self, status: int, code: str, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.code = code


def check_head(request: Request, version: str, limits: Limits) -> int:
    """See whether a request with this head can be served; give its body's length, or 1 if that shows later.

    Looks at what llhttp lets pass: absolute and authority targets, HTTP/0.9 and 2.0, ``Transfer-Encoding`` other than
    ``chunked`` or in HTTP/1.0, no or two ``Host``. Raises `Refusal`.
    """
    noted = request.noted
    if version not in ("1.1", "1.0"):
        raise Refusal(505, "http_version", f"HTTP/{version} is not served here: use HTTP/1.1.")
    if request.target[:1] != b"/":
        raise Refusal(400, "bad_target", "The request's target must be a path.")
    host = noted.get(b"host")
    if (host is None and request.is_http11) or (host is not None and b"," in host):
        raise Refusal(400, "bad_host", "The request must have one Host header.")
    coding = noted.get(b"transfer-encoding")
    if coding is not None and (coding.lower() != b"chunked" or not request.is_http11):
        raise Refusal(501, "transfer_encoding", "The only transfer coding served here is chunked, in HTTP/1.1.")
    length = 1 if coding is not None else int(noted.get(b"content-length", b"0"))
    if length > limits.body_bytes:
        raise Refusal(413, "body_too_large", f"The body is larger than {limits.body_bytes} bytes.")
    if noted.get(b"expect", b"100-continue").lower() != b"100-continue":
        raise Refusal(417, "expectation_failed", "The only expectation met here is 100-continue.")
    return length


def is_plain(request: Request) -> bool:
    """Its head asks for nothing special: another one with the same head is the same in all but its body."""
    return request.is_http11 and request.keeps and request.noted.keys().isdisjoint(_ONCE)
