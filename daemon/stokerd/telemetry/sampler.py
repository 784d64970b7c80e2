"""Once a second, how the host and its GPUs are."""

from __future__ import annotations

import asyncio
import logging
import os
import shutil
import time
from collections.abc import Awaitable, Callable
from concurrent.futures import Executor, ThreadPoolExecutor
from functools import partial
from pathlib import Path

import psutil

from stoker.errors import Unavailable
from stoker.paths import Home
from stoker.types.host import Device
from stokerd.devices.inventory import Inventory
from stokerd.telemetry.metrics import Metrics, Sample

log = logging.getLogger(__name__)

INTERVAL_SECONDS = 1.0
TRIM_SECONDS = 60.0
TEMPERATURE_EVERY = 5  # ticks: the inventory doesn't read it more often

HostValues = dict[str, float | int | None]
"""Fields of `stoker.types.host.Host` that are measured; bytes and percent."""


class Sampler:
    """Once a second: host (psutil) and devices (Inventory) into Metrics; once a minute it has them trimmed.

    ``ticks`` counts its rounds. What can't be stored is counted in ``dropped`` (samples), and said once in the log,
    not every second.
    """

    def __init__(self, inventory: Inventory, metrics: Metrics, home: Home) -> None:
        self._inventory = inventory
        self._metrics = metrics
        self._home = home
        self._failing: set[str] = set()
        self._host: HostValues = {**read_host(home.root), "cpu_percent": None}
        self.ticks = 0
        self.dropped = 0

    def host(self) -> HostValues:
        """The last values; ``cpu_percent`` is None in the first second."""
        return dict(self._host)

    async def run(self) -> None:
        """Sample until cancelled. Nothing that fails in here ends it."""
        # One thread, always the same: psutil counts the CPU's use since the calling thread's last question.
        thread = ThreadPoolExecutor(1, "host-sampler")
        tick = partial(self._tick, thread)
        try:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self._every(INTERVAL_SECONDS, "metrics", tick), name="sampler")
                tasks.create_task(self._every(TRIM_SECONDS, "retention", self._metrics.trim), name="retention")
        finally:
            thread.shutdown(wait=False)  # it may be held by a disk that hangs

    async def _every(self, seconds: float, what: str, step: Callable[[], Awaitable[None]]) -> None:
        loop = asyncio.get_running_loop()
        due = loop.time()
        while True:
            await self._attempt(what, step)
            due = max(due + seconds, loop.time())  # what was missed during a long step is not made up for
            await asyncio.sleep(due - loop.time())

    async def _attempt(self, what: str, step: Callable[[], Awaitable[None]]) -> None:
        try:
            await step()
        except Exception as error:
            if what not in self._failing:
                log.warning("%s fails: %s", what, error, exc_info=not isinstance(error, Unavailable))
            self._failing.add(what)
        else:
            if what in self._failing:
                log.warning("%s works again; %d samples were lost so far.", what, self.dropped)
            self._failing.discard(what)

    async def _tick(self, thread: Executor) -> None:
        values = await asyncio.get_running_loop().run_in_executor(thread, read_host, self._home.root)
        if self.ticks == 0:
            values["cpu_percent"] = None  # psutil's first answer is since nothing
        self._host = values
        now = time.time()
        samples = host_samples(values, now)
        with_temperature = self.ticks % TEMPERATURE_EVERY == 0
        self.ticks += 1
        for device in self._inventory.devices():
            samples += device_samples(device, now, with_temperature=with_temperature)
        try:
            await self._metrics.write_samples(samples)
        except Unavailable:
            self.dropped += len(samples)
            raise


def host_samples(host: HostValues, now: float) -> list[Sample]:
    """What is kept of the host's values as series, at unix time *now*."""
    kept = (
        ("host.cpu_percent", "percent", "cpu_percent"),
        ("host.memory_used_bytes", "bytes", "memory_used"),
        ("host.load_1m", "", "load_1m"),
        ("host.disk_free_bytes", "bytes", "disk_free"),
    )
    return [
        Sample(name, unit, (), now, float(value)) for name, unit, field in kept if (value := host[field]) is not None
    ]


def device_samples(device: Device, now: float, *, with_temperature: bool) -> list[Sample]:
    """What is kept of a GPU as series, at unix time *now*: what it tells, and nothing while it can't be sampled."""
    labels = (("uuid", device.uuid), ("index", str(device.index)))
    kept: list[tuple[str, str, float | int | None]] = [
        ("device.utilisation_percent", "percent", device.utilisation),
        ("device.memory_used_bytes", "bytes", device.memory_used),
        ("device.power_watts", "watts", device.power),
    ]
    if with_temperature:
        kept.append(("device.temperature_celsius", "celsius", device.temperature))
    return [Sample(name, unit, labels, now, float(value)) for name, unit, value in kept if value is not None]


def read_host(root: Path) -> HostValues:
    """Ask the kernel; blocks as long as the disk does. ``disk_*`` are of the disk that *root* is, or will be, on."""
    while not root.exists() and root != root.parent:
        root = root.parent
    memory = psutil.virtual_memory()
    disk = shutil.disk_usage(root)
    return {
        "cpu_percent": psutil.cpu_percent(None),
        "cpu_count": psutil.cpu_count() or 0,
        "load_1m": os.getloadavg()[0],
        "memory_total": memory.total,
        "memory_used": memory.total - memory.available,
        "disk_total": disk.total,
        "disk_free": disk.free,
    }
