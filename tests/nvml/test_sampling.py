from __future__ import annotations

import asyncio
import subprocess
import sys
from pathlib import Path

from stokerd.telemetry.metrics import Metrics
from tests.harness import DEADLINE
from tests.nvml.fleet import Fleet, Gpu


def test_the_figures_of_eight_gpus_reach_metrics_db(fake_nvml: Fleet, tmp_path: Path) -> None:
    fake_nvml.play(*(Gpu(utilisation_percent=10 * i, power_milliwatts=100_000 + i) for i in range(8)))
    program = Path(__file__).with_name("sample_devices.py")
    subprocess.run(
        [sys.executable, "-W", "error", program, str(tmp_path), "8"], env=fake_nvml.env(), check=True, timeout=DEADLINE
    )
    metrics = Metrics(tmp_path / "metrics.db", max_age_seconds=3600, max_bytes=10**8)
    try:
        found = asyncio.run(metrics.series("device.*", since=0, until=1e12, max_points=1000))
    finally:
        metrics.close()
    by_name = {
        name: {s.labels["index"]: {v for _, v in s.points} for s in found if s.name == name}
        for name in {s.name for s in found}
    }
    assert by_name == {
        "device.utilisation_percent": {str(i): {10.0 * i} for i in range(8)},
        "device.memory_used_bytes": {str(i): {1024.0 * 2**20} for i in range(8)},
        "device.power_watts": {str(i): {100 + i / 1000} for i in range(8)},
        "device.temperature_celsius": {str(i): {40.0} for i in range(8)},
    }
    temperature = next(s for s in found if s.name == "device.temperature_celsius")
    power = next(s for s in found if s.name == "device.power_watts")
    assert len(temperature.points) == -(-len(power.points) // 5)
    assert temperature.labels == {"uuid": "GPU-00000000-0000-4000-8000-000000000000", "index": "0"}
