from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any, Protocol, TypeVar

import pytest

from stokerd.gateway.wire import PairedAnswer, Record, ShadowPair
from stokerd.telemetry.metrics import Metrics

T = TypeVar("T")
DAY = 86400.0
MakeRecord = Callable[..., Record]
MakePair = Callable[..., ShadowPair]
OpenMetrics = Callable[..., Metrics]


class Run(Protocol):
    """Runs a coroutine to its end."""

    def __call__(self, coroutine: Coroutine[Any, Any, T], /) -> T: ...


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
        max_gap_seconds=0.0625,
        finish_reason="stop",
        request_bytes=120,
        response_bytes=4096,
        caller="0123456789abcdef",
        key="team",
        queued_seconds=0.125,
        trace="4bf92f3577b34da6a3ce929d0e0e4736",
    )


def make_pair(seq: int = 1, time: float = 1000.0, *, rollout: str = "chat-2", text: str = "Héllo ✓") -> ShadowPair:
    stable = PairedAnswer(1, 200, False, "stop", 0.25, 1.5, 3, text, False)
    shadow = PairedAnswer(2, 0, True, "", None, 2.5, None, "", True)
    return ShadowPair(seq, time, "chat", rollout, "/v1/completions", "0123456789abcdef", stable, shadow, f"Ñ {seq}?")


@pytest.fixture(scope="session")
def record() -> MakeRecord:
    """Makes records."""
    return make_record


@pytest.fixture(scope="session")
def pair() -> MakePair:
    """Makes pairs of answers."""
    return make_pair


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "metrics.db"


@pytest.fixture
def open_metrics(path: Path) -> Iterator[OpenMetrics]:
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
def metrics(open_metrics: OpenMetrics) -> Metrics:
    return open_metrics()


@pytest.fixture(scope="session")
def run() -> Iterator[Run]:
    """In one loop for all tests."""
    with asyncio.Runner() as runner:
        yield runner.run
