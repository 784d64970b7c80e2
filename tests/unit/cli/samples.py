"""Resources as the daemon would have them."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from stoker.types.base import now
from stoker.types.registry import Lineage, Model, ModelSpec, Version
from stoker.types.rollouts import (
    ArmStats,
    Guard,
    GuardReading,
    Pass,
    Promoted,
    RolledBack,
    Rollout,
    RolloutSpec,
    Starved,
    Step,
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
        "rolled-back": RolledBack(finished_at=now(), because="errors: 9 of 20 failed."),
    }
    is_bad = phase == "rolled-back"
    spec = RolloutSpec(
        kind="rollout",
        name=name,
        deployment="chat",
        to=2,
        steps=[Step(type="shadow", percent=10), Step(type="canary", percent=25, min_duration=300)],
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
        candidate_errors=9 if is_bad else 0,
        verdict_at=now() - timedelta(seconds=2) if is_bad else None,
        restored_at=now() - timedelta(seconds=1.96) if is_bad else None,
    )
