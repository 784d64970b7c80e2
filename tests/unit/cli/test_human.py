from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from stoker.cli import human

NOW = datetime(2026, 1, 31, 8, tzinfo=UTC)


@pytest.mark.parametrize(
    ("count", "text"),
    [(0, "0 B"), (1023, "1023 B"), (1024, "1.0 KiB"), (280_000_000, "267 MiB"), (1 << 60, "1024 PiB")],
)
def test_size(count: int, text: str) -> None:
    assert human.size(count) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0s"), (0.35, "350ms"), (2.25, "2.2s"), (59, "59s"), (60, "1m"), (200, "3m 20s"), (3600, "1h"),
        (7500, "2h 5m"), (90_000, "1d 1h"), (-60, "-1m"),
    ],
)  # fmt: skip
def test_span(seconds: float, text: str) -> None:
    assert human.span(seconds) == text


@pytest.mark.parametrize(
    ("seconds", "text"), [(0, "just now"), (5, "5s ago"), (150, "2m ago"), (-7200, "in 2h"), (200_000, "2d ago")]
)
def test_ago(seconds: float, text: str) -> None:
    assert human.ago(NOW - timedelta(seconds=seconds), NOW) == text


@pytest.mark.parametrize(
    ("seconds", "text"), [(None, "-"), (0.0023, "2.3 ms"), (0.0234, "23 ms"), (1.239, "1.24 s"), (75, "75.00 s")]
)
def test_latency(seconds: float | None, text: str) -> None:
    assert human.latency(seconds) == text


def test_share_and_count() -> None:
    assert (human.share(1, 0), human.share(1, 8)) == ("-", "12 %")
    assert (human.count(1, "run"), human.count(0, "run")) == ("1 run", "0 runs")
