"""A client's request, and whether its head can be served. Pure."""

from __future__ import annotations

from stokerd.gateway.http1 import HOP_BY_HOP
from stokerd.gateway.limits import Limits

NOTED = HOP_BY_HOP | {b"authorization", b"content-length", b"expect", b"host", b"x-stoker-session"}
"""Headers that mean something here; they are kept by name and not forwarded, but for these:"""
FORWARDED_TOO = frozenset({b"authorization", b"x-stoker-session"})


class Request:
    """A request, whole. ``noted`` has the headers that mean something here, ``lines`` those to forward as they are."""

    __slots__ = ("body", "is_http11", "keeps", "lines", "method", "noted", "started", "target")

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

    @property
    def path(self) -> bytes:
        """The target without its query."""
        return self.target.partition(b"?")[0]


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
