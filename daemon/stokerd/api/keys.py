"""Making and deleting API keys; they are listed as other resources are."""

from __future__ import annotations

from fastapi import APIRouter, Request

from stoker.types.keys import KeyRequest, NewKey
from stokerd.api.people import caller
from stokerd.serving.gateway import GatewayLink
from stokerd.serving.keys import create_key, delete_key
from stokerd.store.store import Store


def router(store: Store, gateway: GatewayLink) -> APIRouter:
    """Routes of API keys."""
    routes = APIRouter(prefix="/v1/keys", tags=["keys"])

    @routes.post("", status_code=201)
    async def create(body: KeyRequest, request: Request) -> NewKey:
        """Make a key. Its text is in this answer, and nowhere else."""
        by = await caller(request)
        made = await store.write(lambda tx: create_key(tx, body, by))
        await gateway.push_soon()  # whoever reads the answer may use it at once
        return made

    @routes.delete("/{name}", status_code=204)
    async def delete(name: str) -> None:
        """Delete a key."""
        await store.write(lambda tx: delete_key(tx, name))
        await gateway.push_soon()  # whoever reads the answer takes it for granted that it opens nothing any more

    return routes
