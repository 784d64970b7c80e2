from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest

from stoker.types.serving import (
    AdapterEngine,
    Deployment,
    DeploymentSpec,
    Draining,
    Pending,
    Ready,
    Replica,
    ReplicaState,
    Unwell,
    VllmEngine,
)
from stokerd.gateway.wire import Arm, RouteTable
from stokerd.serving.adapters import Change, is_routed, spread
from stokerd.serving.plan import route

NOW = datetime(2026, 1, 1, tzinfo=UTC)


def base(version: int = 1) -> Deployment:
    engine = VllmEngine(type="vllm", args=["--enable-lora"])
    spec = DeploymentSpec(kind="deployment", name="base", model="b", version=1, engine=engine)
    return Deployment(name="base", spec=spec, version=version)


def adapter(version: int = 1, **fields: Any) -> Deployment:
    engine = AdapterEngine(type="adapter", base="base")
    spec = DeploymentSpec(kind="deployment", name="a", model="a", version=1, engine=engine)
    return Deployment(name="a", spec=spec, version=version, **fields)


def host(index: int = 0, version: int = 1, state: ReplicaState | None = None, **fields: Any) -> Replica:
    name = f"base-v{version}-{index}"
    state = state or Ready(process=f"p-{name}", since=NOW)
    return Replica(
        name=name, deployment="base", version=version, index=index, state=state, address=f"unix:/{name}", **fields
    )


def on(server: Replica, version: int = 1, state: ReplicaState | None = None, **fields: Any) -> Replica:
    state = state or Ready(process=server.state.process, since=NOW)  # type: ignore[union-attr]
    return Replica(
        name=f"a-v{version}-on-{server.name}", deployment="a", version=version, index=server.index, state=state,
        host=server.name, address=server.address, **fields,
    )  # fmt: skip


def test_an_adapter_goes_on_each_server_of_its_base_that_lives() -> None:
    unwell = host(1, state=Unwell(phase="stalled", process="p", since=NOW, ready_since=NOW, message=""))
    starting = host(2, state=Pending())
    change = spread(adapter(), None, base(), [host(0), unwell, starting], [])
    assert [(version, h.name) for version, h in change.create] == [(1, "base-v1-0"), (1, "base-v1-1")]
    assert spread(adapter(), None, base(), [host(0)], [on(host(0))]) == Change((), ())


def test_a_candidate_of_the_base_gets_none_of_the_adapters_callers() -> None:
    change = spread(adapter(), None, base(version=1), [host(0, 1), host(0, 2)], [])
    assert [h.name for _, h in change.create] == ["base-v1-0"]


@pytest.mark.parametrize("is_loaded", [False, True])
def test_when_its_base_moves_it_stays_where_it_was_until_it_is_ready_there(is_loaded: bool) -> None:
    old = host(0, 1, wanted=False, state=Draining(process="p-base-v1-0", since=NOW))
    new = host(0, 2)
    state = None if is_loaded else Pending()
    rows = [on(host(0, 1)), on(new, state=state)]
    change = spread(adapter(), None, base(version=2), [old, new], rows)
    assert change == Change((), ("a-v1-on-base-v1-0",) if is_loaded else ())


def test_it_goes_with_its_server_and_with_its_version() -> None:
    assert spread(adapter(), None, base(), [], [on(host(0))]).retire == ("a-v1-on-base-v1-0",)
    assert spread(adapter(version=2), None, base(), [host(0)], [on(host(0))]).retire == ("a-v1-on-base-v1-0",)
    assert spread(adapter(deleting=True), None, base(), [host(0)], [on(host(0))]).retire == ("a-v1-on-base-v1-0",)
    assert spread(adapter(), None, None, [], []) == Change((), ())


def test_its_arm_says_what_its_servers_call_it_and_is_routed_by_that_name() -> None:
    row = on(host(0))
    made = route(adapter(), [row, host(0)], None)
    assert made.arms == (Arm("stable", 1, 100, ("unix:/base-v1-0",), "a-v1"),)
    table = RouteTable(1, (made,))
    assert is_routed(table, row)
    assert is_routed(None, row)
    assert not is_routed(table, on(host(0), version=2))
    assert not is_routed(RouteTable(1, (route(base(), [host(0)], None),)), row)
