"""Pure pieces of HTTP/1.1 that both legs share: which headers mean what, heads, and errors in OpenAI's shape."""

from __future__ import annotations

from http import HTTPStatus

import msgspec

# Headers that speak of one connection, not of the message (RFC 9110, 7.6.1, and the older ones still met).
HOP_BY_HOP = frozenset(
    {
        b"connection",
        b"http2-settings",
        b"keep-alive",
        b"proxy-authenticate",
        b"proxy-authorization",
        b"proxy-connection",
        b"te",
        b"trailer",
        b"transfer-encoding",
        b"upgrade",
    }
)
_KEPT_CONNECTION_OPTIONS = frozenset({b"", b"close", b"keep-alive", b"upgrade"})
REASONS = {status.value: status.phrase.encode() for status in HTTPStatus}
LAST_CHUNK = b"0\r\n\r\n"
_encode = msgspec.json.Encoder().encode


def without_nominated(lines: list[bytes], connection: bytes) -> list[bytes]:
    """Drop the header *lines* that the message's own ``Connection`` value names as hop-by-hop."""
    nominated = {token.strip().lower() for token in connection.split(b",")} - _KEPT_CONNECTION_OPTIONS
    if not nominated:
        return lines
    return [line for line in lines if line[: line.index(b":")].lower() not in nominated]


def chunk(data: bytes) -> bytes:
    """*data*, not empty, as one chunk of a chunked body."""
    return b"%x\r\n%b\r\n" % (len(data), data)


def answer_head(
    status: int, length: int, content_type: bytes, extra: tuple[bytes, ...], *, is_http11: bool, keeps: bool
) -> bytes:
    """Head of an answer that the gateway makes itself; *extra* are whole header lines without their line ends."""
    lines = [b"HTTP/1.1 %d %b" % (status, REASONS.get(status, b"")), *extra]
    if status not in (204, 304) and status >= 200:
        lines += [b"content-type: " + content_type, b"content-length: %d" % length]
    if not keeps:
        lines.append(b"connection: close")
    elif not is_http11:
        lines.append(b"connection: keep-alive")
    return b"\r\n".join(lines) + b"\r\n\r\n"


def error_body(message: str, kind: str, code: str, param: str | None = None) -> bytes:
    """An error as OpenAI's API utters it; *kind* is its ``type``."""
    return _encode({"error": {"message": message, "type": kind, "param": param, "code": code}})


def error_event(message: str, code: str) -> bytes:
    """The same, as the last event of a stream. The leading blank line ends whatever event was cut off before it."""
    return b"\n\ndata: " + error_body(message, "server_error", code) + b"\n\n"
