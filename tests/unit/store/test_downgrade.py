"""Going back to the Stoker before: by hand, with Alembic, as docs say. What it can't read must not stay."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from alembic import command
from alembic.config import Config
from sqlmodel import Session

from stoker.types.base import Resource, now
from stoker.types.rollouts import ArmStats, Exposure, Rollout, RolloutPlan, RolloutSpec, Stepping
from stoker.types.serving import (
    Asleep,
    CommandEngine,
    Deployment,
    DeploymentSpec,
    Draining,
    Pending,
    Ready,
    Replica,
    Waking,
    Warm,
)
from stokerd.store import migrate as migrate_module
from stokerd.store import tables
from stokerd.store.migrate import migrate
from stokerd.store.store import Query, Store, Transaction, open_engine

ASLEEP = Asleep(process="replica-d-v1-0-1", since=now(), devices=["GPU-0"])
WAKING = Waking(process="replica-d-v1-0-1", since=now())
DRAINING = Draining(process="replica-d-v1-0-1", since=now())
READY = Ready(process="replica-d-v1-0-1", since=now())


@contextmanager
def downgraded(folder: Path, *resources: Resource) -> Iterator[Session]:
    """A database that had *resources* when somebody went back."""
    path = folder / "state.db"
    migrate(path, folder / "backups")
    engine = open_engine(path, synchronous="FULL")
    with Session(engine) as session:
        for resource in resources:
            Transaction(session).save(resource)
        session.commit()
    config = Config()
    config.set_main_option("script_location", str(Path(migrate_module.__file__).parent / "migrations"))
    with engine.connect() as connection:
        config.attributes["connection"] = connection
        command.downgrade(config, "0003")
    with Session(engine) as session:
        yield session
    engine.dispose()


def goes_on(folder: Path) -> list[Resource]:
    """Upgrade what was downgraded, as a daemon does that starts; returns all that its store has, each saved anew."""

    async def work() -> list[Resource]:
        store = Store(folder / "state.db")
        try:
            kept = await store.read(lambda query: [each for kind in tables.ROWS for each in query.all(kind)])
            for each in kept:
                await store.write(partial(Transaction.save, resource=each, reason="Kept", message="It is there."))
            return kept
        finally:
            store.close()

    assert migrate(folder / "state.db", folder / "backups") is not None
    return asyncio.run(work())


@pytest.mark.parametrize(
    ("state", "fields", "phase"),
    [
        (READY, {}, "ready"),
        (READY, {"rests": True}, "pending"),
        (DRAINING, {"rests": True}, "pending"),
        (DRAINING, {"wanted": False}, "draining"),
        (ASLEEP, {"rests": True}, "pending"),
        (ASLEEP, {}, "pending"),
        (WAKING, {}, "pending"),
        (ASLEEP, {"rests": True, "wanted": False}, "stopping"),
        (WAKING, {"wanted": False}, "stopping"),
        (Pending(), {}, "pending"),
    ],
)
def test_a_server_that_sleeps_is_started_anew_by_the_stoker_before(
    tmp_path: Path, state: Any, fields: dict[str, Any], phase: str
) -> None:
    replica = Replica(name="d-v1-0", deployment="d", version=1, index=0, state=state, start_seconds=9.0, **fields)
    with downgraded(tmp_path, replica) as session:
        kept = Query(session).get(Replica, "d-v1-0")
        assert (kept.phase, kept.wanted, kept.rests) == (phase, replica.wanted, False)
        assert [r.name for r in Query(session).all(Replica, phase=phase)] == ["d-v1-0"]
        document = session.connection().exec_driver_sql("SELECT document FROM replica").scalar_one()
        assert not {"rests", "start_seconds"} & json.loads(document).keys()
    (again,) = goes_on(tmp_path)
    assert isinstance(again, Replica)
    assert (again.name, again.phase, again.wanted) == ("d-v1-0", phase, replica.wanted)


@pytest.mark.parametrize(
    ("steps", "placement", "stays"),
    [
        ([{"type": "canary", "percent": 5, "min_callers": 3}, {"type": "promote"}], "beside", True),
        ([{"type": "canary", "percent": 5}, {"type": "approve"}], "beside", False),
        ([{"type": "canary", "percent": 5}], "swap", False),
    ],
)
def test_a_rollout_that_the_stoker_before_could_not_go_on_with_is_gone_and_its_deployment_free(
    tmp_path: Path, steps: list[dict[str, Any]], placement: Any, stays: bool
) -> None:
    spec = RolloutSpec.model_validate({"kind": "rollout", "name": "r", "deployment": "d", "to": 2, "steps": steps})
    plan = RolloutPlan(deployment="d", from_version=1, to_version=2, fits=True, placement=placement, says="so")
    going = Rollout(
        name="r", spec=spec, deployment="d", from_version=1, to_version=2, plan=plan,
        state=Stepping(step=0, since=now(), began=7), arms={"stable": ArmStats(callers=3)},
        exposure=Exposure(requests=9, errors=4),
    )  # fmt: skip
    engine = CommandEngine(type="command", command=["serve"])
    served = DeploymentSpec(kind="deployment", name="d", model="m", version=1, engine=engine)
    warm = Warm(version=1, until=now(), rollout="before")
    deployment = Deployment(name="d", spec=served, version=1, rollout="r", warm=warm)
    with downgraded(tmp_path, going, deployment) as session:
        query = Query(session)
        assert query.get(Deployment, "d").rollout == ("r" if stays else None)
        assert query.get(Deployment, "d").warm is None
        documents = session.connection().exec_driver_sql("SELECT document FROM rollout").all()
        assert len(documents) == stays
        for (document,) in documents:
            kept = json.loads(document)
            assert kept["spec"]["steps"] == [
                {"max_callers": 0, "type": "canary", "percent": 5.0, "min_requests": 20, "min_duration": 0.0,
                 "max_duration": 3600.0}
            ]  # fmt: skip
            assert not set(kept) & {"plan", "exposure", "decided"}
            assert kept["candidate_errors"] == 4
            assert set(kept["state"]) == {"phase", "step", "since"}
    assert {(each.kind, each.name) for each in goes_on(tmp_path)} == {("deployment", "d"), *[("rollout", "r")][:stays]}
