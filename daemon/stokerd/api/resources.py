"""List, get and delete of every kind of resource, and `apply`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from fastapi import APIRouter, Request

from stoker.errors import Invalid, NotFound
from stoker.types.apply import Applied, ApplyRequest
from stoker.types.base import Resource
from stokerd.api.people import caller
from stokerd.apply import apply
from stokerd.rollouts.planning import Planner
from stokerd.serving.apply import delete_deployment
from stokerd.store.store import Store, Transaction
from stokerd.store.tables import KINDS, ROWS
from stokerd.training.apply import delete_job, delete_schedule

_FILTERS = frozenset({"job", "deployment", "model", "dataset", "phase"})
_DELETES: dict[str, Callable[[Transaction, str, str], None]] = {
    "jobs": delete_job,
    "schedules": delete_schedule,
    "deployments": delete_deployment,
}


def router(store: Store, planner: Planner) -> APIRouter:
    """Routes of resources."""
    routes = APIRouter(prefix="/v1")

    @routes.post("/apply", tags=["specs"])
    async def apply_specs(body: ApplyRequest, request: Request) -> list[Applied]:
        """Keep all specs or none, and say what each changed."""
        return await apply(store, body, planner, await caller(request))

    for plural, kind in KINDS.items():
        _add(routes, store, plural, kind)

    @routes.delete("/{plural}/{name}", status_code=204, tags=["resources"])
    async def delete(plural: str, name: str, request: Request) -> None:
        """Delete a job, a schedule or a deployment; `keys` has a route of its own."""
        function = _DELETES.get(plural)
        if function is None:
            known = ", ".join([*_DELETES, "keys"])
            if plural in KINDS:
                raise Invalid(f"{plural} can't be deleted.", f"What can: {known}.", code="not-deletable")
            raise NotFound(f"there are no {plural}.", f"What can be deleted: {known}.", code="no-kind")
        by = await caller(request)
        await store.write(lambda tx: function(tx, name, by))

    return routes


def _add(routes: APIRouter, store: Store, plural: str, kind: type[Resource]) -> None:
    columns = set(ROWS[kind].model_fields) & _FILTERS

    @routes.get(f"/{plural}", response_model=list[kind], tags=["resources"], summary=f"List {plural}")  # type: ignore[valid-type]
    async def list_all(request: Request) -> list[Resource]:
        filters = dict(request.query_params)
        unknown = sorted(set(filters) - columns)
        if unknown:
            raise Invalid(
                f"{plural} can't be filtered by {unknown[0]!r}.", f"By: {', '.join(sorted(columns)) or 'nothing'}."
            )
        return await store.read(lambda q: list(q.all(kind, **filters)))

    @routes.get(f"/{plural}/{{name}}", response_model=kind, tags=["resources"], summary=f"Get one of {plural}")
    async def get_one(name: str) -> Any:
        return await store.read(lambda q: q.get(kind, name))
