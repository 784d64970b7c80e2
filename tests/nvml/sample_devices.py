"""A program that samples the devices of this host into the metrics.db of folder argv[1], for argv[2] ticks."""

from __future__ import annotations

import asyncio
import sys
import time
from pathlib import Path

from stoker.paths import Home
from stokerd.devices.inventory import Inventory
from stokerd.telemetry import sampler
from stokerd.telemetry.metrics import Metrics

sampler.INTERVAL_SECONDS = 0.01
home = Home(Path(sys.argv[1]), Path(sys.argv[1]))
inventory = Inventory()
metrics = Metrics(home.metrics_db, max_age_seconds=3600, max_bytes=10**8)


async def main() -> None:
    subject = sampler.Sampler(inventory, metrics, home)
    task = asyncio.create_task(subject.run())
    while subject.ticks <= int(sys.argv[2]):
        await asyncio.wait([task], timeout=0.01)
    task.cancel()
    await asyncio.wait([task])


inventory.start()
while inventory.message:
    time.sleep(0.001)
asyncio.run(main())
metrics.close()
inventory.close()
