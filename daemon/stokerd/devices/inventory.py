"""The GPUs of this host."""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Callable, Sequence
from typing import Literal

from stoker.types.host import Device
from stokerd.devices import nvml
from stokerd.devices.events import DeviceEvent, Told, XidTeller, changes
from stokerd.devices.placement import describe
from stokerd.devices.watcher import Asking, Watcher, clock

__all__ = ["DeviceEvent", "Inventory"]

log = logging.getLogger(__name__)

HANG_SECONDS = 5.0
RETRY_SECONDS = 30.0  # without a driver: it may be installed or loaded while the daemon runs
TELL_SECONDS = 1.0  # from one look for what has changed to the next; XIDs are told at once
_CLOSE_SECONDS = 2.0
_LOOKING = "the GPUs are being looked for."

Mode = Literal["shared", "exclusive"]


class Inventory:
    """The GPUs of this host, sampled by own threads for each device so that a hung NVML call hurts nobody else.

    Utilisation, memory and power once a second, temperature and processes each 5 s, ECC errors each 10 s, NVLinks
    once. GPUs are found once; MIG slices are not told apart.

    Args:
        hang_seconds: how long NVML may take for one round of calls before that is told as an error.
        modes: the mode of the GPU of that index and UUID; by default all are shared.
        is_ours: whether the process of that pid is one of Stoker's; called in threads, often, and at once after
            `start`, so what was adopted must be known by then.
        on_change: called with what happens to a GPU, in a thread, one call at a time.
    """

    def __init__(
        self,
        *,
        hang_seconds: float = HANG_SECONDS,
        modes: Callable[[int, str], Mode] = lambda index, uuid: "shared",
        is_ours: Callable[[int], bool] = lambda pid: False,
        on_change: Callable[[DeviceEvent], None] | None = None,
    ) -> None:
        self._hang_seconds = hang_seconds
        self._modes = modes
        self._is_ours = is_ours
        self._on_change = on_change
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self._asking: Asking | None = None
        self._watchers: tuple[Watcher, ...] = ()
        self._xids: queue.SimpleQueue[tuple[int, int] | None] = queue.SimpleQueue()
        self._message = "the GPUs have not been looked for yet."

    def start(self) -> None:
        """Begin to look for GPUs; returns at once, however long the driver takes."""
        if self._thread is None:
            self._message = _LOOKING
            self._thread = threading.Thread(target=self._run, name="nvml", daemon=True)
            self._thread.start()

    def devices(self) -> list[Device]:
        """Each GPU as last sampled, by index; ``error`` is set, and no figure, where one can't be sampled."""
        seen = [(w, look.device) for w in self._watchers if (look := w.look()) is not None]
        links = _links([(device.uuid, *watcher.wiring()) for watcher, device in seen])
        return [
            device.model_copy(update={"mode": self._modes(device.index, device.uuid), "links": links[device.uuid]})
            for _, device in seen
        ]

    @property
    def message(self) -> str:
        """Why there is no GPU, in one sentence; empty when there are some."""
        asking = self._asking
        if asking is not None and asking.lasts_over(self._hang_seconds):
            return f"the NVIDIA driver has not answered since {clock(asking.unix)}; runs and replicas use the CPU."
        return _LOOKING if self._watchers and not self.devices() else self._message

    def memory_back(self, uuids: Sequence[str], since_monotonic: float) -> str:
        """Say what still holds memory of these GPUs for one whose processes on them had ended at *since_monotonic*.

        Empty when the driver, asked after that moment, tells of no process on them that has ended or is not ours, or
        where nobody can tell: then there is nothing to wait for. Else one sentence; ask again, and the driver is asked
        anew (each 0.5 s at most). Returns at once.
        """
        if not uuids:
            return ""
        if self.message == _LOOKING:
            return _LOOKING
        held = []
        for watcher in self._watchers:
            look = watcher.look()
            if look is None:  # it may be one of them
                held.append(f"GPU {watcher.index} has not answered yet")
            elif look.device.uuid in uuids and look.condition == "well":
                held += _holders(watcher, since_monotonic)
        return f"{'; '.join(held)}." if held else ""

    def close(self) -> None:
        """Stop sampling. Takes 2 s at most: a thread that hangs in the driver is left to end with the process."""
        self._stop.set()
        self._xids.put(None)
        for watcher in self._watchers:
            watcher.wake()
        if self._thread is not None:
            self._thread.join(_CLOSE_SECONDS)
            if self._thread.is_alive():
                log.warning("The NVIDIA driver hangs; its threads are left behind.")

    def _run(self) -> None:
        while not self._stop.is_set():
            if self._find():
                self._tell_until_the_end()
                # Shutting NVML down under a hung call may crash: then the end of the process does it.
                deadline = time.monotonic() + _CLOSE_SECONDS / 2
                if all(w.join(deadline) for w in self._watchers):
                    nvml.shut_down()
                else:
                    log.warning("A GPU hangs; NVML is not shut down.")
                return
            self._stop.wait(RETRY_SECONDS)

    def _find(self) -> bool:
        """Ask the driver, and start threads for each GPU. False: there is none, by now."""
        self._message = _LOOKING
        self._asking = Asking(time.monotonic(), time.time())
        try:
            count = nvml.start_up()
        except nvml.NoDriver as error:
            self._message = str(error)
            return False
        finally:
            self._asking = None
        if count == 0:
            self._message = nvml.NO_GPU
            nvml.shut_down()
            return False
        watchers = tuple(
            Watcher(
                index,
                self._stop,
                hang_seconds=self._hang_seconds,
                is_ours=self._is_ours,
                on_xid=lambda index, xid: self._xids.put((index, xid)),
            )
            for index in range(count)
        )
        for watcher in watchers:
            watcher.start()
        self._watchers = watchers
        self._message = ""
        return True

    def _tell_until_the_end(self) -> None:
        """Look at all GPUs each second for what has changed, and pass each XID on as it comes."""
        told = [Told()] * len(self._watchers)
        xids = [XidTeller() for _ in self._watchers]
        while not self._stop.is_set():
            try:
                came = self._xids.get(timeout=TELL_SECONDS)
            except queue.Empty:
                came = None
            if came is not None:
                index, xid = came
                look = self._watchers[index].look()
                event = look and xids[index].event(look.device, xid, time.monotonic())
                self._tell([event] if event else [])
            for index, watcher in enumerate(self._watchers):
                look = watcher.look()
                if look is not None:
                    told[index], events = changes(told[index], look)
                    self._tell(events)

    def _tell(self, events: Sequence[DeviceEvent]) -> None:
        for event in events:
            log.log(logging.INFO if event.reason == "DeviceBack" else logging.WARNING, "%s", event.message)
            try:
                if self._on_change is not None:
                    self._on_change(event)
            except Exception:  # the next one may be taken
                log.exception("%s of GPU %d could not be told", event.reason, event.index)


def _holders(watcher: Watcher, since_monotonic: float) -> list[str]:
    """Who still is on that GPU, as sentences without a full stop."""
    seen = watcher.processes()
    if seen is None or seen.asked_at <= since_monotonic:
        watcher.ask_for_processes()
        return [f"GPU {watcher.index} is being asked"]
    if seen.foreign:
        watcher.ask_for_processes()
    return [f"GPU {watcher.index} is used by {describe(process)}" for process in seen.foreign]


def _links(wired: Sequence[tuple[str, str, nvml.Wiring]]) -> dict[str, list[str]]:
    """Which GPUs NVLink joins, each way, from (UUID, PCI address, where its links lead) of each.

    Those on a switch are all joined: a host has one fabric of switches.
    """
    return {
        uuid: [
            other
            for other, other_bus, there in wired
            if other != uuid and (other_bus in here.peers or bus in there.peers or (here.switch and there.switch))
        ]
        for uuid, bus, here in wired
    }
