"""Tables of state.db. A row is a resource's key columns, for queries, beside the whole of it as JSON."""

from __future__ import annotations

from typing import Any

from sqlalchemy import JSON, Column
from sqlmodel import Field, SQLModel

from stoker.types.base import Resource
from stoker.types.keys import ApiKey
from stoker.types.registry import Evaluation, Model, Version
from stoker.types.rollouts import Rollout
from stoker.types.serving import Deployment, Replica
from stoker.types.training import Dataset, DatasetVersion, Job, Run, Schedule


class EventRow(SQLModel, table=True):
    """The event log: append-only, numbered in commit order."""

    __tablename__ = "event"

    id: int | None = Field(default=None, primary_key=True, sa_column_kwargs={"autoincrement": True})
    time: str
    kind: str = Field(index=True)
    name: str = Field(index=True)
    reason: str
    message: str
    data: dict[str, Any] = Field(default_factory=dict, sa_column=Column(JSON, nullable=False))

    __table_args__ = ({"sqlite_autoincrement": True},)


class Row(SQLModel):
    """What every resource's table has."""

    name: str = Field(primary_key=True)
    created_at: str
    document: str


class DatasetRow(Row, table=True):
    """Datasets."""

    __tablename__ = "dataset"


class DatasetVersionRow(Row, table=True):
    """Snapshots; the database refuses to change one."""

    __tablename__ = "dataset_version"
    dataset: str = Field(index=True)
    number: int
    digest: str = Field(index=True)


class JobRow(Row, table=True):
    """Jobs."""

    __tablename__ = "job"


class ScheduleRow(Row, table=True):
    """Schedules."""

    __tablename__ = "schedule"


class RunRow(Row, table=True):
    """Runs."""

    __tablename__ = "run"
    job: str = Field(index=True)
    number: int
    phase: str = Field(index=True)
    trigger: str


class ModelRow(Row, table=True):
    """Registered models."""

    __tablename__ = "model"


class VersionRow(Row, table=True):
    """Versions; the database refuses to change one."""

    __tablename__ = "version"
    model: str = Field(index=True)
    number: int
    digest: str = Field(index=True)


class EvaluationRow(Row, table=True):
    """What was found of versions."""

    __tablename__ = "evaluation"
    model: str = Field(index=True)
    number: int


class DeploymentRow(Row, table=True):
    """Deployments."""

    __tablename__ = "deployment"


class ReplicaRow(Row, table=True):
    """Replicas that exist now."""

    __tablename__ = "replica"
    deployment: str = Field(index=True)
    version: int
    phase: str


class ApiKeyRow(Row, table=True):
    """API keys, by their hashes."""

    __tablename__ = "api_key"
    digest: str = Field(unique=True)


class RolloutRow(Row, table=True):
    """Rollouts, past and present."""

    __tablename__ = "rollout"
    deployment: str = Field(index=True)
    phase: str = Field(index=True)


ROWS: dict[type[Resource], type[Row]] = {
    Dataset: DatasetRow,
    DatasetVersion: DatasetVersionRow,
    Job: JobRow,
    Schedule: ScheduleRow,
    Run: RunRow,
    Model: ModelRow,
    Version: VersionRow,
    Evaluation: EvaluationRow,
    Deployment: DeploymentRow,
    Replica: ReplicaRow,
    Rollout: RolloutRow,
    ApiKey: ApiKeyRow,
}
KINDS: dict[str, type[Resource]] = {r.plural: r for r in ROWS}
