"""What is told of a GPU: the differences between one look at it and the next."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from stoker.types.host import Device
from stokerd.devices.placement import describe

Condition = Literal["well", "hangs", "lost"]
Reason = Literal[
    "DeviceLost", "DeviceBack", "DeviceXid", "DeviceEcc", "DeviceHangs", "DeviceForeign", "DeviceForeignGone"
]

# What a program of its own may cause on a GPU that is well, as NVIDIA's device plugin for Kubernetes sorts them:
# graphics engine and page faults, a stopped or cleaned-up channel, a video decoder's fault, a context switch timeout.
PROGRAMS_XIDS = frozenset({13, 31, 43, 45, 68, 109})
XID_QUIET_SECONDS = 60.0  # a program that faults at each kernel would fill state.db


@dataclass(frozen=True, slots=True)
class DeviceEvent:
    """Something that happened to the GPU *uuid*; *message* is one sentence, *data* goes into the event as it is."""

    uuid: str
    index: int
    reason: Reason
    message: str
    data: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Look:
    """A GPU as it was seen at one moment."""

    device: Device
    condition: Condition


@dataclass(frozen=True, slots=True)
class Told:
    """What was told of a GPU so far: how it is, who else uses it (pid to what was said of it), its ECC errors."""

    condition: Condition = "well"
    foreign: Mapping[int, str] = field(default_factory=dict)
    ecc_errors: int | None = None


def changes(told: Told, look: Look) -> tuple[Told, list[DeviceEvent]]:
    """Say what is new in *look*, and what has been told with that."""
    device, events = look.device, []

    def tell(reason: Reason, message: str, **data: Any) -> None:
        events.append(DeviceEvent(device.uuid, device.index, reason, message, data))

    if look.condition != told.condition:
        if look.condition == "well":
            tell("DeviceBack", f"GPU {device.index} is sampled again.")
        else:
            tell("DeviceHangs" if look.condition == "hangs" else "DeviceLost", device.error or "")
    if look.condition != "well":  # nothing else is known of it: what was told before stands
        return Told(look.condition, told.foreign, told.ecc_errors), events

    listed = {process.pid: process for process in device.foreign}
    # One that had ended before it was ever told is the rest of something, not a newcomer: it is shown, and not told.
    came = {pid: describe(p) for pid, p in listed.items() if pid not in told.foreign and p.name}
    for pid, what in came.items():
        tell("DeviceForeign", f"GPU {device.index} is used by {what}.", pid=pid, process=listed[pid].name)
    gone = [pid for pid in told.foreign if pid not in listed]
    for pid in gone:
        tell("DeviceForeignGone", f"process {pid} uses GPU {device.index} no longer.", pid=pid)
    foreign = {pid: what for pid, what in {**told.foreign, **came}.items() if pid not in gone}

    count = device.ecc_errors
    if count is not None and told.ecc_errors is not None and count > told.ecc_errors:
        more = count - told.ecc_errors
        message = (
            f"GPU {device.index} had {more} uncorrected memory error(s) (ECC); it is {count} since the driver was "
            "loaded. What was computed with them may be wrong."
        )
        tell("DeviceEcc", message, errors=more, total=count)
    return Told("well", foreign, told.ecc_errors if count is None else count), events


class XidTeller:
    """Makes events of one GPU's XIDs; the same number again within `XID_QUIET_SECONDS` is only counted."""

    def __init__(self) -> None:
        self._told_at: dict[int, float] = {}
        self._untold: dict[int, int] = {}

    def event(self, device: Device, xid: int, now: float) -> DeviceEvent | None:
        """What to tell of *xid* at monotonic time *now*; None: it was told just now."""
        last = self._told_at.get(xid)
        if last is not None and now - last < XID_QUIET_SECONDS:
            self._untold[xid] = self._untold.get(xid, 0) + 1
            return None
        self._told_at[xid] = now
        before = self._untold.pop(xid, 0)
        whose = "which is mostly the running program's fault" if xid in PROGRAMS_XIDS else "which is mostly the GPU's"
        message = f"GPU {device.index} had the critical error XID {xid}, {whose}."
        if before:
            message += f" It had {before} more of them since the last time this was said."
        return DeviceEvent(device.uuid, device.index, "DeviceXid", message, {"xid": xid, "untold": before})
