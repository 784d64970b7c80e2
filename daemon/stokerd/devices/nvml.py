"""The border to NVIDIA's library: its calls give plain values, and its errors become sentences.

All calls may block for as long as the driver likes: make them in a thread that nobody waits for.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

T = TypeVar("T")

_LIBRARY = "libnvidia-ml.so.1"
_CPU = "runs and replicas use the CPU."
NO_GPU = f"the NVIDIA driver sees no GPU; {_CPU}"


class _Binding:
    """The module `pynvml`, loaded when it is first used: its 1.8 MB are nothing to a host without a driver."""

    def __getattr__(self, name: str) -> Any:
        return getattr(importlib.import_module("pynvml"), name)


pynvml = _Binding()


class NoDriver(Exception):
    """NVML can't be used at all; the message says why, in one sentence."""


class NotSampled(Exception):
    """One GPU can't be sampled; the message says why, without a full stop."""


@dataclass(frozen=True, slots=True)
class Identity:
    """What doesn't change of a GPU. ``handle`` is NVML's, good until `shut_down`; memory in bytes, 0 if not told.

    ``bus_id`` is its address on the PCI bus, by which others name it as the other end of a link; empty if not told.
    """

    handle: Any
    uuid: str
    name: str
    memory_total: int
    bus_id: str


@dataclass(frozen=True, slots=True)
class Reading:
    """What changes: bytes, percent, watts; None where this GPU doesn't tell."""

    memory_used: int | None
    utilisation: float | None
    power: float | None


@dataclass(frozen=True, slots=True)
class Process:
    """A process that has a context on a GPU, as the driver knows it. Memory in bytes, None where it doesn't tell."""

    pid: int
    memory: int | None
    draws: bool
    """It only draws (a display server); it computes nothing."""


@dataclass(frozen=True, slots=True)
class Wiring:
    """Where a GPU's active NVLinks lead: to the GPUs at these PCI addresses, and whether to a switch."""

    peers: frozenset[str] = frozenset()
    switch: bool = False


def start_up() -> int:
    """Load the library and say how many GPUs there are. Raises `NoDriver`; then nothing is left to shut down."""
    try:
        ctypes.CDLL(_LIBRARY)
    except OSError as error:
        raise NoDriver(f"no NVIDIA driver found ({_LIBRARY} is missing); {_CPU}") from error
    try:
        pynvml.nvmlInit()
        return int(pynvml.nvmlDeviceGetCount())
    except pynvml.NVMLError as error:
        shut_down()
        raise NoDriver(_no_driver(error)) from error


def shut_down() -> None:
    """Give the library back; every handle ends. Never raises."""
    try:
        pynvml.nvmlShutdown()
    except pynvml.NVMLError:  # it was never up, or the driver has gone: nothing is left to give back
        return


def identify(index: int) -> Identity:
    """Find GPU number *index*. Raises `NotSampled`."""

    def ask() -> Identity:
        handle = pynvml.nvmlDeviceGetHandleByIndex(index)
        memory = _memory(handle)
        return Identity(
            handle=handle,
            uuid=str(pynvml.nvmlDeviceGetUUID(handle)),
            name=str(pynvml.nvmlDeviceGetName(handle)),
            memory_total=0 if memory is None else int(memory.total),
            bus_id=_bus_id(_optional(pynvml.nvmlDeviceGetPciInfo, handle)),
        )

    return _translated(ask)


def read(identity: Identity) -> Reading:
    """Sample what is cheap (some µs a call). Raises `NotSampled`."""

    def ask() -> Reading:
        memory = _memory(identity.handle)
        used = _optional(pynvml.nvmlDeviceGetUtilizationRates, identity.handle)
        milliwatts = _optional(pynvml.nvmlDeviceGetPowerUsage, identity.handle)
        return Reading(
            memory_used=None if memory is None else int(memory.used),
            utilisation=None if used is None else float(used.gpu),
            power=None if milliwatts is None else milliwatts / 1000,
        )

    return _translated(ask)


def read_temperature(identity: Identity) -> float | None:
    """The core's temperature in °C; dearer than `read`. Raises `NotSampled`."""

    def ask() -> float | None:
        celsius = _optional(pynvml.nvmlDeviceGetTemperature, identity.handle, pynvml.NVML_TEMPERATURE_GPU)
        return None if celsius is None else float(celsius)

    return _translated(ask)


def read_processes(identity: Identity) -> tuple[Process, ...]:
    """Who has a context on it, by pid; the dearest question of all (5 ms). Empty where it isn't told.

    The numbers are those of the driver's own pid namespace, the host's. Raises `NotSampled`.
    """

    def ask() -> tuple[Process, ...]:
        found: dict[int, Process] = {}
        for call, draws in (
            (pynvml.nvmlDeviceGetGraphicsRunningProcesses, True),
            (pynvml.nvmlDeviceGetComputeRunningProcesses, False),  # last: who does both, computes
        ):
            for process in _optional(call, identity.handle) or ():
                memory = None if process.usedGpuMemory is None else int(process.usedGpuMemory)
                found[int(process.pid)] = Process(int(process.pid), memory, draws)
        return tuple(found[pid] for pid in sorted(found))

    return _translated(ask)


def read_ecc_errors(identity: Identity) -> int | None:
    """Uncorrected memory errors since the driver was loaded; None where it isn't told. Raises `NotSampled`."""

    def ask() -> int | None:
        kind, counter = pynvml.NVML_MEMORY_ERROR_TYPE_UNCORRECTED, pynvml.NVML_VOLATILE_ECC
        count = _optional(pynvml.nvmlDeviceGetTotalEccErrors, identity.handle, kind, counter)
        return None if count is None else int(count)

    return _translated(ask)


def read_wiring(identity: Identity) -> Wiring:
    """Where its NVLinks lead; up to 36 short calls, so once is enough. Raises `NotSampled`."""

    def ask() -> Wiring:
        peers, switch = set(), False
        for link in range(pynvml.NVML_NVLINK_MAX_LINKS):
            try:
                is_active = _optional(pynvml.nvmlDeviceGetNvLinkState, identity.handle, link)
            except pynvml.NVMLError_InvalidArgument:  # it has no more links than those
                break
            if not is_active:
                continue
            # Older drivers don't tell what is at the other end: then it is a GPU if one has that address.
            kind = _optional(pynvml.nvmlDeviceGetNvLinkRemoteDeviceType, identity.handle, link)
            if kind == pynvml.NVML_NVLINK_DEVICE_TYPE_SWITCH:
                switch = True
            elif kind in (None, pynvml.NVML_NVLINK_DEVICE_TYPE_GPU):
                peers.add(_bus_id(_optional(pynvml.nvmlDeviceGetNvLinkRemotePciInfo, identity.handle, link)))
        return Wiring(frozenset(peers - {""}), switch)

    return _translated(ask)


class XidEvents:
    """The critical errors (XIDs) of one GPU, as the driver tells them from now on. Raises `NotSampled`."""

    def __init__(self, identity: Identity) -> None:
        self._set = _translated(lambda: self._open(identity))

    @property
    def are_told(self) -> bool:
        """False: this GPU, or this driver, tells none."""
        return self._set is not None

    def wait(self, timeout_seconds: float) -> int | None:
        """Wait for one, and give its number; None when none came in that time. Raises `NotSampled`."""

        def ask() -> int | None:
            try:
                event = pynvml.nvmlEventSetWait(self._set, int(timeout_seconds * 1000))
            except pynvml.NVMLError_Timeout:
                return None
            return int(event.eventData) if event.eventType & pynvml.nvmlEventTypeXidCriticalError else None

        return _translated(ask)

    def close(self) -> None:
        """Give it back. Never raises."""
        if self._set is not None:
            with contextlib.suppress(pynvml.NVMLError):  # the GPU has gone: nothing is left to give back
                pynvml.nvmlEventSetFree(self._set)
            self._set = None

    @staticmethod
    def _open(identity: Identity) -> Any:
        wanted = pynvml.nvmlEventTypeXidCriticalError
        if not (_optional(pynvml.nvmlDeviceGetSupportedEventTypes, identity.handle) or 0) & wanted:
            return None
        events = pynvml.nvmlEventSetCreate()
        try:
            pynvml.nvmlDeviceRegisterEvents(identity.handle, wanted, events)
        except pynvml.NVMLError as error:
            pynvml.nvmlEventSetFree(events)
            if _is_no_answer(error):
                return None
            raise
        return events


def _bus_id(info: Any) -> str:
    """The PCI address out of NVML's structure, in one spelling."""
    return "" if info is None else str(info.busId).lower()


def _memory(handle: Any) -> Any:
    """Total and used bytes. The second form counts as nvidia-smi does: the driver's own share is not "used"."""
    memory = _optional(pynvml.nvmlDeviceGetMemoryInfo, handle, pynvml.nvmlMemory_v2)
    return _optional(pynvml.nvmlDeviceGetMemoryInfo, handle) if memory is None else memory


def _optional(call: Callable[..., T], *args: object) -> T | None:
    try:
        return call(*args)
    except pynvml.NVMLError as error:
        if _is_no_answer(error):
            return None
        raise


def _translated(ask: Callable[[], T]) -> T:
    try:
        return ask()
    except pynvml.NVMLError as error:
        raise NotSampled(_not_sampled(error)) from error


def _no_driver(error: Any) -> str:
    """What an `NVMLError` of the start says of the driver, in a sentence."""
    known = {
        pynvml.NVML_ERROR_DRIVER_NOT_LOADED: f"the NVIDIA driver is installed but not loaded; {_CPU}",
        pynvml.NVML_ERROR_NO_PERMISSION: f"this user may not talk to the NVIDIA driver; {_CPU}",
        pynvml.NVML_ERROR_LIB_RM_VERSION_MISMATCH: (
            f"the NVIDIA driver and its library differ in version (upgraded without a reboot); until a reboot {_CPU}"
        ),
    }
    return known.get(error.value, f"the NVIDIA driver can't be used ({error}); {_CPU}")


def _not_sampled(error: Any) -> str:
    """What an `NVMLError` of one GPU says, without a full stop."""
    known = {
        pynvml.NVML_ERROR_GPU_IS_LOST: "it fell off the bus; a reset or a reboot is needed",
        pynvml.NVML_ERROR_RESET_REQUIRED: "it needs a reset",
        pynvml.NVML_ERROR_NOT_FOUND: "the driver doesn't list it any more",
    }
    return known.get(error.value, f"NVML says: {error}")


def _is_no_answer(error: Any) -> bool:
    """A healthy GPU may say so to a question that doesn't apply to it, or that this driver or user can't ask."""
    return error.value in (
        pynvml.NVML_ERROR_NOT_SUPPORTED,
        pynvml.NVML_ERROR_FUNCTION_NOT_FOUND,
        pynvml.NVML_ERROR_ARGUMENT_VERSION_MISMATCH,
        pynvml.NVML_ERROR_NO_PERMISSION,
        pynvml.NVML_ERROR_NO_DATA,
    )
