"""What the gateway costs in front of a real vLLM: ``python tests/bench/bench_engine.py ENGINE_PYTHON [--rounds 5]``.

8 callers, each with a stream of 64 tokens, straight to the engine's socket and through the gateway, in interleaved
rounds. The engine has a core of its own, as on a GPU host; gateway, daemon and client share another one. Two models: a
random one that makes a token in a millisecond or two, which no model that anybody serves does, and the demo's, where
it is at hand. Prints tokens a second of each way (the median) and, last, one line of JSON.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import sys
from pathlib import Path
from statistics import median
from time import perf_counter

import httpx
import psutil

sys.path.insert(0, str(Path(__file__).parents[2]))

from stoker.types.serving import Replica  # noqa: I001
from tests.system.loop import pid_of, pids_of
from tests.system.tiny import tiny_deployment, tiny_vllm

CALLERS = 8
TOKENS = 64
DEMO_MODEL = Path(__file__).parents[2] / ".demo" / "model"


def keep_on(pid: int, core: int) -> None:
    """Let all threads of a process and its descendants run on one core alone."""
    root = psutil.Process(pid)
    for process in (root, *root.children(recursive=True)):
        for thread in process.threads():
            os.sched_setaffinity(thread.id, {core})


async def tokens_per_second(client: httpx.AsyncClient) -> float:
    """What `CALLERS` get together."""
    body = {"model": "tiny", "prompt": "Hi", "max_tokens": TOKENS, "stream": True, "ignore_eos": True}

    async def call(number: int) -> int:
        asked = {**body, "user": f"caller-{number}", "stream_options": {"include_usage": True}}
        async with client.stream("POST", "/v1/completions", json=asked) as response:
            response.raise_for_status()
            lines = [line async for line in response.aiter_lines() if line.startswith("data: {")]
        return int(json.loads(lines[-1].removeprefix("data: "))["usage"]["completion_tokens"])

    begin = perf_counter()
    counts = await asyncio.gather(*(call(number) for number in range(CALLERS)))
    return sum(counts) / (perf_counter() - begin)


async def measure(socket: str, port: int, rounds: int) -> dict[str, float]:
    """Tokens a second of each way, the median over *rounds*."""
    ways = {
        "direct": httpx.AsyncClient(
            transport=httpx.AsyncHTTPTransport(uds=socket), base_url="http://vllm", timeout=120, trust_env=False
        ),
        "gateway": httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=120, trust_env=False),
    }
    rates: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(rounds + 1):
        for name, client in sorted(ways.items(), reverse=bool(turn % 2)):
            rate = await tokens_per_second(client)
            if turn:  # the first round warms up
                rates[name].append(rate)
                print(f"round {turn}: {name} {rate:,.0f} tokens/s", file=sys.stderr)
    for client in ways.values():
        await client.aclose()
    return {name: median(found) for name, found in rates.items()}


def ratio(title: str, python: Path, weights: Path | None, rounds: int, cores: list[int]) -> float:
    """Print tokens a second of each way, and give the gateway's over the direct one's."""
    with tiny_vllm(tiny_deployment(), python, weights) as daemon:
        assert daemon.process is not None
        for pid in (os.getpid(), daemon.process.pid, *pids_of(daemon, "gateway-")):
            keep_on(pid, cores[-1])
        keep_on(pid_of(daemon, "replica-tiny-v1-0-"), cores[0])
        socket = daemon.client.get(Replica, "tiny-v1-0").address.removeprefix("unix:")
        rates = asyncio.run(measure(socket, daemon.port, rounds))
    os.sched_setaffinity(0, cores)
    for name, rate in rates.items():
        print(f"{title:24} {name:8} {rate:10,.0f} tokens/s")
    return round(rates["gateway"] / rates["direct"], 3)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("python", type=lambda text: Path(text).absolute(), help="interpreter that has vllm")
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    if not arguments.python.exists():
        print(f"skipped: there is no {arguments.python}; `make engine` makes it")
        return
    cores = sorted(os.sched_getaffinity(0))
    told: dict[str, float] = {"rounds": arguments.rounds, "cores": len(cores)}
    told["tokens_vs_direct_random"] = ratio("116,000 parameters", arguments.python, None, arguments.rounds, cores)
    if DEMO_MODEL.exists():
        told["tokens_vs_direct"] = ratio("SmolLM2-135M", arguments.python, DEMO_MODEL, arguments.rounds, cores)
    print(json.dumps(told))


if __name__ == "__main__":
    main()
