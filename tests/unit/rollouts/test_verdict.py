from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stoker.types.guards import Evidence
from stoker.types.rollouts import DEFAULT_GUARDS, Fail, Guard, GuardReading, Pass, Starved, Verdict
from stokerd.gateway.wire import Record
from stokerd.rollouts.sample import Sample
from stokerd.rollouts.verdict import Findings, Pair, hard_trip, judge_all, judge_contention, overall
from tests.bench import bench_verdicts
from tests.bench.verdicts import world

ERRORS = Guard(metric="error_rate", limit=0.02)
TOTAL = Guard(metric="total", limit=1.2)
TTFT = Guard(metric="ttft", limit=2.0)
INTER_TOKEN = Guard(metric="inter_token", limit=1.2)
REFUSALS = Guard(metric="refusal_rate", limit=0.05)
CUT_OFF = Guard(metric="finish_rate", name="length", limit=0.05)
TOKENS = Guard(metric="tokens_out", limit=1.5, quantile=0.5)
GAP = Guard(metric="max_gap", limit=1.5)
SAME = Guard(metric="disagreement", limit=0.5)
JUDGED = Guard(metric="judged_worse", limit=0.3)
ALIKE = Guard(metric="similarity", limit=0.8)
SCORE = Guard(metric="score", name="mmlu", limit=0.02)
SERIES = Guard(metric="series", name="gpu_watts", limit=300)
ALPHA = 0.05


def record(
    arm: str = "stable",
    total: float = 1.0,
    *,
    failed: bool = False,
    status: int | None = None,
    stream: bool = True,
    gone: bool = False,
    caller: str = "",
    tokens: int | None = 50,
    reason: str = "stop",
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
        completion_tokens=tokens,
        table_version=1,
        max_gap_seconds=total / 10 if stream and not failed else None,
        finish_reason="" if failed else reason,
        caller=caller,
    )


def requests(
    arm: str, count: int, seed: int, *, slower: float = 1.0, failing: float = 0.0, callers: int = 0
) -> list[Record]:
    """Some requests with log-normal latencies of median 0.4 s, p90 0.76 s at *slower* 1; of anonymous callers or so
    many."""
    dice = random.Random(f"{arm}{seed}")
    return [
        record(
            arm,
            dice.lognormvariate(-0.9, 0.5) * slower,
            failed=dice.random() < failing,
            caller=f"{arm}{i % callers}" if callers else "",
        )
        for i in range(count)
    ]


def alike(count: int = 400) -> tuple[list[Record], list[Record]]:
    return requests("stable", count, 1), requests("candidate", count, 1)


def sample(name: str, records: Iterable[Record]) -> Sample:
    made = Sample(name)
    for one in records:
        made.add(one)
    return made


def read(
    guard: Guard, stable: Sequence[Record] = (), candidate: Sequence[Record] = (), findings: Findings | None = None
) -> GuardReading:
    return judge_all([guard], sample("v6", stable), sample("v7", candidate), ALPHA, findings)[0]


def both(
    guard: Guard, stable: Sequence[Record] = (), candidate: Sequence[Record] = (), findings: Findings | None = None
) -> Verdict:
    return read(guard, stable, candidate, findings).verdict


def evidence(reading: GuardReading) -> Evidence:
    assert reading.evidence is not None
    return reading.evidence


@pytest.mark.parametrize(
    "guard", [ERRORS, TOTAL.model_copy(update={"limit": 1.5}), TTFT, INTER_TOKEN, REFUSALS, CUT_OFF, TOKENS, GAP]
)
def test_a_version_like_the_other_passes_every_guard(guard: Guard) -> None:
    verdict = both(guard, *alike())
    assert isinstance(verdict, Pass), verdict


@pytest.mark.parametrize("guard", [TOTAL, TTFT.model_copy(update={"limit": 1.2}), INTER_TOKEN, GAP])
def test_a_version_twice_as_slow_fails_and_the_reason_has_the_evidence(guard: Guard) -> None:
    reading = read(guard, requests("stable", 412, 1), requests("candidate", 398, 1, slower=2, callers=87))
    assert isinstance(reading.verdict, Fail)
    found = evidence(reading)
    word = {"total": "total", "ttft": "TTFT", "inter_token": "inter-token", "max_gap": "longest gap"}[guard.metric]
    assert reading.verdict.reason == (
        f"{word} p90 of v7 is {found.low:.2f} to {found.high:.2f} times v6's at 95 %; limit {guard.limit:.2f}; "
        "398 requests of 87 callers"
    )
    assert found.unit == "ratio"
    assert found.low is not None and found.estimate is not None and found.high is not None
    assert guard.limit < found.low < found.estimate < found.high
    assert (found.requests, found.callers, found.stable_requests, found.stable_callers) == (398, 87, 412, 412)
    assert (found.missing, found.confidence) == (0, 0.95)
    assert found.stable is not None and found.candidate is not None
    assert found.candidate / found.stable == found.estimate


def test_a_version_that_answers_with_errors_fails_and_the_reason_has_the_evidence() -> None:
    stable = [record() for _ in range(99)] + [record(failed=True)]
    candidate = [record("candidate") for _ in range(20)] + [record("candidate", failed=True) for _ in range(20)]
    reading = read(ERRORS, stable, candidate)
    assert isinstance(reading.verdict, Fail)
    assert reading.verdict.reason.startswith("error rate of v7 is 50.0 %, v6's 1.0 %: +")
    assert reading.verdict.reason.endswith(" points at 95 %; limit +2; 40 requests of 40 callers")
    assert evidence(reading).unit == "points"
    assert evidence(reading).estimate == pytest.approx(0.49)


def test_over_the_limit_without_proof_is_neither_pass_nor_fail() -> None:
    stable, candidate = [record() for _ in range(10)], [record("candidate", 1.5) for _ in range(10)]
    verdict = both(TOTAL, stable, candidate)
    assert isinstance(verdict, Starved)
    assert verdict.reason == (
        "total p90 of v7 is about 1.50 times v6's at 95 %; limit 1.20; 10 requests of 10 callers: "
        "over the limit by now, but too few to be sure"
    )
    candidate[0] = record("candidate", failed=True)
    verdict = both(ERRORS, stable, candidate)
    assert isinstance(verdict, Starved)
    assert "too few to be sure" in verdict.reason


def test_a_guard_that_wants_proof_passes_only_when_the_whole_interval_is_within_the_limit() -> None:
    guard = TOTAL.model_copy(update={"limit": 1.5, "proof": True})
    early, late = read(guard, *alike(60)), read(guard, *alike(3000))
    assert isinstance(early.verdict, Starved)
    assert early.verdict.reason.endswith("within the limit so far, but not proven yet")
    assert isinstance(late.verdict, Pass)
    high = evidence(late).high
    assert high is not None and high <= 1.5


def test_the_missing_requests_are_about_what_it_takes() -> None:
    guard = TOTAL.model_copy(update={"limit": 1.4, "proof": True})
    missing = evidence(read(guard, *alike(60))).missing
    assert missing is not None and 0 < missing < 5000
    assert isinstance(both(guard, *alike(60 + 3 * missing)), Pass)
    assert evidence(read(ERRORS, requests("stable", 400, 1), requests("candidate", 5, 1))).missing == 3
    assert evidence(read(ERRORS, requests("stable", 4, 1), requests("candidate", 20, 1))).missing == 20


@pytest.mark.parametrize("guard", [ERRORS, TOTAL, TTFT, INTER_TOKEN, REFUSALS, CUT_OFF, TOKENS, GAP])
@pytest.mark.parametrize(
    ("stable", "candidate", "said"),
    [(0, 0, "went to stable"), (0, 500, "went to stable"), (500, 0, "answered by v7"), (500, 7, "7 of v7")],
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
        "inter-token p90 can't be judged without a streamed answer of several chunks: so far 0 of v7 and 0 of v6"
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
    assert isinstance(both(TOTAL, stable, odd * 100), Starved)


def test_latencies_of_zero_give_a_verdict() -> None:
    stable, candidate = ([record(arm, 0.0) for _ in range(300)] for arm in ("stable", "candidate"))
    assert isinstance(both(TOTAL, stable, candidate), Pass)
    assert isinstance(both(TOTAL, stable, [record("candidate", 1.0) for _ in range(300)]), Fail)


@given(
    st.sampled_from([ERRORS, TOTAL, TTFT, INTER_TOKEN, REFUSALS, TOKENS, TOTAL.model_copy(update={"proof": True})]),
    st.lists(
        st.tuples(
            st.sampled_from(["stable", "candidate"]),
            st.floats(0, 1e4),
            st.booleans(),
            st.booleans(),
            st.sampled_from("ab "),
        )
    ),
)
def test_judging_never_raises_and_fails_nothing_that_is_within_the_limit(
    guard: Guard, facts: list[tuple[str, float, bool, bool, str]]
) -> None:
    records = [
        record(arm, total, failed=failed, stream=stream, caller=caller.strip(), tokens=int(total))
        for arm, total, failed, stream, caller in facts
    ]
    stable = [r for r in records if r.arm == "stable"]
    verdict = both(guard, stable, [r for r in records if r.arm == "candidate"])
    assert verdict.reason
    assert not isinstance(both(guard, stable, [replace(r, version=7) for r in stable]), Fail)


# Callers


def test_many_requests_of_few_callers_prove_little() -> None:
    """The two callers of the candidate write long prompts: that is no proof against the version."""
    slow = requests("candidate", 400, 1, slower=2, callers=2)
    assert isinstance(both(TOTAL, requests("stable", 400, 1, callers=60), slow), Starved)
    many = requests("candidate", 400, 1, slower=2, callers=60)
    assert isinstance(both(TOTAL, requests("stable", 400, 1, callers=60), many), Fail)


def test_one_caller_whose_requests_all_fail_is_no_proof_against_a_version() -> None:
    stable = requests("stable", 400, 1, callers=40)
    candidate = requests("candidate", 400, 1, callers=40)
    broken = [record("candidate", failed=True, caller="broken") for _ in range(60)]
    assert not isinstance(both(ERRORS, stable, candidate + broken), Fail)
    assert isinstance(both(ERRORS, stable, candidate + [replace(r, caller=str(i)) for i, r in enumerate(broken)]), Fail)


def test_in_a_shadow_one_caller_is_enough_since_both_versions_answer_it() -> None:
    stable = [replace(r, caller="app") for r in requests("stable", 400, 1)]
    shadow = [replace(r, caller="app") for r in requests("shadow", 400, 1, slower=2)]
    assert isinstance(both(TOTAL, stable, shadow), Fail)
    elsewhere = [replace(r, caller="other") for r in shadow]
    assert isinstance(both(TOTAL, stable, elsewhere), Starved)


# Absolute limits


def test_an_absolute_limit_needs_no_stable() -> None:
    candidate = requests("candidate", 400, 1)
    for limit, kind in ((2.0, Pass), (0.3, Fail)):
        reading = read(Guard(metric="total", limit=limit, against="nothing"), [], candidate)
        assert isinstance(reading.verdict, kind), reading
        assert evidence(reading).unit == "seconds"
    assert reading.verdict.reason.startswith("total p90 of v7 is ")
    assert reading.verdict.reason.endswith(" ms at 95 %; limit 300 ms; 400 requests of 400 callers")
    failing = read(Guard(metric="error_rate", limit=0.1, against="nothing"), [], requests("c", 200, 1, failing=0.4))
    assert isinstance(failing.verdict, Fail)
    assert failing.verdict.reason.startswith("error rate of v7 is ")
    assert failing.verdict.reason.endswith(" % at 95 %; limit 10 %; 200 requests of 200 callers")
    tokens = Guard(metric="tokens_out", limit=40, against="nothing")
    assert isinstance(both(tokens, [], candidate), Fail)
    assert isinstance(both(tokens.model_copy(update={"limit": 60.0}), [], candidate), Pass)
    assert isinstance(both(tokens, [], []), Starved)


# Refusals, finish reasons, tokens


def test_a_version_that_refuses_or_is_cut_off_more_often_fails() -> None:
    stable = [record() for _ in range(400)]
    for guard, reasons in ((REFUSALS, ("refusal", "content_filter")), (CUT_OFF, ("length",))):
        candidate = [
            record("candidate", reason=reasons[i % len(reasons)] if i % 4 == 0 else "stop") for i in range(400)
        ]
        assert isinstance(both(guard, stable, candidate), Fail)
    silent = [record("candidate", reason="") for _ in range(400)]
    verdict = both(CUT_OFF, stable, silent)
    assert isinstance(verdict, Starved)
    assert "can't be judged without an answer that tells why it ended" in verdict.reason


def test_answers_of_another_length_fail_whether_longer_or_shorter() -> None:
    dice = random.Random(1)
    stable = [record(tokens=dice.randrange(50, 150)) for _ in range(400)]
    for factor, kind in ((3.0, Fail), (1 / 3, Fail), (1.0, Pass)):
        candidate = [record("candidate", tokens=int(factor * dice.randrange(50, 150))) for _ in range(400)]
        assert isinstance(both(TOKENS, stable, candidate), kind)
    assert isinstance(both(TOKENS, stable, [record("candidate", tokens=None) for _ in range(400)]), Starved)


# Kept pairs


def pairs(count: int, *, same: float = 1.0, worse: float = 0.0, likeness: float = 1.0, callers: int = 0) -> Findings:
    dice = random.Random(count)
    return Findings(
        pairs=[
            Pair(
                f"c{i % callers}" if callers else "",
                dice.random() < same,
                min(1.0, max(0.0, dice.gauss(likeness, 0.1))),
                "worse" if dice.random() < worse else "same",
            )
            for i in range(count)
        ]
    )


@pytest.mark.parametrize(
    ("guard", "good", "bad"),
    [
        (SAME, {"same": 0.8}, {"same": 0.2}),
        (JUDGED, {"worse": 0.1}, {"worse": 0.6}),
        (ALIKE, {"likeness": 0.95}, {"likeness": 0.5}),
    ],
)
def test_kept_answers_are_judged_against_the_limit(guard: Guard, good: dict[str, float], bad: dict[str, float]) -> None:
    assert isinstance(both(guard, findings=pairs(200, callers=100, **good)), Pass)
    reading = read(guard, findings=pairs(200, callers=100, **bad))
    assert isinstance(reading.verdict, Fail)
    assert reading.verdict.reason.endswith("200 pairs of 100 callers")
    assert evidence(reading).unit == "share"
    assert isinstance(both(guard, findings=pairs(300, callers=1, **bad)), Starved)


def test_without_kept_answers_nothing_is_said_of_them() -> None:
    for guard in (SAME, JUDGED, ALIKE):
        assert isinstance(both(guard, *alike()), Starved)
        assert isinstance(both(guard, findings=pairs(guard.min_requests - 1)), Starved)
    unjudged = Findings(pairs=[Pair("", True, math.nan, None)] * 100)
    for guard in (JUDGED, ALIKE):
        assert isinstance(both(guard, findings=unjudged), Starved)


# Scores and series


@pytest.mark.parametrize(
    ("scores", "kind"),
    [
        ((0.70, 0.69), Pass),
        ((0.70, 0.65), Fail),
        ((None, 0.7), Starved),
        ((0.7, None), Starved),
        ((0.7, math.nan), Starved),
        ((math.nan, 0.7), Starved),
    ],
)
def test_an_evaluation_is_compared_with_stables(scores: tuple[float | None, float | None], kind: type) -> None:
    verdict = both(SCORE, findings=Findings(scores={"mmlu": scores}))
    assert isinstance(verdict, kind), verdict
    assert isinstance(both(SCORE), Starved)


def test_an_evaluation_against_a_number_needs_no_value_of_stable() -> None:
    guard = Guard(metric="score", name="mmlu", limit=0.6, against="nothing")
    assert isinstance(both(guard, findings=Findings(scores={"mmlu": (None, 0.7)})), Pass)
    assert isinstance(both(guard, findings=Findings(scores={"mmlu": (None, 0.5)})), Fail)


@pytest.mark.parametrize(
    ("values", "kind"),
    [
        ([250.0] * 5, Pass),
        ([350.0] * 5, Starved),
        ([350.0] * 80, Fail),
        ([*[450.0] * 20, *[170.0] * 20] * 2, Starved),
        ([250.0] * 4, Starved),
        ([math.nan] * 9, Starved),
        ([], Starved),
    ],
)
def test_a_series_is_judged_by_its_mean_and_never_by_too_few_values(values: list[float], kind: type) -> None:
    assert isinstance(both(SERIES, findings=Findings(series={"gpu_watts": values}, known_series=["gpu_watts"])), kind)


def test_a_series_that_wants_proof_passes_once_its_whole_interval_is_within_the_limit() -> None:
    wants = SERIES.model_copy(update={"proof": True})
    for count, kind in ((10, Starved), (100, Pass)):
        verdict = both(wants, findings=Findings(series={"gpu_watts": [250.0, 260.0] * count}))
        assert isinstance(verdict, kind), verdict
    assert verdict.reason.startswith("mean of gpu_watts in this step is 2")
    assert verdict.reason.endswith(" at 95 %; limit 300; 200 values")


def test_a_series_that_was_renamed_is_starved_and_the_new_name_is_suggested() -> None:
    verdict = both(SERIES, findings=Findings(series={}, known_series=["gpu_power_watts", "cpu_percent"]))
    assert verdict == Starved(reason="there is no series gpu_watts; did you mean gpu_power_watts?")


# Contention


def test_stable_is_compared_with_itself_before_the_candidate_came() -> None:
    before, during = sample("v6", requests("stable", 400, 1)), sample("v6", requests("stable", 400, 2, slower=2))
    readings = judge_contention([ERRORS, TOTAL, SCORE], before, during, ALPHA)
    assert [r.guard for r in readings] == [TOTAL]
    assert isinstance(readings[0].verdict, Fail)
    reason = readings[0].verdict.reason
    assert "total p90 of stable v6 itself is " in reason
    assert reason.endswith(" times what it was before the candidate came: they share a device")
    assert isinstance(
        judge_contention([TTFT], before, sample("v6", requests("stable", 400, 3)), ALPHA)[0].verdict, Pass
    )
    assert isinstance(judge_contention([TOTAL], before, Sample("v6"), ALPHA)[0].verdict, Starved)


# Trips, and all together


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


def refused(who: str = "", sent: int = 100, *, path: str = "/v1/chat/completions", by: str = "unix:/x") -> Record:
    made = record("candidate", failed=True, status=429 if not by else 400, caller=who)
    return replace(made, request_bytes=sent, path=path, address=by)


NONSENSE, OTHERS = refused(sent=100), refused(sent=101)
CROWDED_OUT, NO_REPLICA = refused(by=""), replace(record("candidate", failed=True, status=503), address="")


@pytest.mark.parametrize(
    ("answers", "by_stable", "trips"),
    [
        ([NONSENSE] * 9, 0, False),
        ([*[NONSENSE] * 4, OTHERS], 0, True),
        ([*[NONSENSE] * 4, OTHERS], 4, True),
        ([*[NONSENSE] * 4, OTHERS], 5, False),
        ([*[NONSENSE] * 4, refused(path="/v1/completions")], 0, True),
        ([refused("ada", sent) for sent in range(9)], 0, False),
        ([*[refused("ada")] * 4, refused("bob")], 0, True),
        ([*[NONSENSE] * 4, record("candidate", failed=True)], 9, True),
        ([CROWDED_OUT] * 9, 0, False),
        ([record("candidate", failed=True)] * 5 + [CROWDED_OUT] * 9, 0, True),
        ([record("candidate"), *[record("candidate", failed=True)] * 4, CROWDED_OUT], 0, False),
        ([NO_REPLICA] * 5, 9, True),
    ],
    ids=[
        "one anonymous client who tries again and again", "two anonymous clients", "stable refused a few of them",
        "stable refused as many", "the same to two paths", "one caller with many questions", "two callers",
        "one of them is a failure", "the gateway refused all", "it refused some after failures",
        "it refused some between", "no replica is well",
    ],
)  # fmt: skip
def test_refusals_trip_only_when_different_clients_got_them_and_stable_answers_such(
    answers: list[Record], by_stable: int, trips: bool
) -> None:
    assert (hard_trip(answers, 5, by_stable) is not None) == trips


def test_where_one_failure_is_enough_one_refusal_is() -> None:
    assert hard_trip([NONSENSE], 1) == "v7 failed its last answer: HTTP 400"
    assert hard_trip([NONSENSE], 1, refused_by_stable=1) is None


def reading(verdict: Verdict) -> GuardReading:
    return GuardReading(guard=ERRORS, verdict=verdict)


def test_one_failing_guard_is_enough_and_a_starved_one_keeps_from_passing() -> None:
    good, bad, thin = (reading(kind(reason=kind.__name__)) for kind in (Pass, Fail, Starved))
    assert overall([good, good]) == Pass(reason="Pass. Also, Pass")
    assert overall([good, thin]) == Starved(reason="Starved")
    assert overall([thin, good, bad, bad]) == Fail(reason="Fail. Also, Fail")


def test_without_guards_it_passes_and_says_so() -> None:
    assert overall(judge_all([], Sample("v6"), Sample("v7"), ALPHA)) == Pass(reason="there are no guards")


def test_alpha_is_shared_over_the_guards_in_which_chance_has_a_part() -> None:
    stable, candidate = (sample(name, records) for name, records in zip(("v6", "v7"), alike(), strict=True))
    guards = [TOTAL, SCORE, TTFT, SERIES, ERRORS]
    readings = judge_all(guards, stable, candidate, ALPHA)
    assert [r.guard for r in readings] == guards
    alone = judge_all([TOTAL], stable, candidate, ALPHA / 4)[0]
    assert readings[0] == alone
    assert evidence(alone).confidence == pytest.approx(1 - ALPHA / 4)


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
    arms = {"stable": Sample("v6"), "candidate": Sample("v7")}
    for i, (arm, request) in zip(range(most), stream, strict=False):
        arms[arm].add(request)
        if i % every == 0 and isinstance(overall(judge_all(guards, arms["stable"], arms["candidate"], ALPHA)), Fail):
            return arms["candidate"].requests, arms["stable"].requests
    return None


def test_looking_again_and_again_a_version_like_the_other_is_hardly_ever_failed() -> None:
    """Even with guards that allow nothing: at most alpha of the rollouts; here none of 40 (0.05 would be 2)."""
    strict = [TOTAL.model_copy(update={"limit": 1.0}), TTFT.model_copy(update={"limit": 1.0, "quantile": 0.5})]
    failed = sum(until_failed(traffic(seed, 0.5), strict, 150, every=2) is not None for seed in range(40))
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


def test_the_benchmark_of_verdicts_sees_a_collapse_and_nothing_where_nothing_is(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(bench_verdicts, "_usual", lambda: [0.01, 0.3, 0.02, 5.0])
    good = bench_verdicts.rollout(1, seed=1, count=600, effect=bench_verdicts.NO_FAULT, shares=(0.5,))
    broken = world.Effect("broken", slower=3.0, errors=0.5)
    bad = bench_verdicts.rollout(1, seed=1, count=600, effect=broken, shares=(0.5,))
    assert len(good) == len(bad) == len(bench_verdicts.JUDGES)
    assert good[0] is None
    assert bad[0] is not None and bad[0] <= 300
