from __future__ import annotations

from pathlib import Path

from sqlmodel import Session

from stoker.types.base import now
from stoker.types.host import Device
from stoker.types.serving import Replica
from stoker.types.training import Cancelled, JobSpec, Run, Running
from stokerd.devices import leases
from stokerd.store.migrate import migrate
from stokerd.store.store import Transaction, open_engine

DEVICES = [Device(uuid=f"GPU-{i}", index=i, name="x", memory_total=1) for i in range(3)]


def test_a_lease_lives_exactly_as_long_as_its_owner(tmp_path: Path) -> None:
    migrate(tmp_path / "state.db", tmp_path / "backups")
    engine = open_engine(tmp_path / "state.db", synchronous="FULL")
    with Session(engine) as session:
        tx = Transaction(session)
        spec = JobSpec(kind="job", name="j", command=["x"], devices=2)
        run = Run(name="j-1", job="j", number=1, spec=spec, state=Running(process="p", started_at=now()))
        run.devices, why = leases.find(tx, DEVICES, 2)
        assert (run.devices, why) == (["GPU-0", "GPU-1"], "")
        tx.save(run)
        replica = Replica(name="d-v1-0", deployment="d", version=1, index=0, devices=["GPU-2"])
        tx.save(replica)
        assert leases.taken(tx) == {"GPU-0": "run/j-1", "GPU-1": "run/j-1", "GPU-2": "replica/d-v1-0"}
        found, why = leases.find(tx, DEVICES, 1)
        assert found == []
        assert "replica/d-v1-0, run/j-1" in why
        run.state = Cancelled(finished_at=now())
        tx.save(run)
        assert leases.find(tx, DEVICES, 2) == (["GPU-0", "GPU-1"], "")
        assert leases.find(tx, DEVICES, 0) == ([], "")
        assert "this host has 3" in leases.find(tx, DEVICES, 4)[1]
    engine.dispose()
