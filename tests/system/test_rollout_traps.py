"""What other tools' rollouts fell for: each a way in which a bad version could have passed, or a good one failed."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from stoker.errors import Conflict, InvalidSpec, StokerError
from stoker.types.rollouts import GuardReading, Paused, RolledBack, Rollout, Stepping
from stokerd.gateway.wire import Record
from tests.harness import DEADLINE, Stokerd, state_of, wait_for
from tests.nvml.fleet import Fleet
from tests.system.loop import Chat, pid_of
from tests.system.records import records_of

ENDED = ("promoted", "rolled-back", "aborted")
ENDLESS = "[{type: canary, percent: 50, min_requests: 1000000}]"


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Fleet:
    return Fleet(tmp_path_factory.mktemp("fleet"), 1)


@pytest.fixture(scope="module")
def daemon(fleet: Fleet) -> Iterator[Stokerd]:
    with Stokerd(env=fleet.env()) as running:
        yield running
        assert "Traceback" not in running.log, running.log


def verdicts(chat: Chat) -> set[str]:
    """All that guards ever said of the rollout."""
    readings = [r for e in chat.told() for r in e.data.get("readings", ())]
    return {GuardReading.model_validate(r).verdict.verdict for r in readings}


def test_a_guard_without_measurements_neither_holds_nor_fails(daemon: Stokerd) -> None:
    """There is no time between tokens of answers that aren't streamed."""
    chat = Chat(daemon, "unmeasured")
    chat.add("two", delay=0.1)
    with chat.people() as people:
        step = "{type: canary, percent: 50, min_requests: 10, max_duration: 2s}"
        chat.roll_out(f"[{step}]", "guards: [{metric: inter_token, limit: 1.2}]")
        paused = chat.wait("paused")
        people.hear(1)
    assert paused.phase == "paused"
    because = state_of(paused, Paused).because
    assert because.startswith("starved: inter-token p90 can't be judged without a streamed answer")
    assert paused.arms["candidate"].requests >= 10
    assert verdicts(chat) == {"starved"}


@pytest.mark.parametrize(
    "lines",
    [
        "guards: [{metric: ttft, limit: .nan}]",
        "guards: [{metric: ttft, limit: .inf}]",
        "guards: [{metric: ttft, limit: 2, quantile: .nan}]",
        "steps: [{type: canary, percent: .nan}]",
        "steps: [{type: canary, percent: 5, max_duration: .inf}]",
        "hold_limit: .nan",
    ],
)
def test_what_is_no_number_is_no_limit(daemon: Stokerd, lines: str) -> None:
    with pytest.raises(InvalidSpec):
        daemon.apply(f"kind: rollout\nname: r\ndeployment: d\nto: 2\n{lines}")


def test_what_is_no_number_comes_in_by_no_other_door(daemon: Stokerd) -> None:
    chat = Chat(daemon, "nan")
    chat.add("two")
    guard = {"metric": "score", "name": "quality", "limit": 0.1}
    spec = {
        "kind": "rollout",
        "name": "nan",
        "deployment": "nan",
        "to": 2,
        "guards": [{**guard, "limit": float("nan")}],
    }
    for method, path, body in [
        ("POST", "/v1/apply", {"specs": [spec]}),
        ("POST", "/v1/rollouts/plan", spec),
        ("PUT", "/v1/models/nan/versions/2/evaluations/quality", {"score": float("nan")}),
        ("PUT", "/v1/models/nan/versions/2/evaluations/quality", {"score": float("inf")}),
    ]:
        transport = httpx.HTTPTransport(uds=str(daemon.home.socket))
        with httpx.Client(transport=transport, base_url="http://stokerd") as raw:
            answer = raw.request(method, path, content=json.dumps(body), headers={"content-type": "application/json"})
        assert answer.status_code in (400, 422), (path, answer.text)
        assert set(answer.json()) == {"code", "message", "hint", "details"}
    chat.roll_out("[{type: canary, percent: 100, min_requests: 3, max_duration: 1s}]", f"guards: [{json.dumps(guard)}]")
    chat.wait_step(0)
    chat.wait_arms(candidate=100)
    chat.ask(3)
    paused = chat.wait("paused")
    assert "there is no value of evaluation quality for v2 and v1" in state_of(paused, Paused).because
    chat.command("abort")


def test_a_gateway_worker_that_is_killed_in_mid_step_makes_its_numbers_neither_fewer_nor_double(
    daemon: Stokerd,
) -> None:
    chat = Chat(daemon, "counts")
    chat.add("two")
    chat.roll_out(ENDLESS)
    chat.wait_step(0)
    chat.wait_arms(stable=50, candidate=50)
    worker = pid_of(daemon, "gateway-w2-0-")
    with chat.people(6) as people:
        people.hear(100)
        os.kill(worker, signal.SIGKILL)
        people.hear(200)
    heard = people.answers["I am one"] + people.answers["I am two"]
    assert heard >= people.answers.total() - 6, "those under way heard of it"
    # It may take with it what it held: 100 ms of its requests, and those under way.
    wait_for(lambda: counted(chat) == len(of_step(chat)) >= heard - 60, "what was heard is counted")
    records = of_step(chat)
    assert len({(r.address, r.seq, r.time) for r in records}) == len(records) <= people.answers.total()


def counted(chat: Chat) -> int:
    return sum(stats.requests for stats in chat.rollout.arms.values())


def of_step(chat: Chat) -> list[Record]:
    """What was measured in the present step."""
    began = state_of(chat.rollout, Stepping).began
    return [r for r in records_of(chat.daemon, chat.name) if r.table_version >= began and not r.client_gone]


def test_a_series_that_was_renamed_lets_no_version_pass_and_the_similar_name_is_told(daemon: Stokerd) -> None:
    chat = Chat(daemon, "renamed")
    chat.add("two")
    wait_for(lambda: daemon.client.host().cpu_percent is not None, "the host is sampled")
    steps = "[{type: canary, percent: 100, min_requests: 3, max_duration: 1s}]"
    chat.roll_out(steps, "guards: [{metric: series, name: host.cpu_percentage, limit: 200}]")
    chat.wait_step(0)
    chat.wait_arms(candidate=100)
    chat.ask(5)
    paused = chat.wait("paused")
    assert paused.phase == "paused"
    assert "there is no series host.cpu_percentage; did you mean host.cpu_percent?" in state_of(paused, Paused).because
    assert verdicts(chat) == {"starved"}
    chat.command("abort")


def test_a_version_that_drives_a_series_over_its_limit_is_taken_back(daemon: Stokerd, fleet: Fleet) -> None:
    chat = Chat(daemon, "hot")
    chat.add("two")
    fleet.set(0, power_milliwatts=600_000)
    chat.roll_out(ENDLESS, "guards: [{metric: series, name: device.power_watts, limit: 500}]")
    ended = daemon.wait_phase(Rollout, "hot", *ENDED, seconds=2 * DEADLINE)  # it takes a value each second, and many
    assert ended.phase == "rolled-back"
    because = state_of(ended, RolledBack).because
    assert because.startswith("mean of device.power_watts in this step is ")
    assert "; limit 500; " in because


def test_a_version_that_failed_once_is_judged_by_the_requests_of_its_second_rollout_alone(daemon: Stokerd) -> None:
    sick = daemon.root / "sick"
    sick.touch()
    chat = Chat(daemon, "again")
    chat.add("two", sick=str(sick))
    steps = "[{type: canary, percent: 50, min_requests: 20}]"
    with chat.people() as people:
        chat.roll_out(steps)
        assert chat.wait(*ENDED).phase == "rolled-back"
        with pytest.raises(Conflict, match="Give this one another name"):
            chat.roll_out(steps, "keep_warm: 1s")
        chat.roll_out(steps)  # the same again is what there is already
        assert chat.rollout.phase == "rolled-back"
        sick.unlink()
        chat.roll_out(steps, name="again-2")
        ended = chat.wait(*ENDED, name="again-2")
        people.hear(20, "I am two")
    assert ended.phase == "promoted"
    assert (ended.exposure.errors, ended.arms["candidate"].errors) == (0, 0)
    assert [e.data["by"] for e in chat.told("RolloutPromoting", name="again-2")] == ["guards"]


def test_what_goes_on_is_not_changed_by_a_changed_spec(daemon: Stokerd) -> None:
    chat = Chat(daemon, "changed")
    chat.add("two")
    chat.roll_out(ENDLESS)
    chat.wait_step(0)
    before = chat.rollout.spec
    with pytest.raises(
        Conflict, match=r"there is a rollout changed already .*, with another spec.*abort it"
    ) as refused:
        chat.roll_out(ENDLESS, "guards: []")
    assert "started" in refused.value.message
    chat.roll_out(ENDLESS)  # the same again changes nothing
    assert chat.rollout.spec == before
    chat.command("abort")


def test_a_version_that_failed_a_gate_is_refused_until_that_is_mended(daemon: Stokerd) -> None:
    chat = Chat(daemon, "gate")
    plan = {"kind": "rollout", "name": "gate", "deployment": "gate", "to": 2}
    chat.add("two")

    def record(**said: Any) -> None:
        daemon.client.request("PUT", "/v1/models/gate/versions/2/evaluations/safety", json=said)

    record(passed=False, note="it swears")
    with pytest.raises(Conflict, match=r"version gate@2 failed a gate: safety \(.*it swears") as refused:
        chat.roll_out(ENDLESS)
    assert refused.value.code == "gate-failed"
    with pytest.raises(StokerError, match="failed a gate"):
        daemon.client.request("POST", "/v1/rollouts/plan", json=plan)
    record(passed=True)
    chat.roll_out(ENDLESS)
    chat.wait_step(0)
    chat.command("abort")
