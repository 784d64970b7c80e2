from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stoker.types.host import Device, DeviceProcess, Lease
from stoker.types.rollouts import RolloutPlan, RolloutSpec
from stoker.types.serving import Asleep, Deployment, DeploymentSpec, Draining, Ready, Replica
from stokerd.devices.placement import room
from stokerd.rollouts.fit import LateTraffic, fit
from stokerd.serving.engines import launch_digest

GIB = 2**30
SINCE = datetime(2026, 5, 4, tzinfo=UTC)
READY = Ready(process="p", since=SINCE)
STRANGER = DeviceProcess(pid=4711, name="python", memory=10 * GIB)
COMMAND = {"type": "command", "command": ["serve", "{socket}"]}
ADAPTER = {"type": "adapter", "base": "base"}
BUSY = LateTraffic(requests_per_hour=3600, callers=200, hours=24, start_seconds=45)


def spec(**fields: Any) -> RolloutSpec:
    return RolloutSpec.model_validate({"kind": "rollout", "name": "r", "deployment": "chat", "to": 7, **fields})


def deployment(**fields: Any) -> Deployment:
    served = {"kind": "deployment", "name": "chat", "model": "m", "version": 6, "engine": COMMAND, **fields}
    return Deployment(name="chat", spec=DeploymentSpec.model_validate(served), version=6, phase="ready")


def gpus(count: int, total: int = 80, **fields: Any) -> list[Device]:
    return [Device(uuid=f"GPU-{i}", index=i, name="GPU", memory_total=total * GIB, **fields) for i in range(count)]


class World:
    """A host with a deployment in version 6, one replica on each of *lies_on*, and others that hold something."""

    def __init__(self, host: list[Device], lies_on: list[list[str]], **fields: Any) -> None:
        self.devices = host
        self.deployment = deployment(replicas=max(len(lies_on), 1), **fields)
        self.replicas: list[Replica] = []
        self.leases: dict[str, list[Lease]] = {}
        for index, uuids in enumerate(lies_on):
            self.add(6, index, uuids)

    def add(self, version: int, index: int, uuids: list[str], **fields: Any) -> None:
        served = self.deployment.spec
        replica = Replica(
            name=f"chat-v{version}-{index}",
            deployment="chat",
            version=version,
            index=index,
            devices=uuids,
            device_memory=served.device_memory,
            launch_digest=launch_digest(served),
            **{"state": READY, **fields},
        )
        self.replicas.append(replica)
        self.hold(f"replica/{replica.name}", uuids, served.device_memory)

    def hold(self, owner: str, uuids: list[str], memory: int | None = None) -> None:
        for uuid in uuids:
            self.leases.setdefault(uuid, []).append(Lease(owner=owner, memory=memory))

    def plan(self, traffic: LateTraffic = BUSY, others: list[Replica] | None = None, **fields: Any) -> RolloutPlan:
        return fit(spec(**fields), self.deployment, self.replicas, 7, self.devices, self.leases, traffic, others or [])


def test_without_gpus_it_runs_beside_on_the_cpu() -> None:
    plan = World([], [[]]).plan()
    assert (plan.fits, plan.placement, plan.devices) == (True, "beside", [])
    assert plan.says == "v7 runs beside v6 on this host's CPU."
    assert (plan.from_version, plan.to_version, plan.requests_per_hour, plan.callers) == (6, 7, 3600, 200)


def test_it_gets_a_gpu_of_its_own_where_one_is_free() -> None:
    plan = World(gpus(2), [["GPU-0"]], devices=1).plan()
    assert (plan.fits, plan.placement, plan.devices) == (True, "beside", ["GPU-1"])
    assert plan.says == "v7 runs beside v6 on GPU 1."


def test_without_room_it_says_who_holds_the_devices_and_what_would_work() -> None:
    plan = World(gpus(1), [["GPU-0"]], devices=1).plan()
    assert (plan.fits, plan.placement, plan.devices, plan.seconds) == (False, "beside", [], None)
    assert plan.says == (
        "v7 doesn't fit beside v6: it needs 1 GPU(s); too few are free (held by replica/chat-v6-0). `placement: swap` "
        "would work: v6 stops first, and all requests are held until v7 is ready, in about 45s."
    )


def test_a_swap_is_not_offered_where_it_would_not_help() -> None:
    world = World(gpus(1), [[]], devices=1)  # stable waits for a device itself
    world.hold("run/r", ["GPU-0"])
    assert "swap" not in world.plan().says
    plan = world.plan(placement="swap")
    assert not plan.fits and plan.placement == "swap"
    assert plan.says == "v7 doesn't fit even in the place of v6: it needs 1 GPU(s); too few are free (held by run/r)."


def test_a_swap_takes_the_devices_of_stable() -> None:
    plan = World(gpus(1), [["GPU-0"]], devices=1, hold_timeout=900).plan(placement="swap")
    assert (plan.fits, plan.placement, plan.devices) == (True, "swap", ["GPU-0"])
    assert plan.says == (
        "v6 stops, then v7 starts on GPU 0, in about 45s; meanwhile requests are held, each for at most 15m."
    )
    assert plan.way_back == (
        "v7 stops and v6 starts in its place (about 45s), with requests held meanwhile; after promotion, too."
    )


def test_a_swap_says_what_it_costs() -> None:
    warnings = World(gpus(2), [["GPU-0"]], devices=1, max_queue=5).plan(placement="swap").warnings
    assert any("never answers at the same time" in w for w in warnings)
    assert any("room beside v6" in w for w in warnings)
    assert any("45 requests will come while v7 starts; at most 5 wait" in w for w in warnings)
    guards = [{"metric": "error_rate", "limit": 0.1, "against": "nothing"}]
    assert World(gpus(1), [["GPU-0"]], devices=1).plan(placement="swap", guards=guards).warnings == []


def test_servers_on_the_cpu_can_be_swapped_too() -> None:
    plan = World([], [[]]).plan(placement="swap")
    assert plan.fits and "v7 starts on this host's CPU" in plan.says


def test_shares_lie_beside_each_other_on_the_device_of_stable() -> None:
    plan = World(gpus(2), [["GPU-1"]], devices=1, device_memory=30 * GIB).plan()
    assert (plan.fits, plan.placement, plan.devices) == (True, "share", ["GPU-1"])
    assert plan.says == "v7 runs beside v6 on the same devices (GPU 1), with 30 GiB of each."
    assert "v7 and v6 slow each other down on GPU 1." in plan.warnings
    assert "Shadow adds 10 % to the work of what v6 runs on." in plan.warnings


def test_a_share_for_which_the_device_of_stable_is_too_full_lies_elsewhere() -> None:
    plan = World(gpus(2), [["GPU-0"]], devices=1, device_memory=50 * GIB).plan()
    assert (plan.fits, plan.placement, plan.devices) == (True, "beside", ["GPU-1"])
    plan = World(gpus(1), [["GPU-0"]], devices=1, device_memory=50 * GIB).plan()
    assert not plan.fits and "it needs 50 GiB on 1 GPU(s); too few are free" in plan.says


def test_all_replicas_must_find_a_place_at_once() -> None:
    plan = World(gpus(3), [["GPU-0"], ["GPU-1"]], devices=1).plan()
    assert not plan.fits and "it needs 2 GPU(s); too few are free" in plan.says
    plan = World(gpus(4), [["GPU-0"], ["GPU-1"]], devices=1).plan()
    assert plan.fits and plan.says == "v7 runs beside v6 on GPU 2, GPU 3."
    plan = World(gpus(1), [["GPU-0"], ["GPU-0"]], devices=1, device_memory=20 * GIB).plan()
    assert plan.fits and plan.placement == "share"
    plan = World(gpus(1), [["GPU-0"], ["GPU-0"]], devices=1, device_memory=25 * GIB).plan()
    assert not plan.fits and "not all of its 2 replicas find a place" in plan.says


def test_a_stranger_on_a_device_is_in_the_way() -> None:
    world = World(
        [*gpus(1), Device(uuid="x", index=1, name="", memory_total=80 * GIB, foreign=[STRANGER])],
        [["GPU-0"]],
        devices=1,
    )
    assert "process 4711 (python), which is not of Stoker" in world.plan().says


def test_what_is_on_its_way_out_makes_room_and_is_waited_for() -> None:
    world = World(gpus(2), [["GPU-0"]], devices=1)
    world.add(5, 0, ["GPU-1"])  # stands by for an earlier rollout, until the next
    plan = world.plan()
    assert plan.fits and plan.devices == ["GPU-1"]
    assert "v7 starts when chat-v5-0 has gone, whose devices it needs." in plan.warnings
    world = World(gpus(2), [["GPU-0"]], devices=1)
    world.add(7, 0, ["GPU-1"], wanted=False, state=Draining(process="p", since=SINCE))  # of a rollout that was aborted
    assert world.plan().fits


def test_a_version_that_stands_by_begins_at_once() -> None:
    world = World(gpus(2), [["GPU-0"]], devices=1)
    world.add(7, 0, ["GPU-1"])
    plan = world.plan(steps=[{"type": "pause", "duration": 10}])
    assert (plan.fits, plan.placement, plan.devices, plan.seconds) == (True, "beside", ["GPU-1"], 10)
    assert plan.says == "v7 stands by already, on GPU 1."


def test_what_stands_by_made_for_another_engine_must_be_made_again() -> None:
    world = World(gpus(2), [["GPU-0"]], devices=1)
    world.add(7, 0, ["GPU-1"])
    world.replicas[-1].launch_digest = "other"
    assert not world.plan().fits


def test_an_adapter_goes_into_the_servers_of_its_base() -> None:
    def server(index: int, **fields: Any) -> Replica:
        return Replica(
            name=f"base-v1-{index}", deployment="base", version=1, index=index, devices=[f"GPU-{index}"], **fields
        )

    world = World(gpus(1), [[]], engine=ADAPTER)
    plan = world.plan(others=[server(0, state=READY), server(1, state=READY)])
    assert (plan.fits, plan.placement, plan.devices) == (True, "adapter", ["GPU-0"])
    assert plan.says == "v7 is loaded beside v6 into the 2 servers of base."
    assert "whose weights stay loaded" in plan.way_back
    plan = world.plan(others=[server(0)])
    assert not plan.fits and plan.says == "v7 can't be loaded: no server of base is ready."
    plan = world.plan(others=[server(0, state=READY)], placement="swap")
    assert not plan.fits and "nothing to swap" in plan.says


def test_the_way_back_is_said() -> None:
    plan = World([], [[]]).plan()
    assert plan.way_back == (
        "At once: the gateway sends all requests to v6 again, whose replicas stay as they are, and for 10m after "
        "promotion."
    )
    plan = World([], [[]]).plan(keep_warm=0)
    assert plan.way_back.endswith("stay as they are; after promotion, v6 has to start first (about 45s).")


def test_the_start_is_part_of_the_time_that_it_takes() -> None:
    plan = World([], [[]]).plan(steps=[{"type": "pause", "duration": 10}])
    assert plan.seconds == 55
    assert World([], [[]]).plan().seconds == 45 + sum(step.seconds or 0 for step in World([], [[]]).plan().steps)


def test_a_stable_version_that_is_not_well_is_told() -> None:
    world = World([], [[]])
    world.deployment.phase, world.deployment.message = "degraded", "chat-v6-0: stalled"
    assert any(w.startswith("v6 is degraded: chat-v6-0: stalled.") for w in world.plan().warnings)


@pytest.mark.parametrize("placement", ["beside", "swap"])
@given(
    count=st.integers(0, 4),
    needs=st.integers(0, 3),
    memory=st.one_of(st.none(), st.sampled_from([10, 30, 50, 90])),
    replicas=st.integers(1, 3),
    taken=st.lists(st.tuples(st.integers(0, 3), st.sampled_from([None, 20, 60])), max_size=3),
    mode=st.sampled_from(["shared", "exclusive"]),
)
def test_what_fits_can_be_had_and_leaves_others_alone(
    placement: str,
    count: int,
    needs: int,
    memory: int | None,
    replicas: int,
    taken: list[tuple[int, int | None]],
    mode: str,
) -> None:
    devices = gpus(count, mode=mode)
    world = World(devices, [[]] * replicas, devices=needs, device_memory=memory * GIB if memory and needs else None)
    before: dict[str, list[Lease]] = {}
    for index, share in taken:
        if index < count:
            before.setdefault(f"GPU-{index}", []).append(Lease(owner="run/x", memory=share * GIB if share else None))
    for uuid, held in before.items():
        world.leases[uuid] = list(held)
    plan = world.plan(placement=placement)
    assert world.leases == before  # it only looks
    assert plan.says.endswith(".")
    if plan.fits and needs:
        assert len(plan.devices) == needs
        for device in devices:
            if device.uuid in plan.devices:
                assert room(device, before.get(device.uuid, [])) >= (world.deployment.spec.device_memory or 0)
    elif not needs:
        assert plan.fits


VLLM = {"type": "vllm", "args": ["--enable-sleep-mode"]}
ASLEEP = Asleep(process="p", since=SINCE, devices=["GPU-0"])


def test_a_swap_by_sleep_says_what_becomes_of_the_old_version_and_how_fast_it_is_back() -> None:
    world = World(gpus(1), [["GPU-0"]], devices=1, engine=VLLM)
    assert "`placement: swap` would work: v6 is put to sleep first" in world.plan().says
    plan = world.plan(placement="swap", keep_warm="1h")
    assert plan.says == (
        "v6 is put to sleep, then v7 starts on GPU 0, in about 45s; meanwhile requests are held, each for at most 10m."
    )
    assert plan.way_back == (
        "v7 stops and v6 wakes up in its place within seconds, with requests held meanwhile; for 1h after promotion, "
        "too: then v6 has to start first (about 45s)."
    )
    assert any("keeps its weights in this host's memory" in w for w in plan.warnings)
    assert "after promotion, v6 has to start first" in world.plan(placement="swap", keep_warm="0s").way_back


def test_a_version_that_sleeps_wakes_up_in_a_swap_and_is_not_there_beside() -> None:
    world = World(gpus(1), [["GPU-0"]], devices=1, engine=VLLM)
    world.add(7, 0, [], state=ASLEEP, rests=True)
    plan = world.plan(placement="swap", steps=[{"type": "pause", "duration": "1m"}])
    assert plan.says.startswith("v6 is put to sleep, then v7 wakes up on GPU 0; meanwhile")
    assert (plan.devices, plan.seconds) == (["GPU-0"], 60)
    beside = world.plan()
    assert not beside.fits
    assert "held by replica/chat-v6-0" in beside.says
