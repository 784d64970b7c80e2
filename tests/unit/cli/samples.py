"""Resources as the daemon would have them."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from stoker.types.base import now
from stoker.types.registry import Evaluation, Lineage, Model, ModelSpec, Version
from stoker.types.rollouts import (
    DEFAULT_STEPS,
    Aborted,
    ApproveStep,
    ArmStats,
    CanaryStep,
    Decision,
    Evidence,
    Exposure,
    Fail,
    Guard,
    GuardReading,
    Pass,
    PlannedStep,
    Promoted,
    Returning,
    RolledBack,
    Rollout,
    RolloutPlan,
    RolloutSpec,
    ShadowStep,
    Starved,
    Stepping,
)
from stoker.types.serving import CommandEngine, Deployment, DeploymentSpec, Ready, Replica
from stoker.types.training import Failed, Job, JobSpec, Queued, Run, Running, Succeeded


def job(name: str = "tune", **more: Any) -> Job:
    spec = JobSpec(kind="job", name=name, command=["{python}", "train.py"], params={"lr": 0.1}, **more)
    return Job(name=name, spec=spec)


def run(number: int = 1, phase: str = "queued", job_name: str = "tune") -> Run:
    began = now() - timedelta(seconds=200)
    states: dict[str, Any] = {
        "queued": Queued(),
        "running": Running(process="p", started_at=began),
        "succeeded": Succeeded(started_at=began, finished_at=now(), registered="smol@2"),
        "failed": Failed(started_at=began, finished_at=now(), message="it ended with exit code 3.", exit_code=3),
    }
    name = f"{job_name}-{number}"
    return Run(name=name, job=job_name, number=number, spec=job(job_name).spec, state=states[phase])


def model() -> Model:
    spec = ModelSpec(kind="model", name="smol", description="a small one")
    return Model(name="smol", spec=spec, latest=2, aliases={"champion": 1})


def version(number: int = 1) -> Version:
    return Version(
        name=f"smol@{number}",
        model="smol",
        number=number,
        digest="ab" * 32,
        files=3,
        bytes=280_000_000,
        folder="/content/x",
        lineage=Lineage(run="tune-1", params={"lr": 0.1}, metrics={"loss": 0.5}),
    )


def deployment(name: str = "chat", rollout: str | None = None) -> Deployment:
    engine = CommandEngine(type="command", command=["serve", "{socket}"])
    spec = DeploymentSpec(kind="deployment", name=name, model="smol", version=1, engine=engine)
    return Deployment(name=name, spec=spec, version=1, phase="ready", rollout=rollout)


def replica(index: int = 0) -> Replica:
    state = Ready(process="p", since=now())
    return Replica(name=f"chat-v1-{index}", deployment="chat", version=1, index=index, starts=1, state=state)


def rollout(name: str = "chat-1", phase: str = "stepping") -> Rollout:
    began = now() - timedelta(seconds=90)
    states: dict[str, Any] = {
        "stepping": Stepping(step=1, since=began),
        "promoted": Promoted(finished_at=now()),
        "returning": Returning(since=now(), because="alice said rollback."),
        "aborted": Aborted(finished_at=now(), because="alice said rollback."),
        "rolled-back": RolledBack(finished_at=now(), because="errors: 9 of 20 failed."),
    }
    is_bad = phase == "rolled-back"
    spec = RolloutSpec(
        kind="rollout",
        name=name,
        deployment="chat",
        to=2,
        steps=[ShadowStep(percent=10), CanaryStep(percent=25, min_duration=300)],
    )
    return Rollout(
        name=name,
        created_at=began,
        spec=spec,
        deployment="chat",
        from_version=1,
        to_version=2,
        state=states[phase],
        arms={
            "stable": ArmStats(requests=120, errors=1, ttft_p50=0.02, ttft_p90=0.03, total_p90=1.25),
            "candidate": ArmStats(requests=40),
        },
        readings=[
            GuardReading(guard=Guard(metric="error_rate", limit=0.02), verdict=Pass(reason="0 points over stable.")),
            GuardReading(guard=Guard(metric="ttft", limit=2), verdict=Starved(reason="4 of 8 requests.")),
        ],
        exposure=Exposure(requests=9, errors=9) if is_bad else Exposure(),
        verdict_at=now() - timedelta(seconds=2) if is_bad else None,
        restored_at=now() - timedelta(seconds=1.96) if is_bad else None,
    )


def readings() -> list[GuardReading]:
    """A guard of each verdict, with its evidence."""
    slower = "inter-token p95 of v2 is 1.31 to 1.58 times v1's at 99 %; limit 1.20; 412 requests of 87 callers"
    few = "too few requests to judge the TTFT: 4 of v2 and 40 of v1; needed are 8 of either"
    proof = Evidence(
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
    points = Evidence(unit="points", limit=0.02, estimate=0.004, low=-0.011, high=0.019, requests=412, confidence=0.99)
    return [
        GuardReading(
            guard=Guard(metric="error_rate", limit=0.02),
            verdict=Pass(reason="0.4 points over stable."),
            evidence=points,
        ),
        GuardReading(
            guard=Guard(metric="inter_token", limit=1.2, quantile=0.95), verdict=Fail(reason=slower), evidence=proof
        ),
        GuardReading(
            guard=Guard(metric="ttft", limit=1.5),
            verdict=Starved(reason=few),
            evidence=Evidence(unit="ratio", limit=1.5, low=0.6, missing=120, confidence=0.99),
        ),
    ]


def arms() -> dict[str, ArmStats]:
    """Two arms with all their numbers."""
    latencies = {"ttft_p50": 0.02, "ttft_p90": 0.03, "ttft_p99": 0.045, "inter_token_p50": 0.012}
    latencies |= {
        "inter_token_p90": 0.015,
        "inter_token_p99": 0.1,
        "total_p50": 0.8,
        "total_p90": 1.25,
        "total_p99": 3.2,
    }
    slower = {k: 1.4 * v for k, v in latencies.items()}
    return {
        "candidate": ArmStats(requests=412, errors=3, callers=87, **slower),
        "stable": ArmStats(requests=1240, errors=12, callers=230, **latencies),
    }


def plan(*, fits: bool = True) -> RolloutPlan:
    """Where version 2 would run, and how long it would take."""
    no_room = "it needs 1 GPU, and run/tune-3 holds the only one; placement: swap would work"
    where = "v2 runs beside v1 on GPU 1, which is free." if fits else no_room
    steps = [PlannedStep(step=s, seconds=600, requests_per_hour=120) for s in DEFAULT_STEPS[:2]]
    return RolloutPlan(
        deployment="chat",
        from_version=1,
        to_version=2,
        fits=fits,
        placement="beside",
        says=where,
        steps=[
            *steps,
            PlannedStep(step=DEFAULT_STEPS[3], requests_per_hour=0.4, says="would starve: 4 of 100 requests in 1h"),
            PlannedStep(step=ApproveStep(by="ann")),
        ],
        seconds=7500,
        requests_per_hour=1200,
        callers=87,
        way_back="Version 1 keeps running: back at once.",
        warnings=["max_callers bounds callers who can be told apart; half of the requests are anonymous."],
    )


def judged(phase: str = "stepping") -> Rollout:
    """A rollout with all that can be known of one."""
    guard = Guard(metric="total", limit=1.5)
    crowded = GuardReading(guard=guard, verdict=Fail(reason="total p90 of v1 is 1.6 times what it was before."))
    more = {
        "readings": readings(),
        "arms": arms(),
        "plan": plan(),
        "exposure": Exposure(requests=412, errors=3, callers=87),
        "contention": [crowded],
        "started_by": "alice",
        "decided": Decision(verb="resume", by="bob", at=now() - timedelta(seconds=30)),
    }
    return rollout(phase=phase).model_copy(update=more)


def evaluation(metric: str = "helpfulness", **more: Any) -> Evaluation:
    return Evaluation(name=f"smol@2:{metric}", model="smol", number=2, metric=metric, by="alice", **more)
