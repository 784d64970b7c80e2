"""rollout: start, see, steer, take back and explain."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest

from stoker.errors import Conflict, NotFound
from stoker.types.apply import Applied
from stoker.types.base import now
from stoker.types.rollouts import ApproveStep, Paused, Promoted, Rollout, RolloutSpec
from stoker.types.serving import Warm
from stoker.types.traffic import Served
from tests.unit.cli import samples
from tests.unit.cli.conftest import Stoker, Terminal
from tests.unit.cli.stand_in import StandIn


def _starts(daemon: StandIn) -> None:
    """Let the daemon take a rollout."""

    def take(body: Any) -> list[Applied]:
        name = body["specs"][0]["name"]
        daemon.keep(samples.rollout(name))
        return [Applied(kind="rollout", name=name, action="created")]

    daemon.answers["POST /v1/apply"] = take
    daemon.keep(samples.deployment())


def test_a_rollout_is_started_from_flags(daemon: StandIn, stoker: Stoker) -> None:
    _starts(daemon)
    daemon.keep(samples.rollout("chat-1", "promoted"))
    steps = ["--step", "shadow:10", "--step", "canary:25%:50:5m", "--guard", "ttft=1.5"]
    started = stoker("rollout", "start", "chat", "--to", "smol@2", *steps)
    assert (started.code, started.out) == (0, "rollout/chat-2 stepping 2/2 chat@1 -> @2\n")
    spec = next(c[2] for c in daemon.calls if c[0] == "POST /v1/apply")["specs"][0]
    assert (spec["to"], spec["deployment"]) == (2, "chat")
    assert [(s["type"], s["percent"], s["min_requests"], s["min_duration"]) for s in spec["steps"]] == [
        ("shadow", 10, 20, 0),
        ("canary", 25, 50, 300),
    ]
    assert [(g["metric"], g["limit"]) for g in spec["guards"]] == [("ttft", 1.5)]


@pytest.mark.parametrize(
    "flags",
    [
        ["--step", "canary"],
        ["--step", "canry:10"],
        ["--step", "canary:200"],
        ["--guard", "ttft"],
        ["--guard", "speed=1"],
        ["--name", "Bad Name"],
    ],
)
def test_wrong_flags_of_a_rollout_are_explained(daemon: StandIn, stoker: Stoker, flags: list[str]) -> None:
    _starts(daemon)
    refused = stoker("rollout", "start", "chat", "--to", "2", *flags)
    assert refused.code == 2
    assert "POST /v1/apply" not in [c[0] for c in daemon.calls]


def test_a_rollout_name_that_is_taken_is_refused(daemon: StandIn, stoker: Stoker) -> None:
    _starts(daemon)
    daemon.keep(samples.rollout())
    assert stoker("rollout", "start", "chat", "--to", "2", "--name", "chat-1").code == 5


@pytest.mark.parametrize(("end", "code"), [("promoted", 0), ("rolled-back", 7)])
def test_waiting_for_a_rollout(daemon: StandIn, stoker: Stoker, end: str, code: int) -> None:
    _starts(daemon)
    looks = iter([samples.rollout("x"), samples.rollout("x"), samples.rollout("x", end)])

    def look(_: Any) -> Any:
        daemon.record("rollout", "x", "RolloutChanged")
        return next(looks, samples.rollout("x", end))

    daemon.answers["GET /v1/rollouts/x"] = NotFound("there is none.")
    taken = daemon.answers["POST /v1/apply"]

    def take(body: Any) -> Any:
        daemon.answers["GET /v1/rollouts/x"] = look
        return taken(body)

    daemon.answers["POST /v1/apply"] = take
    waited = stoker("rollout", "start", "chat", "--to", "2", "--name", "x", "--wait")
    assert waited.code == code
    assert f"{end} after" in waited.out


@pytest.mark.parametrize("name", ["chat", "chat-1"])
@pytest.mark.parametrize("verb", ["pause", "resume", "promote", "abort"])
def test_a_rollout_is_steered_by_its_own_or_its_deployments_name(
    daemon: StandIn, stoker: Stoker, verb: str, name: str
) -> None:
    daemon.keep(samples.deployment(rollout="chat-1"), samples.rollout())
    daemon.answers[f"POST /v1/rollouts/chat-1/{verb}"] = samples.rollout()
    assert stoker("rollout", verb, name).code == 0


def test_a_step_is_approved_and_no_later_one_where_it_is_named(daemon: StandIn, stoker: Stoker) -> None:
    daemon.keep(samples.deployment(rollout="chat-1"), samples.rollout())
    daemon.answers["POST /v1/rollouts/chat-1/approve"] = samples.rollout()
    assert stoker("rollout", "approve", "chat").code == 0
    assert daemon.calls[-1][1] == {}
    assert stoker("rollout", "approve", "chat", "--step", "3").code == 0
    assert daemon.calls[-1][1] == {"step": "2"}, "the daemon counts from 0"
    assert stoker("rollout", "approve", "chat", "--step", "0").code == 2


def test_without_a_rollout_there_is_nothing_to_steer(daemon: StandIn, stoker: Stoker) -> None:
    daemon.keep(samples.deployment(), samples.rollout("chat-1", "promoted"))
    refused = stoker("rollout", "abort", "chat")
    assert (refused.code, "is in no rollout now" in refused.err) == (5, True)
    assert stoker("rollout", "status", "chat").code == 0
    assert stoker("rollout", "status", "nobody").code == 4


def test_the_daemons_refusal_of_a_verb_is_told(daemon: StandIn, stoker: Stoker) -> None:
    daemon.keep(samples.rollout("chat-1", "promoted"))
    daemon.answers["POST /v1/rollouts/chat-1/abort"] = Conflict("it has ended.", "Start another.", code="ended")
    refused = stoker("rollout", "abort", "chat-1", "--json")
    assert refused.code == 5
    assert '"code": "ended"' in refused.err


def test_a_watched_rollout_tells_how_it_ended(daemon: StandIn, stoker: Stoker) -> None:
    daemon.keep(samples.rollout("chat-1", "rolled-back"))
    watched = stoker("rollout", "watch", "chat-1")
    assert watched.code == 7
    assert "Clients saw 9 failed answers. Stable had all traffic 40 ms after the verdict" in watched.out
    assert stoker("rollout", "watch", "chat-1", "--json").lines[-1]["state"]["phase"] == "rolled-back"


def _spec_of(daemon: StandIn) -> dict[str, Any]:
    """What the daemon was last told to start."""
    body: dict[str, Any] = [c[2] for c in daemon.calls if c[0] == "POST /v1/apply"][-1]
    return body["specs"][0]  # type: ignore[no-any-return]


def test_a_deployment_and_a_version_are_enough(daemon: StandIn, stoker: Stoker) -> None:
    _starts(daemon)
    assert stoker("rollout", "start", "chat", "--to", "2").code == 0
    usual = RolloutSpec(kind="rollout", name="chat-1", deployment="chat", to=2)
    assert RolloutSpec.model_validate(_spec_of(daemon)) == usual


@pytest.mark.parametrize(
    ("text", "step"),
    [
        ("shadow:10", {"type": "shadow", "percent": 10}),
        ("canary:2.5%:30", {"type": "canary", "percent": 2.5, "min_requests": 30}),
        ("canary:25:50:2h", {"min_requests": 50, "min_duration": 7200, "max_duration": 14400}),
        ("target", {"type": "target", "min_requests": 20}),
        ("target:5:1m", {"type": "target", "min_requests": 5, "min_duration": 60}),
        ("approve", {"type": "approve", "by": ""}),
        ("approve:ann", {"type": "approve", "by": "ann"}),
        ("pause:10m", {"type": "pause", "duration": 600}),
        ("promote", {"type": "promote"}),
    ],
)
def test_each_kind_of_step_can_be_written_short(
    daemon: StandIn, stoker: Stoker, text: str, step: dict[str, Any]
) -> None:
    _starts(daemon)
    done = stoker("rollout", "start", "chat", "--to", "2", "--step", text, "--target", "x-team=ml")
    assert done.code == 0, done.err
    assert step.items() <= _spec_of(daemon)["steps"][0].items()


@pytest.mark.parametrize(
    ("text", "guard"),
    [
        ("ttft=1.5", {"metric": "ttft", "limit": 1.5, "quantile": 0.9, "against": "stable"}),
        ("ttft:p95=1.3", {"metric": "ttft", "limit": 1.3, "quantile": 0.95}),
        ("inter-token:p99.9=2", {"metric": "inter_token", "quantile": 0.999}),
        ("error_rate=2%", {"metric": "error_rate", "limit": 0.02, "against": "stable"}),
        ("finish_rate:length=0.05", {"metric": "finish_rate", "name": "length", "limit": 0.05}),
        ("score:helpfulness=0.02", {"metric": "score", "name": "helpfulness", "limit": 0.02}),
        ("series:gpu.temperature=90", {"metric": "series", "name": "gpu.temperature", "limit": 90}),
        ("series:a:b=c=90", {"metric": "series", "name": "a:b=c", "limit": 90}),
        ("total=8s", {"metric": "total", "limit": 8, "against": "nothing"}),
        ("ttft:p50=800ms", {"metric": "ttft", "limit": 0.8, "against": "nothing", "quantile": 0.5}),
        ("tokens_out:p50=1.5", {"metric": "tokens_out", "limit": 1.5, "quantile": 0.5}),
    ],
)
def test_each_kind_of_guard_can_be_written_short(
    daemon: StandIn, stoker: Stoker, text: str, guard: dict[str, Any]
) -> None:
    _starts(daemon)
    done = stoker("rollout", "start", "chat", "--to", "2", "--guard", text)
    assert done.code == 0, done.err
    assert guard.items() <= _spec_of(daemon)["guards"][0].items()


def test_everything_else_has_a_flag_too(daemon: StandIn, stoker: Stoker) -> None:
    _starts(daemon)
    targets = ["--target", "x-team=ml", "--target", "x-beta=", "--target", "key:alice"]
    policies = ["--placement", "swap", "--on-starved", "roll-back", "--on-fail", "hold", "--on-pass", "shadow"]
    more = ["--max-callers", "20", "--keep-answers", "--keep-warm", "1h"]
    done = stoker("rollout", "start", "chat", "--to", "2", *targets, *policies, *more)
    assert done.code == 0, done.err
    spec = RolloutSpec.model_validate(_spec_of(daemon))
    assert [(t.header, t.value, t.key) for t in spec.targets] == [
        ("x-team", "ml", ""), ("x-beta", "", ""), ("", "", "alice"),
    ]  # fmt: skip
    assert (spec.placement, spec.on_starved, spec.on_fail, spec.on_pass) == ("swap", "roll-back", "hold", "shadow")
    assert (spec.keep_answers, spec.keep_warm) == (True, 3600)
    assert [getattr(s, "max_callers", None) for s in spec.steps] == [None, 20, 20, 20]


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--step", "canry:10"], "did you mean 'canary'?"),
        (["--step", "canary"], "canary:PERCENT[:REQUESTS[:DURATION]] is expected"),
        (["--step", "promote:now"], "promote is expected"),
        (["--step", "pause"], "pause:DURATION is expected"),
        (["--step", "canary:many"], "steps[0].percent: expected a number"),
        (["--step", "canary:10:5:soon"], "expected a duration"),
        (["--step", "target"], "a target step needs targets"),
        (["--step", "promote", "--step", "canary:5"], "promote can only be the last one"),
        (["--step", "shadow:5", "--max-callers", "5"], "no --step is one"),
        (["--guard", "=1"], "can't be read"),
        (["--guard", "ttft:"], "can't be read"),
        (["--guard", "ttft:95=1.3"], "'95' is no quantile"),
        (["--guard", "ttft:p0=1.3"], "'p0' is no quantile"),
        (["--guard", "ttft=20%"], "only rates have limits in %"),
        (["--guard", "error_rate=many%"], "'many%' is no number"),
        (["--guard", "error_rate=5s"], "only latencies"),
        (["--guard", "total=8x"], "'8x' is no duration"),
        (["--guard", "total=nan"], "expected a finite number"),
        (["--guard", "score=0.1"], "score needs the name of its evaluation"),
        (["--guard", "spede=1"], "guards[0].metric"),
        (["--target", "alice"], "HEADER=VALUE"),
        (["--on-fail", "promote"], "on_fail: expected one of"),
        (["--keep-warm", "long"], "keep_warm: expected a duration"),
        (["--dry-run", "--wait"], "nothing to --wait for"),
    ],
)
def test_what_is_wrong_with_a_flag_is_said(daemon: StandIn, stoker: Stoker, flags: list[str], words: str) -> None:
    _starts(daemon)
    refused = stoker("rollout", "start", "chat", "--to", "2", *flags)
    assert (refused.code, refused.out) == (2, "")
    assert words in refused.err
    assert "POST /v1/apply" not in [c[0] for c in daemon.calls]


def test_a_dry_run_shows_the_whole_plan_and_starts_nothing(daemon: StandIn, stoker: Stoker) -> None:
    daemon.answers["POST /v1/rollouts/plan"] = samples.plan()
    planned = stoker("rollout", "start", "chat", "--to", "2", "--step", "canary:25", "--dry-run")
    assert planned.code == 0
    assert [c[0] for c in daemon.calls if c[0].startswith("POST")] == ["POST /v1/rollouts/plan"]
    assert daemon.calls[-1][2]["steps"][0]["percent"] == 25
    for words in (
        "chat@1 -> @2 fits",
        "  beside: v2 runs beside v1 on GPU 1, which is free.",
        "  traffic: 1200 requests an hour of late, of 87 callers",
        "1.  shadow 10 %      20 requests, 1m   120         10m",
        "would starve: 4 of 100 requests in 1h",
        "4.  approval by ann  -                 -           when approved",
        "  in all: about 2h 5m, if all goes well",
        "Version 1 keeps running: back at once.",
        "half of the requests are anonymous",
    ):
        assert words in planned.out
    assert planned.out.endswith("Nothing was started.\n")
    as_json = stoker("rollout", "start", "chat", "--to", "2", "--dry-run", "--json")
    assert (as_json.code, as_json.json["seconds"]) == (0, 7500)


def test_a_plan_that_does_not_fit_says_why_and_ends_with_5(daemon: StandIn, stoker: Stoker) -> None:
    daemon.answers["POST /v1/rollouts/plan"] = samples.plan(fits=False).model_copy(update={"seconds": None})
    planned = stoker("rollout", "start", "chat", "--to", "2", "--dry-run")
    assert planned.code == 5
    assert "does not fit" in planned.out
    assert "run/tune-3 holds the only one" in planned.out
    assert "nobody can say how long it takes" in planned.out
    as_json = stoker("rollout", "start", "chat", "--to", "2", "--dry-run", "--json")
    assert (as_json.code, as_json.json["fits"]) == (5, False)
    daemon.answers["POST /v1/rollouts/plan"] = Conflict("chat is in rollout chat-1.", code="rollout-active")
    assert stoker("rollout", "start", "chat", "--to", "2", "--dry-run").code == 5


def _ended(name: str, to: int, minutes_ago: float) -> Rollout:
    """A rollout to version *to* that was promoted then."""
    state = Promoted(finished_at=now() - timedelta(minutes=minutes_ago))
    return samples.rollout(name, "promoted").model_copy(update={"to_version": to, "from_version": 1, "state": state})


def test_back_undoes_the_newest_rollout_that_brought_what_is_served(daemon: StandIn, stoker: Stoker) -> None:
    other = _ended("chat-4", 3, 1)
    failed = samples.rollout("chat-3", "rolled-back")
    daemon.keep(_ended("chat-1", 2, 60), _ended("chat-2", 2, 5), failed, other)
    serves_2 = samples.deployment().model_copy(update={"version": 2})
    daemon.keep(serves_2)
    daemon.answers["POST /v1/rollouts/chat-2/rollback"] = samples.rollout("chat-2", "returning")
    done = stoker("rollout", "back", "chat")
    assert (done.code, daemon.calls[-1][0]) == (0, "POST /v1/rollouts/chat-2/rollback")
    assert "chat goes back from version 2 to version 1, which it served before chat-2" in done.out
    assert "its replicas start, and version 2 serves until they are ready" in done.out
    warm = Warm(version=1, until=now() + timedelta(minutes=5), rollout="chat-2")
    daemon.keep(serves_2.model_copy(update={"warm": warm}))
    assert "its replicas stand by, so nothing has to start first" in stoker("rollout", "back", "chat").out
    assert stoker("rollout", "back", "chat", "--json").json["state"]["phase"] == "returning"
    assert stoker("rollout", "rollback", "chat").code == 0
    assert daemon.calls[-1][0] == "POST /v1/rollouts/chat-2/rollback"


def test_back_to_a_version_that_was_served_lately_needs_no_steps(daemon: StandIn, stoker: Stoker) -> None:
    _starts(daemon)
    daemon.keep(samples.model())

    def served(version: int, arm: str, percent: float) -> Served:
        until = now() - timedelta(hours=1)
        return Served(
            version=version, arm=arm, percent=percent, whom="everybody", since=until - timedelta(hours=1), until=until,
            by="ada",
        )  # fmt: skip

    rows = [served(5, "stable", 100), served(6, "candidate", 25), served(7, "shadow", 100)]
    daemon.answers["GET /v1/deployments/chat/history"] = rows
    done = stoker("rollout", "back", "chat", "--to", "5")
    assert done.code == 0
    assert "chat goes to version 5, which it served until " in done.out
    (spec,) = next(c[2] for c in daemon.calls if c[0] == "POST /v1/apply")["specs"]
    assert (spec["to"], [s["type"] for s in spec["steps"]], spec["guards"]) == (5, ["promote"], [])
    for other in ("6", "7", "nothing"):
        refused = stoker("rollout", "back", "chat", "--to", other)
        assert (refused.code, "has not served version" in refused.err) == (5, True)


def test_back_in_a_swap_says_that_requests_are_held(daemon: StandIn, stoker: Stoker) -> None:
    plan = samples.plan().model_copy(update={"placement": "swap"})
    daemon.keep(_ended("chat-2", 1, 5).model_copy(update={"plan": plan}), samples.deployment())
    daemon.answers["POST /v1/rollouts/chat-2/rollback"] = samples.rollout("chat-2", "returning")
    assert "requests are held meanwhile" in stoker("rollout", "back", "chat").out


@pytest.mark.parametrize(("end", "code"), [("aborted", 0), ("promoted", 7)])
def test_back_can_wait_until_the_old_version_serves(daemon: StandIn, stoker: Stoker, end: str, code: int) -> None:
    daemon.keep(_ended("chat-2", 1, 5), samples.deployment())

    def take(_: Any) -> Any:
        daemon.keep(samples.rollout("chat-2", end))
        return samples.rollout("chat-2", "returning")

    daemon.answers["POST /v1/rollouts/chat-2/rollback"] = take
    waited = stoker("rollout", "back", "chat", "--wait")
    assert waited.code == code
    assert f"{end} after" in waited.out


def test_without_a_promoted_rollout_back_explains_what_else_there_is(daemon: StandIn, stoker: Stoker) -> None:
    daemon.keep(samples.deployment(), _ended("chat-1", 2, 5))
    refused = stoker("rollout", "back", "chat")
    assert refused.code == 5
    assert "no rollout brought version 1 to deployment chat" in refused.err
    assert "`stoker rollout start chat --to VERSION`" in refused.err
    assert stoker("rollout", "back", "nobody").code == 4
    assert stoker("rollout", "rollback", "nobody").code == 4
    assert not [c for c in daemon.calls if c[0].startswith("POST")]


@pytest.mark.parametrize(
    ("phase", "words"),
    [
        ("stepping", "`stoker rollout abort chat` gives all traffic back"),
        ("returning", "goes back to version 1 already"),
    ],
)
def test_back_in_the_middle_of_a_rollout_names_the_way(daemon: StandIn, stoker: Stoker, phase: str, words: str) -> None:
    daemon.keep(samples.deployment(rollout="chat-1"), samples.rollout("chat-1", phase))
    refused = stoker("rollout", "back", "chat")
    assert refused.code == 5
    assert words in refused.err


def test_abort_after_promotion_names_the_way_back(daemon: StandIn, stoker: Stoker) -> None:
    daemon.keep(samples.deployment(), samples.rollout("chat-1", "promoted"))
    assert "`stoker rollout back chat`" in stoker("rollout", "abort", "chat").err


def test_the_status_says_all_that_is_known(daemon: StandIn, stoker: Stoker) -> None:
    daemon.keep(samples.judged())
    page = stoker("rollout", "status", "chat-1").out
    for words in (
        "began 1m ago by alice",
        "beside: v2 runs beside v1 on GPU 1, which is free.",
        "bob said resume at ",
        "  1. shadow 10 %: at least 20 requests; at most 1h",
        "> 2. canary 25 %: at least 20 requests, 5m; at most 1h",
        "failed: rolls back; starved: holds; all passed: promotes; held for 1d: rolls back",
        "callers                  230                       87",
        "TTFT p50/p90/p99         20 / 30 / 45 ms           28 / 42 / 63 ms",
        "total p50/p90/p99        800 ms / 1.25 s / 3.20 s  1.12 / 1.75 / 4.48 s",
        "guards (intervals at 99 %)",
        "error rate       pass     +0.4 points  -1.1 to +1.9 points  +2 points  -",
        "inter-token p95  fail     1.44 ×       1.31 to 1.58 ×       1.2 ×      -",
        "TTFT p90         starved  -            at least 0.60 ×      1.5 ×      about 120",
        "contention: stable against itself",
        "the candidate has answered 412 requests of 87 callers; failed: 3",
    ):
        assert words in page
    assert [line.split() for line in page.splitlines() if "STABLE" in line] == [["STABLE", "CANDIDATE"]]


def test_the_status_says_what_is_waited_for(daemon: StandIn, stoker: Stoker) -> None:
    waiting = samples.rollout()
    steps = [ApproveStep(by="ann"), ApproveStep(by="ann")]
    waiting = waiting.model_copy(update={"spec": waiting.spec.model_copy(update={"steps": steps})})
    daemon.keep(waiting)
    page = stoker("rollout", "status", "chat-1").out
    assert "It waits until ann says `stoker rollout approve chat-1 --step 2`." in page
    assert "nobody has got the candidate's answers" in page
    held = Paused(step=1, since=waiting.created_at, because="paused by bob", by="bob")
    daemon.keep(waiting.model_copy(update={"state": held}))
    assert "stoker rollout approve" not in stoker("rollout", "status", "chat-1").out, "it takes no approval then"


def test_the_status_says_how_long_the_old_version_stands_by(daemon: StandIn, stoker: Stoker) -> None:
    until = now() + timedelta(minutes=9, seconds=30)
    state = Promoted(finished_at=now(), warm_until=until)
    daemon.keep(samples.rollout("chat-1", "promoted").model_copy(update={"state": state}))
    page = stoker("rollout", "status", "chat-1").out
    assert "Version 1 stands by until " in page
    assert "(in 9m): `stoker rollout rollback chat-1` returns to it at once." in page


@pytest.fixture
def told(daemon: StandIn) -> StandIn:
    """A rollout with a past."""
    rolled_back = samples.judged("rolled-back")
    daemon.keep(rolled_back)
    began = {"by": "alice", "phase": "preparing", "plan": samples.plan()}
    daemon.record("rollout", "chat-1", "RolloutStarted", "chat-1: from version 1 to 2.", **began)
    slower = samples.readings()[1].verdict.reason
    daemon.record(
        "rollout", "chat-1", "RolloutRollingBack", f"chat-1: all traffic goes back to version 1: {slower}",
        by="guards", because=f"{slower}.", step=1, phase="rolling-back", verdict="fail",
        readings=samples.readings(), arms=samples.arms(), exposure=rolled_back.exposure,
    )  # fmt: skip
    daemon.record("rollout", "chat-9", "RolloutStarted", "another one")
    return daemon


def test_explain_tells_each_decision_with_its_evidence(told: StandIn, stoker: Stoker) -> None:
    page = stoker("rollout", "explain", "chat-1").out
    began = told.events[0].time.astimezone().strftime("%Y-%m-%d %H:%M:%S")
    slower = samples.readings()[1].verdict.reason
    for words in (
        f"{began} RolloutStarted by alice\n    from version 1 to 2.\n    beside: v2 runs beside v1 on GPU 1",
        f"RolloutRollingBack by the guards (step 2/2: canary 25 %)\n    all traffic goes back to version 1: {slower}\n",
        "    pass     error rate: 0.4 points over stable.\n",
        f"    fail     {slower}\n",
        "    starved  too few requests to judge the TTFT: 4 of v2",
        "    TTFT p50/p90/p99         20 / 30 / 45 ms           28 / 42 / 63 ms\n",
        "    exposed: the candidate has answered 412 requests of 87 callers; failed: 3\n",
        "rolled-back after 1m 30s: chat serves version 1.",
    ):
        assert words in page
    assert "another one" not in page
    assert "because" not in page  # the sentence says it already
    assert [e["reason"] for e in stoker("rollout", "explain", "chat-1", "--json").json] == [
        "RolloutStarted", "RolloutRollingBack",
    ]  # fmt: skip


def test_evidence_that_stays_the_same_is_told_once(told: StandIn, stoker: Stoker) -> None:
    same = told.events[1].data | {"because": "as was said"}
    told.record("rollout", "chat-1", "RolloutRolledBack", "chat-1: version 1 serves as before.", **same)
    page = stoker("rollout", "explain", "chat-1").out
    assert page.count("too few requests to judge the TTFT") == page.count("exposed:") == 1
    assert "as before.\n    because as was said\n    its evidence is what it was before\n" in page


@pytest.mark.parametrize("columns", [80, 120])
@pytest.mark.parametrize("verb", ["explain", "status"])
def test_nothing_is_cut_or_torn_on_a_terminal(told: StandIn, terminal: Terminal, columns: int, verb: str) -> None:
    page = terminal(columns, "rollout", verb, "chat-1")
    assert max(map(len, page.splitlines())) <= columns
    assert "…" not in page
    assert "limit 1.20; 412 requests of 87 callers" in " ".join(page.split())


def test_evidence_of_another_version_of_stoker_is_passed_over(told: StandIn, stoker: Stoker) -> None:
    told.record("rollout", "chat-1", "GuardsRead", "chat-1: so.", by="guards", readings=[{"odd": 1}], phase="stepping")
    page = stoker("rollout", "explain", "chat-1")
    assert page.code == 0
    assert "GuardsRead by the guards\n    so.\n    part of its evidence is of another version of Stoker" in page.out


def test_a_rollout_whose_events_are_gone_says_so(daemon: StandIn, stoker: Stoker) -> None:
    daemon.keep(samples.rollout())
    assert "None of its events are kept any more." in stoker("rollout", "explain", "chat-1").out
    assert stoker("rollout", "explain", "chat-1", "--json").json == []
