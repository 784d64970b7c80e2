"""Rollouts: the move of a deployment to another version, step by step, judged by guards."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal, Self

from pydantic import Field, model_validator

from stoker.types.base import Name, Resource, Seconds, Spec, State, Strict, Time
from stoker.types.guards import Evidence, Fail, Guard, GuardReading, Metric, Pass, Starved, Verdict, guard_subject
from stoker.types.steps import (
    ApproveStep,
    CanaryStep,
    JudgedStep,
    PauseStep,
    PromoteStep,
    ShadowStep,
    Step,
    TargetStep,
)

DEFAULT_STEPS: tuple[JudgedStep, ...] = (
    ShadowStep(percent=10, min_requests=20, min_duration=60),
    CanaryStep(percent=5, min_requests=20, min_duration=120),
    CanaryStep(percent=25, min_requests=50, min_duration=300),
    CanaryStep(percent=50, min_requests=100, min_duration=300),
)
DEFAULT_GUARDS = (
    Guard(metric="error_rate", limit=0.02),
    Guard(metric="ttft", limit=1.5),
    Guard(metric="inter_token", limit=1.25, if_measured=True),
    Guard(metric="total", limit=1.5),
)


__all__ = [
    "ACTIVE_PHASES", "DEFAULT_GUARDS", "DEFAULT_STEPS", "FINAL_PHASES", "VERBS", "Aborted", "ApproveStep", "ArmStats",
    "CanaryStep", "Decision", "Distribution", "Evidence", "Exposure", "Fail", "Guard", "GuardReading", "Judge",
    "JudgedStep", "Metric", "Pass", "PauseStep", "Paused", "PlannedStep", "Preparing", "PromoteStep", "Promoted",
    "Promoting", "Returning", "RolledBack", "RollingBack", "Rollout", "RolloutPlan", "RolloutSpec", "RolloutState",
    "ShadowStep", "Starved", "Step", "Stepping", "Target", "TargetStep", "Verb", "Verdict", "guard_subject",
]  # fmt: skip


class Target(Spec):
    """Callers who get the candidate in every canary step, whatever its share: internal users, a test client."""

    header: str = Field(default="", pattern=r"^[A-Za-z0-9!#$%&'*+.^_`|~-]*$", description="name of a request header")
    value: str = Field(default="", description="of that header; empty: any")
    key: str = Field(default="", description="name of an API key")

    @model_validator(mode="after")
    def _is_one_of_both(self) -> Self:
        if bool(self.header) == bool(self.key):
            raise ValueError("a target names either a header or a key")
        if self.value and not self.header:
            raise ValueError("a value belongs to a header")
        return self


class Judge(Spec):
    """A deployment that is asked which of two answers to the same request is better."""

    deployment: Name
    percent: float = Field(default=100.0, gt=0, le=100, description="share of kept answers that it is asked about")
    question: str = Field(default="", description="what matters, in a sentence or two; empty: help and correctness")


class RolloutSpec(Spec):
    """Bring *deployment* to version *to*.

    Nothing but a name, a deployment and a version is needed: the rest is what a careful operator would choose.
    """

    kind: Literal["rollout"]
    name: Name
    deployment: Name
    to: int | Name = Field(description="version number or alias")
    steps: list[Step] = Field(default=list(DEFAULT_STEPS), min_length=1)
    guards: list[Guard] = Field(default=list(DEFAULT_GUARDS))
    targets: list[Target] = Field(default=[], description="callers who get the candidate first")
    keep_answers: bool = Field(
        default=False, description="keep what both versions answered to the same requests in shadow steps"
    )
    embeddings: Name | None = Field(
        default=None, description="deployment by whose embeddings kept answers are compared; else by their words"
    )
    judge: Judge | None = Field(default=None, description="compares kept answers, for guards of judged_worse")
    max_errors_in_a_row: int = Field(
        default=5, ge=1, description="hard trip: the candidate's last N answers all failed"
    )
    cold_requests: int = Field(
        default=5, ge=0, description="of a replica that just got ready, whose latencies aren't judged"
    )
    placement: Literal["auto", "beside", "swap"] = Field(
        default="auto",
        description="beside stable, which auto means; or swap: stable stops, the candidate takes its devices and all "
        "its traffic",
    )
    on_pass: Literal["promote", "hold", "shadow"] = Field(default="promote", description="of the last step")
    on_fail: Literal["roll-back", "hold", "shadow"] = Field(default="roll-back", description="of any step")
    on_starved: Literal["hold", "roll-back", "shadow", "promote"] = Field(
        default="hold", description="promote: goes on to the next step, though nothing was shown"
    )
    hold_limit: Seconds = Field(default=86400.0, description="held for so long, it is rolled back")
    keep_warm: Seconds = Field(
        default=600.0, description="the old version's replicas stay so long after promotion, for a quick way back"
    )

    @model_validator(mode="after")
    def _steps_fit(self) -> Self:
        kinds = [step.type for step in self.steps]
        if "promote" in kinds[:-1]:
            raise ValueError("steps: promote can only be the last one")
        if "target" in kinds and not self.targets:
            raise ValueError("steps: a target step needs targets")
        if any(g.needs_answers for g in self.guards) and not self.keep_answers:
            raise ValueError("guards: disagreement, judged_worse and similarity need keep_answers: true")
        if any(g.metric == "judged_worse" for g in self.guards) and self.judge is None:
            raise ValueError("guards: judged_worse needs a judge")
        return self


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
    ttft_p99: float | None = None
    inter_token_p99: float | None = None
    total_p99: float | None = None
    callers: int = Field(default=0, description="distinct ones; each anonymous request counts as one")


class Distribution(Strict):
    """How a latency is spread over an arm's requests: counts in equal steps of the logarithm of seconds.

    All arms have the same ``low`` and ``high`` (seconds), and the same number of counts.
    """

    low: float
    high: float
    counts: dict[str, list[int]] = Field(description="by arm name")


class Preparing(State):
    """The candidate's replicas start; it gets no traffic. In a swap, stable has gone, and requests are held."""

    phase: Literal["preparing"] = "preparing"
    since: Time


class Stepping(State):
    """Step number ``step`` (from 0) is on.

    ``began``: id of the event that began it. Requests that the gateway routed by a table of that age are its own.
    """

    phase: Literal["stepping"] = "stepping"
    step: int
    since: Time
    began: int = 0


class Paused(State):
    """Holds; nobody judges but hard trips. ``because``: a person, or a verdict, with its reason.

    ``exposure``: the candidate *kept* its share, or is a *shadow* of it.
    """

    phase: Literal["paused"] = "paused"
    step: int
    since: Time
    because: str
    by: str = Field(default="", description="who paused it; empty: a verdict did")
    verdict: Literal["pass", "fail", "starved", ""] = Field(default="", description="that paused it; empty: a person")
    exposure: Literal["kept", "shadow"] = "kept"
    began: int = 0


class Promoting(State):
    """All traffic goes to the new version."""

    phase: Literal["promoting"] = "promoting"
    since: Time


class Returning(State):
    """After promotion, back: the old version's replicas start, and the new one serves until they are ready.

    In a swap, the new one has gone, and requests are held.
    """

    phase: Literal["returning"] = "returning"
    since: Time
    because: str
    aborted: bool = False


class RollingBack(State):
    """All traffic goes to stable; the candidate drains. In a swap, stable's replicas start first."""

    phase: Literal["rolling-back"] = "rolling-back"
    since: Time
    because: str
    aborted: bool = False


class Promoted(State):
    """Done: the deployment serves the new version. Until ``warm_until`` the old one stands by, for a quick way back."""

    phase: Literal["promoted"] = "promoted"
    finished_at: Time
    began: int = Field(default=0, description="as of a step")
    because: str = Field(default="", description="why it is so again, after a way back that was not gone to its end")
    warm_until: Time | None = None


class RolledBack(State):
    """Done: the deployment serves what it served, because a guard failed or the candidate did."""

    phase: Literal["rolled-back"] = "rolled-back"
    finished_at: Time
    because: str


class Aborted(State):
    """Done: a person took it back."""

    phase: Literal["aborted"] = "aborted"
    finished_at: Time
    because: str


RolloutState = Annotated[
    Preparing | Stepping | Paused | Promoting | Returning | RollingBack | Promoted | RolledBack | Aborted,
    Field(discriminator="phase"),
]
FINAL_PHASES = frozenset({"promoted", "rolled-back", "aborted"})
ACTIVE_PHASES = frozenset({"preparing", "stepping", "paused", "promoting", "returning", "rolling-back"})
Verb = Literal["pause", "resume", "approve", "promote", "abort", "rollback"]
VERBS: dict[str, tuple[Verb, ...]] = {
    "preparing": ("abort", "rollback"),
    "stepping": ("pause", "approve", "promote", "abort", "rollback"),
    "paused": ("resume", "promote", "abort", "rollback"),
    "promoting": ("abort", "rollback"),
    "promoted": ("rollback",),
    "returning": ("abort",),
}
"""What a person may do, by phase; a phase that isn't here allows nothing. ``approve`` needs a step that asks for it."""


class PlannedStep(Strict):
    """A step, and what is to be expected of it from the deployment's own traffic of late."""

    step: Step
    seconds: float | None = Field(default=None, description="until it passes; None: without traffic, nobody can say")
    requests_per_hour: float = Field(default=0.0, description="that the candidate would get")
    says: str = Field(default="", description="what stands against it, or bounds it")


class RolloutPlan(Strict):
    """Where the candidate would run, and how the rollout would go. ``fits``: whether it can start.

    ``placement``: *beside* stable, on devices of its own; *share*: beside stable on the same devices; as an *adapter*
    in the same servers; or *swap*. ``says`` tells in one sentence where, or why it can't.
    """

    deployment: str
    from_version: int
    to_version: int
    fits: bool
    placement: Literal["beside", "share", "adapter", "swap"]
    says: str
    devices: list[str] = Field(default=[], description="UUIDs that a replica of the candidate would get now")
    steps: list[PlannedStep] = []
    seconds: float | None = Field(default=None, description="until it is promoted, if all goes well; None: unknown")
    requests_per_hour: float = Field(default=0.0, description="of the deployment, lately")
    callers: int = Field(default=0, description="distinct ones of late")
    way_back: str = Field(default="", description="how a rollback would go, in one sentence")
    warnings: list[str] = []


class Decision(Strict):
    """What somebody said last."""

    verb: str
    by: str
    at: Time


class Exposure(Strict):
    """Who has got the candidate's answers, over all steps."""

    requests: int = 0
    errors: int = Field(default=0, description="failed answers that clients saw")
    callers: int = Field(default=0, description="distinct ones that could be told apart")


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
    contention: list[GuardReading] = Field(
        default=[],
        description="stable against itself before the candidate came, where they share devices",
    )
    visits: list[int] = Field(
        default=[],
        description="by step: how many states it was judged in so far; each begins the judging anew, and they share "
        "one bound on false alarms",
    )
    distributions: dict[str, Distribution] = Field(default={}, description="by metric: ttft, inter_token, total")
    exposure: Exposure = Exposure()
    plan: RolloutPlan | None = Field(default=None, description="as it was when it started")
    started_by: str = ""
    began: int = Field(default=0, description="id of the event that began it; 0: an older Stoker began it")
    led_by: str = Field(default="", description="who led to the present state: a person's name, guards, or host")
    decided: Decision | None = Field(default=None, description="by a person, lately")
    verdict_at: Time | None = Field(default=None, description="when the failing verdict was reached")
    restored_at: Time | None = Field(default=None, description="when the gateway confirmed that stable has all traffic")

    @property
    def phase(self) -> str:
        """Shorthand for ``state.phase``."""
        return self.state.phase

    def enter(self, state: RolloutState) -> None:
        """Be in *state* from now on, and count it for its step if it is one that is judged."""
        self.state = state
        if isinstance(state, Stepping | Paused):
            missing = [0] * (state.step + 1 - len(self.visits))
            self.visits = [*self.visits, *missing]
            self.visits[state.step] += 1

    @property
    def is_swap(self) -> bool:
        """Whether only one of the versions can run at a time."""
        return self.plan is not None and self.plan.placement == "swap"

    @property
    def present_step(self) -> tuple[int, Step] | None:
        """The step that is on, or that it is paused in, with its index; None before and after."""
        at = self.state
        if isinstance(at, Stepping | Paused) and 0 <= at.step < len(self.spec.steps):
            return at.step, self.spec.steps[at.step]
        return None
