from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from stoker.types.host import Device
from stokerd.devices.placement import place


def device(index: int, *, error: str | None = None) -> Device:
    return Device(uuid=f"GPU-{index}", index=index, name="GPU", memory_total=1, error=error)


hosts = st.lists(st.tuples(st.integers(0, 15), st.booleans(), st.booleans()), max_size=16, unique_by=lambda d: d[0])


@given(hosts, st.integers(0, 17))
def test_only_free_and_well_gpus_are_given_and_the_lowest_first(host, count):
    devices = [device(i, error=None if is_well else "lost") for i, is_well, _ in host]
    taken = {f"GPU-{i}": "run/a" for i, _, is_taken in host if is_taken}
    usable = [f"GPU-{i}" for i in sorted(i for i, is_well, is_taken in host if is_well and not is_taken)]
    assert place(devices, taken, count) == (usable[:count] if count <= len(usable) else None)


def test_nothing_asked_for_is_given_even_without_gpus():
    assert place([], {}, 0) == []
