from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stoker.types.keys import ApiKey
from stoker.types.registry import Model, ModelSpec
from stoker.types.rollouts import (
    Preparing,
    Promoting,
    Returning,
    RollingBack,
    Rollout,
    RolloutPlan,
    RolloutSpec,
    RolloutState,
    Stepping,
)
from stoker.types.serving import (
    BackingOff,
    CommandEngine,
    Deployment,
    DeploymentSpec,
    Draining,
    Pending,
    Ready,
    Replica,
    ReplicaFailed,
    ReplicaState,
    Starting,
    Unwell,
    Warm,
)
from stoker.types.supervision import Restart
from stokerd.backoff import JITTER, backoff_seconds
from stokerd.gateway.wire import Arm, Key, RouteTable, Target
from stokerd.processes.states import Exited, Lost
from stokerd.serving.engines import launch_digest
from stokerd.serving.plan import (
    Door,
    after_failure,
    drained,
    health,
    is_let_off,
    route,
    route_table,
    scale,
    serving_version,
    wanted_versions,
)

NOW = datetime(2026, 1, 1, tzinfo=UTC)


def deployment(replicas: int = 1, command: str = "serve", version: int = 1, **fields: Any) -> Deployment:
    engine = CommandEngine(type="command", command=[command, "{socket}"])
    spec = DeploymentSpec(kind="deployment", name="d", model="m", version=1, engine=engine, replicas=replicas)
    return Deployment(name="d", spec=spec, version=version, **fields)


def replica(
    version: int = 1, index: int = 0, state: ReplicaState | None = None, digest: str = "", **fields: Any
) -> Replica:
    name = f"d-v{version}-{index}"
    state = state or Ready(process="p", since=NOW)
    digest = digest or launch_digest(deployment().spec)
    return Replica(
        name=name, deployment="d", version=version, index=index, state=state, address=f"unix:/{name}",
        launch_digest=digest, **fields,
    )  # fmt: skip


def rollout(state: RolloutState, placement: Any = "beside") -> Rollout:
    steps: list[Any] = [{"type": "shadow", "percent": 10}, {"type": "canary", "percent": 25}]
    spec = RolloutSpec.model_validate({"kind": "rollout", "name": "r", "deployment": "d", "to": 2, "steps": steps})
    plan = RolloutPlan(deployment="d", from_version=1, to_version=2, fits=True, placement=placement, says="so")
    return Rollout(name="r", spec=spec, deployment="d", from_version=1, to_version=2, state=state, plan=plan)


def apply(replicas: list[Replica], target: Deployment, going_on: Rollout | None = None) -> list[Replica]:
    change = scale(target, going_on, replicas)
    for name in change.retire:
        next(r for r in replicas if r.name == name).wanted = False
    made = [replica(v, i, Pending(), launch_digest(target.spec)) for v, i in change.create]
    return replicas + made


@given(st.integers(1, 5), st.integers(1, 5))
def test_scaling_reaches_the_number_asked_for_and_then_rests(before: int, after: int) -> None:
    replicas = apply(apply([], deployment(before)), deployment(after))
    assert sum(r.wanted for r in replicas) == after
    assert len({r.name for r in replicas}) == len(replicas)
    rest = scale(deployment(after), None, replicas)
    assert (rest.create, rest.retire) == ((), ())


def test_a_changed_engine_brings_new_replicas_up_before_the_old_ones_go() -> None:
    changed = deployment(command="serve2")
    replicas = apply([replica()], changed)
    assert [(r.index, r.wanted) for r in replicas] == [(0, True), (1, True)]
    assert scale(changed, None, replicas).retire == ()
    replicas[1].state = Ready(process="p", since=NOW)
    assert scale(changed, None, replicas).retire == ("d-v1-0",)


def test_a_rollout_brings_the_candidates_replicas_and_a_rollback_takes_them_away() -> None:
    replicas = apply([replica()], deployment(), rollout(Preparing(since=NOW)))
    assert [(r.version, r.wanted) for r in replicas] == [(1, True), (2, True)]
    replicas = apply(replicas, deployment(), rollout(RollingBack(since=NOW, because="x")))
    assert [(r.version, r.wanted) for r in replicas] == [(1, True), (2, False)]
    assert wanted_versions(deployment(), rollout(Promoting(since=NOW))) == [1, 2]
    assert scale(deployment(version=2), None, [replica(1), replica(2)]).retire == ("d-v1-0",)


def test_after_promotion_the_old_versions_replicas_stand_by_until_they_are_let_go() -> None:
    warm = deployment(version=2, warm=Warm(version=1, until=NOW, rollout="r"))
    assert scale(warm, None, [replica(1), replica(2)]).retire == ()
    assert route(warm, [replica(1), replica(2)], None).arms == (
        Arm("stable", 2, 100, ("unix:/d-v2-0",)),
        Arm("former", 1, 0, ("unix:/d-v1-0",)),
    )
    back = rollout(Returning(since=NOW, because="x"))
    assert wanted_versions(deployment(version=2, rollout="r"), back) == [1, 2]
    assert wanted_versions(deployment(version=2, rollout="r"), rollout(RollingBack(since=NOW, because="x"))) == [1]


def test_in_a_swap_one_version_must_be_gone_before_the_other_starts_and_requests_are_held_meanwhile() -> None:
    going = rollout(Preparing(since=NOW), "swap")
    replicas = apply([replica()], deployment(), going)
    assert [(r.version, r.wanted) for r in replicas] == [(1, False)]
    found = route(deployment(), replicas, going)
    assert [(a.name, a.version, a.weight, a.addresses) for a in found.arms] == [
        ("stable", 1, 0, ()),
        ("candidate", 2, 100, ()),
    ]
    assert found.hold_seconds == deployment().spec.start_timeout
    replicas = apply([], deployment(), going)
    assert [(r.version, r.wanted) for r in replicas] == [(2, True)]
    back = rollout(RollingBack(since=NOW, because="x"), "swap")
    assert scale(deployment(), back, replicas).create == ()
    assert scale(deployment(), back, []).create == ((1, 0),)
    assert health(deployment(), replicas, serving_version(deployment(), going))[0] == "starting"
    assert health(deployment(), [replica(2)], serving_version(deployment(), going))[0] == "ready"


@pytest.mark.parametrize(
    ("state", "beside", "swapped"),
    [
        (Preparing(since=NOW), 1, 2),
        (Stepping(step=1, since=NOW), 1, 2),
        (Promoting(since=NOW), 2, 2),
        (Returning(since=NOW, because="x"), 2, 1),
        (RollingBack(since=NOW, because="x"), 1, 1),
    ],
)
def test_how_a_deployment_does_depends_on_the_version_that_serves(
    state: RolloutState, beside: int, swapped: int
) -> None:
    assert serving_version(deployment(), rollout(state)) == beside
    assert serving_version(deployment(), rollout(state, "swap")) == swapped
    assert serving_version(deployment(), None) == 1


def test_a_deployment_that_is_deleted_wants_nothing() -> None:
    assert scale(deployment(deleting=True), None, [replica()]).retire == ("d-v1-0",)


def test_traffic_goes_where_the_state_of_the_rollout_says() -> None:
    replicas = [replica(1), replica(2), replica(2, 1, Starting(process="q", since=NOW))]

    def arms(state: RolloutState) -> list[tuple[str, int, float, int]]:
        found = route(deployment(), replicas, rollout(state))
        every = [*found.arms, *([found.shadow] if found.shadow else [])]
        return [(a.name, a.version, a.weight, len(a.addresses)) for a in every]

    assert arms(Preparing(since=NOW)) == [("stable", 1, 100, 1)]
    assert arms(Stepping(step=0, since=NOW)) == [("stable", 1, 100, 1), ("shadow", 2, 10, 1)]
    assert arms(Stepping(step=1, since=NOW)) == [("stable", 1, 75, 1), ("candidate", 2, 25, 1)]
    assert arms(RollingBack(since=NOW, because="x")) == [("stable", 1, 100, 1)]
    assert arms(Promoting(since=NOW)) == [("stable", 1, 0, 1), ("candidate", 2, 100, 1)]


def test_replicas_that_wind_down_get_nothing_new_and_stop_only_when_nothing_is_left() -> None:
    draining = replica(state=Draining(process="p", since=NOW), wanted=False)
    still = RouteTable(1, (route(deployment(), [replica()], None),))
    without = route_table(2, [deployment()], [draining], {}, {}, [], Door())
    assert without.routes[0].arms == (Arm("stable", 1, 100, ()),)
    assert not drained(draining, still, 0, 30, 1)
    assert not drained(draining, None, 0, 30, 1)
    assert not drained(draining, without, 1, 30, 1)
    assert not drained(draining, without, None, 30, 1)
    assert drained(draining, without, 0, 30, 1)
    assert drained(draining, still, 1, 30, 31)


def test_the_table_has_other_names_bounds_and_keys_and_each_worker_its_share() -> None:
    model = Model(name="m", spec=ModelSpec(kind="model", name="m"), aliases={"champion": 1, "challenger": 2})
    made = deployment()
    made.spec = made.spec.model_copy(
        update={"aliases": ["gpt"], "hold_timeout": 5.0, "max_in_flight": 5, "max_queue": 0}
    )
    key = ApiKey(name="alice", digest="0" * 64, models=["d"], requests_per_minute=6)
    table = route_table(7, [made], [replica()], {}, {"m": model}, [key], Door(workers=2, needs_key=True))
    (found,) = table.routes
    assert (found.aliases, found.versions) == (("gpt",), (("challenger", 2), ("champion", 1)))
    assert (found.hold_seconds, found.in_flight, found.queue) == (5.0, 3, 0)
    assert table.keys == (Key("alice", "0" * 64, ("d",), 6),)
    assert table.needs_key


def test_targets_and_the_cap_on_callers_belong_to_canary_steps() -> None:
    going = rollout(Stepping(step=1, since=NOW))
    going.spec = RolloutSpec.model_validate(
        going.spec.model_dump()
        | {"targets": [{"header": "X-Team", "value": "ml"}, {"key": "alice"}], "keep_answers": True}
        | {"steps": [{"type": "shadow", "percent": 10}, {"type": "canary", "percent": 25, "max_callers": 9}]}
    )
    canary = route(deployment(rollout="r"), [replica()], going)
    assert canary.targets == (Target("candidate", "x-team", "ml"), Target("candidate", key="alice"))
    assert canary.max_callers == 9
    going.state = Stepping(step=0, since=NOW)
    shadow = route(deployment(rollout="r"), [replica()], going)
    assert (shadow.targets, shadow.max_callers, shadow.keeps_shadow) == ((), 0, True)
    going.state = Promoting(since=NOW)
    assert route(deployment(rollout="r"), [replica()], going).targets == ()


seconds = st.floats(0, 1e6)


@given(st.text(), st.integers(0, 10**6), seconds, seconds)
def test_waits_double_up_to_their_cap_and_whoever_asks_again_is_told_the_same(
    name: str, failures: int, first: float, cap: float
) -> None:
    wait = backoff_seconds(name, failures, first, cap)
    assert wait == backoff_seconds(name, failures, first, cap)
    assert 0 <= wait <= cap * (1 + 1e-9)
    plain = min(first * 2.0 ** min(max(failures - 1, 0), 64), cap / (1 + JITTER))
    assert abs(wait - plain) <= plain * (JITTER + 1e-9)


def test_things_that_failed_together_do_not_come_back_together() -> None:
    waits = {round(backoff_seconds(f"r{n}", 6, 1, 60), 1) for n in range(50)}
    assert len(waits) > 20
    assert max(waits) - min(waits) > 10


@given(st.integers(1, 60), st.integers(0, 10))
def test_a_replica_is_given_up_after_as_many_restarts_in_a_row_as_its_policy_says(failures: int, limit: int) -> None:
    restart = Restart(limit=limit, backoff=1, backoff_cap=60)
    state = after_failure(replica(failures=failures), restart, "it exited", NOW)
    if failures > limit:
        assert isinstance(state, ReplicaFailed)
        assert f"given up after {failures} failures in a row" in state.message
    else:
        assert isinstance(state, BackingOff)
        assert state.retry_at - NOW == timedelta(seconds=backoff_seconds("d-v1-0", failures, 1, 60))


def test_with_the_policy_never_the_first_failure_is_the_last() -> None:
    state = after_failure(replica(failures=1), Restart(policy="never"), "it exited with code 1", NOW)
    assert isinstance(state, ReplicaFailed)
    assert "it exited with code 1" in state.message
    assert "restart.policy is never" in state.message


CLEAN = Exited(exit_code=0, signal=None, started_at=0, ended_at=1)
CRASH = Exited(exit_code=1, signal=None, started_at=0, ended_at=1)
KILLED = Exited(exit_code=None, signal=9, started_at=0, ended_at=1)


@pytest.mark.parametrize(
    ("policy", "ended", "healthy", "is_free"),
    [
        ("always", CLEAN, 61, True),
        ("always", CLEAN, 59, False),
        ("always", CRASH, 61, False),
        ("always", KILLED, 61, False),
        ("always", Lost("its shim was killed"), 61, False),
        ("on-failure", CLEAN, 61, False),
        ("never", CLEAN, 61, False),
    ],
)
def test_only_always_lets_a_healthy_server_end_by_itself(
    policy: Any, ended: Any, healthy: float, is_free: bool
) -> None:
    assert is_let_off(Restart(policy=policy, healthy_after=60), ended, healthy) is is_free


@pytest.mark.parametrize("phase", ["stalled", "unreachable"])
def test_an_unwell_replica_gets_no_requests_is_kept_and_is_told(phase: Any) -> None:
    sick = replica(index=1, state=Unwell(phase=phase, process="p", since=NOW, ready_since=NOW, message="it is silent"))
    assert route(deployment(2), [replica(), sick], None).arms[0].addresses == ("unix:/d-v1-0",)
    assert route(deployment(), [sick], None).arms[0].addresses == ()
    assert scale(deployment(2), None, [replica(), sick]) == scale(deployment(2), None, [replica(), replica(index=1)])
    assert health(deployment(2), [replica(), sick], 1) == ("degraded", "d-v1-1: it is silent")
    assert health(deployment(), [sick], 1) == ("degraded", "d-v1-1: it is silent")


def test_health_says_what_is_wrong() -> None:
    broken = replica(index=1, state=BackingOff(retry_at=NOW, message="it exited with code 1"))
    assert health(deployment(), [replica()], 1) == ("ready", "")
    assert health(deployment(2), [replica(), broken], 1) == ("degraded", "d-v1-1: it exited with code 1")
    assert health(deployment(), [replica(state=ReplicaFailed(since=NOW, message="gone"))], 1) == (
        "failed",
        "d-v1-0: gone",
    )
    assert health(deployment(), [replica(state=Pending(message="it needs 1 GPU"))], 1) == ("starting", "it needs 1 GPU")
