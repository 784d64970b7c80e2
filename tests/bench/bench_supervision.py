"""Stoker as a supervisor beside supervisord: ``python tests/bench/bench_supervision.py [--quick]``.

Both do the same work in one run: twenty idle processes (side by side, over the same seconds), starts, deaths. Then
Stoker alone adopts two hundred processes. Moments are CLOCK_MONOTONIC in all processes; a start is seen by the program
that was started (`stamp`), with backoffs set to 0. supervisord is fetched from PyPI into a temporary folder; without it
the column stays empty. Prints a table, and last one line of JSON. 4 minutes, with --quick less than one.

Times to the first instruction hang on how busy the machine is. Where others use it too, root gets figures of a quiet
one by `chrt -r 1` before the command: what the benchmark starts inherits that.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))

from stoker.types.serving import Deployment  # noqa: I001
from stoker.types.training import Run
from stokerd.processes.folder import Folder
from stokerd.processes.states import Alive
from stokerd.processes.supervisor import Supervisor
from tests.bench.figures import Memory, Summary, cpu_of, cpu_seconds, machine, memory, memory_of
from tests.bench.stamp import Stamper
from tests.bench.supervisord import Supervisord, install
from tests.bench.watcher import Watcher
from tests.harness import Stokerd, wait_for

SLEEP = ["sleep", "100000"]
IDLE_PROCESSES = 20


@dataclass(frozen=True, slots=True)
class Effort:
    """How much is measured."""

    idle_seconds: float = 60.0
    settle_seconds: float = 10.0
    count: int = 30
    pause_seconds: float = 1.0  # the most that is waited before each try, so that it meets any moment of a cycle
    adopted: int = 200
    adoptions: int = 3


QUICK = Effort(5.0, 1.0, 4, 0.2, 20, 1)


@dataclass
class Report:
    """The table's rows, and the line of JSON."""

    rows: list[tuple[str, str, str, str]] = field(default_factory=list)
    values: dict[str, float] = field(default_factory=dict)

    def add(
        self, what: str, key: str, unit: str, stoker: float | None, peer: float | None = None, goal: float | None = None
    ) -> None:
        """One figure of both; *goal* is the most that Stoker's may be."""
        for side, value in (("stoker", stoker), ("supervisord", peer)):
            if value is not None:
                self.values[f"{key}_{side}"] = round(value, 3)
        verdict = "" if goal is None or stoker is None else f"<= {goal:.4g} {'met' if stoker <= goal else 'MISSED'}"
        self.rows.append((f"{what} [{unit}]", _number(stoker), _number(peer), verdict))

    def add_times(
        self, what: str, key: str, stoker: list[float] | None, peer: list[float] | None, goal_ms: float | None = None
    ) -> None:
        """Median and 99th percentile of seconds, as milliseconds."""
        ours, theirs = (Summary.of([t * 1e3 for t in times]) if times else None for times in (stoker, peer))
        for name, goal in (("p50", goal_ms), ("p99", None)):
            values = [None if each is None else float(getattr(each, name)) for each in (ours, theirs)]
            self.add(f"{what}, {name}", f"{key}_{name}_ms", "ms", values[0], values[1], goal)

    def print(self) -> None:
        """On stdout."""
        rows = [("", "Stoker", "supervisord", "goal"), *self.rows]
        for what, stoker, peer, goal in rows:
            print(f"{what:58} {stoker:>10} {peer:>12}  {goal}")
        print(json.dumps(self.values))


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.4g}"


@contextmanager
def stokerd(concurrent: int) -> Iterator[Stokerd]:
    """A daemon that executes so many runs at once."""
    daemon = Stokerd()
    daemon.home.config.write_text(
        f"gateway: {{port: {daemon.port}}}\ntraining: {{python: {sys.executable}, concurrent: {concurrent}}}\n"
        f"serving: {{python: {sys.executable}}}\n"
    )
    with daemon:
        yield daemon


def job(name: str, command: list[str], **fields: Any) -> str:
    """The spec of a job."""
    return json.dumps({"kind": "job", "name": name, "command": command, **fields})


def deployment(name: str, command: list[str]) -> dict[str, Any]:
    """The spec of a deployment of one replica that is started again at once, however often."""
    restart = {"policy": "always", "backoff": 0, "limit": 1000}
    engine = {"type": "command", "command": [*command, "{socket}"]}  # it must be told, and doesn't care
    return {"kind": "deployment", "name": name, "model": "m", "version": 1, "engine": engine, "restart": restart}


def start_run(daemon: Stokerd, name: str) -> str:
    """Queue a run of a job; gives its name."""
    return str(daemon.client.request("POST", f"/v1/jobs/{name}/runs", json={"params": {}})["name"])


def start_sleepers(daemon: Stokerd, count: int) -> dict[str, int]:
    """Have *count* runs that sleep; gives the ids of the processes, and the pids of the programs."""
    daemon.apply(job("sleep", SLEEP))
    for _ in range(count):
        start_run(daemon, "sleep")

    def look() -> dict[str, int] | None:
        found = pids(daemon, "run-")
        return found if len(found) == count else None

    return wait_for(look, "all runs run")


def pids(daemon: Stokerd, prefix: str) -> dict[str, int]:
    """The programs that run behind shims, by the ids of their processes."""
    children = {f.name: Folder(f).child() for f in daemon.home.processes.glob(f"{prefix}*")}
    return {name: child.identity.pid for name, child in children.items() if child is not None}


def shims(daemon: Stokerd, prefix: str) -> list[int]:
    """The shims of such processes."""
    children = (Folder(f).child() for f in daemon.home.processes.glob(f"{prefix}*"))
    return [child.shim.pid for child in children if child is not None]


def measure_idle(effort: Effort, report: Report, folder: Path, package: Path | None) -> None:
    """Both supervise the same number of sleepers, and are watched over the same seconds: one long look, since what
    happens once a minute counts too.
    """
    with ExitStack() as stack:
        daemon = stack.enter_context(stokerd(IDLE_PROCESSES))
        peer: Supervisord | None = None
        if package is not None:
            programs = {f"sleep{i}": SLEEP for i in range(IDLE_PROCESSES)}
            peer = stack.enter_context(Supervisord(folder / "idle", package, programs))
            wait_for(lambda: peer.running() == IDLE_PROCESSES, "supervisord's programs run")
        start_sleepers(daemon, IDLE_PROCESSES)
        daemon.wait_event("GatewayReady", "gateway")
        time_start(daemon)  # a home that was there before is what a daemon has nearly always; it need not be made
        assert daemon.process is not None
        groups = {
            "daemon": [daemon.process.pid],
            "shims": shims(daemon, "run-"),
            "gateway": [*pids(daemon, "gateway-").values(), *shims(daemon, "gateway-")],
        }
        if peer is not None:
            groups["peer"] = [peer.pid]
        time.sleep(effort.settle_seconds)
        before, began = {name: cpu_of(group) for name, group in groups.items()}, time.monotonic()
        time.sleep(effort.idle_seconds)
        passed = time.monotonic() - began
        cpus = {name: (cpu_of(group) - before[name]) / passed * 1e3 for name, group in groups.items()}
        sizes = {name: memory_of(group) for name, group in groups.items()}
    report_idle(report, cpus, sizes)


def report_idle(report: Report, cpus: dict[str, float], sizes: dict[str, Memory]) -> None:
    """*cpus* in milliseconds a second, *sizes* in bytes."""
    peer_cpu, peer = cpus.get("peer"), sizes.get("peer")
    peer_rss, peer_pss = (peer.rss / 1e6, peer.pss / 1e6) if peer else (None, None)
    idle = f"idle with {IDLE_PROCESSES} processes"
    report.add(f"{idle}: CPU of the daemon", "idle_cpu_ms_per_s", "ms/s", cpus["daemon"], peer_cpu, peer_cpu)
    report.add(f"{idle}: CPU of all shims", "idle_shims_cpu_ms_per_s", "ms/s", cpus["shims"])
    report.add(f"{idle}: CPU of the gateway", "idle_gateway_cpu_ms_per_s", "ms/s", cpus["gateway"])
    size = sizes["daemon"]
    report.add(f"{idle}: RSS of the daemon", "rss_mb", "MB", size.rss / 1e6, peer_rss, 90)
    report.add(f"{idle}: PSS of the daemon", "pss_mb", "MB", size.pss / 1e6, peer_pss)
    report.add(f"{idle}: RSS of all shims", "shims_rss_mb", "MB", sizes["shims"].rss / 1e6)
    report.add(f"{idle}: PSS of all shims", "shims_pss_mb", "MB", sizes["shims"].pss / 1e6)
    report.add(f"{idle}: RSS of gateway and its shim", "gateway_rss_mb", "MB", sizes["gateway"].rss / 1e6)


def measure_latencies(effort: Effort, report: Report, folder: Path, package: Path | None, stamper: Stamper) -> None:
    """Starts, and then deaths, of runs, replicas and supervisord's programs, in turn."""
    with ExitStack() as stack:
        daemon = stack.enter_context(stokerd(64))
        starts = [f"start{i}" for i in range(effort.count)]
        peer: Supervisord | None = None
        if package is not None:
            programs = {name: stamper.command(f"peer-{name}") for name in [*starts, "death"]}
            peer = stack.enter_context(Supervisord(folder / "moments", package, programs, autostart=False))
        prepare(daemon, folder, stamper)
        pause(effort)
        ways: dict[str, Callable[[str], float]] = {
            "run": lambda name: time_run(daemon, stamper, name),
            "apply": lambda name: time_apply(daemon, stamper, name),
        }
        if peer is not None:
            ways["peer"] = lambda name: time_peer(peer, stamper, name)
        times = in_turn(effort, ways, starts)
        report.add_times("`stoker run` to exec", "run_to_exec", times["run"], times.get("peer"), 50)
        report.add_times("`stoker apply` of a deployment to exec", "apply_to_exec", times["apply"], None, 50)
        measure_deaths(effort, report, daemon, stamper, peer)


def in_turn(effort: Effort, ways: dict[str, Callable[[str], float]], names: list[str]) -> dict[str, list[float]]:
    """Go each way for each name, after a pause."""
    times: dict[str, list[float]] = {way: [] for way in ways}
    for name in names:
        for way, go in ways.items():
            pause(effort)
            times[way].append(go(name))
    return times


def prepare(daemon: Stokerd, folder: Path, stamper: Stamper) -> None:
    """A model with a version, and a first run: what is asked once about an interpreter is no part of a start."""
    weights = folder / "weights"
    weights.mkdir()
    (weights / "weights").write_text("none")
    daemon.apply("{kind: model, name: m}")
    daemon.client.request("POST", "/v1/models/m/versions", json={"path": str(weights)})
    daemon.wait_event("GatewayReady", "gateway")
    time_run(daemon, stamper, "first")


def time_run(daemon: Stokerd, stamper: Stamper, name: str) -> float:
    """Seconds from the request for a run to its program's first instruction."""
    daemon.apply(job(name, stamper.command(f"run-{name}")))
    began = time.monotonic()
    run = start_run(daemon, name)
    seconds = stamper.wait(f"run-{name}").moment - began
    daemon.client.request("POST", f"/v1/runs/{run}/cancel")
    daemon.wait_phase(Run, run, "cancelled")
    return seconds


def time_apply(daemon: Stokerd, stamper: Stamper, name: str) -> float:
    """Seconds from the request with a deployment's spec to its replica's first instruction."""
    spec = deployment(name, stamper.command(f"replica-{name}"))
    began = time.monotonic()
    daemon.client.request("POST", "/v1/apply", json={"specs": [spec], "dry_run": False})
    seconds = stamper.wait(f"replica-{name}").moment - began
    daemon.client.request("DELETE", f"/v1/deployments/{name}")
    wait_for(lambda: name not in {d.name for d in daemon.client.list(Deployment)}, f"{name} is gone")
    return seconds


def time_peer(peer: Supervisord, stamper: Stamper, name: str) -> float:
    """The same of supervisord, which knows the program already."""
    began = time.monotonic()
    peer.start(name)
    return stamper.wait(f"peer-{name}").moment - began


def measure_deaths(effort: Effort, report: Report, daemon: Stokerd, stamper: Stamper, peer: Supervisord | None) -> None:
    """SIGKILL to the program; when is that an event on the socket, and when does the next one execute?"""
    daemon.apply(job("death", stamper.command("run-death"), retries=100, backoff=0))
    run = start_run(daemon, "death")
    specs = [deployment("death", stamper.command("replica-death"))]
    daemon.client.request("POST", "/v1/apply", json={"specs": specs, "dry_run": False})
    told: dict[str, list[float]] = {"run": [], "replica": [], "peer": []}
    back: dict[str, list[float]] = {"run": [], "replica": [], "peer": []}
    with Watcher(daemon.home.socket, daemon.client.host().last_event_id) as watcher:
        hears: dict[str, Callable[[float, int], float]] = {
            "run": lambda since, _: watcher.wait("RunRetrying", run, since),
            "replica": lambda since, _: watcher.wait("ReplicaBackingOff", "death-v1-0", since),
        }
        if peer is not None:
            peer.start("death")
            hears["peer"] = lambda _, n: wait_for(lambda: peer.ends("death")[n - 1 :], "supervisord's listener")[0]
        for n in range(1, effort.count + 1):
            for way, hear in hears.items():
                victim = stamper.wait(f"{way}-death", n)
                pause(effort)
                began = time.monotonic()
                os.kill(victim.pid, signal.SIGKILL)
                told[way].append(hear(began, n) - began)
                back[way].append(stamper.wait(f"{way}-death", n + 1).moment - began)
    daemon.client.request("POST", f"/v1/runs/{run}/cancel")
    report.add_times("a run's death to its event", "run_death_to_event", told["run"], told["peer"], 20)
    report.add_times("a replica's death to its event", "replica_death_to_event", told["replica"], None, 20)
    report.add_times("a run's death to the next exec", "run_death_to_exec", back["run"], back["peer"])
    report.add_times("a replica's death to the next exec", "replica_death_to_exec", back["replica"], None)


def pause(effort: Effort) -> None:
    """Let anything go by that happens every second or so."""
    time.sleep(random.uniform(0, effort.pause_seconds))


def measure_adoption(effort: Effort, report: Report) -> None:
    """Kill the daemon of many processes; adopt them in this process, then by a new daemon. Nobody may be lost."""
    count = effort.adopted
    with stokerd(count) as daemon:
        empty = median(time_start(daemon) for _ in range(effort.adoptions))
        began = time.monotonic()
        before = start_sleepers(daemon, count)
        started = time.monotonic() - began
        alone, whole, first = [], [], 0.0
        for _ in range(effort.adoptions):
            daemon.kill()
            alone.append(asyncio.run(time_adoption(daemon.home.processes, before)))
            whole.append(time_start(daemon))
            assert {r.phase for r in daemon.client.list(Run)} == {"running"}
            assert pids(daemon, "run-") == before
            assert daemon.process is not None
            first = cpu_seconds(daemon.process.pid)
        lost = [e for e in daemon.events() if e.reason in ("RunLost", "RunFailed", "RunRetrying")]
        assert not lost, lost
        assert daemon.process is not None
        rss = memory(daemon.process.pid).rss / 1e6
    report.add(f"adoption of {count} processes, alone", "adoption_s", "s", median(alone), None, 1.0)
    report.add(f"start of the daemon with {count} to its first answer", "start_with_many_s", "s", median(whole))
    report.add("the same with none", "start_with_none_s", "s", empty)
    report.add("CPU of the start with them", "start_with_many_cpu_s", "s", first)
    report.add(f"{count} runs asked for one after the other, to all running", "start_of_many_s", "s", started)
    report.add(f"RSS of the daemon with {count} processes", "rss_with_many_mb", "MB", rss)


async def time_adoption(processes: Path, pids_before: dict[str, int]) -> float:
    """Seconds until a new supervisor has adopted, and seen alive, each of these processes."""
    supervisor = Supervisor(processes)
    began = time.monotonic()
    supervisor.adopt()
    seen = {process: supervisor.observe(process) for process in pids_before}
    seconds = time.monotonic() - began
    supervisor.close()
    assert all(isinstance(s, Alive) and s.pid == pids_before[process] for process, s in seen.items()), seen
    return seconds


def time_start(daemon: Stokerd) -> float:
    """Seconds from the kernel's exec of a new daemon to its first answer, to some 30 ms."""
    if daemon.process is not None and daemon.process.poll() is None:
        daemon.kill()
    began = time.monotonic()
    daemon.start()
    return time.monotonic() - began


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="too little of everything: only to see that it works")
    arguments = parser.parse_args()
    effort, report = QUICK if arguments.quick else Effort(), Report()
    about = machine()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("ended as asked"))  # then nothing is left running either
    with tempfile.TemporaryDirectory(prefix="stk-", dir="/tmp") as name:
        folder = Path(name)
        package = folder / "package"
        peer = package if install(package) else None
        stamper = Stamper(folder)
        measure_idle(effort, report, folder, peer)
        measure_latencies(effort, report, folder, peer, stamper)
        measure_adoption(effort, report)
    exact = "" if stamper.is_exact else "; no C compiler: starts are seen by Python, some 10 ms late"
    print(", ".join(f"{key} {value}" for key, value in about.items()) + exact)
    report.values["load_1m_after"] = round(os.getloadavg()[0], 2)
    report.print()


if __name__ == "__main__":
    main()
