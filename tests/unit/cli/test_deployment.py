"""deployment history: which version served a name."""

from __future__ import annotations

import time
from datetime import UTC, datetime, timedelta

import pytest

from stoker.errors import NotFound
from stoker.types.traffic import Served
from tests.unit.cli.conftest import Stoker, Terminal
from tests.unit.cli.stand_in import StandIn

THEN = datetime(2026, 1, 31, 8, 0, 7, tzinfo=UTC)
WHY = "canary 25 % passed: error rate of v2 is 0.1 %, v1's 0.2 %: -0.1 points (-0.4 to 0.3); limit +2"


@pytest.fixture
def past(daemon: StandIn) -> StandIn:
    """A deployment that has served two versions."""
    later = THEN + timedelta(minutes=5, seconds=1)
    daemon.answers["GET /v1/deployments/chat/history"] = [
        Served(version=1, arm="stable", percent=100, whom="everybody", since=THEN, until=later, by="alice"),
        Served(
            version=2, arm="candidate", percent=0, whom="x-team: ml", since=later, until=None,
            by="guards", because=WHY, rollout="chat-1",
        ),
    ]  # fmt: skip
    return daemon


def _local(then: datetime) -> str:
    return then.astimezone().strftime("%Y-%m-%d %H:%M:%S")


def test_the_history_says_which_version_served_whom_when_and_by_whom(past: StandIn, stoker: Stoker) -> None:
    page = stoker("deployment", "history", "chat").out.splitlines()
    since, until = _local(THEN), _local(THEN + timedelta(minutes=5, seconds=1))
    assert page[0].split() == ["SINCE", "UNTIL", "FOR", "VERSION", "ARM", "SHARE"]
    assert page[1].split("  ")[:3] == [since, until, "5m 1s"]
    assert page[2] == "    to everybody; by alice"
    assert page[3].startswith(f"{until}  now ")
    assert page[3].endswith("@2       candidate  -")
    assert page[4] == f"    to x-team: ml; by the guards, in rollout chat-1: {WHY}"
    assert past.calls[-1][1] == {}
    assert [s["version"] for s in stoker("deployment", "history", "chat", "--json").json] == [1, 2]


def test_the_history_can_be_narrowed(past: StandIn, stoker: Stoker) -> None:
    assert stoker("deployment", "history", "chat", "--since", "2d").code == 0
    assert float(past.calls[-1][1]["since"]) == pytest.approx(time.time() - 2 * 86400, abs=60)
    refused = stoker("deployment", "history", "chat", "--since", "yesterday")
    assert (refused.code, "expected a duration" in refused.err) == (2, True)


@pytest.mark.parametrize("columns", [80, 120])
def test_the_history_is_whole_on_a_terminal(past: StandIn, terminal: Terminal, columns: int) -> None:
    page = terminal(columns, "deployment", "history", "chat")
    assert max(map(len, page.splitlines())) <= columns
    assert WHY in " ".join(page.split())


def test_a_deployment_without_a_history_says_so(daemon: StandIn, stoker: Stoker) -> None:
    daemon.answers["GET /v1/deployments/chat/history"] = []
    nothing = stoker("deployment", "history", "chat", "--since", "2d")
    assert (nothing.code, nothing.out, nothing.err) == (0, "", "chat served nothing in the last 2d\n")
    assert stoker("deployment", "history", "chat", "--json").json == []
    daemon.answers["GET /v1/deployments/chat/history"] = NotFound("there is no deployment chat.")
    assert stoker("deployment", "history", "chat").code == 4
