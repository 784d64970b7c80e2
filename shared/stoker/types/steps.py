"""The steps of a rollout."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from stoker.types.base import Seconds, Spec
from stoker.words import span


class _Step(Spec):
    """What all steps share, besides ``words``: what each does, in a few of them."""

    @property
    def least(self) -> str:
        """What it takes before it passes; empty: nothing."""
        return ""


class _Judged(_Step):
    """A step in which guards compare the candidate's requests with stable's."""

    min_requests: int = Field(default=20, ge=1, description="answered by the candidate in this step before it can pass")
    min_callers: int = Field(default=0, ge=0, description="and for so many distinct callers")
    min_duration: Seconds = Field(default=0.0, description="and at least this long")
    max_duration: Seconds = Field(default=3600.0, description="then, without a pass, the verdict is starved")

    @model_validator(mode="after")
    def _durations_fit(self) -> Self:
        if self.max_duration < self.min_duration:
            raise ValueError("max_duration is shorter than min_duration: the step could never pass")
        return self

    @property
    def least(self) -> str:
        """What it takes before it passes."""
        parts = [f"{self.min_requests} request{'s' if self.min_requests > 1 else ''}"]
        parts += [f"{self.min_callers} caller{'s' if self.min_callers > 1 else ''}"] if self.min_callers else []
        parts += [span(self.min_duration)] if self.min_duration else []
        return ", ".join(parts)


class ShadowStep(_Judged):
    """That share of requests is answered by the candidate too: no client sees its answers."""

    type: Literal["shadow"] = "shadow"
    percent: float = Field(gt=0, le=100, description="share of requests")

    @property
    def words(self) -> str:
        """What it does, in a few words."""
        return f"shadow {self.percent:g} %"


class CanaryStep(_Judged):
    """The candidate answers that share of callers.

    With ``max_callers``, callers who can't be told apart (no session header, ``user`` or key) stay with stable.
    """

    type: Literal["canary"] = "canary"
    percent: float = Field(gt=0, le=100, description="share of requests")
    max_callers: int = Field(
        default=0, ge=0, description="the most distinct callers that the candidate answers; 0: any number"
    )

    @property
    def words(self) -> str:
        """What it does, in a few words."""
        return f"canary {self.percent:g} %" + (f" of at most {self.max_callers} callers" if self.max_callers else "")


class TargetStep(_Judged):
    """The candidate answers the rollout's ``targets``, and nobody else."""

    type: Literal["target"] = "target"

    @property
    def words(self) -> str:
        """What it does, in a few words."""
        return "targets only"


class ApproveStep(_Step):
    """Somebody has to say ``approve``; meanwhile traffic stays as in the step before, and guards go on judging."""

    type: Literal["approve"] = "approve"
    by: str = Field(default="", description="user name of the one who may; empty: whoever may steer rollouts")
    max_duration: Seconds = Field(default=7 * 86400.0, description="then, unanswered, the verdict is starved")

    @property
    def words(self) -> str:
        """What it does, in a few words."""
        return f"approval by {self.by}" if self.by else "approval"


class PauseStep(_Step):
    """Traffic stays as in the step before for a while, and guards go on judging."""

    type: Literal["pause"] = "pause"
    duration: Seconds = Field(gt=0)

    @property
    def words(self) -> str:
        """What it does, in a few words."""
        return f"pause of {span(self.duration)}"


class PromoteStep(_Step):
    """All traffic goes to the candidate. It is always the last, written or not."""

    type: Literal["promote"] = "promote"

    @property
    def words(self) -> str:
        """What it does, in a few words."""
        return "promotion"


Step = Annotated[
    ShadowStep | CanaryStep | TargetStep | ApproveStep | PauseStep | PromoteStep, Field(discriminator="type")
]
JudgedStep = ShadowStep | CanaryStep | TargetStep
