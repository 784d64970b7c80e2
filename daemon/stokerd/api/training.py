"""Routes of datasets and runs."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Annotated

from fastapi import APIRouter, Query
from fastapi import Path as PathParameter
from fastapi.responses import FileResponse
from pydantic import Field

from stoker.types.base import NAME_PATTERN, Strict
from stoker.types.training import DatasetVersion, MetricPoint, Run
from stokerd.store.store import Store
from stokerd.tracking.reader import Tracking, artifact, artifacts
from stokerd.training.datasets import Datasets
from stokerd.training.jobs import Jobs


class SnapshotRequest(Strict):
    """Which folder or file to keep."""

    path: Path


class RunRequest(Strict):
    """Params over the job's own."""

    params: dict[str, str | int | float | bool] = Field(default={})


class MetricsAnswer(Strict):
    """Points, and the index to go on from."""

    points: list[MetricPoint]
    next: int


class Artifact(Strict):
    """One file that a run logged; ``path`` is relative, ``bytes`` its size."""

    path: str
    bytes: int


def router(store: Store, datasets: Datasets, jobs: Jobs, tracking: Tracking) -> APIRouter:
    """Routes of training."""
    routes = APIRouter(prefix="/v1", tags=["training"])

    async def folder_of(name: str) -> Path:
        return Path((await store.read(lambda q: q.get(Run, name))).folder)

    @routes.post("/datasets/{name}/versions", status_code=201)
    async def snapshot(
        name: Annotated[str, PathParameter(pattern=NAME_PATTERN)], body: SnapshotRequest
    ) -> DatasetVersion:
        """Keep a folder as the next version of a dataset; the same content gives the version that has it."""
        return await datasets.snapshot(name, body.path)

    @routes.post("/jobs/{name}/runs", status_code=201)
    async def start_run(name: str, body: RunRequest | None = None) -> Run:
        """Queue a run of a job."""
        return await jobs.create_run(name, dict(body.params) if body else {})

    @routes.post("/runs/{name}/cancel")
    async def cancel(name: str) -> Run:
        """Ask for the end of a run."""
        return await jobs.cancel(name)

    @routes.get("/runs/{name}/metrics")
    async def metrics(name: str, after: Annotated[int, Query(ge=0)] = 0, key: str | None = None) -> MetricsAnswer:
        """What a run logged, from index *after* on."""
        points, following = await tracking.points(await folder_of(name), after=after, key=key)
        return MetricsAnswer(points=points, next=following)

    @routes.get("/runs/{name}/artifacts")
    async def list_artifacts(name: str) -> list[Artifact]:
        """The files that a run logged."""
        found = await asyncio.to_thread(lambda folder: list(artifacts(folder)), await folder_of(name))
        return [Artifact(path=path, bytes=size) for path, size in found]

    @routes.get("/runs/{name}/artifacts/{path:path}", response_class=FileResponse)
    async def get_artifact(name: str, path: str) -> FileResponse:
        """One file that a run logged."""
        return FileResponse(artifact(await folder_of(name), path), media_type="application/octet-stream")

    return routes
