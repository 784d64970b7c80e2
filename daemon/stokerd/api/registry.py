"""Routes of model versions and aliases."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from fastapi import APIRouter
from fastapi import Path as PathParameter

from stoker.types.base import NAME_PATTERN, Strict
from stoker.types.registry import Model, RegisterVersion, Version
from stokerd.registry.models import Registry


class AliasRequest(Strict):
    """The version that the alias is to mean."""

    version: int


def router(registry: Registry) -> APIRouter:
    """Routes of the registry."""
    routes = APIRouter(prefix="/v1/models", tags=["registry"])

    @routes.post("/{name}/versions", status_code=201)
    async def register(name: str, body: RegisterVersion) -> Version:
        """Keep a folder of weights as the next version; the same weights give the version that has them."""
        return await registry.register(name, Path(body.path), body.lineage, body.aliases)

    @routes.put("/{name}/aliases/{alias}")
    async def set_alias(
        name: str, alias: Annotated[str, PathParameter(pattern=NAME_PATTERN)], body: AliasRequest
    ) -> Model:
        """Move an alias to a version."""
        return await registry.set_alias(name, alias, body.version)

    @routes.delete("/{name}/aliases/{alias}")
    async def delete_alias(name: str, alias: str) -> Model:
        """Take an alias away."""
        return await registry.delete_alias(name, alias)

    return routes
