"""How the host and its GPUs are, over time."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from stoker.errors import Unavailable
from stoker.paths import Home
from stoker.types.host import Device
from stokerd.devices.inventory import Inventory
from stokerd.telemetry.host import HostReader, HostValues, read_disk
from stokerd.telemetry.metrics import Metrics, Sample

log = logging.getLogger(__name__)

INTERVAL_SECONDS = 1.0
IDLE_SECONDS = 10.0  # between samples of a host without GPUs, while nobody asks
DISK_SECONDS = 30.0
STORE_SECONDS = 60.0
IDLE_STORE_SECONDS = 300.0  # where samples are taken each `IDLE_SECONDS`: a transaction costs as much as twenty of them
TRIM_SECONDS = 600.0
TRIM_ROWS = 100_000  # stored since, and it is trimmed earlier: some 5 MB of requests
TEMPERATURE_EVERY = 5  # ticks: the inventory doesn't read it more often


class Sampler:
    """Samples host and devices once a second where there is a GPU; else each `IDLE_SECONDS`.

    A host that is asked for, by `host`, is sampled once a second, too. Samples are stored once a minute, on a host
    without GPUs each `IDLE_STORE_SECONDS`: what a kill takes with it is the end of the drawings. Metrics are trimmed
    now and then.

    ``ticks`` counts the rounds. What fails is said once in the log, not every time.
    """

    def __init__(self, inventory: Inventory, metrics: Metrics, home: Home) -> None:
        self._inventory = inventory
        self._metrics = metrics
        self._disk = _Disk(home.root)
        self._reader = HostReader()
        self._host: HostValues = {**self._reader.read(), "cpu_percent": None}  # of a moment: it would say nothing
        self._sampled_at = time.monotonic()
        self._failing: set[str] = set()
        self.ticks = 0

    def host(self) -> HostValues:
        """Values of the last second, those of the disk of the last look at it; call it in the loop's thread.

        ``cpu_percent`` is None in the first second.
        """
        if time.monotonic() - self._sampled_at >= INTERVAL_SECONDS:
            self._sample(disk_seconds=INTERVAL_SECONDS)
        return self._host | self._disk.values

    async def run(self) -> None:
        """Sample until cancelled. Nothing that fails in here ends it."""
        try:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self._keep_sampling(), name="sampler")
                tasks.create_task(self._keep_storing(), name="retention")
        finally:
            await self._store()

    async def _keep_sampling(self) -> None:
        while True:
            interval = INTERVAL_SECONDS if self._inventory.devices() else IDLE_SECONDS
            left = self._sampled_at + interval - time.monotonic()
            if left <= 0:
                self._sample(disk_seconds=DISK_SECONDS)
                left = interval
            await asyncio.sleep(left)

    async def _keep_storing(self) -> None:
        trim_at = stored_at = time.monotonic()
        while True:
            if time.monotonic() >= trim_at or self._metrics.grown >= TRIM_ROWS:
                with self._attempt("retention"):
                    await self._metrics.trim()
                    trim_at = time.monotonic() + TRIM_SECONDS
            await asyncio.sleep(STORE_SECONDS)
            if self._inventory.devices() or time.monotonic() - stored_at >= IDLE_STORE_SECONDS:
                await self._store()
                stored_at = time.monotonic()

    async def _store(self) -> None:
        with self._attempt("metrics"):
            await self._metrics.flush()

    @contextmanager
    def _attempt(self, what: str) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            if what not in self._failing:
                log.warning("%s fails: %s", what, error, exc_info=not isinstance(error, Unavailable))
            self._failing.add(what)
        else:
            if what in self._failing:
                log.warning("%s works again; %d samples were lost so far.", what, self._metrics.dropped)
            self._failing.discard(what)

    def _sample(self, *, disk_seconds: float) -> None:
        """The kernel answers at once, and the inventory tells what it knows; only the disk needs a thread."""
        self._sampled_at = time.monotonic()
        with self._attempt("sampling"):
            self._disk.look(disk_seconds)
            self._host = self._reader.read()
            now = time.time()
            samples = host_samples(self._host | self._disk.values, now)
            for device in self._inventory.devices():
                samples += device_samples(device, now, with_temperature=self.ticks % TEMPERATURE_EVERY == 0)
            self.ticks += 1
            self._metrics.keep(samples)


class _Disk:
    """The disk that *root* is, or will be, on. One that hangs holds a thread, and ``values`` stay those of before."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._looked_at = time.monotonic()
        self._thread: threading.Thread | None = None
        self._problem = ""
        self.values = read_disk(root)

    def look(self, least_seconds: float) -> None:
        """Have a look unless the last one was less than *least_seconds* ago, or still goes on. Returns at once."""
        if time.monotonic() - self._looked_at < least_seconds or (self._thread and self._thread.is_alive()):
            return
        self._looked_at = time.monotonic()
        self._thread = threading.Thread(target=self._look, name="disk", daemon=True)  # for one look: seldom enough
        self._thread.start()

    def _look(self) -> None:
        problem = ""
        try:
            self.values = read_disk(self._root)
        except OSError as error:
            problem = error.strerror or str(error)
        if problem and problem != self._problem:
            log.warning("the disk of %s can't be looked at: %s", self._root, problem)
        self._problem = problem


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
