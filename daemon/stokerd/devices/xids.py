"""One GPU and the thread that waits for its critical errors (XIDs)."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable

from stokerd.devices import nvml

log = logging.getLogger(__name__)

WAIT_SECONDS = 0.5  # of each call to the driver: the thread can't end within one
RETRY_SECONDS = 5.0  # a lost GPU answers each call at once, and with an error


class XidListener:
    """Waits for the XIDs of GPU number *index* until *stop* is set.

    A thread of its own, and a set of events of its own for each GPU: in a common one, a GPU that is lost ends each
    wait for all of them.

    Args:
        index: NVML's number of the GPU.
        stop: set by the owner at the end.
        identity: gives the GPU, once it is known and while its handle is good.
        on_xid: called in the thread with the number.
    """

    def __init__(
        self,
        index: int,
        stop: threading.Event,
        *,
        identity: Callable[[], nvml.Identity | None],
        on_xid: Callable[[int], None],
    ) -> None:
        self._index = index
        self._stop = stop
        self._identity = identity
        self._on_xid = on_xid
        self._thread = threading.Thread(target=self._run, name=f"nvml-xid-{index}", daemon=True)

    def start(self) -> None:
        """Begin to wait."""
        self._thread.start()

    def join(self, timeout_seconds: float) -> bool:
        """Wait for the thread after *stop*; False if it hangs."""
        self._thread.join(timeout_seconds)
        return not self._thread.is_alive()

    def _run(self) -> None:
        while not self._stop.is_set():
            identity = self._identity()
            try:
                if identity is not None and not self._listen(identity):
                    log.info("GPU %d tells of no XIDs.", self._index)
                    return
            except nvml.NotSampled as error:  # its sampling says the same, where people see it
                log.debug("GPU %d: waiting for XIDs failed: %s", self._index, error)
            except Exception:
                log.exception("GPU %d: waiting for XIDs failed", self._index)
            self._stop.wait(RETRY_SECONDS if identity is not None else WAIT_SECONDS)

    def _listen(self, identity: nvml.Identity) -> bool:
        """Pass XIDs on until *stop*, or until the GPU has another handle. False: it never tells any."""
        events = nvml.XidEvents(identity)
        try:
            while events.are_told and self._identity() is identity and not self._stop.is_set():
                xid = events.wait(WAIT_SECONDS)
                if xid is not None:
                    self._on_xid(xid)
            return events.are_told
        finally:
            events.close()
