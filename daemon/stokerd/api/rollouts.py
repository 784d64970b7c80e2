"""How a rollout would go, and what a person may do to one."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query, Request

from stoker.types.rollouts import Rollout, RolloutPlan, RolloutSpec, Verb
from stokerd.api.people import caller
from stokerd.rollouts.apply import dry_run
from stokerd.rollouts.planning import Planner
from stokerd.rollouts.rollouts import Rollouts
from stokerd.store.store import Store

Seen = Annotated[
    int | None, Query(ge=0, description="refuse unless it is in this step (from 0): the one that the caller looked at")
]


def router(store: Store, planner: Planner, rollouts: Rollouts) -> APIRouter:
    """Routes of rollouts."""
    routes = APIRouter(prefix="/v1/rollouts", tags=["rollouts"])

    @routes.post("/plan")
    async def plan(body: RolloutSpec) -> RolloutPlan:
        """Where the candidate would run, or why it can't, and how long each step would take. Starts nothing."""
        return await dry_run(store, planner, body)

    @routes.post("/{name}/{verb}")
    async def command(name: str, verb: Verb, request: Request, step: Seen = None) -> Rollout:
        """Pause, resume, approve, promote, abort or roll back."""
        return await rollouts.command(name, verb, await caller(request), step)

    return routes
