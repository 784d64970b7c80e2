from __future__ import annotations

import json
import math
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from stokerd.gateway.balance import Replica
from stokerd.gateway.bodies import Asked
from stokerd.gateway.call import Call
from stokerd.gateway.callers import Callers
from stokerd.gateway.limits import Limits
from stokerd.gateway.request import Request
from stokerd.gateway.routing import Plan, Table, share_of
from stokerd.gateway.surface import ENDPOINTS
from stokerd.gateway.wire import Arm, Key, Route, RouteTable, Target

KEYS = st.binary(min_size=1, max_size=40)
SALTS = st.binary(max_size=20)


def replica_of(address: str) -> Replica:
    return Replica(address, Limits())


def plan_of(candidate: float, stable: float | None = None, salt: str = "s", **more: Any) -> Plan:
    stable = 100 - candidate if stable is None else stable
    arms = (Arm("stable", 1, stable, ("unix:/a",)), Arm("candidate", 2, candidate, ("unix:/b",)))
    return Plan(Route("m", salt, arms, **more), replica_of)


def call_of(
    caller: bytes = b"", *, key: str = "", body: bytes = b'{"model": "m"}', headers: dict[bytes, bytes] | None = None
) -> Call:
    """A request of *caller* (its session), with the API key that has the id *key*."""
    request = Request(0.0)
    request.target, request.body = b"/v1/chat/completions", body
    request.lines = [b"%b: %b\r\n" % pair for pair in (headers or {}).items()]
    if caller:
        request.noted[b"x-stoker-session"] = caller
    return Call(request, ENDPOINTS[b"/v1/chat/completions"], Asked("m"), Key(key, "0" * 64) if key else None)


def arm_of(plan: Plan, call: Call, callers: Callers | None = None) -> str:
    return plan.assign(call, callers or Callers(None)).name


@given(weight=st.integers(0, 100), salt=st.text("abc", max_size=20))
def test_each_arm_gets_its_weight_of_callers_within_chance(weight: int, salt: str) -> None:
    plan = plan_of(weight, salt=salt)
    count = 2000
    hits = sum(arm_of(plan, call_of(b"caller-%d" % i)) == "candidate" for i in range(count))
    expected = weight / 100
    # Six standard deviations: one false alarm in 500 million samples.
    assert abs(hits - count * expected) <= 6 * math.sqrt(count * expected * (1 - expected)) + 1e-9


@given(key=KEYS, weight=st.floats(0, 100))
def test_a_caller_stays_on_one_arm(key: bytes, weight: float) -> None:
    first, second = (arm_of(plan_of(weight), call_of(key)) for _ in range(2))
    assert first == second


@given(key=KEYS, weights=st.tuples(st.floats(0, 100), st.floats(0, 100)))
def test_a_caller_on_the_candidate_stays_there_when_its_weight_grows(key: bytes, weights: tuple[float, float]) -> None:
    low, high = sorted(weights)
    if arm_of(plan_of(low), call_of(key)) == "candidate":
        assert arm_of(plan_of(high), call_of(key)) == "candidate"


@given(key=KEYS, salt=SALTS)
def test_a_weight_of_0_means_nobody_and_100_means_everybody(key: bytes, salt: bytes) -> None:
    assert 0 <= share_of(salt, key) < 1
    assert arm_of(plan_of(0), call_of(key)) == "stable"
    assert arm_of(plan_of(100), call_of(key)) == "candidate"
    assert arm_of(plan_of(0, stable=0), call_of(key)) == "stable"


def test_callers_without_a_name_are_told_apart_by_their_conversations() -> None:
    plan = plan_of(50)

    def arm(text: str, *more: str) -> str:
        said = [{"role": "user" if i % 2 == 0 else "assistant", "content": t} for i, t in enumerate((text, *more))]
        return arm_of(plan, call_of(body=json.dumps({"model": "m", "messages": said}).encode()))

    arms = [arm(f"question {i}") for i in range(100)]
    assert arms == [arm(f"question {i}", "an answer", "more") for i in range(100)]
    assert set(arms) == {"stable", "candidate"}
    assert {arm_of(plan, call_of(body=b"{}")) for _ in range(60)} == {"stable", "candidate"}


def test_targets_are_assigned_by_name_and_the_first_that_fits_counts() -> None:
    targets = (
        Target("stable", header="x-team", value="careful"),
        Target("candidate", header="x-team"),
        Target("candidate", key="tester"),
        Target("gone", header="x-other"),
    )
    plan, callers = plan_of(0, targets=targets, max_callers=1), Callers(None)
    assert callers.admit(b"s", b"somebody", 1)
    for headers, key, arm in (
        ({b"X-Team": b"careful"}, "", "stable"),
        ({b"X-Team": b"bold"}, "", "candidate"),
        ({b"x-team": b"careful"}, "tester", "stable"),
        ({}, "tester", "candidate"),
        ({b"x-teams": b"1", b"x-other": b"1"}, "other", "stable"),
    ):
        assert arm_of(plan, call_of(b"me", key=key, headers=headers), callers) == arm


def test_no_more_callers_than_the_cap_meet_the_candidate() -> None:
    callers = Callers(None)
    plan = plan_of(50, max_callers=3)
    first = [arm_of(plan, call_of(b"c%d" % i), callers) for i in range(100)]
    assert first.count("candidate") == 3
    assert [arm_of(plan, call_of(b"c%d" % i), callers) for i in range(100)] == first
    wider = [arm_of(plan_of(50, max_callers=5), call_of(b"c%d" % i), callers) for i in range(100)]
    assert wider.count("candidate") == 5
    assert all(now == "candidate" for was, now in zip(first, wider, strict=True) if was == "candidate")
    assert arm_of(plan_of(100, max_callers=1000), call_of(), callers) == "stable"  # nobody knows who that is


class Doorkeeper(Callers):
    """Lets nobody in at first, as where nobody can be noted, then everybody; ``asked`` counts."""

    asked = 0

    def admit(self, salt: bytes, caller: bytes, cap: int) -> bool:
        self.asked += 1
        return self.asked > 1


def test_who_was_let_in_under_a_cap_is_remembered_with_what_he_sends_and_who_was_not_is_asked_for_again() -> None:
    plan, call, door = plan_of(100, max_callers=3), call_of(b"ada"), Doorkeeper(None)
    assert [arm_of(plan, call, door) for _ in range(4)] == ["stable", "candidate", "candidate", "candidate"]
    assert door.asked == 2
    assert arm_of(plan_of(100, max_callers=3), call, door) == "candidate"
    assert door.asked == 3, "another table asks anew"


def test_another_salt_deals_the_callers_anew() -> None:
    keys = [b"caller-%d" % i for i in range(400)]
    arms = [[arm_of(plan_of(50, salt=salt), call_of(k)) for k in keys] for salt in ("a", "b")]
    assert 120 < sum(one != other for one, other in zip(*arms, strict=True)) < 280


def test_names_find_deployments_and_their_versions() -> None:
    shadow = Arm("shadow", 3, 10, ("unix:/c",))
    arms = (Arm("stable", 1, 90, ("unix:/a",)), Arm("candidate", 2, 10, ("unix:/b",)))
    words = (("champion", 1), ("challenger", 2), ("next", 3), ("old", 9))
    route = Route("m", "s", arms, shadow, aliases=("small", "gpt-4"), versions=words)
    table = Table(RouteTable(1, (route, Route("n", "n", arms[:1]))), replica_of)
    assert table.names == ("gpt-4", "m", "n", "small")

    def version(model: str) -> int | None:
        found = table.find(model)
        assert found is not None
        assert found[0].deployment == ("n" if model.startswith("n") else "m")
        return found[1].version if found[1] is not None else None

    asked = ("m", "small", "n", "m@1", "m@2", "small@3", "m@champion", "gpt-4@challenger", "m@next", "n@1")
    assert [version(model) for model in asked] == [None, None, None, 1, 2, 3, 1, 2, 3, 1]
    unknown = ("", "x", "m@", "m@4", "m@-1", "m@x", "m@1@1", "@1", "m@" + "9" * 5000, "m@²", "m@old", "n@champion")
    assert [table.find(model) for model in unknown] == [None] * len(unknown)
    assert table.addresses() == {"unix:/a", "unix:/b", "unix:/c"}


def test_an_adapter_has_another_name_with_its_servers() -> None:
    arms = (Arm("stable", 1, 90, (), model="m-v1"), Arm("candidate", 2, 10, ()))
    plan = Plan(Route("m", "s", arms), replica_of)
    assert {arm.name: arm.model for arm in plan.arms} == {"stable": "m-v1", "candidate": "m"}
