"""Datasets, jobs, schedules, runs."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, model_validator

from stoker.types.base import Bytes, Name, Resource, Seconds, Spec, State, Strict, Time, now
from stoker.types.supervision import Limits


class Dataset(Resource):
    """A named body of files with its immutable snapshots."""

    kind: ClassVar[str] = "dataset"
    plural: ClassVar[str] = "datasets"

    latest: int = Field(default=0, description="number of the newest version; 0 before the first")


class DatasetVersion(Resource):
    """An immutable snapshot, named ``dataset@number``; ``digest`` is the hash of its manifest."""

    kind: ClassVar[str] = "dataset-version"
    plural: ClassVar[str] = "dataset-versions"

    dataset: str
    number: int
    digest: str = Field(description="sha256 of the manifest, hex")
    files: int
    bytes: int
    source: str = Field(description="absolute path that was snapshotted")


class Register(Spec):
    """What to register when a run succeeds."""

    model: Name
    path: str = Field(default="model", description="folder of weights, relative to the run's output folder")
    aliases: list[Name] = []


class JobSpec(Spec):
    """A training program and what it needs. Paths are relative to the spec file, made absolute by the CLI."""

    kind: Literal["job"]
    name: Name
    command: list[str] = Field(
        min_length=1,
        description="argv; {python}, {dataset}, {code}, {output}, {params.NAME} are filled in; runs in the code's copy",
    )
    code: str | None = Field(default=None, description="folder of the program; snapshotted with each run")
    python: str | None = Field(default=None, description="interpreter for {python}; default: configured train_python")
    dataset: str | None = Field(default=None, description="dataset, or dataset@number; default number: the latest")
    base: str | None = Field(default=None, description="model@version or model@alias that {base} points to")
    params: dict[str, str | int | float | bool] = {}
    env: dict[str, str] = {}
    timeout: Seconds | None = Field(default=None, description="per attempt; then the whole process tree is killed")
    retries: int = Field(default=0, ge=0, le=100)
    backoff: Seconds = Field(default=10.0, description="before the first retry; doubles with each, capped at 10 min")
    checkpoint: str | None = Field(
        default=None,
        description="glob in the output folder; a retry finds the newest match as {checkpoint} and STOKER_CHECKPOINT",
    )
    devices: int = Field(default=0, ge=0, description="GPUs that a run needs")
    device_memory: Bytes | None = Field(
        default=None, ge=1 << 20, description="of each of them, the rest being left to others; else the whole device"
    )
    limits: Limits = Limits()
    registers: Register | None = None


class Job(Resource):
    """A training spec, kept."""

    kind: ClassVar[str] = "job"
    plural: ClassVar[str] = "jobs"

    spec: JobSpec
    runs: int = Field(default=0, description="how many runs it has had; numbers the next")


class ScheduleSpec(Spec):
    """When a job fires: exactly one of cron, interval, date."""

    kind: Literal["schedule"]
    name: Name
    job: Name
    cron: str | None = Field(default=None, description="five crontab fields")
    interval: Seconds | None = Field(default=None, ge=1)
    date: Time | None = None
    timezone: str = "UTC"
    misfire: Literal["skip", "once", "all"] = Field(
        default="once", description="what to do with firings missed while the daemon was away"
    )
    params: dict[str, str | int | float | bool] = {}
    paused: bool = False

    @model_validator(mode="after")
    def _one_trigger(self) -> ScheduleSpec:
        if sum(x is not None for x in (self.cron, self.interval, self.date)) != 1:
            raise ValueError("expected exactly one of cron, interval, date")
        return self


class Schedule(Resource):
    """A schedule, kept, with the moment it last fired."""

    kind: ClassVar[str] = "schedule"
    plural: ClassVar[str] = "schedules"

    spec: ScheduleSpec
    spec_set_at: Time = Field(default_factory=now, description="no firing before this moment is made up for")
    last_fired_at: Time | None = None
    next_fire_at: Time | None = None


class Queued(State):
    """Waits for its turn: for a free slot or device, or for its retry's moment."""

    phase: Literal["queued"] = "queued"
    not_before: Time = Field(default_factory=now)
    why: str = ""


class Running(State):
    """Its process is wanted and supervised under the id ``process``."""

    phase: Literal["running"] = "running"
    process: str
    started_at: Time


class Cancelling(State):
    """Its process tree is being stopped."""

    phase: Literal["cancelling"] = "cancelling"
    process: str
    started_at: Time
    because: Literal["cancelled", "timeout"]


class Succeeded(State):
    """Ended with exit code 0, its outputs registered."""

    phase: Literal["succeeded"] = "succeeded"
    started_at: Time
    finished_at: Time
    registered: str | None = Field(default=None, description="model@number, when the job registers one")


class Failed(State):
    """Ended otherwise, and no retry is left."""

    phase: Literal["failed"] = "failed"
    started_at: Time | None = None
    finished_at: Time
    message: str
    exit_code: int | None = None
    signal: int | None = None


class RunLost(State):
    """Cut off, by the end of the machine, of its supervisor or of all that ran, so that its exit status, if there is
    one, says nothing; no retry is left.
    """

    phase: Literal["lost"] = "lost"
    started_at: Time
    finished_at: Time
    message: str


class Cancelled(State):
    """Stopped by a person."""

    phase: Literal["cancelled"] = "cancelled"
    finished_at: Time


RunState = Annotated[
    Queued | Running | Cancelling | Succeeded | Failed | RunLost | Cancelled, Field(discriminator="phase")
]


ACTIVE_PHASES = frozenset({"queued", "running", "cancelling"})


class Run(Resource):
    """One execution of a job, named ``job-number``; all that is needed to do it again is frozen in it."""

    kind: ClassVar[str] = "run"
    plural: ClassVar[str] = "runs"

    job: str
    number: int
    spec: JobSpec
    params: dict[str, str | int | float | bool] = {}
    trigger: str = Field(default="manual", description="manual, or schedule:NAME")
    attempt: int = 1
    code_digest: str | None = None
    code_commit: str | None = Field(default=None, description="git commit of the code's folder, '+dirty' if changed")
    dataset_version: str | None = Field(default=None, description="dataset@number")
    dataset_digest: str | None = None
    base_version: str | None = Field(default=None, description="model@number")
    environment: dict[str, Any] = Field(default_factory=dict, description="python, platform, packages_digest")
    devices: list[str] = Field(default=[], description="UUIDs of the GPUs that it holds now")
    checkpoint: str | None = Field(default=None, description="absolute path that this attempt goes on from")
    state: RunState = Field(default_factory=Queued)
    folder: str = Field(default="", description="absolute path of the run's folder")

    @property
    def phase(self) -> str:
        """Shorthand for ``state.phase``."""
        return self.state.phase


class MetricPoint(Strict):
    """One value of one metric of a run."""

    key: str
    step: int
    value: float
    time: Time
