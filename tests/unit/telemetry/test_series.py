from __future__ import annotations

import itertools
import math

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from stoker.errors import Invalid
from stoker.types.host import Series
from stokerd.telemetry import metrics as metrics_module
from stokerd.telemetry.metrics import Metrics, Sample
from stokerd.telemetry.series import bucket_width
from tests.unit.telemetry.conftest import OpenMetrics, Run

numbers = itertools.count()
many = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=50, deadline=None)


def sample(time: float, value: float, name: str = "host.load_1m", **labels: str) -> Sample:
    return Sample(name, "percent", tuple(labels.items()), time, value)


def test_what_was_written_is_read_with_its_unit_and_labels(run: Run, metrics: Metrics) -> None:
    run(metrics.write_samples([sample(10.5, 1.25, "device.power_watts", uuid="GPU-0", index="0")]))
    found = run(metrics.series("device.power_watts", since=0, until=20, max_points=10))
    assert found == [
        Series(name="device.power_watts", unit="percent", labels={"uuid": "GPU-0", "index": "0"}, points=[(10.5, 1.25)])
    ]


def test_what_is_kept_in_memory_is_read_too(run: Run, open_metrics: OpenMetrics) -> None:
    metrics = open_metrics()
    for time in range(5):
        metrics.keep([sample(time, 1), sample(time, 2, "host.disk_free_bytes")])
    found = run(metrics.series("host.*", since=0, until=20, max_points=10))
    assert [len(s.points) for s in found] == [5, 5]
    metrics.close()
    found = run(open_metrics().series("host.*", since=0, until=20, max_points=10))
    assert [len(s.points) for s in found] == [5, 5]


def test_what_is_stored_is_read_while_no_more_can_be_and_the_newest_of_what_is_kept_later(
    run: Run, open_metrics: OpenMetrics, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(metrics_module, "MOST_KEPT", 3)
    run(open_metrics().write_samples([sample(1, 1)]))
    full = open_metrics(reserve_bytes=1 << 62)
    for time in range(2, 7):
        full.keep([sample(time, time)])
    (found,) = run(full.series("host.load_1m", since=0, until=20, max_points=10))
    assert found.points == [(1, 1)]
    assert full.dropped == 2
    monkeypatch.setattr(full._database, "_reserve_bytes", 0)
    run(full.flush())
    (found,) = run(full.series("host.load_1m", since=0, until=20, max_points=10))
    assert found.points == [(1, 1), (4, 4), (5, 5), (6, 6)]


def test_the_order_of_labels_makes_no_other_series(run: Run, metrics: Metrics) -> None:
    run(metrics.write_samples([sample(1, 1, a="x", b="y"), sample(2, 2, b="y", a="x")]))
    (found,) = run(metrics.series("host.load_1m", since=0, until=9, max_points=9))
    assert found.points == [(1, 1), (2, 2)]


def test_a_star_at_the_end_finds_names_that_begin_so_and_only_those(run: Run, metrics: Metrics) -> None:
    names = ["host.a", "host.b", "Host.c", "hostile", "h*", "device.a"]
    run(metrics.write_samples([sample(1, 1, n) for n in names]))

    def found(name: str) -> list[str]:
        return [s.name for s in run(metrics.series(name, since=0, until=9, max_points=9))]

    assert found("host.*") == ["host.a", "host.b"]
    assert found("host.a") == ["host.a"]
    assert found("host") == []
    assert found("*") == sorted(names)
    assert found("h%") == found("host_a") == []


def test_since_and_until_are_included_and_a_series_without_points_is_left_out(run: Run, metrics: Metrics) -> None:
    run(metrics.write_samples([*(sample(t, t) for t in range(1, 6)), sample(99, 1, "host.late")]))
    found = run(metrics.series("host.*", since=2, until=4, max_points=9))
    assert [(s.name, s.points) for s in found] == [("host.load_1m", [(2, 2), (3, 3), (4, 4)])]
    assert run(metrics.series("host.*", since=4, until=2, max_points=9)) == []


def test_any_time_may_be_asked_for(run: Run, metrics: Metrics) -> None:
    run(metrics.write_samples([sample(1, 1)]))
    (found,) = run(metrics.series("host.load_1m", since=-math.inf, until=math.inf, max_points=1))
    assert found.points == [(1, 1)]


def test_a_value_that_is_no_number_is_dropped_and_the_others_stay(run: Run, metrics: Metrics) -> None:
    run(metrics.write_samples([sample(1, math.nan), sample(2, math.inf), sample(3, 3)]))
    run(metrics.write_samples([]))
    (found,) = run(metrics.series("host.load_1m", since=0, until=9, max_points=9))
    assert found.points == [(3, 3)]


def test_a_second_value_of_the_same_moment_replaces_the_first(run: Run, metrics: Metrics) -> None:
    run(metrics.write_samples([sample(1, 1), sample(1, 2)]))
    run(metrics.write_samples([sample(1, 3)]))
    (found,) = run(metrics.series("host.load_1m", since=0, until=9, max_points=9))
    assert found.points == [(1, 3)]


def test_no_points_can_not_be_asked_for(run: Run, metrics: Metrics) -> None:
    with pytest.raises(Invalid, match="max_points is 0"):
        run(metrics.series("host.load_1m", since=0, until=9, max_points=0))


def test_what_is_judged_is_what_was_measured_and_of_too_much_evenly_a_part(run: Run, metrics: Metrics) -> None:
    run(metrics.write_samples([sample(t, t % 7) for t in range(1000)]))

    def judged(most: int, until: float = 999) -> list[float]:
        return run(metrics.moments("host.load_1m", since=0, until=until, most=most))

    assert judged(1000) == [t % 7 for t in range(1000)]
    assert judged(999) == judged(500) == [t % 7 for t in range(0, 1000, 2)]
    assert judged(300) == [t % 7 for t in range(0, 1000, 4)]
    assert judged(300, until=800) == [t % 7 for t in range(0, 801, 4)]
    assert run(metrics.moments("host.cpu_percent", since=0, until=999, most=9)) == []


def test_of_several_devices_their_mean_at_each_moment_is_judged(run: Run, metrics: Metrics) -> None:
    for number, uuid in enumerate(("GPU-a", "GPU-b", "GPU-c")):
        run(metrics.write_samples([sample(t, 10 * number + t, "device.power_watts", uuid=uuid) for t in range(4)]))
    metrics.keep([sample(4, 7.0, "device.power_watts", uuid="GPU-b")])

    def judged(*devices: str) -> list[float]:
        return run(metrics.moments("device.power_watts", since=0, until=9, most=99, devices=devices))

    assert judged() == [10, 11, 12, 13, 7]
    assert judged("GPU-a", "GPU-b") == [5, 6, 7, 8, 7]
    assert judged("GPU-c") == [20, 21, 22, 23]
    assert judged("GPU-d") == []
    run(metrics.write_samples([sample(1, 1.0)]))
    assert run(metrics.moments("host.load_1m", since=0, until=9, most=99, devices=["GPU-a"])) == [1.0]


points = st.dictionaries(st.integers(0, 10_000), st.integers(-1000, 1000), min_size=1, max_size=60)


@many
@given(points=points, max_points=st.integers(1, 70))
def test_a_drawing_has_at_most_max_points_and_keeps_every_sample_in_them(
    run: Run, metrics: Metrics, points: dict[int, int], max_points: int
) -> None:
    name = f"example-{next(numbers)}"
    run(metrics.write_samples([sample(t, v, name) for t, v in points.items()]))
    (found,) = run(metrics.series(name, since=0, until=10_000, max_points=max_points))
    measured = sorted(points.items())
    assert len(found.points) <= max_points
    times = [t for t, _ in found.points]
    assert times == sorted(set(times))
    if len(measured) <= max_points:
        assert found.points == measured
        return
    width = bucket_width(measured[0][0] * 1000, measured[-1][0] * 1000, max_points)
    buckets: dict[int, list[tuple[float, float]]] = {}
    for t, v in measured:
        buckets.setdefault(t * 1000 // width, []).append((t, v))
    means = [tuple(sum(x) / len(x) for x in zip(*b, strict=True)) for _, b in sorted(buckets.items())]
    assert found.points == [pytest.approx(m) for m in means]


@given(st.integers(0, 10**13), st.integers(0, 10**10), st.integers(1, 10_000))
def test_buckets_of_the_width_given_are_never_too_many(first: int, span: int, max_points: int) -> None:
    width = bucket_width(first, first + span, max_points)
    assert (first + span) // width - first // width + 1 <= max_points
