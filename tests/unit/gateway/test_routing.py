from __future__ import annotations

import math

from hypothesis import given
from hypothesis import strategies as st

from stokerd.gateway.routing import Plan, Table, caller_key, order_replicas, pick_arm, share_of
from stokerd.gateway.wire import Arm, Route, RouteTable

KEYS = st.binary(min_size=1, max_size=40)
SALTS = st.binary(max_size=20)


def plan_of(candidate: float, stable: float | None = None, salt: str = "s") -> Plan:
    stable = 100 - candidate if stable is None else stable
    arms = (Arm("stable", 1, stable, ("unix:/a",)), Arm("candidate", 2, candidate, ("unix:/b",)))
    return Plan(Route("m", salt, arms))


@given(weight=st.integers(0, 100), salt=SALTS)
def test_each_arm_gets_its_weight_of_callers_within_chance(weight: int, salt: bytes) -> None:
    plan = plan_of(weight)
    count = 2000
    hits = sum(pick_arm(plan, share_of(salt, b"caller-%d" % i)).name == "candidate" for i in range(count))
    expected = weight / 100
    # Six standard deviations: one false alarm in 500 million samples.
    assert abs(hits - count * expected) <= 6 * math.sqrt(count * expected * (1 - expected)) + 1e-9


@given(key=KEYS, salt=SALTS, weight=st.floats(0, 100))
def test_a_caller_stays_on_one_arm(key: bytes, salt: bytes, weight: float) -> None:
    first, second = (pick_arm(plan_of(weight), share_of(salt, key)) for _ in range(2))
    assert first == second


@given(key=KEYS, salt=SALTS, weights=st.tuples(st.floats(0, 100), st.floats(0, 100)))
def test_a_caller_on_the_candidate_stays_there_when_its_weight_grows(
    key: bytes, salt: bytes, weights: tuple[float, float]
) -> None:
    low, high = sorted(weights)
    share = share_of(salt, key)
    if pick_arm(plan_of(low), share).name == "candidate":
        assert pick_arm(plan_of(high), share).name == "candidate"


@given(key=KEYS, salt=SALTS)
def test_a_weight_of_0_means_nobody_and_100_means_everybody(key: bytes, salt: bytes) -> None:
    share = share_of(salt, key)
    assert 0 <= share < 1
    assert pick_arm(plan_of(0), share).name == "stable"
    assert pick_arm(plan_of(100), share).name == "candidate"
    assert pick_arm(plan_of(0, stable=0), share).name == "stable"


def test_another_salt_deals_the_callers_anew() -> None:
    plan = plan_of(50)
    keys = [b"caller-%d" % i for i in range(400)]
    moved = sum(pick_arm(plan, share_of(b"a", k)) != pick_arm(plan, share_of(b"b", k)) for k in keys)
    assert 120 < moved < 280


def test_a_caller_is_known_by_session_then_user_then_key() -> None:
    assert caller_key(b"session", "user", b"Bearer key") == b"session"
    assert caller_key(None, "user", b"Bearer key") == b"user"
    assert caller_key(None, None, b"bearer key") == b"key"
    assert caller_key(None, "\ud800", None) is not None
    assert caller_key(None, None, b"Basic abc") is None
    assert caller_key(None, "", None) is None


def test_a_placeholder_instead_of_a_key_names_nobody() -> None:
    for placeholder in (b"EMPTY", b"none", b"-", b"", b"dummy"):
        assert caller_key(None, None, b"Bearer " + placeholder) is None


def test_names_find_deployments_and_their_versions() -> None:
    shadow = Arm("shadow", 3, 10, ("unix:/c",))
    arms = (Arm("stable", 1, 90, ("unix:/a",)), Arm("candidate", 2, 10, ("unix:/b",)))
    table = Table(RouteTable(1, (Route("m", "s", arms, shadow),)))
    assert [found and found[1] for found in map(table.find, ("m", "m@1", "m@2", "m@3"))] == [None, *arms, shadow]
    for unknown in ("", "x", "m@", "m@4", "m@-1", "m@x", "m@1@1", "@1", "m@" + "9" * 5000, "m@²"):
        assert table.find(unknown) is None
    assert table.addresses() == {"unix:/a", "unix:/b", "unix:/c"}


ADDRESSES = st.lists(st.sampled_from("abcdefgh"), max_size=8, unique=True)
COUNTS = st.dictionaries(st.sampled_from("abcdefgh"), st.integers(0, 3))
TIMES = st.dictionaries(st.sampled_from("abcdefgh"), st.floats(0, 10))


@given(ADDRESSES, COUNTS, TIMES, st.integers(0, 10**9), st.booleans())
def test_replicas_are_tried_least_busy_first_and_ejected_ones_last_or_not_at_all(
    addresses: list[str], in_flight: dict[str, int], ejected: dict[str, float], turn: int, is_last_resort: bool
) -> None:
    order = order_replicas(addresses, in_flight, ejected, 5.0, turn, is_last_resort=is_last_resort)
    bad = {a for a in addresses if ejected.get(a, 0.0) > 5.0}
    healthy = [a for a in order if a not in bad]
    assert sorted(order) == sorted(addresses if is_last_resort else set(addresses) - bad)
    assert order[: len(healthy)] == healthy
    assert [in_flight.get(a, 0) for a in healthy] == sorted(in_flight.get(a, 0) for a in healthy)


def test_idle_replicas_take_turns() -> None:
    firsts = {order_replicas(["a", "b", "c"], {}, {}, 0.0, turn, is_last_resort=True)[0] for turn in range(3)}
    assert firsts == {"a", "b", "c"}
