"""API keys: who asks, what it may use, and whether its limits allow one more request."""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import sha256

from stokerd.gateway.ledger import Ledger
from stokerd.gateway.wire import Key

KEY_PREFIX = b"sk-stoker-"
# Clients must send some API key, and people write these where none is needed.
PLACEHOLDER_KEYS = frozenset({b"", b"-", b"empty", b"none", b"null", b"dummy", b"no-key", b"not-needed", b"unused"})
_BEARER = b"bearer "
_MINUTE = 60.0
_BUSY_SECONDS = 1.0
_HARDLY = 1e-6  # seconds by which a moment may be off
# The ledger's lock costs as much as a tenth of a request. So a worker charges requests in advance and tokens
# afterwards, by this part of a limit at most: that much may be off for each worker.
_PARTS = 64
_MOST_DRAWN = 16


class KeyRefused(Exception):
    """Why a request is not let in, as ``str(error)`` says it. ``code`` and ``kind`` are OpenAI's words for it.

    ``retry_after`` is in seconds; 0: trying again is of no use.
    """

    def __init__(self, status: int, kind: str, code: str, message: str, retry_after: float = 0.0) -> None:
        super().__init__(message)
        self.status = status
        self.kind = kind
        self.code = code
        self.retry_after = retry_after


class Keyring:
    """The keys of one route table. What they have used is in *ledger*, so that it outlives the table.

    All moments are those of ``time.monotonic()``.
    """

    def __init__(self, keys: Sequence[Key], needs_key: bool, ledger: Ledger | None) -> None:
        self._keys = {bytes.fromhex(key.digest): key for key in keys}
        self._needs_key = needs_key
        self._ledger = ledger or Ledger(None)
        limited = [key.digest for key in keys if key.requests_per_minute or key.tokens_per_minute]
        slots = self._ledger.slots(bytes.fromhex(digest)[:16] for digest in limited)
        self._slots = dict(zip(limited, slots, strict=True))

    def find(self, authorization: bytes | None, x_api_key: bytes | None) -> Key | None:
        """The key that a request brings, in either header; None: it brings none, and needs none.

        Raises `KeyRefused` (401) for a request that must have one and has not; and for a key of ours that is none any
        more, even where none is needed: one that was deleted to shut its holder out must not get more than before.
        """
        unknown = b""
        for text in (bearer(authorization), x_api_key):
            if text and (found := self._keys.get(sha256(text).digest())) is not None:
                return found
            unknown = unknown or (text or b"")
        if not self._needs_key and not unknown.startswith(KEY_PREFIX):
            return None
        if unknown and unknown.lower() not in PLACEHOLDER_KEYS:
            message = "The API key is not known here, or was deleted. Ask the operator of this server for another one."
            raise KeyRefused(401, "invalid_request_error", "invalid_api_key", message)
        message = "An API key is needed: send it as 'Authorization: Bearer KEY', or as 'x-api-key: KEY'."
        raise KeyRefused(401, "invalid_request_error", "missing_api_key", message)

    def admit(self, key: Key, deployment: str, now: float) -> None:
        """Let one request to *deployment* in and count it; `settle` must follow. Raises `KeyRefused` (403 or 429)."""
        if key.models and deployment not in key.models:
            message = f"The API key '{key.id}' may not use the model '{deployment}'."
            raise KeyRefused(403, "invalid_request_error", "model_not_allowed", message)
        in_flight = self._ledger.in_flight
        running = in_flight.get(key.digest, 0)
        if key.in_flight and running >= key.in_flight:
            message = f"The API key '{key.id}' may have {key.in_flight} requests at the same time."
            raise KeyRefused(429, "requests", "rate_limit_exceeded", message, _BUSY_SECONDS)
        if key.requests_per_minute or key.tokens_per_minute:
            self._charge_request(key, now)
        in_flight[key.digest] = running + 1

    def settle(self, key: Key, tokens: int, now: float) -> None:
        """The request has come to its end, and used *tokens*, prompt and completion together."""
        in_flight = self._ledger.in_flight
        running = in_flight.get(key.digest, 0) - 1
        if running > 0:
            in_flight[key.digest] = running
        else:
            in_flight.pop(key.digest, None)
        slot = self._slots.get(key.digest)
        if slot is not None and key.tokens_per_minute and tokens > 0:  # else it was deleted meanwhile
            owed = self._ledger.owed
            owed[slot] = owed.get(slot, 0) + tokens
            if owed[slot] * _PARTS >= key.tokens_per_minute:
                with self._ledger:
                    self._book_tokens(key, slot, now)

    def _book_tokens(self, key: Key, slot: int, now: float) -> None:
        ledger = self._ledger
        level = max(ledger.level(slot + 1), now)
        ledger.set_level(slot + 1, level + ledger.owed.pop(slot, 0) * _MINUTE / key.tokens_per_minute)

    def _charge_request(self, key: Key, now: float) -> None:
        ledger, slot = self._ledger, self._slots[key.digest]
        if key.tokens_per_minute and (wait := ledger.level(slot + 1) - now - _MINUTE) > -_HARDLY:
            message = f"The API key '{key.id}' may use {key.tokens_per_minute} tokens a minute."
            raise KeyRefused(429, "tokens", "rate_limit_exceeded", message, max(wait, _HARDLY))
        if not key.requests_per_minute:
            return
        drawn = ledger.drawn.get(slot, 0)
        if not drawn:
            drawn = self._draw(key, slot, now)
        ledger.drawn[slot] = drawn - 1

    def _draw(self, key: Key, slot: int, now: float) -> int:
        """Charge some requests at once, as many as a small part of the limit allows; gives how many."""
        ledger, cost = self._ledger, _MINUTE / key.requests_per_minute
        with ledger:
            begin = max(ledger.level(slot), now)
            for count in (min(max(1, key.requests_per_minute // _PARTS), _MOST_DRAWN), 1):
                wait = begin + count * cost - now - _MINUTE
                if wait <= _HARDLY:
                    ledger.set_level(slot, begin + count * cost)
                    return count
        message = f"The API key '{key.id}' may make {key.requests_per_minute} requests a minute."
        raise KeyRefused(429, "requests", "rate_limit_exceeded", message, wait)


def bearer(authorization: bytes | None) -> bytes | None:
    """The token of an ``Authorization: Bearer`` header; None for any other."""
    if authorization and authorization[:7].lower() == _BEARER:
        return authorization[7:].strip()
    return None
