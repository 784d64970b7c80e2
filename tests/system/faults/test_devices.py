"""GPUs that fail under a daemon at work: on a simulated driver, behind the real binding."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from stoker.types.host import Device
from stoker.types.serving import Deployment
from stoker.types.training import Run
from tests.harness import wait_for
from tests.nvml.fleet import LOST, Fleet, Gpu, Process
from tests.system.faults.callers import Callers
from tests.system.faults.jobs import job, start_run
from tests.system.faults.scene import Scene
from tests.system.loop import add_version, deployment

QUICK = "restart: {limit: 100, backoff: 0.1s, backoff_cap: 0.5s, healthy_after: 0.5s}\n"
HANG_SECONDS = 30
WELL = [Gpu(ecc=0)] * 4


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Fleet:
    return Fleet(tmp_path_factory.mktemp("fleet"), WELL)


@pytest.fixture(scope="module")
def at_work(fleet: Fleet) -> Iterator[Scene]:
    """A server on a GPU of its own, and two that share one."""
    with Scene(env=fleet.env()) as scene:
        add_version(scene, "one")
        scene.apply(deployment(2, f"{QUICK}devices: 1\ndevice_memory: 20GiB"))
        scene.apply(deployment(1, f"{QUICK}devices: 1").replace("name: chat", "name: whole"))
        for name in ("chat", "whole"):
            scene.wait_phase(Deployment, name, "ready")
        scene.wait_event("GatewayReady", "gateway")
        yield scene


@pytest.fixture
def scene(at_work: Scene, fleet: Fleet) -> Iterator[Scene]:
    yield at_work
    fleet.play(*WELL)
    wait_for(lambda: all(d.error is None for d in at_work.client.host().devices), "all GPUs are well again")
    at_work.check()


def device(scene: Scene, index: int) -> Device:
    return scene.client.host().devices[index]


def used_by(scene: Scene, owner: str) -> int:
    """The number of the GPU that *owner* holds."""
    return next(d.index for d in scene.client.host().devices if owner in [lease.owner for lease in d.leases])


def unused(scene: Scene) -> int:
    return next(d.index for d in reversed(scene.client.host().devices) if not d.leases)


def test_an_xid_and_ecc_errors_are_told_and_disturb_nobody(scene: Scene, fleet: Fleet) -> None:
    index = used_by(scene, "replica/whole-v1-0")
    before = scene.client.host().last_event_id
    with Callers(scene, 2, "whole") as callers:
        wait_for(lambda: f"registered {index}" in fleet.calls(), "the daemon listens for XIDs")
        wait_for(lambda: device(scene, index).ecc_errors == 0, "the errors are counted")
        fleet.xid(index, 79)
        fleet.set(index, ecc=2)
        xid = scene.wait_event("DeviceXid", Fleet.uuid(index), after=before)
        ecc = scene.wait_event("DeviceEcc", Fleet.uuid(index), after=before)
        callers.hear(10)
    callers.assert_heard_only("I am one")
    assert (xid.data["xid"], ecc.data["errors"]) == (79, 2)
    assert (device(scene, index).xid, device(scene, index).ecc_errors) == (79, 2)


def test_a_lost_gpu_gets_no_new_work_until_it_is_back(scene: Scene, fleet: Fleet) -> None:
    index = unused(scene)
    others = [d.index for d in scene.client.host().devices if not d.leases and d.index != index]
    before = scene.client.host().last_event_id
    fleet.set(index, state=LOST)
    scene.wait_event("DeviceLost", Fleet.uuid(index), after=before)
    assert device(scene, index).error
    scene.apply(job("true", "after-loss", devices=len(others) + 1))
    run = start_run(scene, "after-loss")
    scene.wait_event("RunWaiting", run)
    fleet.set(index, state=0)
    scene.wait_event("DeviceBack", Fleet.uuid(index), after=before)
    scene.wait_phase(Run, run, "succeeded")


def test_a_call_that_hangs_for_30_s_holds_up_nothing_else(scene: Scene, fleet: Fleet) -> None:
    """The daemon answers, the other GPUs are sampled, runs on them are started and ended, clients are served."""
    index = used_by(scene, "replica/whole-v1-0")
    others = [d.index for d in scene.client.host().devices if d.index != index]
    before = scene.client.host().last_event_id
    fleet.hang(index, HANG_SECONDS)
    scene.apply(job("true", "meanwhile", devices=1))

    def are_used(percent: float) -> bool:
        return {device(scene, o).utilisation for o in others} == {percent}

    with Callers(scene, 2, "whole") as callers:
        slowest = 0.0
        for utilisation in (51, 52, 53):
            for other in others:
                fleet.set(other, utilisation_percent=utilisation)
            asked = time.monotonic()
            scene.client.host()
            slowest = max(slowest, time.monotonic() - asked)
            wait_for(partial(are_used, utilisation), "the others are sampled")
        scene.wait_phase(Run, start_run(scene, "meanwhile"), "succeeded")
        scene.wait_event("DeviceHangs", Fleet.uuid(index), after=before)
        callers.hear(10)
        assert slowest < HANG_SECONDS / 2
        fleet.hang(index, 0)
        scene.wait_event("DeviceBack", Fleet.uuid(index), after=before)
    callers.assert_heard_only("I am one")


def test_a_server_is_not_started_again_before_the_memory_of_the_dead_one_is_back(scene: Scene, fleet: Fleet) -> None:
    index = used_by(scene, "replica/whole-v1-0")
    pid = scene.server_of("whole-v1-0")
    before = scene.client.host().last_event_id
    fleet.set(index, processes=(Process(pid, 70_000),), used_mib=71_000)
    wait_for(lambda: device(scene, index).memory_used == 71_000 << 20, "its memory is seen")
    assert not device(scene, index).foreign, "it is one of ours"
    os.kill(pid, signal.SIGKILL)
    scene.wait_event("ReplicaBackingOff", "whole-v1-0", after=before)
    held = {lease.owner for lease in device(scene, index).leases}
    assert held == {"replica/whole-v1-0"}, "the lease lasts until the memory is back"
    assert not [e for e in scene.events(before) if (e.reason, e.name) == ("ReplicaStarting", "whole-v1-0")]
    fleet.set(index, processes=(), used_mib=1024)
    scene.wait_event("ReplicaReady", "whole-v1-0", after=before)


def test_leases_outlive_a_killed_daemon(scene: Scene) -> None:
    def held() -> dict[str, list[str]]:
        return {d.uuid: sorted(lease.owner for lease in d.leases) for d in scene.client.host().devices}

    scene.apply(job("while ! test -e ../go; do sleep 0.05; done", "holds", devices=1, device_memory="10GiB"))
    run = start_run(scene, "holds")
    folder = scene.wait_phase(Run, run, "running").folder
    before = held()
    assert [f"run/{run}"] == [o for owners in before.values() for o in owners if o.startswith("run/")]
    scene.kill()
    scene.start()
    wait_for(lambda: len(scene.client.host().devices) == 4, "the GPUs are seen")
    assert held() == before
    (Path(folder) / "go").touch()
    scene.wait_phase(Run, run, "succeeded")
    assert not [o for owners in held().values() for o in owners if o.startswith("run/")]
