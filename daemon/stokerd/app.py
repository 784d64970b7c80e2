"""Builds every part once, in order, and hands each what it needs; then runs them until told to end."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import logging
import os
import platform
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import stoker
from stoker.errors import HomeTaken, StokerError, Unavailable
from stoker.paths import Home
from stoker.types.base import now
from stoker.types.host import Device, Host, Lease
from stokerd.api import events, logs, registry, resources, rollouts, server, telemetry, training
from stokerd.clock import watch_clock
from stokerd.config import DaemonConfig
from stokerd.devices import leases
from stokerd.devices.events import DeviceEvent
from stokerd.devices.inventory import Inventory
from stokerd.notify import Service
from stokerd.processes.groups import find_groups, name_of
from stokerd.processes.states import Alive
from stokerd.processes.supervisor import Supervisor
from stokerd.reconciler import Reconciler, watch_loop
from stokerd.registry.models import Registry
from stokerd.rollouts.rollouts import Rollouts
from stokerd.serving.gateway import GatewayLink
from stokerd.serving.replicas import Replicas
from stokerd.store.content import ContentStore
from stokerd.store.migrate import migrate
from stokerd.store.store import Store, Transaction
from stokerd.telemetry.metrics import Metrics
from stokerd.telemetry.sampler import Sampler
from stokerd.tracking.reader import Tracking
from stokerd.training.datasets import Datasets
from stokerd.training.jobs import Jobs
from stokerd.training.provenance import Provenance
from stokerd.training.runs import Runs
from stokerd.training.schedules import Schedules
from stokerd.upkeep import UPKEEP_SECONDS, Upkeep

log = logging.getLogger(__name__)
_STOP_GRACE_SECONDS = 10.0


@contextmanager
def hold(home: Home) -> Iterator[None]:
    """Make the home's folders and be its only daemon. Raises `HomeTaken`, or `Unavailable` when it can't be written."""
    try:
        for folder in (home.root, home.runtime, home.sockets, home.processes, home.runs, home.gateway, home.backups):
            folder.mkdir(parents=True, exist_ok=True, mode=0o750)
        lock = home.lock.open("a+")
    except OSError as error:
        raise Unavailable(
            f"the home {home.root} can't be used: {error.filename}: {error.strerror}.",
            "Make it writable for this user, or name another with --home.",
            code="home-unwritable",
        ) from error
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.seek(0)
            holder = lock.read().strip() or "unknown"
            raise HomeTaken(
                f"another stokerd (pid {holder}) serves {home.root}.", "Use that one, or name another with --home."
            ) from None
        lock.truncate(0)
        lock.write(f"{os.getpid()}\n")
        lock.flush()
        yield


class Daemon:
    """One stokerd. `run` serves until `end` is called.

    With *ephemeral*, everything that it supervises is ended with it (a demo, a test); else nothing is.
    """

    def __init__(
        self, home: Home, config: DaemonConfig, service: Service | None = None, *, ephemeral: bool = False
    ) -> None:
        self._home = home
        self._config = config
        self._service = service or Service()
        self._ephemeral = ephemeral
        self._started_at = now()
        self._closing = asyncio.Event()

    def end(self) -> None:
        """Ask `run` to return."""
        self._closing.set()

    async def run(self) -> None:
        """Serve. Raises `StokerError` when it can't start."""
        with hold(self._home):
            saved = await asyncio.to_thread(migrate, self._home.state_db, self._home.backups)
            if saved:
                log.info("state.db was backed up to %s", saved)
            async with AsyncExitStack() as stack:
                await self._serve(stack)

    async def _serve(self, stack: AsyncExitStack) -> None:
        home, config = self._home, self._config
        loop = asyncio.get_running_loop()
        store = Store(home.state_db)
        stack.callback(store.close)
        content = await asyncio.to_thread(ContentStore, home.content)
        metrics = Metrics(home.metrics_db, max_age_seconds=config.metrics.max_age, max_bytes=config.metrics.max_bytes)
        stack.callback(metrics.close)
        pokes: list[Callable[[], None]] = []

        def poke(_process: str = "") -> None:
            for each in pokes:
                each()

        groups = await asyncio.to_thread(lambda: find_groups(name_of(home.root)))
        supervisor = Supervisor(
            home.processes,
            on_change=poke,
            log_segment_bytes=config.logs.segment_bytes,
            log_segments_kept=config.logs.segments,
            log_max_age_seconds=config.logs.max_age,
            groups=groups,
        )
        stack.callback(supervisor.close)
        supervisor.adopt()

        device_events: asyncio.Queue[DeviceEvent] = asyncio.Queue()

        def on_device(event: DeviceEvent) -> None:
            loop.call_soon_threadsafe(device_events.put_nowait, event)

        inventory = Inventory(
            modes=config.devices.mode_of,
            is_ours=lambda pid: supervisor.tree_of(pid) is not None,
            on_change=on_device,
        )
        inventory.start()  # after the adoption: before it, our own processes would look foreign
        stack.callback(inventory.close)

        tracking = Tracking()
        models = Registry(store, content)
        datasets = Datasets(store, content)
        jobs = Jobs(store, content, Provenance(), config.training.python, home.runs)
        schedules = Schedules(store, jobs)
        runs = Runs(
            store,
            content,
            supervisor,
            inventory,
            tracking,
            models,
            concurrent=config.training.concurrent,
            library=_library(home),
        )
        gateway = GatewayLink(home, config.gateway, config.serving.first_byte_timeout, store, supervisor, metrics)
        stack.push_async_callback(gateway.close)
        replicas = Replicas(home, store, supervisor, inventory, gateway, config.serving.python)
        stack.push_async_callback(replicas.close)
        controller = Rollouts(store, gateway, metrics)
        sampler = Sampler(inventory, metrics, home)

        async def host() -> Host:
            held, last = await store.read(lambda q: (leases.held(q), q.last_event_id()))
            return self._host(inventory, held, last, gateway, sampler, groups.message)

        async def on_clock_set(seconds: float) -> None:
            way = "forward" if seconds > 0 else "back"
            message = (
                f"the clock of this host was set {way} by {abs(seconds):.0f} s; the next firings are worked out anew."
            )
            await store.write(lambda tx: tx.record("host", platform.node(), "ClockSet", message, seconds=seconds))
            await schedules.clock_was_set(seconds)
            await controller.clock_was_set()
            poke()

        api = server.build(
            [
                telemetry.router(host, metrics),
                events.router(store, self._closing),
                logs.router(store, self._closing, replicas.log_of, gateway.log),
                training.router(store, datasets, jobs, tracking),
                registry.router(models),
                rollouts.router(controller),
                resources.router(store),
            ]
        )
        listener = server.listen(home.socket, self._service.listener)
        if self._service.listener is None:
            stack.callback(lambda: home.socket.unlink(missing_ok=True))
        http = server.server_for(api)

        judging = Reconciler("rollouts", controller.step)
        gateway.on_records(judging.poke)
        reconcilers = [
            Reconciler("runs", runs.step),
            Reconciler("schedules", schedules.step),
            Reconciler("gateway", gateway.step),
            Reconciler("replicas", replicas.step),
            judging,
        ]
        pokes += [r.poke for r in reconcilers]
        store.on_event(poke)
        if self._ephemeral:
            stack.push_async_callback(end_all, supervisor)
        schedules.start()
        stack.callback(schedules.close)
        async with _tasks() as start:
            for reconciler in reconcilers:
                start(reconciler.run())
            start(Reconciler("gateway's records", gateway.pull).run())
            start(sampler.run())
            start(Reconciler("upkeep", Upkeep(home, config.logs).step, interval_seconds=UPKEEP_SECONDS).run())
            start(watch_loop())
            start(_record_events(device_events, store))
            start(watch_clock(on_clock_set))
            serving = loop.create_task(http.serve(sockets=[listener]))
            serving.add_done_callback(lambda _: self._closing.set())
            log.info("stokerd %s serves %s (pid %d)", stoker.__version__, home.socket, os.getpid())
            start(self._service.notifier.run(lambda: http.started, f"serves {home.socket}"))
            await self._closing.wait()
            self._service.notifier.stopping()
            http.should_exit = True
            await serving
        log.info("stokerd ends")

    def _host(
        self,
        inventory: Inventory,
        held: dict[str, list[Lease]],
        last_event: int,
        gateway: GatewayLink,
        sampler: Sampler,
        limits: str,
    ) -> Host:
        devices = [_with_leases(d, held.get(d.uuid, [])) for d in inventory.devices()]
        figures: dict[str, Any] = sampler.host()
        return Host(
            hostname=platform.node(),
            version=stoker.__version__,
            pid=os.getpid(),
            started_at=self._started_at,
            home=str(self._home.root),
            gateway=gateway.url,
            gateway_phase=gateway.phase,
            gateway_message=gateway.message,
            last_event_id=last_event,
            limits=limits,
            devices=devices,
            devices_message=inventory.message,
            **figures,
        )


def _with_leases(device: Device, held: list[Lease]) -> Device:
    owner = ", ".join(lease.owner for lease in held) or None
    return device.model_copy(update={"owner": owner, "leases": held})


async def _record_events(queue: asyncio.Queue[DeviceEvent], store: Store) -> None:
    """Keep what the inventory tells as events of kind ``device``; while the disk says no, they wait."""
    while True:
        event = await queue.get()
        while True:
            try:
                await store.write(partial(_record_event, event=event))
                break
            except Unavailable:
                await asyncio.sleep(1.0)


def _record_event(tx: Transaction, event: DeviceEvent) -> None:
    tx.record("device", event.uuid, event.reason, event.message, index=event.index, **event.data)


@asynccontextmanager
async def _tasks() -> AsyncIterator[Callable[..., None]]:
    """Tasks that end with the block; one that fails by a bug ends the block with its error."""
    async with asyncio.TaskGroup() as group:
        tasks: list[asyncio.Task[None]] = []
        try:
            yield lambda work: tasks.append(group.create_task(work))
        finally:
            for task in tasks:
                task.cancel()


def _library(home: Home) -> Path:
    """A folder that has the `stoker` package and nothing else, for the PYTHONPATH of other interpreters."""
    folder = home.root / "library"
    package = Path(stoker.__file__).parent
    link = folder / "stoker"
    if not (link.is_symlink() and link.readlink() == package):
        folder.mkdir(exist_ok=True)
        with contextlib.suppress(FileNotFoundError):
            link.unlink()
        link.symlink_to(package)
    return folder


async def end_all(supervisor: Supervisor) -> None:
    """End every supervised process, and wait until it is gone."""
    for process in supervisor.ids():
        try:
            supervisor.stop(process, _STOP_GRACE_SECONDS)
        except StokerError:
            log.exception("%s could not be asked to end", process)
    deadline = time.monotonic() + _STOP_GRACE_SECONDS + 10
    while time.monotonic() < deadline:
        if not any(isinstance(supervisor.observe(p), Alive) for p in supervisor.ids()):
            return
        await asyncio.sleep(0.05)
    log.error("some processes did not end: %s", supervisor.ids())
