"""The ways through a rollout that people and policies choose: to whom first, who must agree, and how one comes back."""

from __future__ import annotations

import getpass
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from stoker.errors import Conflict, NotFound
from stoker.types.rollouts import GuardReading, Paused, Promoted, Promoting, RolledBack, Rollout, Stepping
from stoker.types.traffic import Request, Served
from tests.harness import Stokerd, state_of, wait_for
from tests.system.loop import Chat

ENDED = ("promoted", "rolled-back", "aborted")
ENDLESS = "[{type: canary, percent: 50, min_requests: 1000000}]"
ME = getpass.getuser()
ML = {"X-Team": "ml"}


@pytest.fixture(scope="module")
def daemon() -> Iterator[Stokerd]:
    with Stokerd() as running:
        yield running
        assert "Traceback" not in running.log, running.log


def history(chat: Chat) -> list[Served]:
    rows = chat.daemon.client.request("GET", f"/v1/deployments/{chat.name}/history")
    return [Served.model_validate(row) for row in rows]


def requests(chat: Chat) -> list[Request]:
    rows = chat.daemon.client.request("GET", f"/v1/deployments/{chat.name}/requests", params={"limit": 10_000})
    return [Request.model_validate(row) for row in rows]


def test_targets_are_first_then_somebody_approves_and_after_a_pause_it_is_everybodys(daemon: Stokerd) -> None:
    chat = Chat(daemon, "first")
    chat.add("two")
    steps = f"[{{type: target, min_requests: 5}}, {{type: approve, by: {ME}}}, {{type: pause, duration: 1s}}]"
    made = daemon.client.request("POST", "/v1/keys", json={"name": "ann"})
    with pytest.raises(NotFound, match="bob"):
        chat.roll_out(steps, "targets: [{key: bob}]")
    chat.roll_out(steps, "targets: [{header: X-Team, value: ml}, {key: ann}]\nguards: []")
    chat.wait_step(0)
    chat.wait_arms(stable=100, candidate=0)
    assert chat.ask(2, headers={"authorization": f"Bearer {made['text']}"}) == {"I am two": 2}
    assert chat.ask(30) == chat.ask(10, headers={"X-Team": "sales"}) + chat.ask(20) == {"I am one": 30}
    with pytest.raises(Conflict, match="asks for no approval in step 1"):
        chat.command("approve")
    assert chat.ask(3, headers=ML) == {"I am two": 3}
    chat.wait_step(1)
    assert chat.ask(5) + chat.ask(5, headers=ML) == {"I am one": 5, "I am two": 5}
    chat.command("approve")
    paused = chat.rollout.state
    assert isinstance(paused, Stepping | Promoting)
    assert chat.wait("promoted").phase == "promoted"
    promoted = chat.told("RolloutPromoted")[0]
    assert (promoted.time - paused.since).total_seconds() >= 1
    wait_for(lambda: chat.ask(5) == {"I am two": 5}, "everybody hears the new version")
    (approved,) = chat.told("RolloutApproved")
    assert approved.data["by"] == ME

    wait_for(lambda: history(chat)[-1].rollout, "the last move is told")
    rows = [(r.version, r.arm, r.percent, r.whom, r.by) for r in history(chat)]
    assert rows == [
        (1, "stable", 100, "everybody", ME),
        (1, "stable", 100, "everybody else", ME),
        (2, "candidate", 0, "X-Team: ml, key ann", ME),
        (2, "candidate", 100, "everybody", "guards"),
        (2, "stable", 100, "everybody", "guards"),
    ]
    ends = [r.until for r in history(chat)]
    assert ends[-1] is None
    assert all(until is not None for until in ends[:-1])


def test_only_the_one_who_is_named_may_approve_and_others_may_take_it_back(daemon: Stokerd) -> None:
    chat = Chat(daemon, "named")
    chat.add("two")
    chat.roll_out("[{type: approve, by: somebody-else}, {type: canary, percent: 50}]")
    chat.wait_step(0)
    with pytest.raises(Conflict, match=f"to be approved by somebody-else, and you are {ME}") as refused:
        chat.command("approve")
    assert refused.value.code == "not-you"
    assert chat.ask(10) == {"I am one": 10}, "before somebody said yes, nobody gets it"
    chat.command("abort")
    assert chat.wait(*ENDED).phase == "aborted"


def test_the_old_version_stands_by_and_a_rollback_brings_its_traffic_back_at_once(daemon: Stokerd) -> None:
    chat = Chat(daemon, "warm")
    chat.add("two")
    chat.roll_out(ENDLESS, "keep_warm: 600s")
    chat.wait_step(0)
    with chat.people(8) as people:
        chat.command("promote")
        assert chat.wait("promoted").phase == "promoted"
        people.hear(50, "I am two")
        with pytest.raises(Conflict, match="`stoker rollout rollback warm`"):
            chat.command("abort")
        assert chat.replicas() == {"v1-0", "v2-0"}
        assert chat.command("rollback").phase == "rolling-back"
        people.hear(100, "I am one")
        assert chat.wait("aborted", "rolled-back").phase == "aborted"
    assert set(people.answers) == {"I am one", "I am two"}, "nobody was refused"
    deployed = chat.deployed
    assert (deployed.version, deployed.rollout, deployed.warm) == (1, None, None)
    (back,) = chat.told("RolloutAborting")
    assert back.data["by"] == ME
    seconds = max((r.time - back.time).total_seconds() for r in requests(chat) if r.version == 2)
    rows = [(r.version, r.arm, r.percent, r.by) for r in history(chat)]
    assert rows[-2:] == [(2, "stable", 100, ME), (1, "stable", 100, ME)]
    print(f"from the rollback to the last request that the new version got: {1000 * seconds:.0f} ms")
    assert seconds < 1


def test_when_the_old_version_has_gone_a_rollback_starts_it_again_and_nobody_is_refused(daemon: Stokerd) -> None:
    may_start = daemon.root / "may-start"
    may_start.touch()
    chat = Chat(daemon, "cold", waits_for=str(may_start))
    chat.add("two")
    chat.roll_out(ENDLESS, "keep_warm: 1s")
    chat.wait_step(0)
    with chat.people() as people:
        chat.command("promote")
        assert chat.wait("promoted").phase == "promoted"
        wait_for(lambda: chat.replicas() == {"v2-0"}, "the old version is gone")
        may_start.unlink()
        assert chat.command("rollback").phase == "returning"
        with pytest.raises(Conflict, match=f"promote doesn't fit. {ME} said rollback at .* takes now: abort"):
            chat.command("promote")
        people.hear(10, "I am two")
        assert chat.command("abort").phase == "promoted", "the way back is called off"
        wait_for(lambda: chat.replicas() == {"v2-0"}, "the old version is gone again")
        assert (chat.deployed.version, chat.deployed.rollout) == (2, None)

        may_start.touch()
        assert chat.command("rollback").phase == "returning"
        assert daemon.wait_phase(Rollout, "cold", "aborted").phase == "aborted"
        people.hear(20, "I am one")
        wait_for(lambda: chat.replicas() == {"v1-0"}, "the new version is gone")
    assert set(people.answers) == {"I am one", "I am two"}
    assert chat.deployed.version == 1
    rows = [(r.version, r.arm, r.percent, r.by) for r in history(chat)]
    assert rows[-1] == (1, "stable", 100, ME), "it was a person's decision"


def test_a_way_back_to_a_version_that_does_not_start_leaves_things_as_they_are(daemon: Stokerd) -> None:
    may_start = daemon.root / "may-never-start-again"
    may_start.touch()
    chat = Chat(daemon, "lost", "start_timeout: 2s\nrestart: {limit: 0}", waits_for=str(may_start))
    chat.add("two")
    chat.roll_out(ENDLESS)
    chat.wait_step(0)
    chat.command("promote")
    assert chat.wait("promoted").phase == "promoted"
    wait_for(lambda: chat.replicas() == {"v2-0"}, "the old version is gone")
    may_start.unlink()
    assert chat.command("rollback").phase == "returning"
    with chat.people() as people:
        people.hear(5)
        ended = daemon.wait_phase(Rollout, "lost", "promoted")
        people.hear(5)
    assert state_of(ended, Promoted).because.startswith("the way back failed: lost-v1-0: not ready within 2 s")
    assert set(people.answers) == {"I am two"}
    wait_for(lambda: chat.replicas() == {"v2-0"}, "what didn't start is gone")
    assert (chat.deployed.version, chat.deployed.rollout, chat.deployed.phase) == (2, None, "ready")


@pytest.mark.parametrize("kind", ["approve", "pause"])
def test_abort_brings_everything_back_from_steps_that_wait(daemon: Stokerd, kind: str) -> None:
    chat = Chat(daemon, f"waits-{kind}")
    chat.add("two")
    waiting = "{type: approve}" if kind == "approve" else "{type: pause, duration: 600s}"
    chat.roll_out(f"[{{type: canary, percent: 100, min_requests: 1}}, {waiting}]", "guards: []")
    chat.wait_step(0)
    chat.wait_arms(candidate=100)
    chat.ask(2)
    chat.wait_step(1)
    assert chat.ask(5) == {"I am two": 5}, "those who have it keep it"
    chat.command("abort")
    assert chat.wait(*ENDED).phase == "aborted"
    assert chat.ask(5) == {"I am one": 5}
    wait_for(lambda: chat.replicas() == {"v1-0"}, "the candidate is gone")
    assert chat.told("RolloutAborted")[0].data["by"] == ME


def at_once(*deeds: Callable[[], object]) -> list[Conflict | None]:
    """Do all of them at the same time; what each was refused with."""
    barrier = threading.Barrier(len(deeds))
    refusals: list[Conflict | None] = [None] * len(deeds)

    def do(index: int) -> None:
        barrier.wait()
        try:
            deeds[index]()
        except Conflict as error:
            refusals[index] = error

    threads = [threading.Thread(target=do, args=(n,)) for n in range(len(deeds))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return refusals


def test_of_two_people_who_act_at_once_one_wins_and_the_other_is_told_who_said_what_and_when(daemon: Stokerd) -> None:
    chat = Chat(daemon, "both")
    chat.add("two")
    chat.add("three")
    refusals = at_once(lambda: chat.roll_out(ENDLESS, to="two"), lambda: chat.roll_out(ENDLESS, to="three", name="b2"))
    (refused,) = [r for r in refusals if r is not None]
    winner = "both" if refusals[0] is None else "b2"
    assert f"is in rollout {winner} already, which {ME} started" in refused.message
    daemon.wait_phase(Rollout, winner, "stepping")

    promote, abort = at_once(lambda: chat.command("promote", winner), lambda: chat.command("abort", winner))
    ended = chat.wait(*ENDED, name=winner)
    said = [e.reason for e in chat.told("RolloutPromoting", "RolloutAborting", name=winner)]
    if abort is not None:  # it came when all was over
        assert (promote, ended.phase, said) == (None, "promoted", ["RolloutPromoting"])
        assert f"{ME} said promote at" in abort.message
    elif promote is not None:  # it came second
        assert (ended.phase, said) == ("aborted", ["RolloutAborting"])
        assert f"{ME} said abort at" in promote.message
        assert promote.details["decided"]["verb"] == "abort"
    else:  # a promotion under way may be taken back, and an abort can't be promoted
        assert (ended.phase, said) == ("aborted", ["RolloutPromoting", "RolloutAborting"])
    assert chat.ask(5) == {"I am one" if ended.phase == "aborted" else "I am two": 5}


def test_of_two_who_say_promote_at_once_one_wins(daemon: Stokerd) -> None:
    chat = Chat(daemon, "twice")
    chat.add("two")
    chat.roll_out(ENDLESS)
    chat.wait_step(0)
    refusals = at_once(*[lambda: chat.command("promote")] * 2)
    (refused,) = [r for r in refusals if r is not None]
    assert f"{ME} said promote at" in refused.message
    assert (refused.details["decided"]["by"], refused.details["decided"]["verb"]) == (ME, "promote")
    assert chat.wait(*ENDED).phase == "promoted"
    assert len(chat.told("RolloutPromoting")) == 1


def test_a_version_that_gets_sick_after_promotion_goes_by_itself_while_the_old_one_stands_by(daemon: Stokerd) -> None:
    sick = daemon.root / "sick"
    chat = Chat(daemon, "sick")
    chat.add("two", sick=str(sick))
    chat.roll_out(ENDLESS, "keep_warm: 600s")
    chat.wait_step(0)
    with chat.people() as people:
        chat.command("promote")
        assert chat.wait("promoted").phase == "promoted"
        people.hear(20, "I am two")
        sick.touch()
        wait_for(lambda: chat.rollout.phase != "promoted", "it is taken back")
        ended = chat.wait("rolled-back")
        people.hear(50, "I am one")
    assert ended.phase == "rolled-back"
    assert "v2 failed each of its last 5 answers" in state_of(ended, RolledBack).because
    assert set(people.answers) == {"I am one", "I am two", "HTTP 500"}
    assert people.answers["HTTP 500"] < 1000
    assert chat.deployed.version == 1
    assert chat.told("RolloutRollingBack")[0].data["by"] == "guards"
    rows = [(r.version, r.percent, r.by) for r in history(chat)]
    assert rows[-2:] == [(2, 100, ME), (1, 100, "guards")]


def test_a_version_that_fails_a_guard_may_go_on_as_a_shadow_for_a_while(daemon: Stokerd) -> None:
    chat = Chat(daemon, "study")
    chat.add("two", fails_every=2)
    chat.roll_out(ENDLESS, "on_fail: shadow\nhold_limit: 3s\nmax_errors_in_a_row: 1000")
    with chat.people() as people:
        paused = chat.wait("paused")
        assert state_of(paused, Paused).because.startswith("failed: error rate of v2 is ")
        assert state_of(paused, Paused).exposure == "shadow"
        chat.wait_arms(stable=100, shadow=50)
        heard = people.answers.copy()
        people.hear(100)
        assert (people.answers - heard)["HTTP 500"] <= 3, "those under way"
        wait_for(lambda: chat.rollout.arms.get("shadow"), "it is studied")
        ended = chat.wait(*ENDED)
    assert ended.phase == "rolled-back"
    assert state_of(ended, RolledBack).because.startswith("held for 3s without a decision")
    reasons = [e.reason for e in chat.told() if e.reason not in ("GuardsRead", "RolloutContended")]
    assert reasons == ["RolloutStarted", "RolloutStepped", "RolloutPaused", "RolloutRollingBack", "RolloutRolledBack"]
    explained(chat)


def explained(chat: Chat) -> None:
    """Each decision of guards has its evidence, and the command line tells of it."""
    judged = chat.told("GuardsRead", "RolloutPaused")
    assert {e.data["by"] for e in judged} == {"guards"}
    readings = [GuardReading.model_validate(reading) for event in judged for reading in event.data["readings"]]
    assert all(reading.evidence for reading in readings)
    (paused,) = chat.told("RolloutPaused")
    (reading,) = [GuardReading.model_validate(reading) for reading in paused.data["readings"]]
    evidence = reading.evidence
    assert reading.verdict.verdict == "fail"
    assert evidence is not None
    assert evidence.low is not None
    assert evidence.low > evidence.limit == 0.05
    assert min(evidence.requests, evidence.stable_requests) >= 8
    assert 0.95 <= evidence.confidence < 1
    assert paused.data["arms"]["candidate"]["errors"] > 0
    command = [str(Path(sys.executable).with_name("stoker")), "--home", str(chat.daemon.root), "rollout", "explain"]
    said = " ".join(subprocess.check_output([*command, chat.name], text=True).split())
    assert "error rate" in said
    assert "held for 3s without a decision" in said


def test_a_version_that_fails_a_guard_may_be_held_where_it_is_for_a_person(daemon: Stokerd) -> None:
    chat = Chat(daemon, "held")
    chat.add("two", fails_every=2)
    with chat.people() as people:
        chat.roll_out(ENDLESS, "on_fail: hold\nmax_errors_in_a_row: 1000")
        paused = chat.wait("paused")
        assert state_of(paused, Paused).exposure == "kept"
        people.hear(20, "I am two")
        chat.command("abort")
        assert chat.wait(*ENDED).phase == "aborted"


def test_a_step_without_enough_traffic_may_take_it_back(daemon: Stokerd) -> None:
    chat = Chat(daemon, "starved")
    chat.add("two")
    chat.roll_out("[{type: canary, percent: 50, min_requests: 5, max_duration: 1s}]", "on_starved: roll-back")
    ended = chat.wait(*ENDED)
    assert ended.phase == "rolled-back"
    assert state_of(ended, RolledBack).because == "starved: 0 of 5 requests after 1s"
