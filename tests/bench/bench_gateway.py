"""How fast the gateway is beside other proxies: ``make bench-gateway``, or ``python tests/bench/bench_gateway.py``.

Each proxy alone has core 0 (the others are held still meanwhile); the load and the one backend share core 1. Rounds are
interleaved and medians taken: still, trust ratios, not decimals. ``chrt -r 1`` in front keeps other work out.

- **A**: a small chat of 64 callers asked again and again, a 603-byte JSON answer, over 32 connections; then over one,
  for the latency that a proxy adds. One request of four has a ``traceparent`` of its own, so that its head is new.
- **B**: 200 streams of 64 chunks, one every 5 ms: chunks a second, and how late they come.

The gateway alone, then: its memory while 2,000 connections stream, and 1,000 streams of 50 tokens a second over two
workers. It has on what a rollout in a canary step has: API keys with limits, two arms that callers stick to, a cap on
the callers of the candidate, a header's target, servers that call the model something else (an adapter's name goes into
each body), bounds and queue, two replicas for each arm, and its records fetched all the while. A gateway that copies
10 % of the requests to a shadow besides has a row of its own; the same backend answers those. TLS is off everywhere.

Needs wrk, taskset and cc; says so and ends with 0 without them. What it is measured beside may be missing, but not
nginx. Prints a table, and last one line of JSON.
"""

from __future__ import annotations

import argparse
import hashlib
import http.client
import json
import os
import shutil
import socket
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import median
from time import monotonic, sleep

import psutil

sys.path.insert(0, str(Path(__file__).parents[2]))

from stokerd.gateway.wire import Arm, Key, Route, RouteTable, Target  # noqa: I001
from tests.bench import figures, proxies
from tests.bench.loads import CALLERS, KEY, Loads, Streamed
from tests.harness import free_port
from tests.system.upstream import GatewayProcess

PROXY_CORE, LOAD_CORE = 0, 1
CONNECTIONS = 32
STREAMS, CHUNKS, GAP_MS = 200, 64, 5.0
MANY_CONNECTIONS = 2_000
LONG_STREAMS, LONG_GAP_MS = 1_000, 20.0
TABLES = 200
BODY = json.dumps({"model": "m", "user": "bench", "messages": [{"role": "user", "content": "Hi"}]})
US, WITH_SHADOW = "stoker", "stoker-shadow"
SHADOW_PERCENT = 10.0


@dataclass
class Candidate:
    """One that is measured, and its figures, one for each round."""

    name: str
    port: int
    process: psutil.Process | None
    rates: list[float] = field(default_factory=list)
    cpu_seconds: list[float] = field(default_factory=list)
    p50s: list[float] = field(default_factory=list)
    p99s: list[float] = field(default_factory=list)
    chunk_rates: list[float] = field(default_factory=list)
    chunk_cpu_seconds: list[float] = field(default_factory=list)
    late_p99s_ms: list[float] = field(default_factory=list)
    rss_mb: float = 0.0

    def cpu(self) -> float:
        """CPU seconds used so far, by all its processes."""
        return figures.cpu_of(p.pid for p in proxies.tree(self.process)) if self.process else 0.0

    @contextmanager
    def awake(self) -> Iterator[None]:
        """It runs for the length of the block alone."""
        if self.process:
            proxies.resume(self.process)
        yield
        if self.process:
            memory = figures.memory_of(p.pid for p in proxies.tree(self.process))
            self.rss_mb = max(self.rss_mb, memory.rss / 1e6)
            proxies.suspend(self.process)


class Reader(threading.Thread):
    """Fetches a gateway's records as the daemon does, without reading them."""

    def __init__(self, control: Path) -> None:
        super().__init__(daemon=True)
        self._control = control
        self._is_ended = threading.Event()
        self.count = self.dropped = 0

    def run(self) -> None:
        epoch, last = "", 0
        with closing(http.client.HTTPConnection("gateway", timeout=10)) as connection:
            while not self._is_ended.is_set():
                try:
                    batch = self._get(connection, f"/records?as=rows&epoch={epoch}&after={last}&wait=0.5")
                except (OSError, http.client.HTTPException):
                    connection.close()
                    sleep(0.05)
                    continue
                head = json.loads(batch[: batch.index(b',"rows":')] + b"}")
                rows = batch.count(b"],[") + batch.endswith(b"]]}")
                epoch, self.dropped = head["epoch"], head["dropped"]
                self.count += rows
                last = head["first"] + rows - 1 if rows else last

    def _get(self, connection: http.client.HTTPConnection, target: str) -> bytes:
        if connection.sock is None:
            connection.sock = socket.socket(socket.AF_UNIX)
            connection.sock.connect(str(self._control))
        connection.request("GET", target)
        return connection.getresponse().read()

    def end(self) -> None:
        """Stop."""
        self._is_ended.set()


def table(addresses: tuple[str, str], shadow_percent: float = 0.0) -> RouteTable:
    """What a deployment in a canary step may have, and a shadow if there is a share for it."""
    arms = (Arm("stable", 1, 90, addresses, model="m-v1"), Arm("candidate", 2, 10, addresses, model="m-v2"))
    much = 1_000_000_000
    route = Route(
        deployment="m",
        salt="rollout-1",
        arms=arms,
        shadow=Arm("shadow", 3, shadow_percent, addresses, model="m-v3") if shadow_percent else None,
        targets=(Target("candidate", header="x-canary"),),
        max_callers=CALLERS,
        aliases=("small",),
        versions=(("champion", 1), ("challenger", 2)),
        hold_seconds=5.0,
        in_flight=4096,
        queue=1024,
    )
    digest = hashlib.sha256(KEY.encode()).hexdigest()
    key = Key("bench", digest, ("m",), requests_per_minute=much, tokens_per_minute=much, in_flight=8192)
    others = tuple(Key(f"other-{i}", hashlib.sha256(b"%d" % i).hexdigest()) for i in range(20))
    return RouteTable(1, (route,), (key, *others), needs_key=True)


@contextmanager
def worker(
    folder: Path,
    addresses: tuple[str, str],
    core: int,
    *,
    name: str = "c",
    listen: str = "127.0.0.1:0",
    shadow_percent: float = 0.0,
) -> Iterator[GatewayProcess]:
    """A gateway's worker that follows `table`, with someone who fetches its records."""
    folder.mkdir(exist_ok=True)
    with GatewayProcess(root=folder, worker=name, listen=listen) as gateway:
        psutil.Process(gateway.process.pid).cpu_affinity([core])
        answer = gateway.control.put("/routes", json=table(addresses, shadow_percent).as_dict())
        assert answer.status_code == 200, answer.text
        reader = Reader(gateway.control_path)
        reader.start()
        try:
            yield gateway
        finally:
            reader.end()
            reader.join()
            if reader.dropped:
                print(f"{reader.dropped} records were dropped, {reader.count} fetched", file=sys.stderr)


def measure(candidates: list[Candidate], loads: Loads, rounds: int, seconds: float) -> None:
    """Loads A and B and the latency, *rounds* times *seconds* each."""
    for number in range(rounds):
        for one in candidates:
            with one.awake():
                before = one.cpu()
                served = loads.small(one.port, CONNECTIONS, seconds)
                one.rates.append(served.rate)
                one.cpu_seconds.append((one.cpu() - before) / (served.rate * max(1, round(seconds))))
                alone = loads.small(one.port, 1, max(1.0, seconds / 2))
                one.p50s.append(alone.p50)
                one.p99s.append(alone.p99)
                before = one.cpu()
                streamed = loads.streams(one.port, STREAMS, seconds, chunks=CHUNKS, gap_ms=GAP_MS)
                # All the chunks of the ramp count as half of what one at full load would bring.
                share = seconds / (seconds + CHUNKS * GAP_MS / 2000)
                one.chunk_cpu_seconds.append((one.cpu() - before) * share / max(1, streamed.chunks))
                one.chunk_rates.append(streamed.chunks / streamed.seconds)
                one.late_p99s_ms.append(streamed.late_p99_ms)
                told = f"{served.rate:.0f} requests/s, {one.chunk_rates[-1]:.0f} chunks/s, {streamed.errors} errors"
                print(f"round {number + 1}, {one.name}: {told}", file=sys.stderr, flush=True)


def memory_of_many(gateway: GatewayProcess, loads: Loads) -> float:
    """The most memory in MB that a worker has while `MANY_CONNECTIONS` stream."""
    most, port = 0, gateway.place[1]
    with loads.streaming(port, MANY_CONNECTIONS, 2.0, chunks=16, gap_ms=200.0) as process:
        while process.poll() is None:
            most = max(most, figures.memory(gateway.process.pid).rss)
            sleep(0.05)
        assert process.stdout is not None
        seen = Streamed(**json.loads(process.stdout.read()))
    assert seen.errors == 0, seen
    return most / 1e6


def table_effects(gateway: GatewayProcess, addresses: tuple[str, str], loads: Loads) -> list[float]:
    """Seconds from handing a table over to the first answer by it, of `TABLES`, under load A."""
    effects = []
    port = gateway.place[1]
    with loads.busy(port, CONNECTIONS), closing(http.client.HTTPConnection("127.0.0.1", port, timeout=10)) as client:

        def ask() -> str:
            headers = {"Authorization": f"Bearer {KEY}", "Content-Type": "application/json"}
            client.request("POST", "/v1/chat/completions", BODY, headers)
            answer = client.getresponse()
            answer.read()
            return answer.headers["x-stoker-version"] or ""

        for number in range(TABLES):
            source = table(addresses)
            version = 100 + number
            arms = tuple(replace(arm, version=version) for arm in source.routes[0].arms)
            changed = replace(source, version=2 + number, routes=(replace(source.routes[0], arms=arms),))
            body = changed.as_dict()
            began = monotonic()
            assert gateway.control.put("/routes", json=body).status_code == 200
            while ask() != str(version):
                pass
            effects.append(monotonic() - began)
    return effects


def spread(*pids: int) -> None:
    """Let these run wherever there is room: together they need more than the one core that each had."""
    for pid in pids:
        psutil.Process(pid).cpu_affinity([PROXY_CORE, LOAD_CORE])


def long_streams(
    folder: Path, addresses: tuple[str, str], loads: Loads, seconds: float, others: dict[str, int]
) -> dict[str, Streamed]:
    """`LONG_STREAMS` at 50 tokens a second over two workers, and over the *others* (name and port), on both cores."""
    with ExitStack() as stack:
        first = stack.enter_context(worker(folder / "two", addresses, PROXY_CORE))
        second = stack.enter_context(worker(folder / "two", addresses, LOAD_CORE, name="d", listen=first.listen))
        spread(os.getpid(), first.process.pid, second.process.pid)
        loads.small(first.place[1], CONNECTIONS, 1)  # whatever is made at the first use
        ports = {**others, US: first.place[1]}
        return {
            name: loads.streams(port, LONG_STREAMS, seconds, chunks=CHUNKS, gap_ms=LONG_GAP_MS)
            for name, port in ports.items()
        }


def report(candidates: list[Candidate]) -> dict[str, object]:
    """Print the table; give what is said of us beside the others."""
    direct, nginx, us = (next(c for c in candidates if c.name == name) for name in ("direct", "nginx", US))

    def added(one: Candidate, times: Callable[[Candidate], list[float]]) -> float:
        return median(times(one)) - median(times(direct))

    print(
        f"{'':14}{'A req/s':>9}{'of nginx':>9}{'cpu us':>8}{'added p50 ms':>13}{'p99 ms':>8}"
        f"{'B chunks/s':>11}{'of nginx':>9}{'cpu us':>8}{'late p99 ms':>12}{'RSS MB':>8}"
    )
    for one in candidates:
        rate, chunks = median(one.rates), median(one.chunk_rates)
        print(
            f"{one.name:14}{rate:9.0f}{rate / median(nginx.rates):9.3f}{median(one.cpu_seconds) * 1e6:8.1f}"
            f"{added(one, lambda c: c.p50s) * 1e3:13.3f}{added(one, lambda c: c.p99s) * 1e3:8.3f}"
            f"{chunks:11.0f}{chunks / median(nginx.chunk_rates):9.3f}{median(one.chunk_cpu_seconds) * 1e6:8.1f}"
            f"{median(one.late_p99s_ms):12.2f}{one.rss_mb:8.1f}"
        )
    result: dict[str, object] = {
        f"requests_vs_{c.name.replace('-', '_')}": median(us.rates) / median(c.rates) for c in candidates if c is not us
    }
    result["chunks_vs_nginx"] = median(us.chunk_rates) / median(nginx.chunk_rates)
    result["late_p99_vs_nginx"] = median(us.late_p99s_ms) / median(nginx.late_p99s_ms)
    result["added_p50_vs_nginx"] = added(us, lambda c: c.p50s) / added(nginx, lambda c: c.p50s)
    result["added_p99_vs_nginx"] = added(us, lambda c: c.p99s) / added(nginx, lambda c: c.p99s)
    result["cpu_us_per_request"] = median(us.cpu_seconds) * 1e6
    result["cpu_us_per_chunk"] = median(us.chunk_cpu_seconds) * 1e6
    return result


def run(arguments: argparse.Namespace, folder: Path, stack: ExitStack) -> dict[str, object]:
    """Start everything, measure, print the table; give what the last line says."""
    wanted = arguments.only.split(",") if arguments.only else list(proxies.COMMANDS)
    names = [name for name in proxies.COMMANDS if name in {*wanted, "nginx"}]
    missing = [name for name in names if proxies.find_program(name, arguments.venv) is None]
    for name in missing:
        print(f"{name} is not installed ({proxies.how_to_install(name)}); it is left out.", file=sys.stderr)
    machine = figures.machine()
    os.sched_setaffinity(0, {LOAD_CORE})
    loads = Loads(folder)
    sockets = folder / "backend-1.sock", folder / "backend-2.sock"
    backend = proxies.Backend(free_port(), sockets[0])
    server = stack.enter_context(loads.backend(backend.port, *sockets))
    candidates = [Candidate("direct", backend.port, None)]
    for name in names:
        if name not in missing:
            try:
                port, process = stack.enter_context(proxies.proxy(name, folder, backend, arguments.venv, PROXY_CORE))
            except RuntimeError as error:
                print(f"{name} can't be started; it is left out. {error}", file=sys.stderr)
                missing.append(name)
                continue
            candidates.append(Candidate(name, port, process))
            proxies.suspend(process)
    addresses = f"unix:{sockets[0]}", f"unix:{sockets[1]}"
    with (
        worker(folder / "w0", addresses, PROXY_CORE) as gateway,
        worker(folder / "w1", addresses, PROXY_CORE, shadow_percent=SHADOW_PERCENT) as copying,
    ):
        ours = {WITH_SHADOW: copying, US: gateway}
        processes = [psutil.Process(us.process.pid) for us in ours.values()]
        for (name, us), process in zip(ours.items(), processes, strict=True):
            candidates.append(Candidate(name, us.place[1], process))
            proxies.suspend(process)
        try:
            measure(candidates, loads, arguments.rounds, arguments.seconds)
        finally:
            for process in processes:
                proxies.resume(process)
        effects = sorted(table_effects(gateway, addresses, loads))
        many = memory_of_many(gateway, loads)
    nginx = next(c for c in candidates if c.name == "nginx")
    assert nginx.process is not None
    proxies.resume(nginx.process)
    spread(server.pid, *(p.pid for p in proxies.tree(nginx.process)))
    others = {"direct": backend.port, "nginx": nginx.port}
    streams = long_streams(folder, addresses, loads, arguments.seconds * 2, others)
    result = report(candidates)
    print(
        f"a new table, under load A, until the first answer by it: {1e3 * median(effects):.1f} ms, "
        f"at most {1e3 * effects[-1]:.1f} ms of {len(effects)}"
    )
    print(f"{US} at {MANY_CONNECTIONS} streaming connections: {many:.1f} MB a worker")
    print(f"{LONG_STREAMS} streams of 50 tokens/s, all on both cores ({US}: two workers; nginx: one):")
    for name, each in streams.items():
        print(
            f"{name:14}{each.chunks / each.seconds:9.0f} tokens/s, late p99 {each.late_p99_ms:.1f} ms, longest gap "
            f"{each.longest_gap_ms:.1f} ms, {each.gaps_over_50_ms} gaps over 50 ms, {each.errors} errors"
        )
    gaps = {f"longest_gap_{name}_ms": each.longest_gap_ms for name, each in streams.items() if name != US}
    result |= {
        "rss_mb": many,
        "longest_gap_ms": streams[US].longest_gap_ms,
        **gaps,
        "streams_errors": streams[US].errors,
    }
    result |= {"table_p50_ms": 1e3 * median(effects), "table_max_ms": 1e3 * effects[-1]}
    result |= {"missing": missing, **machine}
    return {name: round(value, 3) if isinstance(value, float) else value for name, value in result.items()}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=3.0, help="of each load in each round (default 3)")
    parser.add_argument("--only", default="", metavar="NAME,...", help="beside nginx alone and these")
    parser.add_argument(
        "--venv", type=Path, default=Path(os.environ.get("STOKER_BENCH_VENV", ".venv-bench")).absolute(),
        help="where the proxies from PyPI are (default: $STOKER_BENCH_VENV, else .venv-bench)",
    )  # fmt: skip
    parser.add_argument("--install", action="store_true", help="install them there first")
    arguments = parser.parse_args()
    lacking = [tool for tool in ("wrk", "taskset", "cc") if shutil.which(tool) is None]
    if proxies.find_program("nginx", arguments.venv) is None:
        lacking.append("nginx")
    if len(os.sched_getaffinity(0)) < 2:
        lacking.append("a second core")
    if lacking:
        print(f"skipped: {', '.join(lacking)} not installed; apt-get install wrk nginx-light util-linux gcc libc6-dev")
        return
    if arguments.install:
        proxies.install(arguments.venv)
    began = monotonic()
    with tempfile.TemporaryDirectory(prefix="stk-") as name, ExitStack() as stack:
        result = run(arguments, Path(name), stack)
    print(f"took {monotonic() - began:.0f} s", file=sys.stderr)
    print(json.dumps(result))


if __name__ == "__main__":
    main()
