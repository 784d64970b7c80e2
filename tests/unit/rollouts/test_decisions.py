"""What a person's word leads to, as it is kept with what belongs to it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Protocol, TypeVar

import pytest

from stoker.errors import Conflict
from stoker.types.base import now
from stoker.types.rollouts import ApproveStep, CanaryStep, Decision, Promoted, Rollout, RolloutSpec, Stepping, Verb
from stoker.types.serving import CommandEngine, Deployment, DeploymentSpec, Pending, Ready, Replica, Warm
from stokerd.rollouts.decisions import command
from stokerd.store.store import Store, Transaction
from tests.harness import state_of
from tests.unit.state import make_state_db

SERVED = DeploymentSpec(
    kind="deployment",
    name="d",
    model="m",
    version=1,
    replicas=2,
    engine=CommandEngine(type="command", command=["serve"]),
)
READY, GONE = Ready(process="p", since=now()), Pending()

T = TypeVar("T")


class Do(Protocol):
    """Works on a store."""

    def __call__(self, work: Callable[[Transaction], T], /) -> T: ...


@pytest.fixture
def do(tmp_path: Path) -> Iterator[Do]:
    """Works on a store where rollout ``r`` has brought deployment ``d`` from version 1, which stands by, to 2."""
    make_state_db(tmp_path)
    store = Store(tmp_path / "state.db")

    def work(function: Callable[[Transaction], T]) -> T:
        return asyncio.run(store.write(function))

    spec = RolloutSpec(kind="rollout", name="r", deployment="d", to=2)
    ended = Promoted(finished_at=now(), warm_until=now())
    rollout = Rollout(name="r", spec=spec, deployment="d", from_version=1, to_version=2, state=ended)
    warm = Warm(version=1, until=now(), rollout="r")
    work(lambda tx: tx.save(rollout))
    work(lambda tx: tx.save(Deployment(name="d", spec=SERVED, version=2, warm=warm)))
    yield work
    store.close()


def stand_by(do: Do, *states: Ready | Pending) -> None:
    def save(tx: Transaction) -> None:
        for index, state in enumerate(states):
            tx.save(Replica(name=f"d-v1-{index}", deployment="d", version=1, index=index, state=state))

    do(save)


@pytest.mark.parametrize(
    ("states", "phase"),
    [((READY, READY), "rolling-back"), ((READY, GONE), "rolling-back"), ((GONE, GONE), "returning"), ((), "returning")],
)
def test_the_way_back_is_at_once_as_long_as_one_server_of_the_old_version_is_there(
    do: Do, states: tuple[Ready | Pending, ...], phase: str
) -> None:
    stand_by(do, *states)
    rollout = do(lambda tx: command(tx, "r", "rollback", "ada"))
    assert (rollout.phase, rollout.led_by) == (phase, "ada")
    deployment: Deployment = do(lambda tx: tx.get(Deployment, "d"))
    assert (deployment.rollout, deployment.warm) == ("r", None)


def test_an_approval_holds_of_the_step_that_was_looked_at_and_of_no_other(do: Do) -> None:
    def wait_for_two(tx: Transaction) -> None:
        rollout = tx.get(Rollout, "r")
        steps = [ApproveStep(), ApproveStep(by="bob"), ApproveStep()]
        rollout.spec = rollout.spec.model_copy(update={"steps": steps})
        rollout.state = Stepping(step=0, since=now())
        tx.save(rollout)

    do(wait_for_two)
    assert state_of(do(lambda tx: command(tx, "r", "approve", "ada", step=0)), Stepping).step == 1
    with pytest.raises(Conflict, match=r"not in step 1\. Now it is so.*step 2 of 3.*ada said approve at") as refused:
        do(lambda tx: command(tx, "r", "approve", "bob", step=0))
    assert refused.value.code == "moved-on"
    with pytest.raises(Conflict, match=r"r is not in step 3\. Now it is so.*step 2 of 3"):
        do(lambda tx: command(tx, "r", "approve", "bob", step=2))
    assert state_of(do(lambda tx: command(tx, "r", "approve", "bob")), Stepping).step == 2, "he didn't say of which"
    do(lambda tx: command(tx, "r", "promote", "ada", step=2))
    with pytest.raises(Conflict, match=r"not in step 3\. Now it is so: r: all traffic goes to version 2"):
        do(lambda tx: command(tx, "r", "pause", "bob", step=2))


def test_whoever_comes_second_is_told_who_said_what_and_nothing_changes(do: Do) -> None:
    stand_by(do, READY, READY)
    do(lambda tx: command(tx, "r", "rollback", "ada"))
    before = do(lambda tx: tx.get(Rollout, "r"))
    with pytest.raises(Conflict, match=r"ada said rollback at \d\d:\d\d:\d\d UTC"):
        do(lambda tx: command(tx, "r", "promote", "bob"))
    assert do(lambda tx: tx.get(Rollout, "r")) == before


@pytest.mark.parametrize(
    ("first", "second", "phases", "told"),
    [
        ("promote", "abort", ("promoting", "rolling-back"), False),
        ("abort", "promote", ("rolling-back", "rolling-back"), True),
        ("promote", "promote", ("promoting", "promoting"), True),
        ("abort", "abort", ("rolling-back", "rolling-back"), True),
        ("pause", "promote", ("paused", "promoting"), False),
        ("promote", "pause", ("promoting", "promoting"), True),
        ("pause", "pause", ("paused", "paused"), True),
    ],
)
def test_of_two_people_at_once_the_second_acts_on_what_the_first_made_or_is_told_who_was_first_and_when(
    tmp_path: Path, first: Verb, second: Verb, phases: tuple[str, str], told: bool
) -> None:
    """Both saw the rollout in its step when they said so."""
    make_state_db(tmp_path)
    store = Store(tmp_path / "state.db")
    spec = RolloutSpec(kind="rollout", name="r", deployment="d", to=2, steps=[CanaryStep(percent=50)])
    state = Stepping(step=0, since=now())
    rollout = Rollout(name="r", spec=spec, deployment="d", from_version=1, to_version=2, state=state)

    async def work() -> list[Rollout | BaseException]:
        await store.write(lambda tx: tx.save(rollout))
        await store.write(lambda tx: tx.save(Deployment(name="d", spec=SERVED, version=1, rollout="r")))
        said = [(first, "ada"), (second, "bob")]
        return await asyncio.gather(
            *[store.write(partial(command, name="r", verb=verb, by=by)) for verb, by in said], return_exceptions=True
        )

    try:
        began = now()
        ada, bob = asyncio.run(work())
        after = asyncio.run(store.read(lambda q: q.get(Rollout, "r")))
    finally:
        store.close()
    assert isinstance(ada, Rollout)
    assert (ada.phase, after.phase) == phases
    assert (ada.led_by, after.led_by) == ("ada", "ada" if told else "bob")
    assert isinstance(bob, Conflict if told else Rollout)
    if isinstance(bob, Conflict):
        assert f"ada said {first} at" in bob.message
        decided = Decision.model_validate(bob.details["decided"])
        assert (decided.by, decided.verb) == ("ada", first)
        assert began <= decided.at <= now()
