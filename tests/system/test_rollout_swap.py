"""Rollouts on a host whose one GPU holds one version at a time: requests wait for whichever runs."""

from __future__ import annotations

import getpass
from collections.abc import Iterator

import pytest

from stoker.errors import Conflict
from stoker.types.rollouts import RolledBack, Rollout, RolloutPlan
from stoker.types.serving import Replica
from stoker.types.training import Run
from tests.harness import Stokerd, state_of, wait_for
from tests.nvml.fleet import Fleet
from tests.system.loop import Chat

ENDED = ("promoted", "rolled-back", "aborted")
STEPS = "[{type: canary, percent: 50, min_requests: 20}]"
SWAP = "placement: swap\nguards: [{metric: error_rate, limit: 0.05, against: nothing}]"
GPU = "devices: 1"


@pytest.fixture
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stokerd]:
    fleet = Fleet(tmp_path_factory.mktemp("fleet"), 1)
    with Stokerd(env=fleet.env()) as running:
        yield running
        assert "Traceback" not in running.log, running.log


def order(daemon: Stokerd, after: int) -> list[str]:
    """Which replicas came and went on the GPU since that event."""
    told = [e for e in daemon.events(after) if e.reason in ("ReplicaStarting", "ReplicaStopped")]
    return [f"{e.name.partition('-')[2]} {e.reason.removeprefix('Replica').lower()}" for e in told]


def test_the_new_version_takes_the_place_of_the_old_one_and_back_and_every_request_is_answered(daemon: Stokerd) -> None:
    chat = Chat(daemon, "chat", GPU)
    chat.add("two")
    with pytest.raises(Conflict, match=r"v2 doesn't fit beside v1: .*`placement: swap` would work") as refused:
        chat.roll_out(STEPS)
    assert refused.value.code == "no-room"
    spec = {"kind": "rollout", "name": "r", "deployment": "chat", "to": 2}
    post = daemon.client.request
    plan = RolloutPlan.model_validate(post("POST", "/v1/rollouts/plan", json=spec))
    assert not plan.fits
    assert plan.says == refused.value.message
    plan = RolloutPlan.model_validate(post("POST", "/v1/rollouts/plan", json={**spec, "placement": "swap"}))
    assert (plan.fits, plan.placement, plan.devices) == (True, "swap", [Fleet.uuid(0)])
    assert "v1 stops, then v2 starts" in plan.says
    assert "requests are held" in plan.says
    assert not daemon.client.list(Rollout), "nothing was started"

    began = daemon.client.host().last_event_id
    with chat.people() as people:
        people.hear(20, "I am one")
        chat.roll_out(STEPS, f"{SWAP}\nkeep_warm: 600s")
        ended = chat.wait(*ENDED)
        assert ended.phase == "promoted", ended.state
        people.hear(20, "I am two")
        assert chat.replicas() == {"v2-0"}
        assert chat.command("rollback").phase == "returning"
        assert chat.wait("aborted", "rolled-back").phase == "aborted"
        people.hear(20, "I am one")
    assert set(people.answers) == {"I am one", "I am two"}, "those who came meanwhile waited"
    there, back = ["v1-0 stopped", "v2-0 starting"], ["v2-0 stopped", "v1-0 starting"]
    assert order(daemon, began) == there + back
    assert chat.deployed.version == 1


def test_a_run_that_waits_for_the_gpu_does_not_get_it_between_the_versions(daemon: Stokerd) -> None:
    chat = Chat(daemon, "chat", GPU)
    chat.add("two")
    daemon.apply("{kind: job, name: j, command: [sleep, '600'], devices: 1}")
    daemon.client.request("POST", "/v1/jobs/j/runs", json={})
    assert "replica/chat-v1-0" in daemon.wait_event("RunWaiting", "j-1").message
    began = daemon.client.host().last_event_id
    chat.roll_out(STEPS, f"{SWAP}\nkeep_warm: 600s")
    with chat.people() as people:
        assert chat.wait(*ENDED).phase == "promoted"
        chat.command("rollback")
        assert chat.wait("aborted", "rolled-back").phase == "aborted"
        people.hear(20, "I am one")
    assert set(people.answers) == {"I am one", "I am two"}
    told = [e.reason for e in daemon.events(began) if e.kind == "run"]
    assert "RunStarted" not in told, told
    daemon.client.request("DELETE", "/v1/deployments/chat")
    daemon.wait_phase(Run, "j-1", "running")


def test_a_version_that_fails_in_the_place_of_the_old_one_is_swapped_back(daemon: Stokerd) -> None:
    chat = Chat(daemon, "chat", GPU)
    chat.add("two", status=500)
    chat.add("three", last_words="no memory for that")
    with chat.people() as people:
        people.hear(20, "I am one")
        chat.roll_out(STEPS, SWAP)
        ended = chat.wait(*ENDED)
        assert ended.phase == "rolled-back"
        assert "v2 failed each of its last 5 answers" in state_of(ended, RolledBack).because
        people.hear(20, "I am one")
        failed = people.answers["HTTP 500"]
        assert 5 <= failed < 1000, "no longer than the daemon takes to hear of it"
        chat.roll_out(STEPS, SWAP, to="three", name="third")
        ended = chat.wait(*ENDED, name="third")
        assert ended.phase == "rolled-back"
        assert "exited with code 3 while it started" in state_of(ended, RolledBack).because
        people.hear(20, "I am one")
    assert people.answers["HTTP 500"] == failed
    assert people.wrong("I am one", "HTTP 500") == 0
    assert chat.replicas() == {"v1-0"}


def test_a_daemon_that_is_killed_in_the_middle_of_a_swap_finishes_it_and_those_who_wait_are_answered(
    daemon: Stokerd,
) -> None:
    may_start = daemon.root / "may-start"
    chat = Chat(daemon, "chat", GPU)
    chat.add("two", waits_for=str(may_start))
    began = daemon.client.host().last_event_id
    with chat.people() as people:
        people.hear(20, "I am one")
        chat.roll_out(STEPS, SWAP)
        daemon.wait_event("ReplicaStarting", "chat-v2-0", after=began)
        daemon.kill()
        asked = people.answers.total()
        daemon.start()
        assert chat.rollout.phase == "preparing"
        assert daemon.client.get(Replica, "chat-v2-0").phase == "starting"
        assert people.answers.total() == asked, "they wait"
        may_start.touch()
        ended = chat.wait(*ENDED)
        people.hear(20, "I am two")
    assert ended.phase == "promoted"
    assert set(people.answers) == {"I am one", "I am two"}
    assert order(daemon, began) == ["v1-0 stopped", "v2-0 starting"]


def test_a_swap_that_is_aborted_on_its_way_brings_the_old_version_back(daemon: Stokerd) -> None:
    chat = Chat(daemon, "chat", GPU)
    chat.add("two", waits_for=str(daemon.root / "never"))
    began = daemon.client.host().last_event_id
    with chat.people() as people:
        people.hear(20, "I am one")
        chat.roll_out(STEPS, SWAP)
        daemon.wait_event("ReplicaStarting", "chat-v2-0", after=began)
        chat.command("abort")
        assert chat.wait(*ENDED).phase == "aborted"
        people.hear(20, "I am one")
    assert set(people.answers) == {"I am one"}
    wait_for(lambda: chat.replicas() == {"v1-0"}, "the other one is gone")


def test_a_way_back_that_is_called_off_brings_the_new_version_again(daemon: Stokerd) -> None:
    may_start = daemon.root / "may-start"
    may_start.touch()
    chat = Chat(daemon, "chat", GPU, waits_for=str(may_start))
    chat.add("two")
    with chat.people() as people:
        people.hear(20, "I am one")
        chat.roll_out(STEPS, SWAP)
        assert chat.wait(*ENDED).phase == "promoted"
        people.hear(20, "I am two")
        may_start.unlink()
        began = daemon.client.host().last_event_id
        assert chat.command("rollback").phase == "returning"
        daemon.wait_event("ReplicaStarting", "chat-v1-0", after=began)
        chat.command("abort")
        assert chat.ask(1) == {"I am two": 1}, "those who come now wait, as those before"
        assert daemon.wait_phase(Rollout, "chat", "promoted").led_by == getpass.getuser()
        people.hear(20, "I am two")
        wait_for(lambda: chat.replicas() == {"v2-0"}, "the other one is gone")
    assert set(people.answers) == {"I am one", "I am two"}
    assert (chat.deployed.version, chat.deployed.rollout) == (2, None)


def test_when_the_old_version_does_not_start_again_its_deployment_is_applied_anew_once_that_is_mended(
    daemon: Stokerd,
) -> None:
    may_start = daemon.root / "may-start"
    may_start.touch()
    spec = f"{GPU}\nstart_timeout: 2s\nrestart: {{limit: 0}}"
    chat = Chat(daemon, "chat", spec, waits_for=str(may_start))
    chat.add("two", status=500)
    chat.roll_out(STEPS, SWAP)
    chat.wait_step(0)
    may_start.unlink()
    wait_for(lambda: chat.ask(1) and chat.rollout.phase == "rolling-back", "it is taken back")
    assert "not ready within 2 s" in daemon.wait_event("ReplicaFailed", "chat-v1-0").message
    assert chat.rollout.phase == "rolling-back", "it isn't said to serve as before"
    wait_for(lambda: chat.deployed.phase == "failed", "that can be seen")
    may_start.touch()
    chat.deploy(spec)
    assert chat.wait(*ENDED).phase == "rolled-back"
    assert chat.ask(3) == {"I am one": 3}
