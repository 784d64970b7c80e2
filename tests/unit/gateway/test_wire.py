from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stokerd.gateway import tablefile
from stokerd.gateway.wire import Arm, BadTable, Route, RouteTable, parse_table, split_address

NAMES = st.from_regex(r"[a-z][a-z0-9-]{0,10}", fullmatch=True)
PLACES = st.one_of(
    st.integers(1, 65535).map(lambda port: f"127.0.0.1:{port}"),
    NAMES.map(lambda name: f"unix:/run/{name}.sock"),
)


def arms(name: str) -> st.SearchStrategy[Arm]:
    weights = st.floats(0, 100)
    return st.builds(Arm, st.just(name), st.integers(1, 99), weights, st.lists(PLACES, max_size=3).map(tuple))


ROUTES = st.builds(
    Route,
    NAMES,
    st.text(),
    st.tuples(arms("stable")) | st.tuples(arms("stable"), arms("candidate")),
    st.none() | arms("shadow"),
)
TABLES = st.builds(
    RouteTable, st.integers(0), st.lists(ROUTES, unique_by=lambda r: r.deployment, max_size=4).map(tuple)
)


@given(TABLES)
def test_a_table_survives_the_wire(table: RouteTable) -> None:
    assert parse_table(json.loads(json.dumps(table.as_dict()))) == table


def test_a_table_survives_the_disk(tmp_path: Any) -> None:
    path = tmp_path / "table.json"
    assert tablefile.load(path) is None
    for version in (1, 2):
        table = RouteTable(version, (Route("m", "s", (Arm("stable", 1, 100, ("unix:/a",)),)),))
        tablefile.save(path, table)
        assert tablefile.load(path) == table
    assert sorted(p.name for p in tmp_path.iterdir()) == ["table.json", "table.json.lock"]


def table_with(**changes: Any) -> dict[str, Any]:
    stable = {"name": "stable", "version": 1, "weight": 100, "addresses": ["unix:/a"]}
    return {"version": 1, "routes": [{"deployment": "m", "salt": "s", "arms": [{**stable, **changes}]}]}


@pytest.mark.parametrize(
    "bad",
    [[], {}, {"version": "x", "routes": []}, {"version": 1, "routes": [{}]}, {"version": 1, "routes": None}]
    + [table_with(**c) for c in ({"weight": -1}, {"weight": 101}, {"weight": float("nan")}, {"name": "candidate"})]
    + [table_with(addresses=a) for a in ("unix:/a", ["x"], ["unix:a"], ["h:0"], ["h:70000"], [":1"], [None])]
    + [table_with(addresses=["unix:/" + "x" * 107]), table_with(version=None)]
    + [{"version": 1, "routes": table_with()["routes"] * 2}],
)
def test_a_table_that_cannot_be_followed_is_refused_whole(bad: Any) -> None:
    with pytest.raises(BadTable):
        parse_table(bad)


def test_addresses_are_read() -> None:
    assert split_address("unix:/run/a.sock") == "/run/a.sock"
    assert split_address("localhost:80") == ("localhost", 80)
    assert split_address("[::1]:80") == ("::1", 80)
