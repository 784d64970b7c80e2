"""Rollouts: the move of a deployment to another version, step by step, judged by guards."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal, Self

from pydantic import Field, model_validator

from stoker.types.base import Name, Resource, Seconds, Spec, State, Strict, Time


class Step(Spec):
    """A stage. ``shadow`` mirrors that share of requests (answers dropped); ``canary`` answers with the candidate."""

    type: Literal["shadow", "canary"]
    percent: float = Field(gt=0, le=100, description="share of requests")
    min_requests: int = Field(default=20, ge=1, description="answered by the candidate in this step before it can pass")
    min_duration: Seconds = Field(default=0.0, description="and at least this long")
    max_duration: Seconds = Field(default=3600.0, description="then the verdict is starved: the rollout pauses")

    @model_validator(mode="after")
    def _durations_fit(self) -> Self:
        if self.max_duration < self.min_duration:
            raise ValueError("max_duration is shorter than min_duration: the step could never pass")
        return self


class Guard(Spec):
    """A comparison with the stable arm's requests of the same step that must hold.

    ``error_rate``: candidate's share of failed requests minus stable's, at most ``limit`` (e.g. 0.02 is 2 points).
    ``ttft``, ``inter_token``, ``total``: candidate's quantile over stable's, at most ``limit`` (e.g. 1.5 times).
    """

    metric: Literal["error_rate", "ttft", "inter_token", "total"]
    limit: float = Field(gt=0)
    quantile: float = Field(default=0.9, gt=0, lt=1, description="of latencies; ignored for error_rate")
    min_requests: int = Field(default=8, ge=1, description="of either arm, before it says pass or fail")

    @model_validator(mode="after")
    def _limit_can_be_passed(self) -> Self:
        if self.metric == "error_rate" and self.limit >= 1:
            raise ValueError("an error_rate limit is a share: 0.02 is 2 points; from 1 on it never fails")
        return self


DEFAULT_STEPS = (
    Step(type="canary", percent=5, min_requests=20),
    Step(type="canary", percent=25, min_requests=50),
    Step(type="canary", percent=50, min_requests=50),
)
DEFAULT_GUARDS = (
    Guard(metric="error_rate", limit=0.02),
    Guard(metric="ttft", limit=2.0),
    Guard(metric="total", limit=2.0),
)


class RolloutSpec(Spec):
    """Bring *deployment* to version *to*."""

    kind: Literal["rollout"]
    name: Name
    deployment: Name
    to: int | Name = Field(description="version number or alias")
    steps: list[Step] = Field(default=list(DEFAULT_STEPS), min_length=1)
    guards: list[Guard] = Field(default=list(DEFAULT_GUARDS))
    max_errors_in_a_row: int = Field(
        default=5, ge=1, description="hard trip: the candidate's last N answers all failed"
    )


class ArmStats(Strict):
    """What an arm's requests of the present step look like. Latencies in seconds; None before the first."""

    requests: int = 0
    errors: int = 0
    ttft_p50: float | None = None
    ttft_p90: float | None = None
    inter_token_p50: float | None = None
    inter_token_p90: float | None = None
    total_p50: float | None = None
    total_p90: float | None = None


class Pass(Strict):
    """The guard holds."""

    verdict: Literal["pass"] = "pass"
    reason: str


class Fail(Strict):
    """The guard doesn't hold."""

    verdict: Literal["fail"] = "fail"
    reason: str


class Starved(Strict):
    """Too little traffic to say: never a pass, never a fail."""

    verdict: Literal["starved"] = "starved"
    reason: str


Verdict = Annotated[Pass | Fail | Starved, Field(discriminator="verdict")]


class GuardReading(Strict):
    """A guard with its latest verdict."""

    guard: Guard
    verdict: Verdict


class Preparing(State):
    """The candidate's replicas start; it gets no traffic."""

    phase: Literal["preparing"] = "preparing"
    since: Time


class Stepping(State):
    """Step number ``step`` (from 0) is on."""

    phase: Literal["stepping"] = "stepping"
    step: int
    since: Time


class Paused(State):
    """Holds: the candidate keeps its share; nobody judges but hard trips. ``because``: person, or starved."""

    phase: Literal["paused"] = "paused"
    step: int
    since: Time
    because: str


class Promoting(State):
    """All traffic goes to the new version; the old one drains."""

    phase: Literal["promoting"] = "promoting"
    since: Time


class RollingBack(State):
    """All traffic goes to stable; the candidate drains."""

    phase: Literal["rolling-back"] = "rolling-back"
    since: Time
    because: str
    aborted: bool = False


class Promoted(State):
    """Done: the deployment serves the new version."""

    phase: Literal["promoted"] = "promoted"
    finished_at: Time


class RolledBack(State):
    """Done: a guard failed, the deployment serves what it served."""

    phase: Literal["rolled-back"] = "rolled-back"
    finished_at: Time
    because: str


class Aborted(State):
    """Done: a person took it back."""

    phase: Literal["aborted"] = "aborted"
    finished_at: Time
    because: str


RolloutState = Annotated[
    Preparing | Stepping | Paused | Promoting | RollingBack | Promoted | RolledBack | Aborted,
    Field(discriminator="phase"),
]
FINAL_PHASES = frozenset({"promoted", "rolled-back", "aborted"})
ACTIVE_PHASES = frozenset({"preparing", "stepping", "paused", "promoting", "rolling-back"})


class Rollout(Resource):
    """A rollout, kept, with what its guards last said."""

    kind: ClassVar[str] = "rollout"
    plural: ClassVar[str] = "rollouts"

    spec: RolloutSpec
    deployment: str
    from_version: int
    to_version: int
    state: RolloutState
    arms: dict[str, ArmStats] = Field(default={}, description="by arm name: stable, and candidate or shadow")
    readings: list[GuardReading] = []
    candidate_errors: int = Field(default=0, description="failed answers of the candidate that clients saw, all steps")
    verdict_at: Time | None = Field(default=None, description="when the failing verdict was reached")
    restored_at: Time | None = Field(default=None, description="when the gateway confirmed that stable has all traffic")

    @property
    def phase(self) -> str:
        """Shorthand for ``state.phase``."""
        return self.state.phase
