"""What `apply` takes and says."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from stoker.types.base import Strict
from stoker.types.registry import ModelSpec
from stoker.types.rollouts import RolloutSpec
from stoker.types.serving import DeploymentSpec
from stoker.types.training import JobSpec, ScheduleSpec

AnySpec = Annotated[JobSpec | ScheduleSpec | ModelSpec | DeploymentSpec | RolloutSpec, Field(discriminator="kind")]
SPEC_TYPES: dict[str, type[JobSpec | ScheduleSpec | ModelSpec | DeploymentSpec | RolloutSpec]] = {
    "job": JobSpec,
    "schedule": ScheduleSpec,
    "model": ModelSpec,
    "deployment": DeploymentSpec,
    "rollout": RolloutSpec,
}


class ApplyRequest(Strict):
    """All or nothing: one refused spec refuses them all."""

    specs: list[AnySpec]
    dry_run: bool = False


class Applied(Strict):
    """What became of one spec. ``changes`` maps a field's path to [before, after]."""

    kind: str
    name: str
    action: Literal["created", "changed", "unchanged"]
    changes: dict[str, tuple[Any, Any]] = {}
