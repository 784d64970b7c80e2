"""A small team's host on an ordinary afternoon, for tests and for the picture in the README: always the same."""

from __future__ import annotations

import math
from functools import partial
from pathlib import Path
from typing import Any

from stoker.types.host import Device, Host, Series, TrafficStats
from stoker.types.rollouts import Exposure, Fail, GuardReading, Promoted, RolledBack
from stoker.types.serving import (
    CommandEngine,
    Deployment,
    DeploymentSpec,
    Ready,
    Replica,
    Starting,
    VllmEngine,
)
from stoker.types.training import Failed, JobSpec, MetricPoint, Queued, Run, Running, Succeeded
from stoker_tui.clock import Clock
from tests.tui.rollouts import GUARDS, rollout
from tests.tui.server import CannedDaemon
from tests.tui.still import NOON as NOON
from tests.tui.still import StillClock as StillClock
from tests.tui.still import ago as ago

GIB = 2**30


def cpu_host() -> Host:
    return Host(
        hostname="attic",
        version="0.1.0",
        pid=4242,
        started_at=ago(93784),
        home="/home/ada/.local/share/stoker",
        gateway="http://127.0.0.1:8700/v1",
        gateway_phase="ready",
        cpu_percent=43.0,
        cpu_count=8,
        load_1m=3.1,
        memory_total=int(62.7 * GIB),
        memory_used=int(21.4 * GIB),
        disk_total=500 * GIB,
        disk_free=int(210.4 * GIB),
        devices_message="no NVIDIA driver is loaded on this host.",
    )


def gpu_host(count: int = 4) -> Host:
    used = (87, 91, 12, 0, 64, 71, 99, 3)
    owners = ("chat-v3-0", "chat-v3-1", "chat-v4-0", None)
    devices = [
        Device(
            uuid=f"GPU-{i}",
            index=i,
            name="NVIDIA H100 80GB HBM3",
            memory_total=80 * GIB,
            memory_used=int(used[i % 8] * 0.7 * GIB),
            utilisation=float(used[i % 8]),
            power=110.0 + used[i % 8] * 5.2,
            temperature=34.0 + used[i % 8] // 3,
            owner=owners[i % 4],
        )
        for i in range(count)
    ]
    return cpu_host().model_copy(update={"hostname": "gpu-box-1", "devices": devices, "devices_message": ""})


def deployment(name: str = "chat", **changes: object) -> Deployment:
    spec = DeploymentSpec(
        kind="deployment", name=name, model="smollm", version=3, engine=VllmEngine(type="vllm"), replicas=2
    )
    made = Deployment(name=name, created_at=ago(90000), spec=spec, version=3, previous_version=2, phase="ready")
    return made.model_copy(update=changes)


def replica(deployment_name: str, version: int, index: int, **changes: object) -> Replica:
    made = Replica(
        name=f"{deployment_name}-v{version}-{index}",
        created_at=ago(7000),
        deployment=deployment_name,
        version=version,
        index=index,
        starts=1,
        address=f"unix:/run/stoker/s/{deployment_name}-v{version}-{index}",
        state=Ready(process="p", since=ago(6900)),
    )
    return made.model_copy(update=changes)


def run(number: int, **changes: object) -> Run:
    spec = JobSpec(
        kind="job",
        name="tune",
        command=["{python}", "train.py"],
        retries=2,
        params={"lr": 0.0003, "epochs": 2, "batch": 4, "rank": 8},
    )
    made = Run(
        name=f"tune-{number}",
        created_at=ago((13 - number) * 3600 + 130),
        job="tune",
        number=number,
        spec=spec,
        params=spec.params,
        trigger="schedule:nightly",
        code_commit="3fa9c1d0b7e2+dirty",
        code_digest="b5bb9d8014a0f9b1",
        dataset_version="chats@7",
        dataset_digest="9f86d081884c7d65",
        base_version="smollm@1",
        environment={"python": "3.11.9", "platform": "linux"},
        state=Running(process="p", started_at=ago(130)),
        folder=f"/home/ada/.local/share/stoker/runs/tune-{number}",
    )
    return made.model_copy(update=changes)


def runs() -> list[Run]:
    return [
        run(9, state=Succeeded(started_at=ago(16000), finished_at=ago(14500), registered="smollm@3")),
        run(
            10,
            attempt=3,
            state=Failed(
                started_at=ago(11000),
                finished_at=ago(10900),
                message="it exited with code 1, at attempt 3 of 3.",
                exit_code=1,
            ),
        ),
        run(11, state=Succeeded(started_at=ago(7200), finished_at=ago(5100), registered="smollm@4")),
        run(12),
        run(13, created_at=ago(20), state=Queued(not_before=ago(20), why="all devices are taken.")),
    ]


def point(key: str, step: int, value: float) -> MetricPoint:
    return MetricPoint(key=key, step=step, value=value, time=NOON)


def losses(count: int, seed: int = 1) -> list[float]:
    """A loss as they look: fast at first, noisy for long."""
    return [0.42 + 3.6 * math.exp(-i / 18) + 0.11 * math.sin(i * 2.3 + seed) * math.exp(-i / 150) for i in range(count)]


def traffic() -> list[TrafficStats]:
    chat = partial(TrafficStats, deployment="chat", window_seconds=60.0)
    return [
        chat(
            version=3,
            arm="stable",
            requests=552,
            errors=0,
            requests_per_second=9.2,
            prompt_tokens=88000,
            completion_tokens=61200,
            ttft_p50=0.118,
            ttft_p90=0.31,
            inter_token_p50=0.0121,
            inter_token_p90=0.0184,
            total_p50=1.21,
            total_p90=2.13,
        ),
        chat(
            version=4,
            arm="candidate",
            requests=186,
            errors=3,
            requests_per_second=3.1,
            prompt_tokens=29000,
            completion_tokens=20100,
            ttft_p50=0.121,
            ttft_p90=0.35,
            inter_token_p50=0.0119,
            inter_token_p90=0.0191,
            total_p50=1.34,
            total_p90=2.24,
        ),
    ]


def log_of_training(steps: int) -> bytes:
    lines = ["loading smollm@1 (269 MB, bf16)", "4 chats, 1,843 tokens; LoRA r=8 on q_proj, v_proj"]
    lines += [f"step {i:>3}  loss {x:.4f}  lr 3.0e-04  {0.9 + i % 3 / 10:.1f} s" for i, x in enumerate(losses(steps))]
    return ("\n".join(lines) + "\n").encode()


def fill(daemon: CannedDaemon) -> None:
    """All of it."""
    daemon.put(deployment(rollout="chat-v4"))
    embed = DeploymentSpec(
        kind="deployment",
        name="embed",
        model="minilm",
        version=1,
        replicas=1,
        engine=CommandEngine(type="command", command=["serve"]),
    )
    daemon.put(Deployment(name="embed", created_at=ago(300), spec=embed, version=1, phase="starting"))
    for index in range(2):
        daemon.put(replica("chat", 3, index))
    daemon.put(replica("chat", 4, 0, state=Ready(process="p", since=ago(390))))
    starting = Starting(process="p", since=ago(41), message="loading weights, 60 %")
    daemon.put(replica("embed", 1, 0, state=starting))
    daemon.put(rollout())
    daemon.put(
        rollout(
            "chat-v3",
            created_at=ago(80000),
            from_version=2,
            to_version=3,
            readings=[],
            arms={},
            distributions={},
            exposure=Exposure(requests=80211, errors=12, callers=940),
            state=Promoted(finished_at=ago(79000)),
        )
    )
    daemon.put(
        rollout(
            "chat-v2b",
            created_at=ago(86000),
            from_version=2,
            to_version=9,
            arms={},
            distributions={},
            exposure=Exposure(requests=10, errors=4, callers=6),
            readings=[GuardReading(guard=GUARDS[0], verdict=_bad())],
            state=RolledBack(finished_at=ago(85900), because="error rate: candidate fails 40 % of 10, stable 0 %."),
            verdict_at=ago(85900.24),
            restored_at=ago(85900.1),
        )
    )
    for one in runs():
        daemon.put(one)
    for number, count in ((9, 120), (11, 120), (12, 58)):
        for step, loss in enumerate(losses(count, number)):
            daemon.measure(f"tune-{number}", "loss", step, loss)
            daemon.measure(f"tune-{number}", "tokens_per_second", step, 900 + 40 * math.sin(step / 3))
            daemon.measure(f"tune-{number}", "grad_norm", step, 0.2 + 2 / (1 + step))
    daemon.traffic = traffic()
    daemon.series = [
        Series(
            name=name,
            unit="percent",
            labels=labels,
            points=[(NOON.timestamp() - 600 + 2 * i, _load(i / 300, level)) for i in range(300)],
        )
        for name, labels, level in (
            ("host.cpu_percent", {}, 43),
            ("device.utilisation_percent", {"uuid": "GPU-0", "index": "0"}, 48),
        )
    ]
    daemon.write("tune-12", log_of_training(58))
    daemon.write(
        "chat-v3-0",
        b"".join(b"INFO 13:2%d:11 engine.py: 9 running, 0 waiting, KV cache 31 %%\n" % (i % 10) for i in range(40)),
    )
    daemon.write("chat-v4-0", b"INFO engine.py: model loaded in 38 s\nINFO api_server.py: ready\n")
    daemon.write("embed-v1-0", b"loading weights: 20 %\rloading weights: 40 %\rloading weights: 60 %")
    _past(daemon)


def _bad() -> Fail:
    return Fail(reason="candidate fails 40 % of 10 requests, stable 0 % of 31: at least +12 points.")


def _load(share: float, level: float) -> float:
    wave = 22 * math.sin(share * 9) + 9 * math.sin(share * 41) + 5 * math.sin(share * 97)
    return min(100.0, max(0.0, level + wave * (0.4 + 0.6 * share)))


def _past(daemon: CannedDaemon) -> None:
    facts: tuple[tuple[Any, ...], ...] = (
        (7200, "run", "tune-11", "RunStarted", "tune-11 started (attempt 1)."),
        (5100, "version", "smollm@4", "VersionRegistered", "smollm@4, from run tune-11."),
        (5100, "run", "tune-11", "RunSucceeded", "tune-11 succeeded and registered smollm@4."),
        (400, "rollout", "chat-v4", "RolloutStarted", "chat-v4 moves chat from v3 to v4 in 3 steps.", "ada"),
        (398, "replica", "chat-v4-0", "ReplicaStarting", "chat-v4-0 was started."),
        (390, "replica", "chat-v4-0", "ReplicaReady", "chat-v4-0 answered a real inference after 8 s."),
        (389, "rollout", "chat-v4", "StepStarted", "Step 1 of 3: shadow 100 %.", "host", 0),
        (130, "run", "tune-12", "RunStarted", "tune-12 started (attempt 1)."),
        (73, "rollout", "chat-v4", "StepPassed", "Step 1 of 3 passed: 3 guards hold over 64 requests.", "guards", 0),
        (72, "rollout", "chat-v4", "StepStarted", "Step 2 of 3: canary 25 %.", "guards", 1),
        (41, "replica", "embed-v1-0", "ReplicaBackingOff", "embed-v1-0 exited with code 1; it is started again."),
        (20, "run", "tune-13", "RunQueued", "tune-13 waits for its turn (schedule:nightly)."),
    )
    for seconds, kind, name, reason, message, *decided in facts:
        phase = "backing-off" if reason == "ReplicaBackingOff" else ""
        more = dict(zip(("by", "step"), decided, strict=False))
        daemon.tell(kind, name, reason, message, at=ago(seconds), phase=phase, **more)


def daemon_at(folder: Path, host: Host | None = None, clock: Clock | None = None) -> CannedDaemon:
    """A daemon of that folder's home, not started."""
    return CannedDaemon(folder / "stoker.sock", host or cpu_host(), (clock or StillClock()).now)
