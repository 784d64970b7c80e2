"""What must hold in a rollout, and what is said of it."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from stoker.types.base import Spec, Strict
from stoker.words import latency

RATES = ("error_rate", "refusal_rate", "finish_rate", "disagreement", "judged_worse")
LATENCIES = ("ttft", "inter_token", "max_gap", "total")
Metric = Literal[
    "error_rate", "refusal_rate", "finish_rate", "disagreement", "judged_worse",
    "ttft", "inter_token", "max_gap", "total", "tokens_out", "similarity", "score", "series",
]  # fmt: skip
_NAMED = {"finish_rate": "finish reason", "score": "evaluation", "series": "series"}
_SHADOW_ONLY = ("disagreement", "judged_worse", "similarity")
_NEVER_COMPARED = ("disagreement", "judged_worse", "similarity", "series")


class Guard(Spec):
    """What must hold, most often by comparison with what stable does at the same time.

    ======================================  ==========================================  ================================
    metric                                  ``against: stable``, the usual              ``against: nothing``
    ======================================  ==========================================  ================================
    error_rate, refusal_rate, finish_rate   the share, minus stable's, is at most       the share is at most limit
                                            limit (0.02 is 2 points)
    ttft, inter_token, max_gap, total       the quantile is at most limit times         it is at most limit seconds
                                            stable's
    tokens_out                              the quantile is between 1/limit and limit   it is at most limit tokens
                                            times stable's
    disagreement, judged_worse              only shadow answers that are kept: the share of answers to the same request
                                            that differ, or that a judge calls worse, is at most limit
    similarity                              only shadow answers that are kept: their mean likeness, 0 to 1, is at least
                                            limit
    score                                   the version's evaluation ``name`` is at     it is at least limit
                                            least stable's minus limit
    series                                  the mean of series ``name`` in this step is at most limit; of a series that
                                            devices have: of those that the candidate holds
    ======================================  ==========================================  ================================

    ``refusal_rate``: answers that end for ``content_filter`` or ``refusal``; ``finish_rate``: for the reason ``name``.
    """

    metric: Metric
    limit: float = Field(ge=0)
    name: str = Field(default="", description="of the finish reason, evaluation or series")
    against: Literal["stable", "nothing"] = Field(default="stable", description="nothing: the limit is absolute")
    quantile: float = Field(default=0.9, gt=0, lt=1, description="of latencies and tokens")
    min_requests: int = Field(default=8, ge=1, description="of either arm, before it says pass or fail")
    if_measured: bool = Field(
        default=False,
        description="left out while neither version gave anything to measure: of answers that aren't streamed, there "
        "is no time between tokens",
    )
    proof: bool = Field(
        default=False,
        description="pass only when the whole interval is within the limit; else when the estimate is, and nothing "
        "proves that it isn't",
    )

    @model_validator(mode="after")
    def _can_be_judged(self) -> Self:
        if self.metric in RATES and self.limit >= 1:
            raise ValueError(f"a limit of {self.metric} is a share: 0.02 is 2 points; from 1 on it never fails")
        is_ratio = self.metric in (*LATENCIES, "tokens_out")
        if is_ratio and not self.limit:
            raise ValueError(f"limit of {self.metric} must be greater than 0")
        if self.metric == "tokens_out" and self.against == "stable" and self.limit < 1:
            raise ValueError("a limit of tokens_out is a factor from 1 on: 1.5 lets it be 1/1.5 to 1.5 times stable's")
        if (self.metric in _NAMED) != bool(self.name):
            wanted = _NAMED.get(self.metric)
            missing = f"{self.metric} needs the name of its {wanted}"
            raise ValueError(missing if wanted else f"{self.metric} has no name")
        return self

    @property
    def is_compared(self) -> bool:
        """Whether stable's requests are looked at, too."""
        return self.against == "stable" and self.metric not in _NEVER_COMPARED

    @property
    def needs_answers(self) -> bool:
        """Whether it judges kept answers of shadow steps, and nothing else."""
        return self.metric in _SHADOW_ONLY

    @property
    def words(self) -> str:
        """What it demands."""
        what, stables = guard_subject(self), " stable's" if self.is_compared else ""
        if self.metric == "similarity" or (self.metric == "score" and not stables):
            return f"{what} at least {self.limit:g}"
        if self.metric == "score":
            return f"{what} at most {self.limit:g} below stable's"
        if self.metric in RATES:
            points = f"{100 * self.limit:g}"
            return f"{what} at most {points} points over stable's" if stables else f"{what} at most {points} %"
        if self.metric in LATENCIES:
            return f"{what} at most {self.limit:g} ×{stables}" if stables else f"{what} at most {latency(self.limit)}"
        if self.metric == "tokens_out" and stables:
            return f"{what} at most {self.limit:g} × more or fewer than stable's"
        return f"{what} at most {self.limit:g}"


def guard_subject(guard: Guard) -> str:
    """What a guard measures: ``TTFT p90``, ``error rate``."""
    words = {
        "error_rate": "error rate", "refusal_rate": "refusal rate", "disagreement": "answers that differ",
        "judged_worse": "answers judged worse", "similarity": "likeness of answers", "ttft": "TTFT",
        "inter_token": "inter-token", "max_gap": "longest gap", "total": "total", "tokens_out": "tokens out",
    }  # fmt: skip
    match guard.metric:
        case "finish_rate":
            return f"answers that end with {guard.name}"
        case "score":
            return f"evaluation {guard.name}"
        case "series":
            return guard.name
    quantile = f" p{100 * guard.quantile:g}" if guard.metric in (*LATENCIES, "tokens_out") else ""
    return words[guard.metric] + quantile


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


class Evidence(Strict):
    """The numbers behind a verdict.

    ``estimate`` with its interval ``low`` to ``high`` (None: not bounded yet), which holds at all times at once, is
    what is compared with ``limit``, in ``unit``: a ``ratio`` to stable's, a difference of shares in ``points`` (0.01 is
    one point), ``seconds``, ``tokens``, a ``share``, or a plain ``number``.
    """

    unit: Literal["ratio", "points", "seconds", "tokens", "share", "number"]
    limit: float
    estimate: float | None = None
    low: float | None = None
    high: float | None = None
    stable: float | None = Field(default=None, description="what was measured of stable alone")
    candidate: float | None = None
    stable_requests: int = 0
    requests: int = Field(default=0, description="measurements of the candidate, or shadow")
    stable_callers: int = 0
    callers: int = 0
    missing: int | None = Field(
        default=None, description="about so many more requests of the candidate until it passes or fails; None: unknown"
    )
    confidence: float = Field(default=0.0, description="of the interval: 0.99 is 99 %")


class GuardReading(Strict):
    """A guard with its latest verdict."""

    guard: Guard
    verdict: Verdict
    evidence: Evidence | None = None
