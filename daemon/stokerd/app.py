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
from stoker.types.serving import AdapterEngine, Deployment, Replica
from stokerd.api import events, keys, logs, registry, resources, rollouts, server, telemetry, traffic, training
from stokerd.clock import watch_clock
from stokerd.config import DaemonConfig
from stokerd.devices import leases
from stokerd.devices.events import DeviceEvent
from stokerd.devices.inventory import Inventory
from stokerd.loop import watch_loop
from stokerd.notify import Service
from stokerd.processes.groups import find_groups, name_of
from stokerd.processes.states import Alive
from stokerd.processes.supervisor import Supervisor
from stokerd.reconciler import Reconciler
from stokerd.registry.models import Registry
from stokerd.rollouts.comparisons import Comparisons, Servers
from stokerd.rollouts.judging import Judging
from stokerd.rollouts.planning import Planner
from stokerd.rollouts.rollouts import Rollouts
from stokerd.serving.adapters import Adapters
from stokerd.serving.gateway import PROCESS_PREFIX as GATEWAY_PREFIX
from stokerd.serving.gateway import GatewayLink
from stokerd.serving.plan import adapter_name
from stokerd.serving.replicas import PROCESS_PREFIX as REPLICA_PREFIX
from stokerd.serving.replicas import Replicas
from stokerd.store.content import ContentStore
from stokerd.store.migrate import migrate
from stokerd.store.store import Query, Store, Transaction
from stokerd.telemetry.metrics import Metrics
from stokerd.telemetry.sampler import Sampler
from stokerd.tracking.reader import Tracking
from stokerd.training.datasets import Datasets
from stokerd.training.jobs import Jobs
from stokerd.training.provenance import Provenance
from stokerd.training.runs import PROCESS_PREFIX as RUN_PREFIX
from stokerd.training.runs import Runs
from stokerd.training.schedules import Schedules
from stokerd.upkeep import UPKEEP_SECONDS, Upkeep
from stokerd.wakes import Wakes

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
        wakes = Wakes()
        groups = await asyncio.to_thread(lambda: find_groups(name_of(home.root)))
        supervisor = Supervisor(
            home.processes,
            on_change=wakes.of_process,
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
        adapters = Adapters(store, gateway)
        stack.push_async_callback(adapters.close)
        comparisons = Comparisons(metrics, partial(_servers, store), wakes.all)
        stack.push_async_callback(comparisons.close)
        controller = Rollouts(store, gateway, metrics, Judging(store, metrics, comparisons))
        planner = Planner(store, inventory, metrics)
        sampler = Sampler(inventory, metrics, home)

        async def host() -> Host:
            held, last = await store.read(lambda q: (leases.taken(q, inventory.devices()), q.last_event_id()))
            return self._host(inventory, held, last, gateway, sampler, groups.message)

        async def on_clock_set(seconds: float) -> None:
            way = "forward" if seconds > 0 else "back"
            message = (
                f"the clock of this host was set {way} by {abs(seconds):.0f} s; the next firings are worked out anew."
            )
            await store.write(lambda tx: tx.record("host", platform.node(), "ClockSet", message, seconds=seconds))
            await schedules.clock_was_set(seconds)
            wakes.all()

        api = server.build(
            [
                telemetry.router(host, metrics),
                traffic.router(store, metrics),
                events.router(store, self._closing),
                logs.router(store, self._closing, replicas.log_of, gateway.log_named),
                training.router(store, datasets, jobs, tracking),
                registry.router(store, models),
                rollouts.router(store, planner, controller),
                keys.router(store, gateway),
                resources.router(store, planner),
            ]
        )
        listener = server.listen(home.socket, self._service.listener)
        if self._service.listener is None:
            stack.callback(lambda: home.socket.unlink(missing_ok=True))
        http = server.server_for(api)

        reconcilers = _reconcilers(wakes, runs, schedules, gateway, replicas, adapters, controller)
        store.on_event(wakes.of_events)
        if self._ephemeral:
            stack.push_async_callback(end_all, supervisor)
        schedules.start()
        stack.callback(schedules.close)
        async with _tasks() as start:
            for reconciler in reconcilers:
                start(reconciler.run())
            start(gateway.run())
            start(sampler.run())
            start(Reconciler("upkeep", Upkeep(home, config.logs).step, interval_seconds=UPKEEP_SECONDS).run())
            watch_loop()
            start(_record_events(device_events, store))
            start(watch_clock(on_clock_set))
            serving = loop.create_task(http.serve(sockets=[listener]))
            serving.add_done_callback(lambda _: self._closing.set())
            log.info("stokerd %s serves %s (pid %d)", stoker.__version__, home.socket, os.getpid())
            start(self._service.notifier.run(lambda: http.started, f"serves {home.socket}"))
            await self._closing.wait()
            self._service.notifier.stopping()
            http.end()
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


async def _servers(store: Store, deployment: str) -> Servers:
    """Where the ready servers of the version that *deployment* serves listen, and what they call it."""

    def read(query: Query) -> Servers:
        served = query.get(Deployment, deployment)
        found = query.all(Replica, deployment=deployment, version=served.version, phase="ready")
        is_adapter = isinstance(served.spec.engine, AdapterEngine)
        model = adapter_name(deployment, served.version) if is_adapter else deployment
        return Servers([replica.address for replica in found if replica.wanted], model)

    return await store.read(read)


def _reconcilers(
    wakes: Wakes,
    runs: Runs,
    schedules: Schedules,
    gateway: GatewayLink,
    replicas: Replicas,
    adapters: Adapters,
    controller: Rollouts,
) -> list[Reconciler]:
    """One for each part, with what has it look again. All share the devices: whoever ends leaves some to the others."""
    running = Reconciler("runs", runs.step)
    firing = Reconciler("schedules", schedules.step)
    fronting = Reconciler("gateway", gateway.step)
    serving = Reconciler("replicas", replicas.step)
    loading = Reconciler("adapters", adapters.step)
    judging = Reconciler("rollouts", controller.step)
    wakes.add(running, at_once={"run", "device"}, soon={"replica"}, processes=RUN_PREFIX)
    wakes.add(firing, at_once={"schedule"})
    wakes.add(fronting, at_once={"replica", "rollout", "key"}, soon={"deployment", "model"}, processes=GATEWAY_PREFIX)
    wakes.add(serving, at_once={"deployment", "replica", "rollout", "device"}, soon={"run"}, processes=REPLICA_PREFIX)
    wakes.add(loading, at_once={"deployment", "replica", "rollout"}, soon={"gateway"})
    wakes.add(judging, at_once={"rollout"}, soon={"replica", "deployment", "gateway"})
    replicas.on_news(serving.poke)
    adapters.on_news(loading.poke)
    gateway.on_records(lambda: judging.poke() if controller.is_active else None)
    return [running, firing, fronting, serving, loading, judging]


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
