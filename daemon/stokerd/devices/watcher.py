"""One GPU and the thread that samples it."""

from __future__ import annotations

import logging
import threading
import time
from dataclasses import dataclass
from datetime import UTC, datetime

from stoker.types.host import Device
from stokerd.devices import nvml

log = logging.getLogger(__name__)

INTERVAL_SECONDS = 1.0
TEMPERATURE_EVERY = 5  # rounds; the sensor's bus is slow, and the call holds the driver's lock
RETRY_SECONDS = 5.0  # after an error: a lost GPU seldom comes back, and asking it is not free


@dataclass(frozen=True, slots=True)
class Asking:
    """Calls to NVML that are on, since *monotonic* and *unix*, both in seconds."""

    monotonic: float
    unix: float

    def lasts_over(self, seconds: float) -> bool:
        """Whether it takes longer than that by now."""
        return time.monotonic() - self.monotonic > seconds


class Watcher:
    """Samples GPU number *index* until *stop* is set. A call that hangs holds this thread, and nobody else.

    Args:
        index: NVML's number of the GPU.
        stop: set by the owner at the end.
        hang_seconds: a round of calls that takes longer is told as an error.
    """

    def __init__(self, index: int, stop: threading.Event, *, hang_seconds: float) -> None:
        self.index = index
        self._stop = stop
        self._hang_seconds = hang_seconds
        # The thread replaces these whole, so a reader needs no lock.
        self._identity: nvml.Identity | None = None
        self._device: Device | None = None
        self._asking: Asking | None = None
        self._failing_since = 0.0
        # A daemon thread: one that hangs in the driver must not keep the process from ending.
        self._thread = threading.Thread(target=self._run, name=f"nvml-{index}", daemon=True)

    def start(self) -> None:
        """Begin to sample."""
        self._thread.start()

    def join(self, timeout_seconds: float) -> bool:
        """Wait for the thread after *stop*; False if it hangs."""
        self._thread.join(timeout_seconds)
        return not self._thread.is_alive()

    def device(self) -> Device | None:
        """The GPU as last sampled; None until it has answered once, or is known not to."""
        asking = self._asking
        if asking is not None and asking.lasts_over(self._hang_seconds):
            return self._broken(f"it has not answered the driver's library since {clock(asking.unix)}")
        return self._device

    def _run(self) -> None:
        rounds, temperature, handle_is_good = 0, None, False
        while not self._stop.is_set():
            started = time.monotonic()
            self._asking = Asking(started, time.time())
            try:
                identity = self._identity
                if identity is None or not handle_is_good:
                    self._identity = identity = nvml.identify(self.index)
                reading = nvml.read(identity)
                if rounds % TEMPERATURE_EVERY == 0:
                    temperature = nvml.read_temperature(identity)
            except Exception as error:  # whatever it is, a thread that ended would leave old figures standing
                if not isinstance(error, nvml.NotSampled):
                    log.exception("GPU %d can't be sampled", self.index)
                self._failing_since = self._failing_since or time.time()
                self._device = self._broken(f"since {clock(self._failing_since)}: {error}")
                pause, handle_is_good = RETRY_SECONDS, False
            else:
                rounds, handle_is_good = rounds + 1, True
                self._failing_since = 0.0
                self._device = self._healthy(identity, reading, temperature)
                pause = INTERVAL_SECONDS
            self._asking = None
            self._stop.wait(max(0.0, started + pause - time.monotonic()))

    def _healthy(self, identity: nvml.Identity, reading: nvml.Reading, temperature: float | None) -> Device:
        return Device(
            uuid=identity.uuid,
            index=self.index,
            name=identity.name,
            memory_total=identity.memory_total,
            memory_used=reading.memory_used,
            utilisation=reading.utilisation,
            power=reading.power,
            temperature=temperature,
        )

    def _broken(self, why: str) -> Device:
        """No stale numbers beside an error; a GPU that never answered has no UUID to go by."""
        known = self._identity
        return Device(
            uuid=known.uuid if known else f"unknown-{self.index}",
            index=self.index,
            name=known.name if known else "unknown GPU",
            memory_total=known.memory_total if known else 0,
            error=f"GPU {self.index} can't be sampled, {why}.",
        )


def clock(unix: float) -> str:
    """Unix time in seconds, as people are told of it."""
    return datetime.fromtimestamp(unix, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
