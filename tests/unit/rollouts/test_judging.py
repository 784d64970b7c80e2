from __future__ import annotations

import pytest

from stoker.types.rollouts import Fail, Guard, GuardReading, Starved, Verdict
from stokerd.rollouts.judging import with_problem

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
