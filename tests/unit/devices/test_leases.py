from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlmodel import Session

from stoker.types.base import now
from stoker.types.host import Device, Lease
from stoker.types.serving import Replica
from stoker.types.training import Cancelled, JobSpec, Run, Running
from stokerd.devices import leases
from stokerd.store.migrate import migrate
from stokerd.store.store import Transaction, open_engine

GIB = 2**30
DEVICES = [Device(uuid=f"GPU-{i}", index=i, name="x", memory_total=80 * GIB) for i in range(3)]


@pytest.fixture
def tx(tmp_path: Path) -> Iterator[Transaction]:
    migrate(tmp_path / "state.db", tmp_path / "backups")
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
