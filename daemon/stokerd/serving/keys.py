"""Making and deleting API keys. Each function runs inside the transaction that it is given."""

from __future__ import annotations

import secrets
from hashlib import sha256

from stoker.errors import Conflict
from stoker.types.keys import ApiKey, KeyRequest, NewKey
from stoker.types.serving import Deployment
from stokerd.store.store import Transaction

_PREFIX = "sk-stoker-"  # scanners for secrets that leaked find them by it, and the gateway those that were deleted
_RANDOM_BYTES = 32


def create_key(tx: Transaction, request: KeyRequest, by: str) -> NewKey:
    """Make a key. Raises `Conflict` when there is one of that name, or `NotFound` for a deployment."""
    if tx.find(ApiKey, request.name) is not None:
        raise Conflict(
            f"there is an API key {request.name} already.",
            f"Take another name, or `stoker key delete {request.name}` first.",
            code="key-exists",
        )
    for model in request.models:
        tx.get(Deployment, model)
    text = _PREFIX + secrets.token_urlsafe(_RANDOM_BYTES)
    key = ApiKey(digest=sha256(text.encode()).hexdigest(), **request.model_dump())
    tx.save(key, "KeyCreated", f"API key {key.name} was made, by {by}.", by=by)
    return NewKey(key=key, text=text)


def delete_key(tx: Transaction, name: str) -> None:
    """Delete it: the gateway refuses it as soon as it has the next table. Raises `NotFound`."""
    key = tx.get(ApiKey, name)
    tx.delete(key, "KeyDeleted", f"API key {name} was deleted.")
