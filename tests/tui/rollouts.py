"""A rollout on an ordinary afternoon, and what may become of it, for tests: always the same."""

from __future__ import annotations

import itertools
import math
from functools import partial

from stoker.types.rollouts import (
    ApproveStep,
    ArmStats,
    CanaryStep,
    Decision,
    Distribution,
    Evidence,
    Exposure,
    Fail,
    Guard,
    GuardReading,
    Pass,
    Paused,
    PauseStep,
    PlannedStep,
    Promoted,
    PromoteStep,
    RolledBack,
    Rollout,
    RolloutPlan,
    RolloutSpec,
    ShadowStep,
    Starved,
    Step,
    Stepping,
    Target,
    TargetStep,
)
from tests.tui.still import ago

GUARDS = [
    Guard(metric="error_rate", limit=0.03),
    Guard(metric="ttft", limit=2.0),
    Guard(metric="total", limit=1.5, min_requests=50),
]
STEPS: list[Step] = [
    ShadowStep(percent=100, min_requests=20),
    CanaryStep(percent=25, min_requests=50, min_callers=20, min_duration=120, max_callers=50),
    CanaryStep(percent=50, min_requests=50, min_duration=120),
]
EVERY_STEP: list[Step] = [
    ShadowStep(percent=100, min_requests=20),
    TargetStep(min_requests=10),
    CanaryStep(percent=5, min_requests=50, min_callers=20, min_duration=120, max_callers=50),
    ApproveStep(by="grace"),
    CanaryStep(percent=50, min_requests=50, min_duration=120),
    PauseStep(duration=600),
    PromoteStep(),
]
_STABLE = ArmStats(
    requests=112,
    errors=0,
    callers=58,
    ttft_p50=0.118,
    ttft_p90=0.31,
    ttft_p99=0.92,
    inter_token_p50=0.0121,
    inter_token_p90=0.0184,
    inter_token_p99=0.031,
    total_p50=1.21,
    total_p90=2.13,
    total_p99=3.4,
)
_CANDIDATE = ArmStats(
    requests=37,
    errors=1,
    callers=19,
    ttft_p50=0.121,
    ttft_p90=0.35,
    ttft_p99=1.24,
    inter_token_p50=0.0119,
    inter_token_p90=0.0191,
    inter_token_p99=0.047,
    total_p50=1.34,
    total_p90=2.24,
    total_p99=5.2,
)


def spread(arm: ArmStats, key: str, low: float, high: float) -> list[int]:
    """Counts of a latency as they look, with the arm's median and p90: a normal of logarithms, and a tail."""
    median, tail = getattr(arm, f"{key}_p50"), getattr(arm, f"{key}_p90")
    middle, sigma = math.log(median), max(0.05, math.log(tail / median) / 1.2816)
    edges = [math.log(low) + (math.log(high) - math.log(low)) * i / 24 for i in range(25)]
    below = [0.5 * (1 + math.erf((edge - middle) / (sigma * math.sqrt(2)))) for edge in edges]
    exact = [arm.requests * (b - a) for a, b in itertools.pairwise(below)]
    counts, carried = [], 0.0
    for value in exact:
        carried += value
        counts.append(int(carried))
        carried -= int(carried)
    last = getattr(arm, f"{key}_p99")
    counts[min(23, int(24 * math.log(last / low) / math.log(high / low)))] += 1
    return counts


def distributions(
    stable: ArmStats = _STABLE, other: ArmStats = _CANDIDATE, name: str = "candidate"
) -> dict[str, Distribution]:
    ranges = {"ttft": (0.02, 2.0), "inter_token": (0.005, 0.08), "total": (0.3, 8.0)}
    return {
        key: Distribution(
            low=low,
            high=high,
            counts={"stable": spread(stable, key, low, high), name: spread(other, key, low, high)},
        )
        for key, (low, high) in ranges.items()
    }


def readings() -> list[GuardReading]:
    """Two hold, and one can't say yet."""
    seen = partial(Evidence, requests=37, callers=19, stable_requests=112, stable_callers=58, confidence=0.99)
    return [
        GuardReading(
            guard=GUARDS[0],
            verdict=Pass(
                reason="error rate of v4 is 0.9 points under to 11.2 points over v3's at 99 %; limit 3 points; "
                "37 requests of 19 callers"
            ),
            evidence=seen(unit="points", limit=0.03, estimate=0.027, low=-0.009, high=0.112, missing=310),
        ),
        GuardReading(
            guard=GUARDS[1],
            verdict=Pass(
                reason="TTFT p90 of v4 is 0.81 to 1.41 times v3's at 99 %; limit 2; 37 requests of 19 callers"
            ),
            evidence=seen(unit="ratio", limit=2.0, estimate=1.13, low=0.81, high=1.41, missing=0),
        ),
        GuardReading(
            guard=GUARDS[2],
            verdict=Starved(reason="37 of 50 requests on the candidate so far."),
            evidence=seen(unit="ratio", limit=1.5, estimate=1.05, low=0.62, missing=13),
        ),
    ]


def plan(
    steps: list[Step], placement: str = "share", seconds: tuple[float | None, ...] = (60, 200, 120)
) -> RolloutPlan:
    known = [s for s in seconds if s is not None]
    return RolloutPlan(
        deployment="chat",
        from_version=3,
        to_version=4,
        fits=True,
        placement=placement,  # type: ignore[arg-type]
        says="v4 runs on GPU 0, beside v3, with 20 GiB of it.",
        steps=[PlannedStep(step=s, seconds=x) for s, x in zip(steps, seconds, strict=False)],
        seconds=sum(known) if len(known) == len(seconds) else None,
        requests_per_hour=33000,
        callers=240,
    )


def rollout(name: str = "chat-v4", **changes: object) -> Rollout:
    spec = RolloutSpec(kind="rollout", name=name, deployment="chat", to=4, steps=STEPS, guards=GUARDS)
    made = Rollout(
        name=name,
        created_at=ago(400),
        spec=spec,
        deployment="chat",
        from_version=3,
        to_version=4,
        state=Stepping(step=1, since=ago(72)),
        arms={"stable": _STABLE, "candidate": _CANDIDATE},
        readings=readings(),
        distributions=distributions(),
        exposure=Exposure(requests=37, errors=1, callers=19),
        plan=plan(STEPS),
        started_by="ada",
    )
    return made.model_copy(update=changes)


def at_step(step: int, **changes: object) -> Rollout:
    """A rollout with a step of each kind, at one of them."""
    spec = rollout().spec.model_copy(
        update={
            "steps": EVERY_STEP,
            "targets": [Target(header="x-team", value="internal"), Target(key="testers")],
            "hold_limit": 86400.0,
        }
    )
    planned = plan(EVERY_STEP, seconds=(60, 480, 200, None, 120, 600, None))
    made = rollout(spec=spec, plan=planned, state=Stepping(step=step, since=ago(72)))
    return made.model_copy(update=changes)


def shadowed() -> Rollout:
    """In its shadow step, with devices shared and stable watched for what it suffers."""
    stable_guard = Guard(metric="ttft", limit=1.25)
    seen = Evidence(unit="ratio", limit=1.25, estimate=1.06, low=0.97, high=1.16, requests=61, callers=40, missing=0)
    return at_step(
        0,
        arms={"stable": _STABLE, "shadow": _CANDIDATE},
        distributions=distributions(name="shadow"),
        exposure=Exposure(),
        readings=readings()[:2],
        contention=[
            GuardReading(
                guard=stable_guard,
                verdict=Pass(reason="TTFT p90 of v3 is 0.97 to 1.16 times what it was before; limit 1.25; 61 requests"),
                evidence=seen,
            )
        ],
    )


def starved() -> Rollout:
    """Held for want of traffic, as shadow."""
    because = "starved: 37 of 50 requests after 1h"
    return rollout(state=Paused(step=1, since=ago(600), because=because, exposure="shadow"))


def failing() -> Rollout:
    """Rolled back by a guard, a while ago."""
    slow = _CANDIDATE.model_copy(
        update={
            "requests": 412,
            "callers": 87,
            "inter_token_p50": 0.0171,
            "inter_token_p90": 0.027,
            "inter_token_p99": 0.06,
        }
    )
    guard = Guard(metric="inter_token", quantile=0.95, limit=1.2)
    reason = "inter-token p95 of v4 is 1.31 to 1.58 times v3's at 99 %; limit 1.20; 412 requests of 87 callers"
    seen = Evidence(
        unit="ratio",
        limit=1.2,
        estimate=1.44,
        low=1.31,
        high=1.58,
        requests=412,
        callers=87,
        missing=0,
        confidence=0.99,
    )
    guards = [*GUARDS[:2], guard]
    many = _STABLE.model_copy(update={"requests": 1240, "callers": 260})
    return rollout(
        spec=rollout().spec.model_copy(update={"guards": guards}),
        arms={"stable": many, "candidate": slow},
        distributions=distributions(many, slow),
        readings=[*readings()[:2], GuardReading(guard=guard, verdict=Fail(reason=reason), evidence=seen)],
        state=RolledBack(finished_at=ago(240), because=reason),
        exposure=Exposure(requests=449, errors=1, callers=101),
        verdict_at=ago(240.43),
        restored_at=ago(240.39),
    )


def promoted(warm_seconds: float = 400) -> Rollout:
    """All traffic has the new version; the old one stands by for a while."""
    passed = Pass(reason="total p90 of v4 is 0.94 to 1.17 times v3's at 99 %; limit 1.5; 88 requests of 40 callers")
    seen = Evidence(unit="ratio", limit=1.5, estimate=1.05, low=0.94, high=1.17, requests=88, callers=40, missing=0)
    return rollout(
        readings=[*readings()[:2], GuardReading(guard=GUARDS[2], verdict=passed, evidence=seen)],
        state=Promoted(finished_at=ago(200), warm_until=ago(-warm_seconds)),
        exposure=Exposure(requests=2210, errors=4, callers=312),
        decided=Decision(verb="promote", by="grace", at=ago(205)),
    )
