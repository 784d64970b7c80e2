"""What a person may do to a rollout."""

from __future__ import annotations

from fastapi import APIRouter, Request

from stoker.types.rollouts import Rollout
from stokerd.rollouts.machine import Verb
from stokerd.rollouts.rollouts import Rollouts


def router(rollouts: Rollouts) -> APIRouter:
    """Routes of rollouts."""
    routes = APIRouter(prefix="/v1/rollouts", tags=["rollouts"])

    @routes.post("/{name}/{verb}")
    async def command(name: str, verb: Verb, request: Request) -> Rollout:
        """Pause, resume, promote or abort a rollout."""
        return await rollouts.command(name, verb, request.client.host if request.client else "somebody")

    return routes
