"""What a client asks, whoever is to answer it: a client's exchange and its shadow's have one each."""

from __future__ import annotations

import copy

from stokerd.gateway import bodies
from stokerd.gateway.balance import work
from stokerd.gateway.bodies import Asked
from stokerd.gateway.request import Request
from stokerd.gateway.sender import caller_name
from stokerd.gateway.surface import Endpoint
from stokerd.gateway.wire import Key

_HEX = frozenset(b"0123456789abcdef")


class Call:
    """A request's head and body, read.

    Attributes:
        caller: what the caller is known by: its session, else the user that its body names, else its API key; None for
            an anonymous one.
        is_known_by_head: and that stands in its head.
        model: what the body calls the model.
        prompt_tokens: an estimate.
        tokens: what it is likely to cost its replica.
        body_bytes: of the body as it came.
    """

    __slots__ = (
        "_conversation",
        "_forward",
        "_noted",
        "body",
        "body_bytes",
        "caller",
        "endpoint",
        "is_known_by_head",
        "key",
        "lines",
        "model",
        "prompt_tokens",
        "sender",
        "started",
        "tokens",
    )

    def __init__(self, request: Request, endpoint: Endpoint, asked: Asked, key: Key | None) -> None:
        self.endpoint = endpoint
        self.body = request.body
        self.body_bytes = size = len(request.body)
        self.model = asked.model
        self.key = key
        self.started = request.started
        self.lines = request.lines
        self.sender = sender = request.sender
        self.is_known_by_head = True
        if sender.session is not None:
            self.caller: bytes | None = sender.session
        elif asked.user:
            self.caller = asked.user.encode("utf-8", "surrogatepass")
            self.is_known_by_head = False
        else:
            self.caller = sender.api_key
            self.is_known_by_head = sender.api_key is not None
        self.prompt_tokens = bodies.prompt_tokens(size)
        self.tokens = work(self.prompt_tokens, asked.max_tokens)
        self._noted = request.noted
        self._forward = request.forward
        self._conversation: bytes | None = None

    def copy(self) -> Call:
        """Another one of the same: each lets go of its body when it needs it no more."""
        return copy.copy(self)

    @property
    def conversation(self) -> bytes:
        """A digest of its conversation; empty if it has none. Computed when it is first asked for."""
        if self._conversation is None:
            is_json = not self.endpoint.multipart
            self._conversation = (bodies.conversation(self.body) if is_json else None) or b""
        return self._conversation

    @property
    def affinity(self) -> int:
        """The same for all turns of a conversation: a hash of its session, else of how it begins; 0: unknown."""
        session = self.sender.session
        return int(caller_name(session), 16) if session is not None else int.from_bytes(self.conversation, "big")

    @property
    def caller_name(self) -> str:
        """A hash of what the caller is known by, in hex; empty for an anonymous one."""
        return caller_name(self.caller) if self.caller else ""

    @property
    def trace(self) -> str:
        """The trace id of its W3C ``traceparent``; empty if it has none."""
        header = self._noted.get(b"traceparent")
        return trace_id(header) if header is not None else ""

    def addressed_to(self, model: str) -> tuple[bytes, bytes | bytearray]:
        """Head and body for a server that calls the model so. Raises `bodies.BadBody`."""
        body = self.body
        if model != self.model:
            body = bodies.with_model(self.endpoint, self._noted.get(b"content-type", b""), body, model)
        return b"%b%d\r\n\r\n" % (self._forward, len(body)), body


def trace_id(traceparent: bytes) -> str:
    """The trace id in a W3C ``traceparent``; empty if it is not one."""
    trace = traceparent[3:35]
    is_one = len(trace) == 32 and traceparent[2:3] == traceparent[35:36] == b"-" and _HEX.issuperset(trace)
    return trace.decode() if is_one and trace.strip(b"0") else ""
