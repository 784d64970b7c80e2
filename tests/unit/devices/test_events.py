from __future__ import annotations

from stoker.types.host import Device, DeviceProcess
from stokerd.devices.events import XID_QUIET_SECONDS, Condition, Look, Told, XidTeller, changes

PYTHON, REST = DeviceProcess(pid=7, name="python"), DeviceProcess(pid=7)


def look(condition: Condition = "well", **fields: object) -> Look:
    error = None if condition == "well" else f"GPU 0 {condition}."
    device = {"uuid": "GPU-0", "index": 0, "name": "GPU", "memory_total": 1, "error": error, **fields}
    return Look(Device.model_validate(device), condition)


def told(*looks: Look) -> list[str]:
    state = Told()
    reasons: list[str] = []
    for each in looks:
        state, events = changes(state, each)
        reasons += [e.reason for e in events]
    return reasons


def test_a_gpu_that_is_well_from_the_start_is_not_told() -> None:
    assert told(look(), look()) == []


def test_each_trouble_is_told_once_and_its_end_too() -> None:
    assert told(look("lost"), look("lost"), look(), look()) == ["DeviceLost", "DeviceBack"]
    assert told(look("hangs"), look("hangs"), look("lost"), look()) == ["DeviceHangs", "DeviceLost", "DeviceBack"]


def test_a_gpu_in_trouble_forgets_nothing_that_was_told() -> None:
    before = look(foreign=[PYTHON], ecc_errors=2)
    assert told(before, look("lost"), before) == ["DeviceForeign", "DeviceLost", "DeviceBack"]
    after = look(ecc_errors=3)
    assert told(before, look("hangs"), after) == [
        "DeviceForeign", "DeviceHangs", "DeviceBack", "DeviceForeignGone", "DeviceEcc",
    ]  # fmt: skip


def test_a_foreign_process_is_gone_when_its_memory_is_and_not_when_it_dies() -> None:
    assert told(look(foreign=[PYTHON]), look(foreign=[REST])) == ["DeviceForeign"]
    assert told(look(foreign=[PYTHON]), look(foreign=[REST]), look()) == ["DeviceForeign", "DeviceForeignGone"]
    assert told(look(foreign=[REST]), look()) == []


def test_errors_from_before_the_start_are_not_told_and_later_ones_are() -> None:
    assert told(look(ecc_errors=5), look(ecc_errors=5)) == []
    assert told(look(), look(ecc_errors=5), look(), look(ecc_errors=6)) == ["DeviceEcc"]
    assert told(look(ecc_errors=5), look(ecc_errors=0), look(ecc_errors=1)) == ["DeviceEcc"]


def test_the_same_xid_again_is_counted_and_told_after_a_while() -> None:
    teller, device = XidTeller(), look().device
    first = teller.event(device, 31, 100.0)
    assert first is not None
    assert first.data == {"xid": 31, "untold": 0}
    assert [teller.event(device, 31, 100.0 + s) for s in (1, 2, 3)] == [None] * 3
    assert teller.event(device, 79, 101.0) is not None
    again = teller.event(device, 31, 100.0 + XID_QUIET_SECONDS)
    assert again is not None
    assert again.data == {"xid": 31, "untold": 3}
    assert "3 more" in again.message
