"""One GPU and the thread that samples it."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TypeVar

from stoker.types.host import Device, DeviceProcess
from stokerd.devices import nvml
from stokerd.devices.events import Look
from stokerd.devices.xids import XidListener

T = TypeVar("T")

log = logging.getLogger(__name__)

INTERVAL_SECONDS = 1.0
TEMPERATURE_EVERY = 5  # rounds; the sensor's bus is slow, and the call holds the driver's lock
PROCESSES_EVERY = 5  # rounds; 5 ms under the driver's lock
PROCESSES_SOONEST = 0.5  # seconds from one such question to the next, for one who waits for memory to come back
ECC_EVERY = 10  # rounds
SCREEN_BYTES = 512 << 20
RETRY_SECONDS = 5.0  # after an error: a lost GPU seldom comes back, and asking it is not free


@dataclass(frozen=True, slots=True)
class Asking:
    """Calls to NVML that are on, since *monotonic* and *unix*, both in seconds."""

    monotonic: float
    unix: float

    def lasts_over(self, seconds: float) -> bool:
        """Whether it takes longer than that by now."""
        return time.monotonic() - self.monotonic > seconds


@dataclass(frozen=True, slots=True)
class _Slow:
    """What is read less often, °C and a count."""

    temperature: float | None = None
    ecc_errors: int | None = None


@dataclass(frozen=True, slots=True)
class Processes:
    """Who is on a GPU that is not ours, as read at *asked_at* (monotonic seconds, before the driver was asked)."""

    asked_at: float
    foreign: tuple[DeviceProcess, ...]


class Watcher:
    """Samples GPU number *index* until *stop* is set. A call that hangs holds this thread, and nobody else.

    Args:
        index: NVML's number of the GPU.
        stop: set by the owner at the end, who then calls `wake`.
        hang_seconds: a round of calls that takes longer is told as an error.
        is_ours: whether the process of that pid is one of Stoker's; called in the thread.
        on_xid: called in another thread with the number of each critical error.
    """

    def __init__(
        self,
        index: int,
        stop: threading.Event,
        *,
        hang_seconds: float,
        is_ours: Callable[[int], bool],
        on_xid: Callable[[int, int], None],
    ) -> None:
        self.index = index
        self._stop = stop
        self._hang_seconds = hang_seconds
        self._is_ours = is_ours
        self._on_xid = on_xid
        # The threads replace these whole, so a reader needs no lock.
        self._identity: nvml.Identity | None = None
        self._handle_is_good = False
        self._wiring = nvml.Wiring()
        self._processes: Processes | None = None
        self._slow = _Slow()
        self._unknown: set[str] = set()
        self._xid: int | None = None
        self._look: Look | None = None
        self._asking: Asking | None = None
        self._failing_since = 0.0
        self._wake = threading.Event()
        self._processes_wanted = False
        # Daemon threads: one that hangs in the driver must not keep the process from ending.
        self._thread = threading.Thread(target=self._run, name=f"nvml-{index}", daemon=True)
        self._xids = XidListener(index, stop, identity=self._good_identity, on_xid=self._take_xid)

    def start(self) -> None:
        """Begin to sample."""
        self._thread.start()
        self._xids.start()

    def wake(self) -> None:
        """Have the thread see that *stop* is set."""
        self._wake.set()

    def join(self, deadline: float) -> bool:
        """Wait for the threads after *stop* until monotonic time *deadline*; False if one hangs."""
        self._thread.join(max(0.0, deadline - time.monotonic()))
        ended = self._xids.join(max(0.0, deadline - time.monotonic()))
        return ended and not self._thread.is_alive()

    def look(self) -> Look | None:
        """The GPU as last sampled; None until it has answered once, or is known not to."""
        asking = self._asking
        if asking is not None and asking.lasts_over(self._hang_seconds):
            why = f"it has not answered the driver's library since {clock(asking.unix)}"
            return Look(self._broken(why), "hangs")
        return self._look

    def wiring(self) -> tuple[str, nvml.Wiring]:
        """Its address on the PCI bus (empty if unknown), and where its NVLinks lead."""
        identity = self._identity
        return identity.bus_id if identity else "", self._wiring

    def processes(self) -> Processes | None:
        """The last reading of who is on it; None before the first."""
        return self._processes

    def ask_for_processes(self) -> None:
        """Have who is on it read anew, as soon as the driver may be asked that again."""
        self._processes_wanted = True
        self._wake.set()

    def _run(self) -> None:
        rounds = 0
        while not self._stop.is_set():
            started = time.monotonic()
            self._asking = Asking(started, time.time())
            try:
                identity = self._identified()
                reading = nvml.read(identity)
                self._read_dearer(identity, rounds)
            except Exception as error:  # whatever it is, a thread that ended would leave old figures standing
                if not isinstance(error, nvml.NotSampled):
                    log.exception("GPU %d can't be sampled", self.index)
                self._failing_since = self._failing_since or time.time()
                self._look = Look(self._broken(f"since {clock(self._failing_since)}: {error}"), "lost")
                pause, self._handle_is_good, rounds = RETRY_SECONDS, False, 0
            else:
                rounds += 1
                self._failing_since = 0.0
                self._look = Look(self._healthy(identity, reading), "well")
                pause = INTERVAL_SECONDS
            self._asking = None
            self._rest(started + pause)

    def _rest(self, until: float) -> None:
        """Wait until then, or until somebody wants to know who is on it, or the end."""
        while not self._stop.is_set():
            due = until
            if self._processes_wanted and self._handle_is_good and self._processes is not None:
                due = min(until, self._processes.asked_at + PROCESSES_SOONEST)
            left = due - time.monotonic()
            if left <= 0:
                return
            self._wake.wait(left)
            self._wake.clear()

    def _identified(self) -> nvml.Identity:
        identity = self._identity
        if identity is None or not self._handle_is_good:
            identity = nvml.identify(self.index)
            self._wiring = self._extra("its NVLinks", nvml.read_wiring, identity) or nvml.Wiring()
            self._identity, self._handle_is_good = identity, True
        return identity

    def _extra(self, what: str, ask: Callable[[nvml.Identity], T], identity: nvml.Identity) -> T | None:
        """What a GPU can be used without: None where the driver errs on it, and a word in the log, once."""
        try:
            return ask(identity)
        except nvml.NotSampled as error:
            if what not in self._unknown:
                log.warning("GPU %d does not tell of %s: %s", self.index, what, error)
            self._unknown.add(what)
            return None

    def _read_dearer(self, identity: nvml.Identity, rounds: int) -> None:
        temperature, ecc_errors = self._slow.temperature, self._slow.ecc_errors
        if rounds % TEMPERATURE_EVERY == 0:
            temperature = nvml.read_temperature(identity)
        if rounds % ECC_EVERY == 0:
            ecc_errors = self._extra("ECC errors", nvml.read_ecc_errors, identity)
        self._slow = _Slow(temperature, ecc_errors)
        if rounds % PROCESSES_EVERY == 0 or self._processes_wanted:
            self._processes_wanted = False
            asked_at = time.monotonic()
            processes = self._extra("processes on it", nvml.read_processes, identity) or ()
            self._processes = Processes(asked_at, foreign(processes, self._is_ours))

    def _good_identity(self) -> nvml.Identity | None:
        return self._identity if self._handle_is_good else None

    def _take_xid(self, xid: int) -> None:
        self._xid = xid
        self._on_xid(self.index, xid)

    def _healthy(self, identity: nvml.Identity, reading: nvml.Reading) -> Device:
        return Device(
            uuid=identity.uuid,
            index=self.index,
            name=identity.name,
            memory_total=identity.memory_total,
            memory_used=reading.memory_used,
            utilisation=reading.utilisation,
            power=reading.power,
            temperature=self._slow.temperature,
            foreign=list(self._processes.foreign) if self._processes else [],
            ecc_errors=self._slow.ecc_errors,
            xid=self._xid,
        )

    def _broken(self, why: str) -> Device:
        """No stale numbers beside an error; a GPU that never answered has no UUID to go by."""
        known = self._identity
        return Device(
            uuid=known.uuid if known else f"unknown-{self.index}",
            index=self.index,
            name=known.name if known else "unknown GPU",
            memory_total=known.memory_total if known else 0,
            xid=self._xid,
            error=f"GPU {self.index} can't be sampled, {why}.",
        )


def foreign(processes: Sequence[nvml.Process], is_ours: Callable[[int], bool]) -> tuple[DeviceProcess, ...]:
    """Those of *processes* that are not Stoker's, with their names; one that has ended has none, whosever it was.

    A display server that only draws its screen, in less than `SCREEN_BYTES`, is left out: it is on many a host, and no
    rival for the GPU.
    """
    found = []
    for process in processes:
        is_screen = process.draws and process.memory is not None and process.memory < SCREEN_BYTES
        name = name_of(process.pid)
        if not is_screen and not (name and is_ours(process.pid)):
            found.append(DeviceProcess(pid=process.pid, name=name, memory=process.memory))
    return tuple(found)


def name_of(pid: int) -> str:
    """The name of that process's command; empty when it has ended, waited for or not."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(errors="replace")
    except OSError:
        return ""
    start, end = stat.index("(") + 1, stat.rindex(")")  # the name may hold both, and spaces
    return "" if stat[end + 2] in "ZX" else stat[start:end]


def clock(unix: float) -> str:
    """Unix time in seconds, as people are told of it."""
    return datetime.fromtimestamp(unix, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
