from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal

import pytest
from sqlmodel import Session

from stoker.types.base import now
from stoker.types.host import Device, Lease
from stoker.types.rollouts import Preparing, Promoted, Rollout, RolloutPlan, RolloutSpec
from stoker.types.serving import Asleep, CommandEngine, Deployment, DeploymentSpec, Replica, ReplicaFailed
from stoker.types.training import Cancelled, JobSpec, Run, Running
from stokerd.devices import leases
from stokerd.store.store import Transaction, open_engine
from tests.unit.state import make_state_db

GIB = 2**30
DEVICES = [Device(uuid=f"GPU-{i}", index=i, name="x", memory_total=80 * GIB) for i in range(3)]


@pytest.fixture
def tx(tmp_path: Path) -> Iterator[Transaction]:
    make_state_db(tmp_path)
    engine = open_engine(tmp_path / "state.db", synchronous="FULL")
    with Session(engine) as session:
        yield Transaction(session)
    engine.dispose()


def running(name: str, **spec: object) -> Run:
    frozen = JobSpec.model_validate({"kind": "job", "name": "j", "command": ["x"], **spec})
    return Run(name=name, job="j", number=1, spec=frozen, state=Running(process="p", started_at=now()))


def test_a_lease_lives_exactly_as_long_as_its_owner(tx: Transaction) -> None:
    run = running("j-1", devices=2)
    run.devices, why = leases.find(tx, DEVICES, leases.Request(2))
    assert (run.devices, why) == (["GPU-0", "GPU-1"], "")
    tx.save(run)
    replica = Replica(name="d-v1-0", deployment="d", version=1, index=0, devices=["GPU-2"])
    tx.save(replica)
    assert leases.held(tx) == {
        "GPU-0": [Lease(owner="run/j-1")],
        "GPU-1": [Lease(owner="run/j-1")],
        "GPU-2": [Lease(owner="replica/d-v1-0")],
    }
    found, why = leases.find(tx, DEVICES, leases.Request(1))
    assert found == []
    assert "replica/d-v1-0, run/j-1" in why
    run.state = Cancelled(finished_at=now())
    tx.save(run)
    assert leases.find(tx, DEVICES, leases.Request(2)) == (["GPU-0", "GPU-1"], "")
    assert leases.find(tx, DEVICES, leases.Request(0)) == ([], "")
    assert "this host has 3" in leases.find(tx, DEVICES, leases.Request(4))[1]


def test_shares_of_runs_and_replicas_lie_side_by_side(tx: Transaction) -> None:
    run = running("j-1", devices=1, device_memory="30GiB")
    run.devices, _ = leases.find(tx, DEVICES, leases.Request(1, run.spec.device_memory))
    tx.save(run)
    replica = Replica(name="d-v1-0", deployment="d", version=1, index=0, device_memory=50 * GIB)
    replica.devices, _ = leases.find(tx, DEVICES, leases.Request(1, replica.device_memory))
    tx.save(replica)
    assert leases.held(tx) == {
        "GPU-0": [Lease(owner="replica/d-v1-0", memory=50 * GIB), Lease(owner="run/j-1", memory=30 * GIB)]
    }
    assert leases.find(tx, DEVICES, leases.Request(1, 1 << 20)) == (["GPU-1"], "")
    assert leases.find(tx, DEVICES, leases.Request(2)) == (["GPU-1", "GPU-2"], "")
    found, why = leases.find(tx, DEVICES, leases.Request(3))
    assert (found, why) == ([], "it needs 3 GPU(s); too few are free (held by replica/d-v1-0, run/j-1).")


def swapping(
    tx: Transaction,
    placement: Literal["swap", "beside"] = "swap",
    *,
    name: str = "d",
    gpus: Sequence[str] = ("GPU-0", "GPU-1"),
    memory: int | None = None,
) -> Rollout:
    """A deployment with a replica on each of these GPUs, that moves from version 1 to 2."""
    engine = CommandEngine(type="command", command=["serve"])
    fields = {"replicas": len(gpus), "devices": 1, "device_memory": memory, "engine": engine}
    spec = DeploymentSpec.model_validate({"kind": "deployment", "name": name, "model": "m", "version": 1, **fields})
    tx.save(Deployment(name=name, spec=spec, version=1, rollout=f"r-{name}"))
    for index, gpu in enumerate(gpus):
        replica = Replica(name=f"{name}-v1-{index}", deployment=name, version=1, index=index, devices=[gpu])
        tx.save(replica.model_copy(update={"device_memory": memory}))
    plan = RolloutPlan(deployment=name, from_version=1, to_version=2, fits=True, placement=placement, says="so")
    rollout = Rollout(
        name=f"r-{name}",
        spec=RolloutSpec(kind="rollout", name=f"r-{name}", deployment=name, to=2),
        deployment=name,
        from_version=1,
        to_version=2,
        state=Preparing(since=now()),
        plan=plan,
    )
    tx.save(rollout)
    return rollout


def test_what_a_swap_needs_again_is_kept_for_it_while_nobody_holds_it(tx: Transaction) -> None:
    rollout = swapping(tx)
    assert leases.find(tx, DEVICES, leases.Request(1)) == (["GPU-2"], "")
    tx.delete(tx.get(Replica, "d-v1-0"), "Gone", "gone")
    assert leases.find(tx, DEVICES, leases.Request(1)) == (["GPU-2"], ""), "room for one is left to the swap"
    tx.delete(tx.get(Replica, "d-v1-1"), "Gone", "gone")
    assert leases.find(tx, DEVICES, leases.Request(1)) == (["GPU-2"], "")
    found, why = leases.find(tx, DEVICES, leases.Request(2))
    assert (found, why) == ([], "it needs 2 GPU(s); too few are free (held by rollout/r-d).")
    assert leases.find(tx, DEVICES, leases.Request(2), "d") == (["GPU-0", "GPU-1"], ""), "its own replicas have them"
    assert leases.held(tx) == {}, "it is no lease"
    replica = Replica(name="d-v2-0", deployment="d", version=2, index=0, devices=["GPU-2"])
    tx.save(replica)
    assert leases.find(tx, DEVICES, leases.Request(1)) == (["GPU-1"], ""), "one more is missing, wherever it goes"
    rollout.state = Promoted(finished_at=now())
    tx.save(rollout)
    assert leases.find(tx, DEVICES, leases.Request(2)) == (["GPU-0", "GPU-1"], "")


def test_a_rollout_beside_stable_keeps_nothing(tx: Transaction) -> None:
    swapping(tx, "beside")
    tx.delete(tx.get(Replica, "d-v1-0"), "Gone", "gone")
    assert leases.find(tx, DEVICES, leases.Request(2)) == (["GPU-0", "GPU-2"], "")


def test_of_two_swaps_that_need_the_same_gpu_the_older_one_gets_it(tx: Transaction) -> None:
    swapping(tx, name="a", gpus=["GPU-1"])
    swapping(tx, name="b", gpus=["GPU-0"])
    left = [DEVICES[0]]  # the other ones have fallen ill
    tx.delete(tx.get(Replica, "a-v1-0"), "Gone", "gone")
    assert leases.waiting(tx, left) == ["r-a"]
    tx.delete(tx.get(Replica, "b-v1-0"), "Gone", "gone")
    assert leases.find(tx, left, leases.Request(1), "a") == (["GPU-0"], "")
    assert leases.find(tx, left, leases.Request(1), "b")[1].endswith("(held by rollout/r-a).")
    assert leases.waiting(tx, left) == ["r-b"]
    assert leases.waiting(tx, DEVICES) == []


def test_room_for_one_that_wakes_up_is_kept_where_it_sleeps(tx: Transaction) -> None:
    swapping(tx, gpus=["GPU-1"])
    replica = tx.get(Replica, "d-v1-0")
    replica.devices, replica.state = [], Asleep(process="p", since=now(), devices=["GPU-1"])
    tx.save(replica)
    assert leases.find(tx, DEVICES, leases.Request(2)) == (["GPU-0", "GPU-2"], "")
    assert leases.find(tx, DEVICES, leases.Request(1), "d", among=["GPU-1"]) == (["GPU-1"], "")
    assert leases.find(tx, DEVICES, leases.Request(1), among=["GPU-1"])[1].endswith("(held by rollout/r-d).")
    replica.rests = True
    tx.save(replica)
    assert leases.find(tx, DEVICES, leases.Request(2)) == (["GPU-1", "GPU-2"], ""), "another one comes, anywhere"


def test_no_room_is_kept_for_what_was_given_up(tx: Transaction) -> None:
    swapping(tx, gpus=["GPU-0"])
    replica = tx.get(Replica, "d-v1-0")
    replica.devices, replica.state = [], ReplicaFailed(since=now(), message="it can't start")
    tx.save(replica)
    assert leases.find(tx, DEVICES, leases.Request(3)) == (["GPU-0", "GPU-1", "GPU-2"], "")
    replica.wanted = False
    tx.save(replica)
    assert leases.find(tx, DEVICES, leases.Request(3))[1].endswith("(held by rollout/r-d)."), "the other one comes"


def test_a_swap_of_shares_keeps_its_share_alone(tx: Transaction) -> None:
    swapping(tx, gpus=["GPU-0"], memory=30 * GIB)
    tx.delete(tx.get(Replica, "d-v1-0"), "Gone", "gone")
    assert leases.taken(tx, DEVICES) == {"GPU-0": [Lease(owner="rollout/r-d", memory=30 * GIB)]}
    assert leases.find(tx, DEVICES, leases.Request(1, 50 * GIB)) == (["GPU-0"], "")
