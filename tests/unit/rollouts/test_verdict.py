from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterator
from dataclasses import replace
from time import perf_counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stoker.types.rollouts import DEFAULT_GUARDS, Fail, Guard, GuardReading, Pass, Starved, Verdict
from stokerd.gateway.wire import Record
from stokerd.rollouts.verdict import hard_trip, judge, judge_all, overall
from tests.harness import wait_for

ERRORS = Guard(metric="error_rate", limit=0.02)
TOTAL = Guard(metric="total", limit=1.2)
TTFT = Guard(metric="ttft", limit=2.0)
INTER_TOKEN = Guard(metric="inter_token", limit=1.2)
ALPHA = 0.05


def record(
    arm: str = "stable",
    total: float = 1.0,
    *,
    failed: bool = False,
    status: int | None = None,
    stream: bool = True,
    gone: bool = False,
) -> Record:
    return Record(
        seq=0,
        time=0.0,
        deployment="assistant",
        arm=arm,
        version=6 if arm == "stable" else 7,
        address="unix:/x",
        path="/v1/chat/completions",
        status=status if status is not None else 500 if failed else 200,
        is_error=failed,
        is_stream=stream,
        client_gone=gone,
        fell_back=False,
        ttft_seconds=None if failed else total / 5,
        inter_token_seconds=total / 50 if stream and not failed else None,
        total_seconds=total,
        prompt_tokens=10,
        completion_tokens=50,
        table_version=1,
    )


def requests(arm: str, count: int, seed: int, *, slower: float = 1.0, failing: float = 0.0) -> list[Record]:
    """Some requests with log-normal latencies of median 0.4 s, p90 0.76 s at *slower* 1."""
    dice = random.Random(f"{arm}{seed}")
    return [record(arm, dice.lognormvariate(-0.9, 0.5) * slower, failed=dice.random() < failing) for _ in range(count)]


def alike(count: int = 400) -> tuple[list[Record], list[Record]]:
    return requests("stable", count, 1), requests("candidate", count, 1)


def both(guard: Guard, stable: list[Record], candidate: list[Record]) -> Verdict:
    return judge(guard, stable, candidate, alpha=ALPHA)


@pytest.mark.parametrize("guard", [ERRORS, TOTAL.model_copy(update={"limit": 1.5}), TTFT, INTER_TOKEN])
def test_a_version_like_the_other_passes_every_guard(guard: Guard) -> None:
    verdict = both(guard, *alike())
    assert isinstance(verdict, Pass), verdict


@pytest.mark.parametrize("guard", [TOTAL, TTFT.model_copy(update={"limit": 1.2}), INTER_TOKEN])
def test_a_version_twice_as_slow_fails_and_the_reason_has_the_evidence(guard: Guard) -> None:
    verdict = both(guard, requests("stable", 412, 1), requests("candidate", 398, 1, slower=2))
    assert isinstance(verdict, Fail)
    word = {"total": "total", "ttft": "TTFT", "inter_token": "inter-token"}[guard.metric]
    assert verdict.reason.startswith(f"{word} p90 of v7 is ")
    assert " times v6's (" in verdict.reason
    assert verdict.reason.endswith("; limit 1.20; 398 and 412 requests")


def test_a_version_that_answers_with_errors_fails_and_the_reason_has_the_evidence() -> None:
    stable = [record() for _ in range(99)] + [record(failed=True)]
    candidate = [record("candidate") for _ in range(20)] + [record("candidate", failed=True) for _ in range(20)]
    verdict = both(ERRORS, stable, candidate)
    assert isinstance(verdict, Fail)
    assert verdict.reason.startswith("error rate of v7 is 50.0 %, v6's 1.0 %: +49.0 points (+")
    assert verdict.reason.endswith("; limit +2; 40 and 100 requests")


def test_over_the_limit_without_proof_is_neither_pass_nor_fail() -> None:
    stable, candidate = [record() for _ in range(10)], [record("candidate", 1.5) for _ in range(10)]
    verdict = both(TOTAL, stable, candidate)
    assert isinstance(verdict, Starved)
    assert verdict.reason == (
        "total p90 of v7 is 1.50 times v6's (1.5 s and 1 s); limit 1.20; 10 and 10 requests: "
        "over the limit, but too few to be sure"
    )
    candidate[0] = record("candidate", failed=True)
    verdict = both(ERRORS, stable, candidate)
    assert isinstance(verdict, Starved)
    assert "too few to be sure" in verdict.reason


@pytest.mark.parametrize("guard", [ERRORS, TOTAL, TTFT, INTER_TOKEN])
@pytest.mark.parametrize(
    ("stable", "candidate", "said"),
    [(0, 0, "went to stable"), (0, 500, "went to stable"), (500, 0, "answered by the candidate"), (500, 7, "7 of v7")],
)
def test_an_arm_without_enough_requests_is_starved_with_the_reason(
    guard: Guard, stable: int, candidate: int, said: str
) -> None:
    """(0, 500) is a canary of 100 %: nothing to compare with is no reason to pass."""
    verdict = both(guard, requests("stable", stable, 1), requests("candidate", candidate, 1))
    assert isinstance(verdict, Starved)
    assert said in verdict.reason


def test_a_guard_on_inter_token_never_passes_without_streamed_answers() -> None:
    stable, candidate = ([record(arm, stream=False) for _ in range(300)] for arm in ("stable", "candidate"))
    verdict = both(INTER_TOKEN, stable, candidate)
    assert isinstance(verdict, Starved)
    assert verdict.reason == (
        "inter-token can't be judged without a streamed answer of several chunks: so far 0 of v7 and 0 of v6"
    )
    assert isinstance(both(TOTAL, stable, candidate), Pass)


def test_a_candidate_that_only_fails_does_not_pass_for_being_quick() -> None:
    stable = [record() for _ in range(300)]
    candidate = [record("candidate", 0.001, failed=True) for _ in range(300)]
    for guard in (TOTAL, TTFT, INTER_TOKEN):
        assert isinstance(both(guard, stable, candidate), Starved)
    assert isinstance(both(ERRORS, stable, candidate), Fail)


def test_clients_that_went_away_count_neither_as_errors_nor_with_their_total() -> None:
    stable, candidate = alike()
    gone = [record("candidate", 100.0, gone=True) for _ in range(400)]
    for guard in (ERRORS, TOTAL.model_copy(update={"limit": 1.5})):
        assert both(guard, stable, candidate + gone) == both(guard, stable, candidate)
    assert isinstance(both(INTER_TOKEN, stable, candidate + gone), Fail)  # they left because it was slow


def test_measurements_that_are_no_numbers_are_left_out() -> None:
    stable, candidate = alike()
    odd = [replace(record("candidate"), total_seconds=value) for value in (math.nan, math.inf)]
    reasons = [both(TOTAL, stable, c).reason for c in (candidate, candidate + odd)]
    assert reasons[0] == reasons[1]


def test_latencies_of_zero_give_a_verdict() -> None:
    stable, candidate = ([record(arm, 0.0) for _ in range(300)] for arm in ("stable", "candidate"))
    assert isinstance(both(TOTAL, stable, candidate), Pass)
    assert isinstance(both(TOTAL, stable, [record("candidate", 1.0) for _ in range(300)]), Fail)


@given(
    st.sampled_from([ERRORS, TOTAL, TTFT, INTER_TOKEN]),
    st.lists(st.tuples(st.sampled_from(["stable", "candidate"]), st.floats(0, 1e4), st.booleans(), st.booleans())),
)
def test_judging_never_raises_and_fails_nothing_that_is_within_the_limit(
    guard: Guard, facts: list[tuple[str, float, bool, bool]]
) -> None:
    records = [record(arm, total, failed=failed, stream=stream) for arm, total, failed, stream in facts]
    stable = [r for r in records if r.arm == "stable"]
    verdict = both(guard, stable, [r for r in records if r.arm == "candidate"])
    assert verdict.reason
    assert not isinstance(both(guard, stable, [replace(r, version=7) for r in stable]), Fail)


@pytest.mark.parametrize(
    ("answers", "row", "said"),
    [
        ("", 1, None),
        ("xxxx", 5, None),
        (".xxxxx", 5, "v7 failed each of its last 5 answers: 5 times HTTP 500"),
        ("xxxxx.", 5, None),
        ("xx.xxx", 5, None),
        ("x", 1, "v7 failed its last answer: HTTP 500"),
        ("xxgxgx", 4, "v7 failed each of its last 4 answers: 4 times HTTP 500"),
        ("x0b", 3, "v7 failed each of its last 3 answers: an answer that broke off, no answer, HTTP 500"),
    ],
)
def test_a_row_of_failed_answers_trips(answers: str, row: int, said: str | None) -> None:
    kinds = {
        "x": record("candidate", failed=True),
        ".": record("candidate"),
        "g": record("candidate", gone=True),
        "0": record("candidate", failed=True, status=0),
        "b": record("candidate", failed=True, status=200),
    }
    assert hard_trip([kinds[a] for a in answers], row) == said


def reading(verdict: Verdict) -> GuardReading:
    return GuardReading(guard=ERRORS, verdict=verdict)


def test_one_failing_guard_is_enough_and_a_starved_one_keeps_from_passing() -> None:
    good, bad, thin = (reading(kind(reason=kind.__name__)) for kind in (Pass, Fail, Starved))
    assert overall([good, good]) == Pass(reason="Pass. Also, Pass")
    assert overall([good, thin]) == Starved(reason="Starved")
    assert overall([thin, good, bad, bad]) == Fail(reason="Fail. Also, Fail")


def test_without_guards_it_passes_and_says_so() -> None:
    assert overall(judge_all([], *alike(), ALPHA)) == Pass(reason="there are no guards")


def test_alpha_is_shared_over_the_guards() -> None:
    stable, candidate = alike()
    for share, guards in ((1, [TOTAL]), (3, [TOTAL, TTFT, ERRORS])):
        readings = judge_all(guards, stable, candidate, ALPHA)
        assert [r.guard for r in readings] == guards
        assert readings[0].verdict == judge(TOTAL, stable, candidate, alpha=ALPHA / share)


def test_five_thousand_requests_are_judged_within_a_fraction_of_a_second() -> None:
    """Some 5 ms on the 2-core machine of the README; the test leaves room for a busy one."""
    stable, candidate = alike(2500)

    def is_fast() -> bool:
        began = perf_counter()
        judge_all([*DEFAULT_GUARDS, INTER_TOKEN], stable, candidate, ALPHA)
        return perf_counter() - began < 0.2

    wait_for(is_fast, "it was judged so fast")


def traffic(seed: int, share: float, *, slower: float = 1.0, failing: float = 0.0) -> Iterator[tuple[str, Record]]:
    """Requests one by one, *share* of them the candidate's; 1 % fail on either arm, besides *failing*."""
    dice = random.Random(seed)
    while True:
        arm = "candidate" if dice.random() < share else "stable"
        worse = arm == "candidate"
        failed = dice.random() < (max(failing, 0.01) if worse else 0.01)
        yield arm, record(arm, dice.lognormvariate(-0.9, 0.5) * (slower if worse else 1.0), failed=failed)


def until_failed(
    stream: Iterator[tuple[str, Record]], guards: list[Guard], most: int, every: int = 1
) -> tuple[int, int] | None:
    """Candidate's and stable's requests when the guards failed, looking after *every* so many requests."""
    arms: dict[str, list[Record]] = {"stable": [], "candidate": []}
    for i, (arm, request) in zip(range(most), stream, strict=False):
        arms[arm].append(request)
        if i % every == 0 and isinstance(overall(judge_all(guards, arms["stable"], arms["candidate"], ALPHA)), Fail):
            return len(arms["candidate"]), len(arms["stable"])
    return None


def test_looking_after_each_request_a_version_like_the_other_is_hardly_ever_failed() -> None:
    """Even with guards that allow nothing: at most alpha of the rollouts; here none of 40 (0.05 would be 2)."""
    strict = [TOTAL.model_copy(update={"limit": 1.0}), TTFT.model_copy(update={"limit": 1.0, "quantile": 0.5})]
    failed = sum(until_failed(traffic(seed, 0.5), strict, 150) is not None for seed in range(40))
    assert failed <= 2


@pytest.mark.parametrize(
    ("what", "most"),
    [
        (lambda seed: traffic(seed, 0.25, failing=0.5), 30),
        (lambda seed: traffic(seed, 0.25, slower=3.0), 260),
        (lambda seed: traffic(seed, 0.25, slower=10.0), 40),
    ],
    ids=["half the answers fail", "three times slower", "ten times slower"],
)
def test_a_bad_version_is_found_after_a_bounded_number_of_its_requests(
    what: Callable[[int], Iterator[tuple[str, Record]]], most: int
) -> None:
    """At 25 % of the traffic with the default guards, nine times in ten within *most* requests of the candidate."""
    found = [until_failed(what(seed), list(DEFAULT_GUARDS), 4 * 2 * most, every=8) for seed in range(10)]
    assert sum(f is not None and f[0] <= most for f in found) >= 9, found
