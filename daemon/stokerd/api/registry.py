"""Routes of model versions and aliases."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from fastapi import APIRouter, Request
from fastapi import Path as PathParameter

from stoker.types.base import NAME_PATTERN, Strict
from stoker.types.registry import Evaluation, Model, RecordEvaluation, RegisterVersion, Version
from stokerd.api.people import caller
from stokerd.registry.evaluations import record_evaluation
from stokerd.registry.models import Registry
from stokerd.store.store import Store


class AliasRequest(Strict):
    """The version that the alias is to mean."""

    version: int


Word = Annotated[str, PathParameter(pattern=NAME_PATTERN)]


def router(store: Store, registry: Registry) -> APIRouter:
    """Routes of the registry."""
    routes = APIRouter(prefix="/v1/models", tags=["registry"])

    @routes.post("/{name}/versions", status_code=201)
    async def register(name: str, body: RegisterVersion) -> Version:
        """Keep a folder of weights as the next version; the same weights give the version that has them."""
        return await registry.register(name, Path(body.path), body.lineage, body.aliases)

    @routes.put("/{name}/aliases/{alias}")
    async def set_alias(name: str, alias: Word, body: AliasRequest) -> Model:
        """Move an alias to a version."""
        return await registry.set_alias(name, alias, body.version)

    @routes.delete("/{name}/aliases/{alias}")
    async def delete_alias(name: str, alias: str) -> Model:
        """Take an alias away."""
        return await registry.delete_alias(name, alias)

    @routes.put("/{name}/versions/{version}/evaluations/{metric}")
    async def evaluate(name: str, version: str, metric: Word, body: RecordEvaluation, request: Request) -> Evaluation:
        """Keep what was found of a version, by its number or alias: a score, whether it passed a gate, or both."""
        by = await caller(request)
        return await store.write(lambda tx: record_evaluation(tx, name, version, metric, body, by))

    return routes
