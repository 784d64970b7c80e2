from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import pytest

from stoker.errors import Conflict, NotFound
from stoker.types.base import now
from stoker.types.host import Device
from stoker.types.keys import KeyRequest
from stoker.types.registry import Model, ModelSpec, RecordEvaluation, Version
from stoker.types.rollouts import Preparing, Rollout, RolloutPlan, RolloutSpec
from stoker.types.serving import CommandEngine, Deployment, DeploymentSpec, Replica, Warm
from stokerd.registry.evaluations import record_evaluation
from stokerd.rollouts.apply import apply_rollout, dry_run
from stokerd.rollouts.fit import LateTraffic
from stokerd.rollouts.planning import Planner
from stokerd.serving.apply import apply_deployment
from stokerd.serving.keys import create_key
from stokerd.store.store import Store, Transaction
from stokerd.telemetry.metrics import Metrics
from tests.unit.state import make_state_db

T = TypeVar("T")
ENGINE = CommandEngine(type="command", command=["serve", "{socket}"])
SERVED = DeploymentSpec(kind="deployment", name="d", model="m", version=1, engine=ENGINE)
NOBODY = LateTraffic(requests_per_hour=0, callers=0, hours=0, start_seconds=None)


class Hardware:
    """A host with so many GPUs."""

    def __init__(self, count: int = 0) -> None:
        self.count = count

    def devices(self) -> list[Device]:
        return [Device(uuid=f"GPU-{i}", index=i, name="A", memory_total=1 << 34) for i in range(self.count)]


class House:
    """A store with a deployment ``d`` that serves m@1; there is m@2."""

    def __init__(self, folder: Path) -> None:
        make_state_db(folder)
        self.store = Store(folder / "state.db")
        self.metrics = Metrics(folder / "metrics.db", max_age_seconds=1e9, max_bytes=10**9, reserve_bytes=0)
        self.hardware = Hardware()
        self.planner = Planner(self.store, self.hardware, self.metrics)  # type: ignore[arg-type]
        self.do(self._prepare)

    def _prepare(self, tx: Transaction) -> None:
        tx.save(Model(name="m", spec=ModelSpec(kind="model", name="m"), latest=2))
        for number in (1, 2):
            tx.save(Version(name=f"m@{number}", model="m", number=number, digest="", files=1, bytes=1, folder="/"))
        tx.save(Deployment(name="d", spec=SERVED, version=1))

    def do(self, work: Callable[[Transaction], T]) -> T:
        return asyncio.run(self.store.write(work))

    def start(self, by: str = "ada", **fields: Any) -> Rollout:
        spec = RolloutSpec.model_validate({"kind": "rollout", "name": "r", "deployment": "d", "to": 2, **fields})

        def work(tx: Transaction) -> Rollout:
            apply_rollout(tx, spec, self.planner, NOBODY, by)
            return tx.get(Rollout, spec.name)

        return self.do(work)

    def close(self) -> None:
        self.store.close()
        self.metrics.close()


@pytest.fixture
def house(tmp_path: Path) -> Iterator[House]:
    built = House(tmp_path)
    yield built
    built.close()


def test_a_target_must_name_a_key_that_there_is(house: House) -> None:
    """Else a name that is mistyped would expose nobody, and nobody would know."""
    with pytest.raises(NotFound, match="no key named 'alice'"):
        house.start(targets=[{"key": "alice"}])
    house.do(lambda tx: create_key(tx, KeyRequest(name="alice"), "root"))
    assert house.start(targets=[{"key": "alice"}]).started_by == "ada"


def test_one_rollout_at_a_time_and_the_other_is_told_who_began_it_and_when(house: House) -> None:
    house.start()
    with pytest.raises(Conflict, match=r"in rollout r already, which ada started \d{4}-.* UTC") as caught:
        house.start(by="bob", name="r2")
    assert caught.value.code == "rollout-active"
    assert house.start(by="bob").started_by == "ada"  # the same spec again changes nothing
    with pytest.raises(Conflict, match="which ada started") as changed:
        house.start(keep_warm=1)
    assert "can't be changed" in changed.value.hint
    with pytest.raises(Conflict, match="in rollout r, which compares versions"):
        house.do(lambda tx: apply_deployment(tx, SERVED.model_copy(update={"max_queue": 3}), "bob"))


def test_a_version_that_failed_a_gate_is_refused_until_it_passed(house: House) -> None:
    def found(**fields: Any) -> None:
        house.do(lambda tx: record_evaluation(tx, "m", "2", "toxicity", RecordEvaluation(**fields), "eve"))

    found(score=0.4, passed=False, note="3 of 100 answers")
    with pytest.raises(Conflict, match=r"m@2 failed a gate: toxicity \(eve, .*3 of 100 answers") as caught:
        house.start()
    assert (caught.value.code, "stoker evaluate m@2 GATE --passed" in caught.value.hint) == ("gate-failed", True)
    found(score=0.2, passed=True)
    assert house.start().phase == "preparing"


def test_a_candidate_without_a_place_is_refused_in_a_sentence_and_changes_nothing(house: House) -> None:
    house.hardware.count = 1
    big = SERVED.model_copy(update={"devices": 2})
    house.do(lambda tx: tx.save(Deployment(name="d", spec=big, version=1)))
    with pytest.raises(Conflict, match=r"this host has 1") as caught:
        house.start()
    assert caught.value.code == "no-room"
    assert house.do(lambda tx: tx.get(Deployment, "d")).rollout is None
    spec = RolloutSpec.model_validate({"kind": "rollout", "name": "r", "deployment": "d", "to": 2})
    plan: RolloutPlan = asyncio.run(dry_run(house.store, house.planner, spec))
    assert not plan.fits
    assert house.do(lambda tx: tx.find(Rollout, "r")) is None


def test_a_swap_is_refused_while_an_older_one_has_no_place_for_its_next_version(house: House) -> None:
    house.hardware.count = 1

    def prepare(tx: Transaction) -> None:
        for name in ("d", "other"):
            spec = SERVED.model_copy(update={"name": name, "devices": 1})
            tx.save(Deployment(name=name, spec=spec, version=1, rollout="before" if name == "other" else None))
        tx.save(Replica(name="d-v1-0", deployment="d", version=1, index=0, devices=["GPU-0"]))
        plan = RolloutPlan(deployment="other", from_version=1, to_version=2, fits=True, placement="swap", says="so")
        moved = RolloutSpec(kind="rollout", name="before", deployment="other", to=2)
        state = Preparing(since=now())
        tx.save(
            Rollout(name="before", spec=moved, deployment="other", from_version=1, to_version=2, plan=plan, state=state)
        )

    house.do(prepare)
    with pytest.raises(Conflict, match="before waits for devices, and would get those that this swap needs") as caught:
        house.start(placement="swap")
    assert caught.value.code == "no-room"
    house.hardware.count = 2
    assert house.start(placement="swap").is_swap


def test_a_rollout_ends_the_time_for_which_an_older_version_stood_by(house: House) -> None:
    def stand_by(tx: Transaction) -> None:
        deployment = tx.get(Deployment, "d")
        deployment.warm = Warm(version=7, until=deployment.created_at, rollout="before")
        tx.save(deployment)

    house.do(stand_by)
    house.start()
    assert house.do(lambda tx: tx.get(Deployment, "d")).warm is None
