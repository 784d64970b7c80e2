from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stoker.types.host import Device
from stoker.types.rollouts import (
    Paused,
    Preparing,
    Promoted,
    Promoting,
    Returning,
    RolledBack,
    RollingBack,
    Rollout,
    RolloutPlan,
    RolloutSpec,
    RolloutState,
    Stepping,
)
from stoker.types.serving import (
    Asleep,
    BackingOff,
    Deployment,
    DeploymentSpec,
    Draining,
    Pending,
    Ready,
    Replica,
    ReplicaState,
    Starting,
    Stopping,
    Unwell,
    Waking,
    Warm,
)
from stokerd.gateway.surface import ENDPOINTS
from stokerd.rollouts.machine import Facts, advance
from stokerd.serving import sleeping
from stokerd.serving.engines import can_sleep, launch_digest
from stokerd.serving.engines.base import Probe, SleepPaths
from stokerd.serving.plan import Change, health, resting_version, route, scale, serving_version
from stokerd.serving.sleeping import FREED_SHARE, memory_held, put_to_sleep, wake_up

NOW = datetime(2026, 5, 4, tzinfo=UTC)
GIB = 2**30
READY = Ready(process="p", since=NOW)
ASLEEP = Asleep(process="p", since=NOW, devices=["GPU-0"])
WAKING = Waking(process="p", since=NOW)
DRAINING = Draining(process="p", since=NOW)
PATHS = SleepPaths("/sleep?level=1", "/wake_up", "/is_sleeping")


def deployment(*, args: tuple[str, ...] = ("--enable-sleep-mode",), replicas: int = 1, **fields: Any) -> Deployment:
    engine = {"type": "vllm", "args": list(args)}
    values = {"kind": "deployment", "name": "d", "model": "m", "version": 1, "devices": 1, "replicas": replicas}
    spec = DeploymentSpec.model_validate(values | {"engine": engine})
    return Deployment(name="d", spec=spec, **{"version": 1, **fields})


def replica(version: int = 1, index: int = 0, state: ReplicaState = READY, **fields: Any) -> Replica:
    name = f"d-v{version}-{index}"
    values = {"launch_digest": launch_digest(deployment().spec), "address": f"unix:/{name}"} | fields
    return Replica(name=name, deployment="d", version=version, index=index, state=state, **values)


def rollout(state: RolloutState, placement: Any = "swap", **fields: Any) -> Rollout:
    steps = [{"type": "canary", "percent": 25}]
    values = {"kind": "rollout", "name": "r", "deployment": "d", "to": 2, "steps": steps} | fields
    plan = RolloutPlan(deployment="d", from_version=1, to_version=2, fits=True, placement=placement, says="so")
    spec = RolloutSpec.model_validate(values)
    return Rollout(name="r", spec=spec, deployment="d", from_version=1, to_version=2, state=state, plan=plan)


PREPARING, STEPPING = Preparing(since=NOW), Stepping(step=0, since=NOW)
BACK, RETURNING = RollingBack(since=NOW, because="x"), Returning(since=NOW, because="x")


def test_in_a_swap_the_old_version_is_put_to_sleep_and_the_new_one_waits_until_it_is() -> None:
    going = rollout(PREPARING)
    assert scale(deployment(), going, [replica()]) == Change((), (), rest=("d-v1-0",))
    assert scale(deployment(), going, [replica(rests=True)]) == Change((), ())
    assert scale(deployment(), going, [replica(state=DRAINING, rests=True)]) == Change((), ())
    assert scale(deployment(), going, [replica(state=ASLEEP, rests=True)]) == Change(((2, 0),), ())


def test_without_sleep_mode_or_beside_each_other_nothing_sleeps() -> None:
    plain = deployment(args=())
    mine = replica(launch_digest=launch_digest(plain.spec))
    assert scale(plain, rollout(PREPARING), [mine]) == Change((), ("d-v1-0",))
    assert scale(deployment(), rollout(PREPARING, "beside"), [replica()]).rest == ()
    assert scale(deployment(), None, [replica()]) == Change((), ())


@pytest.mark.parametrize(
    "state",
    [
        Starting(process="p", since=NOW),
        Pending(),
        BackingOff(retry_at=NOW, message=""),
        Unwell(phase="stalled", process="p", since=NOW, ready_since=NOW, message=""),
    ],
)
def test_a_server_that_is_not_ready_to_be_put_to_sleep_is_stopped(state: ReplicaState) -> None:
    assert scale(deployment(), rollout(PREPARING), [replica(state=state)]) == Change((), ("d-v1-0",))
    assert scale(deployment(), rollout(PREPARING), [replica(state=state, rests=True)]) == Change((), ("d-v1-0",))


def test_one_that_was_started_for_another_spec_or_is_one_too_many_is_not_put_to_sleep() -> None:
    other = replica(launch_digest="other")
    assert scale(deployment(), rollout(PREPARING), [other]) == Change((), ("d-v1-0",))
    found = scale(deployment(), rollout(PREPARING), [replica(index=1), replica()])
    assert (found.rest, found.retire) == (("d-v1-0",), ("d-v1-1",))


@pytest.mark.parametrize("state", [BACK, RETURNING])
def test_on_the_way_back_the_new_version_is_stopped_before_the_old_one_wakes_up(state: RolloutState) -> None:
    old = replica(state=ASLEEP, rests=True)
    assert scale(deployment(), rollout(state), [old, replica(2)]) == Change((), ("d-v2-0",))
    stopping = replica(2, state=Stopping(process="q", since=NOW), wanted=False)
    assert scale(deployment(), rollout(state), [old, stopping]) == Change((), ())
    assert scale(deployment(), rollout(state), [old]) == Change((), (), wake=("d-v1-0",))
    assert scale(deployment(), rollout(state), [replica(state=WAKING)]) == Change((), ())


def test_of_replicas_that_could_not_sleep_others_are_made_on_the_way_back() -> None:
    going = rollout(STEPPING)
    asleep = replica(state=ASLEEP, rests=True)
    two = deployment(replicas=2)
    news = [replica(2, 0), replica(2, 1)]
    assert scale(two, going, [asleep, *news]) == Change((), ()), "none is made for a version that rests"
    assert scale(two, rollout(BACK), [asleep]) == Change(((1, 1),), (), wake=("d-v1-0",))


def test_after_promotion_the_old_version_sleeps_on_while_it_stands_by_and_no_longer() -> None:
    old = replica(state=ASLEEP, rests=True)
    warm = deployment(version=2, warm=Warm(version=1, until=NOW, rollout="r", rests=True))
    assert scale(warm, None, [old, replica(2)]) == Change((), ())
    assert scale(warm, None, [replica(2)]) == Change((), ()), "none is made to sleep"
    assert scale(deployment(version=2), None, [old, replica(2)]) == Change((), ("d-v1-0",))
    assert scale(deployment(version=2, deleting=True), None, [old]) == Change((), ("d-v1-0",))


def test_a_version_that_sleeps_can_be_the_next_to_be_swapped_in() -> None:
    back = rollout(PREPARING).model_copy(update={"from_version": 2, "to_version": 1})
    asleep = replica(state=ASLEEP, rests=True)
    assert scale(deployment(version=2), back, [asleep, replica(2)]) == Change((), (), rest=("d-v2-0",))
    other = replica(2, state=ASLEEP, rests=True)
    assert scale(deployment(version=2), back, [asleep, other]) == Change((), (), wake=("d-v1-0",))


def test_who_rests_gets_no_requests_and_counts_as_ready_for_nothing() -> None:
    going = rollout(PREPARING)
    assert [a.addresses for a in route(deployment(), [replica(rests=True)], going).arms] == [(), ()]
    assert [a.addresses for a in route(deployment(), [replica(state=WAKING)], rollout(BACK)).arms] == [()]
    waits = replica(state=ASLEEP.model_copy(update={"message": "it needs 1 GPU(s)"}))
    assert health(deployment(), [waits], 1) == ("starting", "it needs 1 GPU(s)")


swap_states = st.sampled_from(
    [PREPARING, STEPPING, Paused(step=0, since=NOW, because=""), Promoting(since=NOW), BACK, RETURNING]
)
replica_states = st.sampled_from(
    [READY, ASLEEP, WAKING, DRAINING, Starting(process="p", since=NOW), Stopping(process="p", since=NOW), Pending()]
)
replicas_of = st.builds(
    replica, st.integers(1, 2), st.integers(0, 2), replica_states, rests=st.booleans(), wanted=st.booleans()
)


@given(swap_states, st.lists(replicas_of, unique_by=lambda r: r.name), st.integers(1, 3))
def test_in_a_swap_nothing_of_a_version_comes_up_before_all_of_the_other_is_gone_or_asleep(
    state: RolloutState, replicas: list[Replica], count: int
) -> None:
    target, going = deployment(replicas=count), rollout(state)
    change = scale(target, going, replicas)
    serving, resting = serving_version(target, going), resting_version(target, going)
    by_name = {r.name: r for r in replicas}
    awake = [r for r in replicas if r.version != serving and not isinstance(r.state, Asleep)]
    assert not (awake and (change.create or change.wake))
    assert {version for version, _ in change.create} <= {serving}
    assert {by_name[name].version for name in change.rest} <= {resting}
    assert {by_name[name].version for name in change.wake} <= {serving}
    assert not set(change.retire) & {*change.rest, *change.wake}
    for name in change.retire:
        by_name[name].wanted = False
    for name in (*change.rest, *change.wake):
        by_name[name].rests = name in change.rest
    replicas += [replica(v, i, Pending()) for v, i in change.create]
    assert scale(target, going, replicas) == Change((), ()), "told once is enough"


def test_a_swap_that_is_promoted_keeps_the_old_version_warm_only_if_it_sleeps() -> None:
    spec = rollout(PREPARING).spec
    gone = Facts(now=NOW, routed=True, is_swap=True, candidate_ready=True, stable_ready=False)
    asleep = replace(gone, stable_sleeps=True)
    plain, slept = (advance(spec, Promoting(since=NOW), facts) for facts in (gone, asleep))
    assert isinstance(plain, Promoted)
    assert isinstance(slept, Promoted)
    assert plain.warm_until is None
    assert slept.warm_until is not None
    tripped = advance(spec, slept, replace(asleep, trip="five errors in a row"))
    assert isinstance(tripped, RollingBack)
    assert advance(spec, tripped, asleep) is None, "until it is awake"
    assert isinstance(advance(spec, tripped, replace(gone, stable_ready=True)), RolledBack)


# The memory of devices.


def gpu(index: int = 0, *, used: float | None, total: int = 80) -> Device:
    used_bytes = None if used is None else int(used * GIB)
    return Device(uuid=f"GPU-{index}", index=index, name="GPU", memory_total=total * GIB, memory_used=used_bytes)


@pytest.mark.parametrize(
    ("used", "memory", "is_back"),
    [
        (2, None, True),  # what a sleeping vLLM keeps
        (72, None, False),
        (80 * (1 - FREED_SHARE), None, True),
        (42, 40 * GIB, True),  # others have the other half
        (78, 40 * GIB, False),
        (None, None, True),  # the driver doesn't say
        (2, 800 * GIB, True),
    ],
)
def test_what_was_leased_is_free_again_but_for_what_a_sleeping_server_keeps(
    used: float | None, memory: int | None, is_back: bool
) -> None:
    assert (memory_held([gpu(used=used), gpu(1, used=79)], ["GPU-0"], memory) == "") is is_back


def test_devices_that_the_driver_has_not_told_of_yet_are_waited_for() -> None:
    assert memory_held([], ["GPU-0"], None) == "the driver has not told of 1 of its GPUs yet"
    assert memory_held([], [], None) == ""
    said = memory_held([gpu(used=70), gpu(1, used=2)], ["GPU-0", "GPU-1"], None)
    assert said == "GPU 0 has only 10 GiB free of the 80 GiB that it had"


# The server.


@contextmanager
def server(**answers: tuple[int, Any]) -> Iterator[str]:
    """A server that answers so to these paths, and 404 to all others; its address."""

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

        def do_GET(self) -> None:
            path = self.path.partition("?")[0].strip("/")
            self.rfile.read(int(self.headers["Content-Length"] or 0))
            status, body = answers.get(path.rpartition("/")[2], (404, {"detail": "Not Found"}))
            data = json.dumps(body).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def do_POST(self) -> None:
            self.do_GET()

    running = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=running.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield f"127.0.0.1:{running.server_port}"
    finally:
        running.shutdown()
        thread.join()
        running.server_close()


OK: tuple[int, Any] = (200, {})
YES: tuple[int, Any] = (200, {"is_sleeping": True})
NO: tuple[int, Any] = (200, {"is_sleeping": False})


@pytest.mark.parametrize(
    ("answers", "problem"),
    [
        ({"sleep": OK, "is_sleeping": YES}, ""),
        ({"sleep": OK, "is_sleeping": NO}, "it says that it is awake"),
        ({"sleep": (500, "out of memory")}, '/sleep?level=1 answered HTTP 500: "out of memory"'),
        ({}, '/sleep?level=1 answered HTTP 404: {"detail": "Not Found"}'),
        ({"sleep": OK}, "no proper answer (HTTPStatusError"),
        ({"sleep": OK, "is_sleeping": (200, [])}, "no proper answer (TypeError"),
    ],
)
def test_a_server_sleeps_when_it_says_so_and_else_what_it_said_is_told(answers: dict[str, Any], problem: str) -> None:
    with server(**answers) as address:
        said = asyncio.run(put_to_sleep(address, PATHS))
    assert said.startswith(problem)
    assert bool(said) is bool(problem)


@pytest.mark.parametrize(
    ("answers", "problem"),
    [
        ({"wake_up": OK, "is_sleeping": NO, "completions": OK}, ""),
        ({"wake_up": OK, "is_sleeping": YES, "completions": OK}, "it says that it sleeps still"),
        ({"wake_up": (500, "no memory")}, '/wake_up answered HTTP 500: "no memory"'),
        ({"wake_up": OK, "is_sleeping": NO, "completions": (500, "dead")}, "/v1/completions answered HTTP 500"),
    ],
)
def test_a_server_is_awake_when_it_says_so_and_answers_an_inference(answers: dict[str, Any], problem: str) -> None:
    with server(**answers) as address:
        said = asyncio.run(wake_up(address, PATHS, [Probe("/v1/completions", {})]))
    assert said.startswith(problem)
    assert bool(said) is bool(problem)


def test_a_server_that_is_gone_or_silent_is_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    assert asyncio.run(put_to_sleep("unix:/nowhere.sock", PATHS)).startswith("no proper answer (ConnectError")
    monkeypatch.setattr(sleeping, "WAKE_SECONDS", 0.0)
    with server(wake_up=OK) as address:
        assert asyncio.run(wake_up(address, PATHS, [])) == "no answer within 0 s"


@pytest.mark.parametrize(
    ("args", "is_able"),
    [
        (["--enable-sleep-mode"], True),
        (["--enable_sleep_mode"], True),
        (["--max-model-len", "9", "--enable-sleep-mode=true"], True),
        (["--enable-lora"], False),
        ([], False),
    ],
)
def test_only_vllm_with_sleep_mode_can_sleep(args: list[str], is_able: bool) -> None:
    assert can_sleep(deployment(args=tuple(args)).spec) is is_able


@pytest.mark.parametrize(
    "path", ["/sleep", "/wake_up", "/is_sleeping", "/collective_rpc", "/server_info", "/reset_prefix_cache", "/pause"]
)
def test_what_administers_a_server_is_on_no_path_of_the_gateway(path: str) -> None:
    assert not [known for known in ENDPOINTS if known.split(b"?")[0].endswith(path.encode())]
