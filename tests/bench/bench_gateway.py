"""How fast the gateway is beside nginx: ``python tests/bench/bench_gateway.py [--rounds 3] [--seconds 4]``.

Load A: one small chat asked again and again, a 603-byte JSON answer, over 32 connections; then over one, for the added
latency. Each proxy alone has core 0; wrk and the backend share core 1. Rounds are interleaved and medians taken: still,
trust ratios, not decimals. Needs wrk and nginx (Debian packages of those names); says so and ends with 0 without them.
Prints a table, and last one line of JSON.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from statistics import median

import psutil

sys.path.insert(0, str(Path(__file__).parents[2]))

from stokerd.gateway.wire import Arm, Route  # noqa: I001
from tests.harness import free_port, wait_for
from tests.system.upstream import GatewayProcess

ANSWER = {
    "id": "chatcmpl-0123456789", "object": "chat.completion", "created": 1700000000, "model": "m",
    "choices": [{"index": 0, "message": {"role": "assistant", "content": ""}, "finish_reason": "stop"}],
    "usage": {"prompt_tokens": 21, "total_tokens": 73, "completion_tokens": 52},
}  # fmt: skip
ANSWER_BYTES = 603
BODY = {"model": "m", "messages": [{"role": "user", "content": "Say hello to everyone in the room, please."}]}
CONNECTIONS = 32
UNITS = {"us": 1e-6, "ms": 1e-3, "s": 1.0}


def answer_text() -> str:
    """The backend's answer, filled up to `ANSWER_BYTES`."""
    missing = ANSWER_BYTES - len(json.dumps(ANSWER))
    return json.dumps(ANSWER).replace('"content": ""', f'"content": "{"x" * missing}"')


@contextmanager
def nginx(folder: Path, name: str, core: int, http: str) -> Iterator[psutil.Process]:
    """An nginx of one process, with *http* inside its http block, pinned to *core*."""
    config = folder / f"{name}.conf"
    config.write_text(
        f"daemon off; master_process off; pid {folder}/{name}.pid; error_log {folder}/{name}.log;\n"
        f"events {{ worker_connections 4096; }}\n"
        f"http {{ access_log off; keepalive_requests 100000000; client_body_temp_path {folder}/{name}-b;\n"
        f"proxy_temp_path {folder}/{name}-p; fastcgi_temp_path {folder}/{name}-f; uwsgi_temp_path {folder}/{name}-u;\n"
        f"scgi_temp_path {folder}/{name}-s;\n{http}\n}}\n"
    )
    process = subprocess.Popen(["taskset", "-c", str(core), "nginx", "-c", config, "-e", folder / f"{name}.err"])
    try:
        yield psutil.Process(process.pid)
    finally:
        process.terminate()
        process.wait(10)


def wrk(folder: Path, url: str, connections: int, seconds: int) -> tuple[float, float, float]:
    """Requests per second, and p50 and p99 latency in seconds."""
    script = folder / "post.lua"
    script.write_text(
        f"wrk.method = 'POST'\nwrk.body = [[{json.dumps(BODY)}]]\nwrk.headers['Content-Type'] = 'application/json'\n"
    )
    command = [
        "taskset",
        "-c",
        "1",
        "wrk",
        "-t1",
        f"-c{connections}",
        f"-d{seconds}s",
        "--latency",
        "-s",
        str(script),
        url,
    ]
    text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert "Non-2xx" not in text, text
    assert "Socket errors" not in text, text
    rate = re.search(r"Requests/sec:\s+([\d.]+)", text)
    percentiles = dict(re.findall(r"(50|99)%\s+([\d.]+(?:us|ms|s))", text))
    assert rate
    return float(rate[1]), *(seconds_of(percentiles[p]) for p in ("50", "99"))


def seconds_of(text: str) -> float:
    """Read wrk's ``12.3us``."""
    number, unit = re.fullmatch(r"([\d.]+)(\w+)", text).groups()  # type: ignore[union-attr]
    return float(number) * UNITS[unit]


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=int, default=4)
    arguments = parser.parse_args()
    missing = [tool for tool in ("wrk", "nginx", "taskset") if shutil.which(tool) is None]
    if missing:
        print(f"skipped: {', '.join(missing)} not installed")
        return
    with tempfile.TemporaryDirectory(prefix="stk-") as name, ExitStack() as stack:
        folder = Path(name)
        measure(folder, stack, arguments.rounds, arguments.seconds)


def measure(folder: Path, stack: ExitStack, rounds: int, seconds: int) -> None:
    """Start everything, measure *rounds* times *seconds* each, print."""
    backend, ports = folder / "backend.sock", {"direct": free_port(), "nginx": free_port()}
    answer = f"location / {{ default_type application/json; return 200 '{answer_text()}'; }}"
    listen = f"listen unix:{backend}; listen 127.0.0.1:{ports['direct']} reuseport;"
    stack.enter_context(nginx(folder, "backend", 1, f"server {{ {listen} {answer} }}"))
    proxy = (
        f"upstream b {{ server unix:{backend}; keepalive 128; }} server {{ listen 127.0.0.1:{ports['nginx']};"
        " location / { proxy_pass http://b; proxy_http_version 1.1; proxy_set_header Connection ''; } }"
    )
    peer = stack.enter_context(nginx(folder, "proxy", 0, proxy))
    wait_for(backend.exists, "the backend listens")
    gateway = stack.enter_context(GatewayProcess(root=folder))
    psutil.Process(gateway.process.pid).cpu_affinity([0])
    addresses = (f"unix:{backend}",)
    gateway.put(Route("m", "s", (Arm("stable", 1, 90, addresses), Arm("candidate", 2, 10, addresses))))
    urls = {name: f"http://127.0.0.1:{port}/v1/chat/completions" for name, port in ports.items()}
    urls["stoker"] = f"{gateway.url}/v1/chat/completions"
    processes = {"nginx": peer, "stoker": psutil.Process(gateway.process.pid)}
    rates, cpus, p50s, p99s = ({name: list[float]() for name in urls} for _ in range(4))
    for _ in range(rounds):
        for name, url in urls.items():
            before = cpu_seconds(processes.get(name))
            rate, _, _ = wrk(folder, url, CONNECTIONS, seconds)
            rates[name].append(rate)
            cpus[name].append((cpu_seconds(processes.get(name)) - before) / (rate * seconds))
            _, p50, p99 = wrk(folder, url, 1, max(1, seconds // 2))
            p50s[name].append(p50)
            p99s[name].append(p99)
            gateway.forget()
    report(*({n: median(v) for n, v in figures.items()} for figures in (rates, cpus, p50s, p99s)))
    print(f"gateway's memory: {processes['stoker'].memory_info().rss / 1e6:.0f} MB", file=sys.stderr)


def cpu_seconds(process: psutil.Process | None) -> float:
    """CPU time that *process* has used, in user and kernel mode."""
    times = process.cpu_times() if process else None
    return times.user + times.system if times else 0.0


def report(rates: dict[str, float], cpus: dict[str, float], p50s: dict[str, float], p99s: dict[str, float]) -> None:
    """Print the table and the line."""
    print(f"{'':8} {'req/s':>9} {'of nginx':>9} {'cpu us/req':>11} {'added p50 ms':>13} {'added p99 ms':>13}")
    for name, rate in rates.items():
        added = [(times[name] - times["direct"]) * 1e3 for times in (p50s, p99s)]
        cpu = cpus[name] * 1e6
        print(f"{name:8} {rate:9.0f} {rate / rates['nginx']:9.2f} {cpu:11.1f} {added[0]:13.3f} {added[1]:13.3f}")
    result = {"requests_vs_nginx": rates["stoker"] / rates["nginx"], "cpu_us_per_request": cpus["stoker"] * 1e6}
    result["cpu_vs_nginx"] = cpus["stoker"] / cpus["nginx"]
    for name, times in (("p50", p50s), ("p99", p99s)):
        of_nginx = times["nginx"] - times["direct"]
        result[f"added_{name}_vs_nginx"] = (times["stoker"] - times["direct"]) / of_nginx if of_nginx > 0 else 0.0
    print(json.dumps({name: round(value, 3) for name, value in result.items()}))


if __name__ == "__main__":
    main()
