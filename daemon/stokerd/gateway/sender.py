"""What the head of a request tells of who sent it. Senders with the same head share one: it is found out once."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from hashlib import blake2b
from typing import TYPE_CHECKING

from stokerd.gateway.keys import PLACEHOLDER_KEYS, Keyring, bearer
from stokerd.gateway.wire import Key

if TYPE_CHECKING:
    from stokerd.gateway.routing import ArmPlan, Plan


class Sender:
    """Who sends requests with one head.

    Attributes:
        session: its session header; None without one.
        api_key: what it gives as its API key; None without one, or if it is a placeholder that people write where a
            key must be: taken as a name, that would put all of a site's traffic on one arm.
        arm: the arm of `plan` that it was assigned by what its head says alone.
        plan: what `arm` belongs to; None: not assigned yet.
    """

    __slots__ = ("_authorization", "_key", "_keyring", "_x_api_key", "api_key", "arm", "plan", "session")

    def __init__(self, noted: Mapping[bytes, bytes]) -> None:
        self.session = noted.get(b"x-stoker-session") or None
        self._authorization = noted.get(b"authorization")
        self._x_api_key = noted.get(b"x-api-key")
        self._key: Key | None = None
        self._keyring: Keyring | None = None
        self.plan: Plan | None = None
        self.arm: ArmPlan | None = None
        self.api_key: bytes | None = None
        for key in (bearer(self._authorization), self._x_api_key):
            if key and key.lower() not in PLACEHOLDER_KEYS:
                self.api_key = key
                break

    def key_of(self, keyring: Keyring) -> Key | None:
        """Its key in *keyring*. Raises `KeyRefused`."""
        if self._keyring is not keyring:
            self._key = keyring.find(self._authorization, self._x_api_key)
            self._keyring = keyring
        return self._key


@lru_cache(maxsize=8192)
def caller_name(caller: bytes) -> str:
    """What stands for a caller in records: keys and names themselves don't leave the gateway."""
    return blake2b(caller, digest_size=8).hexdigest()
