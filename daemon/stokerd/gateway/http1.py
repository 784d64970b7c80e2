"""Pure pieces of HTTP/1.1 that both legs share: which headers mean what, heads, and errors in the API's shape."""

from __future__ import annotations

from http import HTTPStatus

import msgspec

from stokerd.gateway.surface import Shape

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
_SERVER_ERROR = "server_error"
# What Anthropic's clients know errors by, where OpenAI's have a code or a type.
_ANTHROPIC_CODES = {
    "body_too_large": "request_too_large",
    "invalid_api_key": "authentication_error",
    "missing_api_key": "authentication_error",
    "model_not_allowed": "permission_error",
    "model_not_found": "not_found_error",
    "no_healthy_replica": "overloaded_error",
    "unknown_path": "not_found_error",
    "upstream_timeout": "timeout_error",
}
_ANTHROPIC_KINDS = {_SERVER_ERROR: "api_error", "requests": "rate_limit_error", "tokens": "rate_limit_error"}
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


def error_body(message: str, kind: str, code: str, param: str | None = None, *, shape: Shape = "openai") -> bytes:
    """An error as the API of that *shape* utters it; *kind* is OpenAI's ``type``, *code* the gateway's own word."""
    return _encode(_anthropic(message, kind, code) if shape == "anthropic" else _openai(message, kind, code, param))


def error_event(message: str, code: str, *, shape: Shape = "openai", path: str = "") -> bytes:
    """The same, as the last event of a stream. The leading blank line ends whatever event was cut off before it."""
    if shape == "anthropic":
        return b"\n\nevent: error\ndata: %b\n\n" % _encode(_anthropic(message, _SERVER_ERROR, code))
    error = _openai(message, _SERVER_ERROR, code, None)
    if not path.startswith("/v1/responses"):
        return b"\n\ndata: %b\n\n" % _encode(error)
    # As ResponseErrorEvent is described; the object within makes OpenAI's own clients raise it as well.
    event = {"type": "error", "code": code, "message": message, "param": None, "sequence_number": 0, **error}
    return b"\n\nevent: error\ndata: %b\n\n" % _encode(event)


def _openai(message: str, kind: str, code: str, param: str | None) -> dict[str, object]:
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}


def _anthropic(message: str, kind: str, code: str) -> dict[str, object]:
    kind = _ANTHROPIC_CODES.get(code) or _ANTHROPIC_KINDS.get(kind, kind)
    return {"type": "error", "error": {"type": kind, "message": message}}
