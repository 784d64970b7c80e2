from __future__ import annotations

import asyncio
import logging
import os
import threading
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from stoker.paths import Home
from stoker.types.host import Device
from stokerd.devices.inventory import Inventory
from stokerd.telemetry import metrics as metrics_module
from stokerd.telemetry import sampler as sampler_module
from stokerd.telemetry.host import HostValues
from stokerd.telemetry.metrics import Metrics
from stokerd.telemetry.sampler import Sampler, device_samples
from tests.harness import DEADLINE
from tests.unit.telemetry.conftest import MakeRecord, OpenMetrics, Run


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """What takes seconds takes hundredths."""
    for name in ("INTERVAL", "IDLE", "DISK", "STORE", "IDLE_STORE", "TRIM"):
        monkeypatch.setattr(sampler_module, f"{name}_SECONDS", 0.01)


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return Home(tmp_path, tmp_path)


async def sample_until(sampler: Sampler, condition: Callable[[], object]) -> None:
    """Run it until *condition* holds, or fail after `DEADLINE`."""
    task = asyncio.create_task(sampler.run())
    try:
        async with asyncio.timeout(DEADLINE):
            while not condition():
                assert not task.done()
                await asyncio.sleep(0.001)
    finally:
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task


def test_the_host_is_known_before_the_first_second(
    metrics: Metrics, home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as real:
        real.setattr(sampler_module, "INTERVAL_SECONDS", 1000.0)
        host = Sampler(Inventory(), metrics, home).host()
    assert host["cpu_percent"] is None
    assert host["cpu_count"] == psutil.cpu_count()
    assert host["memory_total"] == psutil.virtual_memory().total
    assert 0 < (host["memory_used"] or 0) < (host["memory_total"] or 0)
    assert 0 < (host["disk_free"] or 0) < (host["disk_total"] or 0)


def test_the_host_s_series_are_written_in_their_units(run: Run, metrics: Metrics, home: Home) -> None:
    sampler = Sampler(Inventory(), metrics, home)
    run(sample_until(sampler, lambda: sampler.ticks > 5))
    found = {s.name: s for s in run(metrics.series("*", since=0, until=1e12, max_points=1000))}
    assert {n: s.unit for n, s in found.items()} == {
        "host.cpu_percent": "percent",
        "host.memory_used_bytes": "bytes",
        "host.load_1m": "",
        "host.disk_free_bytes": "bytes",
    }
    assert all(0 <= v <= 100 for _, v in found["host.cpu_percent"].points)
    assert len(found["host.load_1m"].points) >= 5
    assert found["host.load_1m"].points[-1][1] == pytest.approx(os.getloadavg()[0], abs=5)
    assert isinstance(sampler.host()["cpu_percent"], float)


def test_it_has_what_is_too_old_trimmed(run: Run, open_metrics: OpenMetrics, home: Home, record: MakeRecord) -> None:
    metrics = open_metrics(max_age_seconds=3600)
    run(metrics.write_records("e", [record(1, 1000.0)]))
    sampler = Sampler(Inventory(), metrics, home)
    run(sample_until(sampler, lambda: sampler.ticks > 3))
    assert run(metrics.records("chat", since=0)) == []


def test_samples_that_can_not_be_stored_are_counted_and_said_once(
    run: Run,
    open_metrics: OpenMetrics,
    tmp_path: Path,
    home: Home,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(metrics_module, "MOST_KEPT", 20)
    metrics = open_metrics(tmp_path / "late" / "metrics.db")
    sampler = Sampler(Inventory(), metrics, home)
    caplog.clear()
    with caplog.at_level(logging.INFO):
        run(sample_until(sampler, lambda: metrics.dropped > 30))
        said = [r.getMessage() for r in caplog.records if r.getMessage().startswith("metrics")]
    assert len(said) == 1
    assert "unable to open" in said[0]


def test_when_the_disk_has_room_again_what_was_sampled_meanwhile_is_stored_and_it_is_said(
    run: Run, open_metrics: OpenMetrics, tmp_path: Path, home: Home, caplog: pytest.LogCaptureFixture
) -> None:
    metrics = open_metrics(tmp_path / "late" / "metrics.db")
    sampler = Sampler(Inventory(), metrics, home)

    def is_back() -> bool:
        if sampler.ticks > 3 and any("metrics fails" in r.getMessage() for r in caplog.records):
            (tmp_path / "late").mkdir(exist_ok=True)
        return any("metrics works again" in r.getMessage() for r in caplog.records)

    run(sample_until(sampler, is_back))
    (found,) = run(metrics.series("host.load_1m", since=0, until=1e12, max_points=10**6))
    assert len(found.points) >= 3
    assert metrics.dropped == 0


def test_an_idle_host_that_is_asked_for_is_sampled_then(
    metrics: Metrics, home: Home, monkeypatch: pytest.MonkeyPatch, run: Run
) -> None:
    monkeypatch.setattr(sampler_module, "IDLE_SECONDS", 1000.0)
    sampler = Sampler(Inventory(), metrics, home)

    def ask() -> bool:
        sampler.host()
        return sampler.ticks >= 3

    run(sample_until(sampler, ask))
    assert isinstance(sampler.host()["cpu_percent"], float)


def test_an_idle_host_wakes_its_disk_seldom(
    run: Run, metrics: Metrics, home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sampler_module, "IDLE_STORE_SECONDS", 1000.0)
    sampler, stored = Sampler(Inventory(), metrics, home), set()

    def look() -> bool:
        stored.add(metrics.grown)
        return sampler.ticks > 10

    run(sample_until(sampler, look))
    assert stored == {0}
    assert metrics.grown > 10  # at the end


def test_the_last_samples_are_stored_at_the_end(
    run: Run, open_metrics: OpenMetrics, home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sampler_module, "STORE_SECONDS", 1000.0)
    metrics = open_metrics()
    sampler = Sampler(Inventory(), metrics, home)
    run(sample_until(sampler, lambda: sampler.ticks >= 3))
    metrics.close()
    (found,) = run(open_metrics().series("host.load_1m", since=0, until=1e12, max_points=10**6))
    assert len(found.points) == sampler.ticks


def test_a_disk_that_hangs_holds_nobody(
    metrics: Metrics, home: Home, monkeypatch: pytest.MonkeyPatch, run: Run
) -> None:
    hangs, ended = threading.Event(), threading.Event()
    sampler = Sampler(Inventory(), metrics, home)
    known = sampler.host()["disk_free"]

    def hang(_root: Path) -> HostValues:
        hangs.set()
        assert ended.wait(DEADLINE)
        return {"disk_total": 2, "disk_free": 1}

    monkeypatch.setattr(sampler_module, "read_disk", hang)
    run(sample_until(sampler, lambda: hangs.is_set() and sampler.ticks > 5))
    assert sampler.host()["disk_free"] == known
    assert sum(t.name == "disk" for t in threading.enumerate()) == 1
    ended.set()
    run(sample_until(sampler, lambda: sampler.host()["disk_free"] == 1))


def test_a_gpu_gives_the_figures_that_it_knows_and_none_while_it_is_lost() -> None:
    device = Device(uuid="GPU-0", index=3, name="G", memory_total=9, memory_used=4, utilisation=50, temperature=60)
    found = device_samples(device, 10.0, with_temperature=True)
    assert {(s.name, s.unit, s.value) for s in found} == {
        ("device.utilisation_percent", "percent", 50.0),
        ("device.memory_used_bytes", "bytes", 4.0),
        ("device.temperature_celsius", "celsius", 60.0),
    }
    assert {(dict(s.labels)["uuid"], dict(s.labels)["index"], s.time) for s in found} == {("GPU-0", "3", 10.0)}
    assert len(device_samples(device, 10.0, with_temperature=False)) == 2
    lost = Device(uuid="GPU-0", index=3, name="G", memory_total=9, error="lost")
    assert device_samples(lost, 10.0, with_temperature=True) == []
