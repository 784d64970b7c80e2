"""Servers that fail, hang, or only seem to: who is restarted and when, who is left alone, and what clients get."""

from __future__ import annotations

import os
import signal
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from stoker.types.serving import Deployment, Replica
from stokerd.processes.states import Alive
from stokerd.processes.supervisor import Supervisor
from tests.harness import Stokerd, wait_for
from tests.nvml.fleet import Fleet, Process
from tests.system.loop import CHAT, People, add_version, deployment, pid_of, say, serve, vllm_like


@pytest.fixture
def daemon() -> Iterator[Stokerd]:
    with Stokerd() as running:
        yield running


def bring_up(daemon: Stokerd, spec: str) -> None:
    """Deploy, and wait until people are served."""
    daemon.apply(spec)
    daemon.wait_event("GatewayReady", "gateway")
    daemon.wait_phase(Deployment, "chat", "ready")
    wait_for(lambda: status(daemon, "/completions") == 200, "the gateway knows of it")


def status(daemon: Stokerd, path: str = "/chat/completions") -> int:
    """What a request gets now; 0: no answer within some seconds."""
    with daemon.openai(timeout=5) as client:
        try:
            return client.post(path, json=CHAT).status_code
        except httpx.TimeoutException:
            return 0


def told(daemon: Stokerd, name: str) -> list[str]:
    return [e.reason for e in daemon.events() if e.name == name]


def by_vllm(daemon: Stokerd, extra: str) -> str:
    """The spec of the deployment with the vllm engine."""
    engine = vllm_like(daemon)
    return "\n".join(engine if line.startswith("engine:") else line for line in deployment(extra=extra).splitlines())


class Caller:
    """Sends one chat in a thread of its own; ``answer`` is the status, or the name of the error, once it is over."""

    def __init__(self, daemon: Stokerd) -> None:
        self._daemon = daemon
        self.answer: int | str = ""
        self._thread = threading.Thread(target=self._call)
        self._thread.start()

    def _call(self) -> None:
        try:
            with self._daemon.openai(timeout=300) as client:
                self.answer = client.post("/chat/completions", json=CHAT).status_code
        except httpx.HTTPError as error:
            self.answer = type(error).__name__

    def wait(self) -> int | str:
        """What it got."""
        wait_for(lambda: self.answer, "the caller has an answer")
        self._thread.join()
        return self.answer


def test_a_server_that_is_stopped_is_unreachable_and_restarted_and_others_serve_meanwhile(daemon: Stokerd) -> None:
    add_version(daemon, "one")
    bring_up(daemon, deployment(2, "stall_timeout: 1s"))
    with People(daemon) as people:
        os.kill(pid_of(daemon, "replica-chat-v1-0"), signal.SIGSTOP)
        unreachable = daemon.wait_event("ReplicaUnreachable", "chat-v1-0")
        assert "nothing has come from it" in unreachable.message
        failed = daemon.wait_event("ReplicaBackingOff", "chat-v1-0")
        assert failed.message.startswith("chat-v1-0: unreachable: nothing has come from it")
        daemon.wait_event("ReplicaReady", "chat-v1-0", after=failed.id)
        asked = people.answers["I am one"]
        wait_for(lambda: people.answers["I am one"] > asked + 20, "people are served")
    # Those whose requests it had taken before it was stopped, one for each at most, got an error when it was killed.
    assert set(people.answers) <= {"I am one", "HTTP 502"}
    assert people.answers["HTTP 502"] <= 3
    assert daemon.client.get(Replica, "chat-v1-0").starts == 2
    assert daemon.client.get(Replica, "chat-v1-1").starts == 1
    assert "ReplicaUnreachable" not in told(daemon, "chat-v1-1")


def test_a_server_that_goes_on_in_time_is_ready_again_and_not_restarted(daemon: Stokerd) -> None:
    add_version(daemon, "one")
    bring_up(daemon, deployment(extra="stall_timeout: 20s"))
    pid = pid_of(daemon, "replica-chat-v1-0")
    os.kill(pid, signal.SIGSTOP)
    unreachable = daemon.wait_event("ReplicaUnreachable", "chat-v1-0")
    wait_for(lambda: status(daemon) == 503, "it gets nothing new")
    wait_for(lambda: daemon.client.get(Deployment, "chat").phase == "degraded", "people can see it")
    os.kill(pid, signal.SIGCONT)
    recovered = daemon.wait_event("ReplicaRecovered", "chat-v1-0", after=unreachable.id)
    assert "serves again" in recovered.message
    daemon.wait_phase(Deployment, "chat", "ready")
    wait_for(lambda: status(daemon) == 200, "it serves again")
    assert daemon.client.get(Replica, "chat-v1-0").starts == 1
    assert daemon.client.get(Replica, "chat-v1-0").failures == 0
    assert pid_of(daemon, "replica-chat-v1-0") == pid


def test_a_busy_server_that_streams_but_answers_no_health_check_is_left_alone(daemon: Stokerd) -> None:
    deaf, until = daemon.root / "deaf", daemon.root / "until"
    add_version(daemon, "one", deaf=str(deaf), until=str(until))
    bring_up(daemon, deployment(extra="stall_timeout: 1s"))
    body = {**CHAT, "stream": True}
    with daemon.openai() as client, client.stream("POST", "/chat/completions", json=body) as answer:
        lines = answer.iter_lines()
        next(lines)
        deaf.touch()

        def is_asked_in_vain() -> bool:
            next(lines)  # or the gateway would hold the server up for us
            return len(deaf.read_text()) >= 4

        wait_for(is_asked_in_vain, "the daemon asks for its health again and again")
        deaf.unlink()
        until.touch()
        assert "data: [DONE]" in list(lines)
    assert told(daemon, "chat-v1-0") == ["ReplicaCreated", "ReplicaStarting", "ReplicaReady"]


def test_a_server_whose_engine_makes_no_step_is_stalled_until_it_makes_one(daemon: Stokerd) -> None:
    stuck = daemon.root / "stuck"
    add_version(daemon, "one", stuck=str(stuck))
    bring_up(daemon, by_vllm(daemon, "stall_timeout: 15s"))
    with daemon.openai() as client:
        assert say(client) == "I am one"
    stuck.touch()
    caller = Caller(daemon)
    stalled = daemon.wait_event("ReplicaStalled", "chat-v1-0")
    assert "its step counter has stood still" in stalled.message
    assert stalled.data["steps"] >= 2
    wait_for(lambda: status(daemon) == 503, "it gets nothing new")
    stuck.unlink()
    daemon.wait_event("ReplicaRecovered", "chat-v1-0")
    assert caller.wait() == 200
    assert daemon.client.get(Replica, "chat-v1-0").starts == 1


def test_a_server_whose_engine_hangs_for_good_is_restarted_and_its_clients_are_answered(daemon: Stokerd) -> None:
    stuck = daemon.root / "stuck"
    add_version(daemon, "one", stuck=str(stuck))
    bring_up(daemon, by_vllm(daemon, "stall_timeout: 2s"))
    stuck.touch()
    caller = Caller(daemon)
    daemon.wait_event("ReplicaStalled", "chat-v1-0")
    failed = daemon.wait_event("ReplicaBackingOff", "chat-v1-0")
    assert "stalled" in failed.message
    stuck.unlink()
    assert caller.wait() in (502, 200)  # 200: the file went before the server did
    daemon.wait_event("ReplicaReady", "chat-v1-0", after=failed.id)
    assert daemon.client.get(Replica, "chat-v1-0").starts == 2


def test_an_idle_server_is_no_stalled_one_and_what_stands_still_while_the_daemon_is_away_does_not_count(
    daemon: Stokerd,
) -> None:
    stuck = daemon.root / "stuck"
    add_version(daemon, "one", stuck=str(stuck))
    bring_up(daemon, by_vllm(daemon, "stall_timeout: 3s"))
    daemon.kill()
    stuck.touch()
    caller = Caller(daemon)
    daemon.start()
    began = daemon.client.host().started_at
    stalled = daemon.wait_event("ReplicaStalled", "chat-v1-0")
    assert (stalled.time - began).total_seconds() >= 3
    stuck.unlink()
    caller.wait()


def test_a_server_that_exits_with_0_unasked_has_failed(daemon: Stokerd) -> None:
    add_version(daemon, "one", die_after=2)
    bring_up(daemon, deployment(extra="restart: {policy: always, backoff: 10ms}"))
    assert status(daemon) == 200
    status(daemon)
    failed = daemon.wait_event("ReplicaBackingOff", "chat-v1-0")  # it had not been healthy for long enough
    assert "exited with code 0 unasked" in failed.message
    daemon.wait_event("ReplicaReady", "chat-v1-0", after=failed.id)
    assert daemon.client.get(Replica, "chat-v1-0").failures == 1


def test_a_server_that_is_to_run_always_and_was_healthy_may_exit_with_0_at_no_cost(daemon: Stokerd) -> None:
    add_version(daemon, "one", die_after=1)
    bring_up(daemon, deployment(extra="restart: {policy: always, healthy_after: 0s, limit: 0}"))
    status(daemon)
    again = daemon.wait_event("ReplicaRestarting", "chat-v1-0")
    assert "exited with code 0" in again.message
    daemon.wait_event("ReplicaReady", "chat-v1-0", after=again.id)
    assert daemon.client.get(Replica, "chat-v1-0").failures == 0


def test_a_crash_loop_ends_in_failed_with_the_last_log_lines_in_the_event(daemon: Stokerd) -> None:
    add_version(daemon, "one", last_words="loading\nno memory for that")
    daemon.apply(deployment(extra="restart: {limit: 2, backoff: 10ms, backoff_cap: 50ms}"))
    failed = daemon.wait_event("ReplicaFailed", "chat-v1-0")
    assert failed.data["log"][-2:] == ["loading", "no memory for that"]
    assert "exited with code 3 while it started" in failed.message
    assert "given up after 3 failures in a row" in failed.message
    assert told(daemon, "chat-v1-0").count("ReplicaStarting") == 3
    assert daemon.wait_phase(Deployment, "chat", "failed")


def test_a_server_that_never_gets_ready_fails_when_its_time_is_over(daemon: Stokerd) -> None:
    add_version(daemon, "one", never_ready=True)
    daemon.apply(deployment(extra="start_timeout: 1s\nrestart: {limit: 0}"))
    failed = daemon.wait_event("ReplicaFailed", "chat-v1-0")
    assert "not ready within 1 s" in failed.message
    daemon.wait_phase(Deployment, "chat", "failed")
    wait_for(lambda: not list(daemon.home.processes.iterdir()) or not _lives(daemon), "its process is ended")


def _lives(daemon: Stokerd) -> bool:
    supervisor = Supervisor(daemon.home.processes)
    try:
        return any(isinstance(supervisor.observe(p), Alive) for p in supervisor.ids() if p.startswith("replica-"))
    finally:
        supervisor.close()


def test_with_the_policy_never_nothing_is_started_again(daemon: Stokerd) -> None:
    add_version(daemon, "one")
    bring_up(daemon, deployment(extra="restart: {policy: never}"))
    os.kill(pid_of(daemon, "replica-chat-v1-0"), signal.SIGKILL)
    failed = daemon.wait_event("ReplicaFailed", "chat-v1-0")
    assert "restart.policy is never" in failed.message
    daemon.wait_phase(Deployment, "chat", "failed")
    assert daemon.client.get(Replica, "chat-v1-0").starts == 1
    daemon.apply(deployment(extra="restart: {policy: never}"))
    daemon.wait_event("ReplicaReady", "chat-v1-0", after=failed.id)


def test_a_gateway_that_hangs_is_killed_and_started_again(daemon: Stokerd) -> None:
    add_version(daemon, "one")
    serve(daemon)
    pid = pid_of(daemon, "gateway-w2-0-")
    os.kill(pid, signal.SIGSTOP)
    hangs = daemon.wait_event("GatewayUnreachable", "gateway")
    ended = daemon.wait_event("GatewayFailed", "gateway", after=hangs.id)
    assert "answered nothing for" in ended.message
    daemon.wait_event("GatewayReady", "gateway", after=hangs.id)
    assert pid_of(daemon, "gateway-w2-0-") != pid
    with daemon.openai() as client:
        assert say(client) == "I am one"
    assert told(daemon, "chat-v1-0") == ["ReplicaCreated", "ReplicaStarting", "ReplicaReady"]


def test_a_gateway_that_fails_again_and_again_is_said_to_have_failed_and_is_never_given_up() -> None:
    with socket.socket() as squatter:
        squatter.bind(("127.0.0.1", 0))
        squatter.listen()
        port = squatter.getsockname()[1]
        with Stokerd(settings="") as daemon:
            daemon.terminate()
            daemon.home.config.write_text(f"gateway: {{port: {port}}}\n")
            daemon.start()
            wait_for(lambda: daemon.client.host().gateway_phase == "failed", "it is said to have failed")
            failures = [e for e in daemon.events() if e.reason == "GatewayFailed"]
            assert "5 times in a row" in failures[-1].message
            assert f"127.0.0.1:{port} is taken" in failures[-1].data["log"][-1]
            squatter.close()
            wait_for(lambda: daemon.client.host().gateway_phase == "ready", "it is tried again, and serves")
            daemon.port = port
            with daemon.openai() as client:
                assert client.get("/models").status_code == 200


@pytest.fixture
def fleet(tmp_path: Path) -> Fleet:
    return Fleet(tmp_path, 1)


GPU = Fleet.uuid(0)
NOBODY = 4_194_301  # near the largest pid that Linux gives: that of a process that has died


def test_a_replica_gets_its_share_of_a_device_and_its_engine_is_told(fleet: Fleet) -> None:
    with Stokerd(env=fleet.env()) as daemon:
        add_version(daemon, "one")
        bring_up(daemon, by_vllm(daemon, "devices: 1\ndevice_memory: 20GiB"))
        replica = daemon.client.get(Replica, "chat-v1-0")
        assert (replica.devices, replica.device_memory) == ([GPU], 20 << 30)
        log = (daemon.root / "replicas" / "chat-v1-0" / "log").read_text()
        assert "--gpu-memory-utilization 0.2500" in log
        assert "--shutdown-timeout 5" in log


def test_a_server_is_started_again_only_when_the_driver_says_that_the_memory_of_the_dead_one_is_back(
    fleet: Fleet,
) -> None:
    with Stokerd(env=fleet.env()) as daemon:
        add_version(daemon, "one")
        bring_up(daemon, deployment(extra="devices: 1\nrestart: {backoff: 10ms}"))
        fleet.set(0, processes=(Process(NOBODY, 40_000),))
        os.kill(pid_of(daemon, "replica-chat-v1-0"), signal.SIGKILL)
        failed = daemon.wait_event("ReplicaBackingOff", "chat-v1-0")
        asked = len(fleet.calls())
        wait_for(lambda: len(fleet.calls()) > asked + 20, "the driver is asked again and again")
        waiting = daemon.client.get(Replica, "chat-v1-0")
        assert (waiting.phase, waiting.starts, waiting.devices) == ("backing-off", 1, [GPU])
        fleet.set(0, processes=())
        daemon.wait_event("ReplicaReady", "chat-v1-0", after=failed.id)
        assert daemon.client.get(Replica, "chat-v1-0").devices == [GPU]


def test_a_deleted_replica_keeps_its_device_until_its_memory_is_back(fleet: Fleet) -> None:
    with Stokerd(env=fleet.env()) as daemon:
        add_version(daemon, "one")
        bring_up(daemon, deployment(extra="devices: 1"))
        fleet.set(0, processes=(Process(NOBODY, 40_000),))
        daemon.client.request("DELETE", "/v1/deployments/chat")
        stopping = daemon.wait_event("ReplicaStopping", "chat-v1-0")
        wait_for(lambda: not _lives(daemon), "its process is gone")
        asked = len(fleet.calls())
        wait_for(lambda: len(fleet.calls()) > asked + 20, "the driver is asked again and again")
        assert daemon.client.get(Replica, "chat-v1-0").devices == [GPU]
        fleet.set(0, processes=())
        daemon.wait_event("DeploymentDeleted", "chat", after=stopping.id)
