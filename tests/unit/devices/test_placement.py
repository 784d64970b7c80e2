from __future__ import annotations

from dataclasses import dataclass, field
from itertools import combinations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stoker.types.host import Device, DeviceProcess, Lease
from stokerd.devices import placement
from stokerd.devices.placement import Request, is_free, place, room, why_not

GIB = 2**30


def device(index: int, total: int = 80, **fields: object) -> Device:
    return Device.model_validate(
        {"uuid": f"GPU-{index}", "index": index, "name": "GPU", "memory_total": total * GIB, **fields}
    )


def share(owner: str, gib: int) -> Lease:
    return Lease(owner=owner, memory=gib * GIB)


WHOLE = Lease(owner="run/whole")
STRANGER = DeviceProcess(pid=4711, name="python", memory=10 * GIB)


@dataclass
class World:
    """A host, and who holds what of it; grows by what `place` gives."""

    devices: list[Device]
    leases: dict[str, list[Lease]] = field(default_factory=dict)

    def ask(self, request: Request, owner: str = "run/new") -> list[str] | None:
        given_ = place(self.devices, self.leases, request)
        for uuid in given_ or []:
            self.leases.setdefault(uuid, []).append(Lease(owner=owner, memory=request.memory))
        return given_


devices_of_any_kind = st.builds(
    lambda total, mode, is_well, foreign, used: {
        "total": total,
        "mode": mode,
        "error": None if is_well else "lost",
        "foreign": foreign,
        "memory_used": used,
    },
    total=st.sampled_from([0, 24, 80]),
    mode=st.sampled_from(["shared", "shared", "exclusive"]),
    is_well=st.sampled_from([True, True, True, False]),
    foreign=st.sampled_from([[], [], [], [STRANGER], [DeviceProcess(pid=4711)], [STRANGER, STRANGER]]),
    used=st.sampled_from([None, 0, 30 * GIB]),
)


@st.composite
def hosts(draw: st.DrawFn) -> list[Device]:
    kinds = draw(st.lists(devices_of_any_kind, max_size=8))
    count = len(kinds)
    pairs = draw(st.lists(st.tuples(st.integers(0, 7), st.integers(0, 7)), max_size=12))
    links: dict[int, list[str]] = {}
    for a, b in pairs:
        if a != b and a < count and b < count:
            links.setdefault(a, []).append(f"GPU-{b}")
    return draw(st.permutations([device(i, **kind, links=links.get(i, [])) for i, kind in enumerate(kinds)]))


requests = st.builds(Request, st.integers(0, 9), st.one_of(st.none(), st.integers(1, 90).map(lambda gib: gib * GIB)))


@given(hosts(), st.lists(requests, max_size=12))
def test_nothing_is_ever_given_twice_or_over_committed(devices: list[Device], asked: list[Request]) -> None:
    world = World(devices)
    by_uuid = {d.uuid: d for d in devices}
    for number, request in enumerate(asked):
        chosen = world.ask(request, f"run/{number}")
        if chosen is None:
            assert why_not(devices, world.leases, request).endswith(").") or "this host" in why_not(
                devices, world.leases, request
            )
            continue
        assert len(chosen) == len(set(chosen)) == request.count
        assert chosen == sorted(chosen, key=lambda u: by_uuid[u].index)
        for uuid in chosen:
            given_, held = by_uuid[uuid], world.leases[uuid]
            assert given_.error is None
            if request.memory is None or given_.mode == "exclusive":
                assert len(held) == 1
                assert not given_.foreign
            assert len(held) == 1 or all(lease.memory is not None for lease in held)
            if request.memory is not None:
                others = sum((p.memory or 0) for p in given_.foreign)
                assert sum(lease.memory or 0 for lease in held) + others <= given_.memory_total


@given(hosts(), st.lists(requests, max_size=6), requests)
def test_what_can_be_had_is_given(devices: list[Device], before: list[Request], request: Request) -> None:
    world = World(devices)
    for earlier in before:
        world.ask(earlier)
    if request.memory is None:
        fitting = [d for d in devices if is_free(d, world.leases.get(d.uuid, ()))]
    else:
        fitting = [d for d in devices if room(d, world.leases.get(d.uuid, ())) >= request.memory]
    assert (place(devices, world.leases, request) is not None) == (len(fitting) >= request.count)


@given(hosts(), st.lists(requests, max_size=6), requests)
def test_a_share_takes_no_free_gpu_while_shared_ones_do(
    devices: list[Device], before: list[Request], request: Request
) -> None:
    world = World(devices)
    for earlier in before:
        world.ask(earlier)
    leases = {uuid: list(held) for uuid, held in world.leases.items()}
    chosen = world.ask(request)
    if request.memory is None or chosen is None:
        return
    shared = [d.uuid for d in devices if leases.get(d.uuid) and not d.foreign and room(d, leases[d.uuid])]
    fitting = {d.uuid for d in devices if d.uuid in shared and room(d, leases[d.uuid]) >= request.memory}
    free = {d.uuid for d in devices if is_free(d, leases.get(d.uuid, ())) and room(d, ()) >= request.memory}
    missing = max(0, request.count - len(fitting))
    assert len(free & set(chosen)) == min(missing, len(free)), "what free ones can't give comes from beside strangers"


@given(hosts(), st.integers(0, 9))
def test_a_whole_request_gets_a_set_with_the_most_links_inside(devices: list[Device], count: int) -> None:
    free = [d for d in devices if is_free(d, ())]

    def links(chosen: tuple[Device, ...]) -> int:
        return sum(b.uuid in a.links or a.uuid in b.links for a, b in combinations(chosen, 2))

    chosen = place(devices, {}, Request(count))
    if chosen is not None:
        most = max((links(c) for c in combinations(free, count)), default=0)
        assert links(tuple(d for d in devices if d.uuid in chosen)) == most


def test_without_links_the_lowest_index_comes_first() -> None:
    devices = [device(i) for i in (3, 1, 2, 0)]
    assert place(devices, {}, Request(2)) == ["GPU-0", "GPU-1"]
    assert place(devices, {"GPU-0": [WHOLE]}, Request(2)) == ["GPU-1", "GPU-2"]
    assert place(devices, {}, Request(4)) == ["GPU-0", "GPU-1", "GPU-2", "GPU-3"]
    assert place(devices, {}, Request(5)) is None


def paired(*pairs: tuple[int, int], count: int) -> list[Device]:
    peers: dict[int, list[str]] = {i: [] for i in range(count)}
    for a, b in pairs:
        peers[a].append(f"GPU-{b}")
        peers[b].append(f"GPU-{a}")
    return [device(i, links=peers[i]) for i in range(count)]


def test_a_pair_joined_by_nvlink_is_preferred() -> None:
    devices = paired((0, 3), (1, 2), count=4)
    assert place(devices, {}, Request(2)) == ["GPU-0", "GPU-3"]
    assert place(devices, {"GPU-3": [WHOLE]}, Request(2)) == ["GPU-1", "GPU-2"]
    assert place(devices, {"GPU-3": [WHOLE], "GPU-2": [WHOLE]}, Request(2)) == ["GPU-0", "GPU-1"]


def test_a_single_gpu_breaks_no_pair_while_one_without_a_partner_is_free() -> None:
    devices = paired((0, 1), (2, 3), count=5)
    assert place(devices, {}, Request(1)) == ["GPU-4"]
    assert place(devices, {"GPU-4": [WHOLE], "GPU-2": [WHOLE]}, Request(1)) == ["GPU-3"]
    assert place(devices, {}, Request(3)) == ["GPU-0", "GPU-1", "GPU-4"]


def test_of_many_sets_a_good_one_is_found_without_looking_at_all(monkeypatch: pytest.MonkeyPatch) -> None:
    groups = [(a, b) for base in (0, 8) for a, b in combinations(range(base, base + 8), 2)]
    devices = paired(*groups, count=16)
    monkeypatch.setattr(placement, "EXACT_SETS", 0)
    assert place(devices, {"GPU-0": [WHOLE]}, Request(8)) == [f"GPU-{i}" for i in range(8, 16)]
    assert place(devices, {}, Request(4)) == [f"GPU-{i}" for i in range(4)]


def test_shares_fill_the_fullest_gpu_that_still_fits() -> None:
    devices = [device(i) for i in range(3)]
    leases = {"GPU-1": [share("run/a", 30)], "GPU-2": [share("run/b", 60)]}
    assert place(devices, leases, Request(1, 20 * GIB)) == ["GPU-2"]
    assert place(devices, leases, Request(1, 21 * GIB)) == ["GPU-1"]
    assert place(devices, leases, Request(1, 51 * GIB)) == ["GPU-0"]
    assert place(devices, leases, Request(2, 20 * GIB)) == ["GPU-1", "GPU-2"]
    assert place(devices, leases, Request(3, 21 * GIB)) is None


def test_a_small_free_gpu_stays_free_while_a_large_shared_one_fits() -> None:
    devices = [device(0, 24), device(1, 80)]
    assert place(devices, {"GPU-1": [share("run/a", 30)]}, Request(1, 20 * GIB)) == ["GPU-1"]


def test_an_exclusive_gpu_takes_one_lease_and_a_share_only_when_no_other_fits() -> None:
    devices = [device(0, mode="exclusive"), device(1)]
    assert place(devices, {}, Request(1, 10 * GIB)) == ["GPU-1"]
    assert place(devices, {"GPU-1": [WHOLE]}, Request(1, 10 * GIB)) == ["GPU-0"]
    assert place(devices, {"GPU-1": [WHOLE], "GPU-0": [share("run/a", 10)]}, Request(1, 10 * GIB)) is None
    assert place(devices, {}, Request(1)) == ["GPU-0"]


def test_a_foreign_process_is_avoided_and_its_memory_is_not_given_away() -> None:
    devices = [device(0, foreign=[STRANGER]), device(1)]
    assert place(devices, {}, Request(2)) is None
    assert place(devices, {}, Request(1)) == ["GPU-1"]
    assert place(devices, {}, Request(1, 10 * GIB)) == ["GPU-1"]
    assert place(devices, {"GPU-1": [WHOLE]}, Request(1, 70 * GIB)) == ["GPU-0"]
    assert place(devices, {"GPU-1": [WHOLE]}, Request(1, 71 * GIB)) is None
    # An exclusive one is not shared with a stranger either.
    assert place([device(0, foreign=[STRANGER], mode="exclusive")], {}, Request(1, GIB)) is None
    # Where the driver doesn't say how much the stranger has, all that is used may be the stranger's.
    untold = DeviceProcess(pid=1, name="x")
    assert place([device(0, foreign=[untold], memory_used=30 * GIB)], {}, Request(1, 50 * GIB)) == ["GPU-0"]
    assert place([device(0, foreign=[untold], memory_used=30 * GIB)], {}, Request(1, 51 * GIB)) is None
    assert place([device(0, foreign=[untold])], {}, Request(1, GIB)) is None


def test_nothing_asked_for_is_given_even_without_gpus() -> None:
    assert place([], {}, Request(0)) == []
    assert place([], {}, Request(0, GIB)) == []


@pytest.mark.parametrize(
    ("devices", "leases", "request_", "sentence"),
    [
        ([], {}, Request(1), "it needs 1 GPU(s); this host has 0."),
        (
            [device(0), device(1)],
            {"GPU-0": [share("replica/b", 10), share("replica/a", 10)], "GPU-1": [WHOLE], "GPU-9": [WHOLE]},
            Request(2),
            "it needs 2 GPU(s); too few are free (held by replica/a, replica/b, run/whole).",
        ),
        (
            [device(1, error="lost"), device(0, foreign=[STRANGER, DeviceProcess(pid=7)])],
            {},
            Request(1),
            "it needs 1 GPU(s); too few are free (GPU 0 is used by process 4711 (python), which is not of Stoker; "
            "GPU 0 is used by process 7, which has ended, but its memory is not back; GPU 1 is out of order).",
        ),
        (
            [device(0, 24), device(1)],
            {},
            Request(2, 40 * GIB),
            "it needs 40 GiB on 2 GPU(s); only 1 of this host's 2 are that large.",
        ),
        (
            [device(0)],
            {"GPU-0": [share("run/a", 50)]},
            Request(1, 1536 * 2**20 + 40 * GIB),
            "it needs 41.5 GiB on 1 GPU(s); too few are free (held by run/a).",
        ),
    ],
)
def test_the_reason_names_who_is_in_the_way(
    devices: list[Device], leases: dict[str, list[Lease]], request_: Request, sentence: str
) -> None:
    assert place(devices, leases, request_) is None
    assert why_not(devices, leases, request_) == sentence
