"""evaluate, get evaluations: what was found of a version."""

from __future__ import annotations

import pytest

from tests.unit.cli import samples
from tests.unit.cli.conftest import Stoker
from tests.unit.cli.stand_in import StandIn

PATH = "/v1/models/smol/versions/2/evaluations/helpfulness"


def test_a_score_is_kept_with_a_note(daemon: StandIn, stoker: Stoker) -> None:
    daemon.answers[f"PUT {PATH}"] = samples.evaluation(score=0.82, note="of 200 prompts")
    kept = stoker("evaluate", "smol@2", "helpfulness", "--score", "0.82", "--note", "of 200 prompts")
    assert (kept.code, kept.out) == (0, "evaluation/smol@2:helpfulness 0.82\n")
    assert daemon.calls[-1][2] == {"score": 0.82, "passed": None, "note": "of 200 prompts"}
    assert stoker("evaluate", "smol@2", "helpfulness", "--score", "1", "--json").json["by"] == "alice"


def test_a_version_may_be_named_by_an_alias(daemon: StandIn, stoker: Stoker) -> None:
    daemon.keep(samples.model().model_copy(update={"aliases": {"challenger": 2}}))
    daemon.answers[f"PUT {PATH}"] = samples.evaluation(passed=True)
    assert stoker("evaluate", "smol@challenger", "helpfulness", "--passed").out.endswith(":helpfulness passed\n")
    unknown = stoker("evaluate", "smol@champion", "helpfulness", "--passed")
    assert (unknown.code, "It has: challenger." in unknown.err) == (4, True)


def test_a_failed_gate_says_what_follows(daemon: StandIn, stoker: Stoker) -> None:
    daemon.answers[f"PUT {PATH}"] = samples.evaluation(score=0.1, passed=False)
    failed = stoker("evaluate", "smol@2", "helpfulness", "--failed", "--score", "0.1")
    assert failed.out.splitlines() == [
        "evaluation/smol@2:helpfulness 0.1 failed", "  rollouts to smol@2 are refused until it passes",
    ]  # fmt: skip
    assert daemon.calls[-1][2] == {"score": 0.1, "passed": False, "note": ""}


@pytest.mark.parametrize(
    "arguments",
    [["smol@2", "x"], ["smol", "x", "--passed"], ["smol@", "x", "--passed"], ["smol@2", "x", "--score=nan"]],
)
def test_what_says_nothing_is_refused(daemon: StandIn, stoker: Stoker, arguments: list[str]) -> None:
    assert stoker("evaluate", *arguments).code == 2
    assert daemon.calls == []


def test_evaluations_are_listed_by_model_and_shown_whole(daemon: StandIn, stoker: Stoker) -> None:
    daemon.keep(samples.evaluation(score=0.82, note="good"), samples.evaluation("safety", passed=False))
    table = [line.split() for line in stoker("get", "evaluations", "--model", "smol").out.splitlines()]
    assert [row[:4] + row[5:] for row in table] == [  # all but the age
        ["NAME", "SCORE", "RESULT", "BY", "NOTE"],
        ["smol@2:helpfulness", "0.82", "-", "alice", "good"],
        ["smol@2:safety", "-", "failed", "alice"],
    ]
    assert daemon.calls[-1][1] == {"model": "smol"}
    assert "passed: no" in stoker("get", "evaluation", "smol@2:safety").out
