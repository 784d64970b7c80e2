from __future__ import annotations

import asyncio
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stoker.types.base import now
from stoker.types.rollouts import (
    Fail,
    Guard,
    GuardReading,
    Paused,
    Preparing,
    Promoting,
    Rollout,
    RolloutSpec,
    RolloutState,
    Starved,
    Stepping,
    Verdict,
)
from stoker.types.serving import Pending, Replica
from stokerd.rollouts.comparisons import Comparisons, Servers
from stokerd.rollouts.evidence import Evidence
from stokerd.rollouts.judging import ALPHA, Judging, share_of_alpha, with_problem
from stokerd.store.store import Store
from stokerd.telemetry.metrics import Metrics
from stokerd.telemetry.series import Sample
from tests.unit.state import make_state_db

JUDGED = Guard(metric="judged_worse", limit=0.3)
ERRORS = Guard(metric="error_rate", limit=0.02)


@pytest.mark.parametrize(
    ("guard", "verdict", "problem", "reason"),
    [
        (JUDGED, Starved(reason="no pair was judged"), "judge j: no answer.", "no pair was judged: judge j: no answer"),
        (JUDGED, Starved(reason="no pair was judged"), "", "no pair was judged"),
        (JUDGED, Fail(reason="too many are worse"), "judge j: no answer.", "too many are worse"),
        (ERRORS, Starved(reason="too few requests"), "judge j: no answer.", "too few requests"),
    ],
)
def test_a_guard_that_waits_for_compared_answers_says_why_there_are_none(
    guard: Guard, verdict: Verdict, problem: str, reason: str
) -> None:
    told = with_problem(GuardReading(guard=guard, verdict=verdict), problem).verdict
    assert (told.verdict, told.reason) == (verdict.verdict, reason)


# False alarms, over a whole rollout

T0 = datetime(2026, 1, 1, tzinfo=UTC)
STEPS = [{"type": "canary", "percent": percent} for percent in (5, 25, 50)]


def rollout(guards: list[Guard] | None = None) -> Rollout:
    said = {"kind": "rollout", "name": "r", "deployment": "chat", "to": 2, "steps": STEPS, "guards": guards or [ERRORS]}
    spec = RolloutSpec.model_validate(said)
    state = Preparing(since=T0)
    return Rollout(name="r", spec=spec, deployment="chat", from_version=1, to_version=2, state=state)


def shares(present: Rollout, states: list[RolloutState]) -> list[float]:
    """What each state may spend, as the rollout goes through them, read from the file in between."""
    found = []
    for state in states:
        present.enter(state)
        present = Rollout.model_validate_json(present.model_dump_json())
        if isinstance(state, Stepping | Paused):
            found.append(share_of_alpha(present))
    return found


def on(step: int) -> Stepping:
    return Stepping(step=step, since=T0)


def held(step: int) -> Paused:
    return Paused(step=step, since=T0, because="somebody said so")


@given(st.lists(st.tuples(st.booleans(), st.sampled_from([0, 0, 0, 1, 2])), max_size=200))
def test_however_often_a_rollout_is_held_and_resumed_all_its_looks_together_have_one_bound(
    drawn: list[tuple[bool, int]],
) -> None:
    """A false alarm has a chance of at most alpha in all, and no state has none of it."""
    step = 0
    states: list[RolloutState] = [on(0)]
    for is_held, further in drawn:
        step = min(2, step + further)
        states.append(held(step) if is_held else on(step))
    found = shares(rollout(), states)
    assert min(found) > 0
    assert sum(found) <= ALPHA


def test_a_step_that_is_first_on_has_its_share_whatever_came_before_and_one_that_is_judged_anew_less() -> None:
    first, paused, again, paused_again, second, third, _ = shares(
        rollout(), [on(0), held(0), on(0), held(0), on(1), on(2), held(2), Promoting(since=T0)]
    )
    assert first == second == third == pytest.approx(0.8 * ALPHA / 3)
    assert first > paused > again > paused_again > 0


def test_a_rollout_that_an_older_stoker_began_is_judged_as_if_its_step_were_first_on() -> None:
    present = rollout()
    present.state = on(2)
    assert share_of_alpha(present) == pytest.approx(0.8 * ALPHA / 3)


# Series of devices


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    make_state_db(tmp_path)
    opened = Store(tmp_path / "state.db")
    yield opened
    opened.close()


@pytest.fixture
def metrics(tmp_path: Path) -> Iterator[Metrics]:
    made = Metrics(tmp_path / "metrics.db", max_age_seconds=1e12, max_bytes=10**9, reserve_bytes=0)
    yield made
    made.close()


@pytest.mark.parametrize(
    ("devices", "mean"),
    [(["GPU-cool"], 60.0), (["GPU-hot"], 90.0), (["GPU-cool", "GPU-hot"], 75.0), ([], 75.0), (["GPU-new"], None)],
    ids=["the cool one", "the hot one", "both", "none, as on a host without GPUs", "one that isn't measured yet"],
)
def test_a_series_of_devices_is_judged_on_those_that_the_candidate_holds(
    store: Store, metrics: Metrics, devices: list[str], mean: float | None
) -> None:
    """Others serve stable, or train: what they do says nothing of the candidate."""
    name = "device.temperature_celsius"

    async def servers(_: str) -> Servers:
        raise AssertionError

    async def work() -> GuardReading:
        present = rollout([Guard(metric="series", name=name, limit=70)])
        began = now() - timedelta(seconds=500)
        present.enter(Stepping(step=0, since=began))
        since = began.timestamp()
        for uuid, degrees in (("GPU-cool", 60.0), ("GPU-hot", 90.0)):
            labels = (("uuid", uuid), ("index", "0"))
            await metrics.write_samples([Sample(name, "celsius", labels, since + i, degrees) for i in range(400)])
        replica = Replica(name="chat-v2-0", deployment="chat", version=2, index=0, devices=devices, state=Pending())
        other = replica.model_copy(update={"name": "chat-v1-0", "version": 1, "devices": ["GPU-hot"]})
        await store.write(lambda tx: tx.save(replica))
        await store.write(lambda tx: tx.save(other))
        judging = Judging(store, metrics, Comparisons(metrics, servers, lambda: None))
        await judging.judge(present, Evidence(present), since)
        return present.readings[0]

    found = asyncio.run(work())
    assert found.evidence is not None
    assert found.evidence.estimate == mean
    assert found.verdict.verdict == ("starved" if mean is None else "pass" if mean < 70 else "fail")
