from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any

import pytest

from stokerd.gateway.wire import Record
from stokerd.telemetry.metrics import Metrics

DAY = 86400.0


def make_record(
    seq: int = 1,
    time: float = 1000.0,
    *,
    deployment: str = "chat",
    arm: str = "stable",
    version: int = 1,
    is_error: bool = False,
    client_gone: bool = False,
    ttft: float | None = 0.25,
    inter_token: float | None = 0.015625,
    total: float = 1.5,
    prompt_tokens: int | None = 7,
    completion_tokens: int | None = 11,
) -> Record:
    return Record(
        seq=seq,
        time=time,
        deployment=deployment,
        arm=arm,
        version=version,
        address="unix:/run/s/a",
        path="/v1/chat/completions",
        status=500 if is_error else 200,
        is_error=is_error,
        is_stream=True,
        client_gone=client_gone,
        fell_back=False,
        ttft_seconds=ttft,
        inter_token_seconds=inter_token,
        total_seconds=total,
        prompt_tokens=prompt_tokens,
        completion_tokens=completion_tokens,
        table_version=3,
    )


@pytest.fixture(scope="session")
def record() -> Callable[..., Record]:
    """Makes records."""
    return make_record


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "metrics.db"


@pytest.fixture
def open_metrics(path: Path) -> Iterator[Callable[..., Metrics]]:
    """Opens `path`; closed at the end of the test."""
    opened: list[Metrics] = []

    def open_(
        at: Path = path, *, max_age_seconds: float = 1e12, max_bytes: int = 10**9, reserve_bytes: int = 0
    ) -> Metrics:
        opened.append(Metrics(at, max_age_seconds=max_age_seconds, max_bytes=max_bytes, reserve_bytes=reserve_bytes))
        return opened[-1]

    yield open_
    for metrics in opened:
        metrics.close()


@pytest.fixture
def metrics(open_metrics: Callable[..., Metrics]) -> Metrics:
    return open_metrics()


@pytest.fixture(scope="session")
def run() -> Iterator[Callable[[Coroutine[Any, Any, Any]], Any]]:
    """Runs a coroutine to its end, in one loop for all tests."""
    with asyncio.Runner() as runner:
        yield runner.run
