from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Callable

import psutil
import pytest

from stoker.paths import Home
from stoker.types.host import Device
from stokerd.devices.inventory import Inventory
from stokerd.telemetry import sampler as sampler_module
from stokerd.telemetry.sampler import Sampler, device_samples, read_host
from tests.harness import DEADLINE


@pytest.fixture(autouse=True)
def _quick(monkeypatch):
    monkeypatch.setattr(sampler_module, "INTERVAL_SECONDS", 0.01)
    monkeypatch.setattr(sampler_module, "TRIM_SECONDS", 0.01)


@pytest.fixture
def home(tmp_path):
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


def test_the_host_is_known_before_the_first_second(metrics, home):
    host = Sampler(Inventory(), metrics, home).host()
    assert host["cpu_percent"] is None
    assert host["cpu_count"] == psutil.cpu_count()
    assert host["memory_total"] == psutil.virtual_memory().total
    assert 0 < host["memory_used"] < host["memory_total"]
    assert 0 < host["disk_free"] < host["disk_total"]


def test_the_host_s_series_are_written_in_their_units(run, metrics, home):
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


def test_it_has_what_is_too_old_trimmed(run, open_metrics, home, record):
    metrics = open_metrics(max_age_seconds=3600)
    run(metrics.write_records("e", [record(1, 1000.0)]))
    sampler = Sampler(Inventory(), metrics, home)
    run(sample_until(sampler, lambda: sampler.ticks > 3))
    assert run(metrics.records("chat", since=0)) == []


def test_samples_that_can_not_be_stored_are_counted_and_said_once(run, open_metrics, tmp_path, home, caplog):
    metrics = open_metrics(tmp_path / "late" / "metrics.db")
    sampler = Sampler(Inventory(), metrics, home)
    caplog.clear()
    with caplog.at_level(logging.INFO):
        run(sample_until(sampler, lambda: sampler.dropped > 30))
        said = [r.getMessage() for r in caplog.records if r.getMessage().startswith("metrics")]
    assert len(said) == 1
    assert "unable to open" in said[0]


def test_when_the_disk_has_room_again_sampling_goes_on_and_says_so(run, open_metrics, tmp_path, home, caplog):
    metrics = open_metrics(tmp_path / "late" / "metrics.db")
    sampler = Sampler(Inventory(), metrics, home)

    def is_back() -> bool:
        if sampler.dropped > 3:
            (tmp_path / "late").mkdir(exist_ok=True)
        return any("metrics works again" in r.getMessage() for r in caplog.records)

    run(sample_until(sampler, is_back))
    assert run(metrics.series("host.load_1m", since=0, until=1e12, max_points=9))


def test_a_gpu_gives_the_figures_that_it_knows_and_none_while_it_is_lost():
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


def test_the_disk_of_a_home_that_is_not_made_yet_is_known(tmp_path):
    assert read_host(tmp_path / "not" / "yet")["disk_total"] == read_host(tmp_path)["disk_total"]
