from __future__ import annotations

import time
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from stokerd.telemetry import retention
from stokerd.telemetry.metrics import Metrics, Sample
from stokerd.telemetry.retention import Extent, cutoff
from tests.unit.telemetry.conftest import MakeRecord, OpenMetrics, Run

BOUND = 2**18  # bytes


def samples(name: str, times: range, now: float) -> list[Sample]:
    return [Sample(name, "", (), now - t, t + 0.5) for t in times]


def times(run: Run, metrics: Metrics, name: str) -> list[int]:
    found = run(metrics.series(name, since=0, until=time.time() + 1e6, max_points=10**6))
    return [round(v - 0.5) for s in found for _, v in s.points]


def test_what_is_older_than_the_age_is_forgotten_and_the_rest_stays(
    run: Run, open_metrics: OpenMetrics, record: MakeRecord
) -> None:
    now = time.time()
    metrics = open_metrics(max_age_seconds=100)
    run(metrics.write_samples(samples("host.a", range(0, 200, 10), now) + samples("host.old", range(150, 160), now)))
    run(metrics.write_records("e", [record(s, now - 200 + s, total=10.0) for s in (1, 80, 95, 150)]))
    run(metrics.trim())
    assert times(run, metrics, "host.a") == [90, 80, 70, 60, 50, 40, 30, 20, 10, 0]
    assert run(metrics.series("host.old", since=0, until=now, max_points=9)) == []
    assert [r.seq for r in run(metrics.records("chat", since=0))] == [95, 150]  # by the end of the answer
    assert run(metrics.last_record("e")) == 150


def test_a_puller_knows_its_place_after_all_records_of_its_gateway_are_forgotten(
    run: Run, open_metrics: OpenMetrics, record: MakeRecord
) -> None:
    metrics = open_metrics(max_age_seconds=100)
    run(metrics.write_records("e", [record(7, time.time() - 5000)]))
    run(metrics.trim())
    assert run(metrics.records("chat", since=0)) == []
    assert run(metrics.last_record("e")) == 7


def test_series_and_sources_without_figures_are_forgotten_too(
    run: Run, open_metrics: OpenMetrics, record: MakeRecord
) -> None:
    metrics = open_metrics(max_age_seconds=100)
    run(metrics.write_samples(samples("host.a", range(500, 510), time.time())))
    run(metrics.write_records("e", [record(1, 1000.0)]))
    run(metrics.trim())
    assert run(metrics._database.read(retention.origins)) == []
    run(metrics.write_samples(samples("host.a", range(3), time.time())))  # and come again
    run(metrics.write_records("e", [record(2, time.time())]))
    assert times(run, metrics, "host.a") == [2, 1, 0]
    assert [r.seq for r in run(metrics.records("chat", since=0))] == [2]


def test_the_file_stays_within_its_bytes_and_the_oldest_goes_first(
    run: Run, open_metrics: OpenMetrics, path: Path, record: MakeRecord
) -> None:
    now = time.time()
    metrics = open_metrics()
    for name in ("host.a", "host.b"):
        run(metrics.write_samples(samples(name, range(10_000), now)))
    run(metrics.write_records("e", [record(s, now - s) for s in range(1, 5_000)]))
    metrics.close()
    assert path.stat().st_size > 2 * BOUND
    metrics = open_metrics(max_bytes=BOUND)
    run(metrics.trim())
    kept_a, kept_b = times(run, metrics, "host.a"), times(run, metrics, "host.b")
    records = run(metrics.records("chat", since=0, limit=10**6))
    assert kept_a == kept_b == list(range(len(kept_a)))[::-1]  # the newest, without a gap
    assert abs(len(records) - len(kept_a)) < 5  # of both kinds from the same time on
    metrics.close()
    assert BOUND / 2 < path.stat().st_size <= BOUND
    assert not list(path.parent.glob("*corrupt*"))


def test_one_figure_of_long_ago_does_not_save_the_mass_of_today(
    run: Run, open_metrics: OpenMetrics, path: Path
) -> None:
    now = time.time()
    metrics = open_metrics(max_bytes=BOUND)
    run(metrics.write_samples([*samples("host.a", range(20_000), now), Sample("host.b", "", (), 5.0, 1.0)]))
    run(metrics.trim())
    kept = times(run, metrics, "host.a")
    assert 1000 < len(kept) < 20_000
    assert kept == list(range(len(kept)))[::-1]
    metrics.close()
    assert path.stat().st_size <= BOUND


def test_a_bound_smaller_than_an_empty_file_ends_and_leaves_a_usable_one(run: Run, open_metrics: OpenMetrics) -> None:
    metrics = open_metrics(max_bytes=1)
    run(metrics.write_samples(samples("host.a", range(100), time.time())))
    run(metrics.trim())
    assert times(run, metrics, "host.a") == []
    run(metrics.write_samples(samples("host.a", range(2), time.time())))
    assert times(run, metrics, "host.a") == [1, 0]


ms = st.integers(0, 10**13)


@given(used=st.integers(1, 10**12), allowed=st.integers(1, 10**12), a=ms, b=ms, now=ms)
def test_every_cut_makes_progress_and_keeps_the_newest_if_it_can(
    used: int, allowed: int, a: int, b: int, now: int
) -> None:
    oldest, newest = sorted((a, b))
    found = Extent(file_bytes=used, used_bytes=used, oldest_ms=oldest, newest_ms=newest)
    before = cutoff(found, max_bytes=allowed, now_ms=now)
    if used <= retention.FILL * allowed:
        assert before is None
    else:
        assert before is not None
        assert oldest < before <= max(newest, oldest + 1)


def test_a_figure_from_a_clock_that_was_ahead_does_not_push_the_present_out() -> None:
    found = Extent(file_bytes=200, used_bytes=200, oldest_ms=1000, newest_ms=10**12)
    before = cutoff(found, max_bytes=100, now_ms=2000)
    assert before is not None
    assert before < 2000
