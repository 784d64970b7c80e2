"""What the gateway costs in front of a real vLLM: ``python tests/bench/bench_engine.py ENGINE_PYTHON [--rounds 5]``.

A tiny random model, so that an engine is as fast as it can be: 8 callers, each with a stream of 128 tokens, straight
to the engine's socket and through the gateway, in interleaved rounds. Prints tokens a second of each
(the median) and, last, one line of JSON. On a GPU a token takes longer, and the gateway the same.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
from pathlib import Path
from statistics import median
from time import perf_counter

import httpx

sys.path.insert(0, str(Path(__file__).parents[2]))

from stoker.types.serving import Replica  # noqa: I001
from tests.system.tiny import tiny_deployment, tiny_vllm

CALLERS = 8
TOKENS = 128


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
        for name, client in ways.items():
            rate = await tokens_per_second(client)
            if turn:  # the first round warms up
                rates[name].append(rate)
                print(f"round {turn}: {name} {rate:,.0f} tokens/s", file=sys.stderr)
    for client in ways.values():
        await client.aclose()
    return {name: median(found) for name, found in rates.items()}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("python", type=lambda text: Path(text).absolute(), help="interpreter that has vllm")
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    if not arguments.python.exists():
        print(f"skipped: there is no {arguments.python}; `make engine` makes it")
        return
    with tiny_vllm(tiny_deployment(), arguments.python) as daemon:
        socket = daemon.client.get(Replica, "tiny-v1-0").address.removeprefix("unix:")
        rates = asyncio.run(measure(socket, daemon.port, arguments.rounds))
    for name, rate in rates.items():
        print(f"{name:8} {rate:10,.0f} tokens/s")
    print(json.dumps({"tokens_vs_direct": round(rates["gateway"] / rates["direct"], 3), "rounds": arguments.rounds}))


if __name__ == "__main__":
    main()
