"""The GPUs of this host."""

from __future__ import annotations

import logging
import threading
import time

from stoker.types.host import Device
from stokerd.devices import nvml
from stokerd.devices.watcher import Asking, Watcher, clock

log = logging.getLogger(__name__)

HANG_SECONDS = 5.0
RETRY_SECONDS = 30.0  # without a driver: it may be installed or loaded while the daemon runs
_CLOSE_SECONDS = 2.0
_LOOKING = "the GPUs are being looked for."


class Inventory:
    """The GPUs of this host, sampled by one own thread per device so that a hung NVML call hurts nobody else.

    Utilisation, memory and power once a second, temperature each 5 s. GPUs are found once; MIG slices are not told
    apart.

    Args:
        hang_seconds: how long NVML may take for one round of calls before that is told as an error.
    """

    def __init__(self, *, hang_seconds: float = HANG_SECONDS) -> None:
        self._hang_seconds = hang_seconds
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self._asking: Asking | None = None
        self._watchers: tuple[Watcher, ...] = ()
        self._message = "the GPUs have not been looked for yet."

    def start(self) -> None:
        """Begin to look for GPUs; returns at once, however long the driver takes."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="nvml", daemon=True)
            self._thread.start()

    def devices(self) -> list[Device]:
        """Each GPU as last sampled, by index; ``error`` is set, and no figure, where one can't be sampled."""
        return [d for d in (w.device() for w in self._watchers) if d is not None]

    @property
    def message(self) -> str:
        """Why there is no GPU, in one sentence; empty when there are some."""
        asking = self._asking
        if asking is not None and asking.lasts_over(self._hang_seconds):
            return f"the NVIDIA driver has not answered since {clock(asking.unix)}; runs and replicas use the CPU."
        return _LOOKING if self._watchers and not self.devices() else self._message

    def close(self) -> None:
        """Stop sampling. Takes 2 s at most: a thread that hangs in the driver is left to end with the process."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join(_CLOSE_SECONDS)
            if self._thread.is_alive():
                log.warning("The NVIDIA driver hangs; its threads are left behind.")

    def _run(self) -> None:
        while not self._stop.is_set():
            if self._find():
                self._stop.wait()
                # Shutting NVML down under a hung call may crash: then the end of the process does it.
                deadline = time.monotonic() + _CLOSE_SECONDS / 2
                if all(w.join(max(0.0, deadline - time.monotonic())) for w in self._watchers):
                    nvml.shut_down()
                else:
                    log.warning("A GPU hangs; NVML is not shut down.")
                return
            self._stop.wait(RETRY_SECONDS)

    def _find(self) -> bool:
        """Ask the driver, and start a thread for each GPU. False: there is none, by now."""
        self._message = _LOOKING
        self._asking = Asking(time.monotonic(), time.time())
        try:
            count = nvml.start_up()
        except nvml.NoDriver as error:
            self._message = str(error)
            nvml.shut_down()
            return False
        finally:
            self._asking = None
        if count == 0:
            self._message = nvml.NO_GPU
            nvml.shut_down()
            return False
        watchers = tuple(Watcher(i, self._stop, hang_seconds=self._hang_seconds) for i in range(count))
        for watcher in watchers:
            watcher.start()
        self._watchers = watchers
        self._message = ""
        return True
