"""What is asked of each proxy: load A by wrk, streams by `stream_client.c`, both of the server in `paced_backend.c`."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.harness import wait_for

KEY = "sk-bench-0123456789abcdef"
CALLERS = 64
NEW_HEADS = 4
"""Of so many small requests one has a head that nobody saw before, with a ``traceparent`` of its own; others are alike
but for their caller."""
SMALL = {"model": "m", "messages": [{"role": "user", "content": "Say hello to everyone in the room, please."}]}
_SOURCES = Path(__file__).parent
_UNITS = {"us": 1e-6, "ms": 1e-3, "s": 1.0}


@dataclass(frozen=True, slots=True)
class Served:
    """What wrk saw: requests a second, latencies in seconds."""

    rate: float
    p50: float
    p99: float


@dataclass(frozen=True, slots=True)
class Streamed:
    """What `stream_client.c` saw. Chunks and gaps are those of single streams; late: after the moment it was due."""

    chunks: int
    streams: int
    errors: int
    seconds: float
    late_p50_ms: float
    late_p99_ms: float
    late_most_ms: float
    longest_gap_ms: float
    gaps_over_50_ms: int


def headers(caller: int) -> dict[str, str]:
    """Those of one of `CALLERS`: every proxy gets all of them, whatever it makes of them."""
    return {
        "Content-Type": "application/json",
        "Authorization": f"Bearer {KEY}",
        "X-Stoker-Session": f"session-{caller}",
    }


class Loads:
    """The programs, made ready in *folder*. Whoever calls is pinned to the load's core; they inherit that."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        for name in ("paced_backend", "stream_client"):
            subprocess.run(["cc", "-O2", "-o", folder / name, _SOURCES / f"{name}.c"], check=True)
        self._script = folder / "small.lua"
        self._script.write_text(_lua())

    @contextmanager
    def backend(self, port: int, *sockets: Path) -> Iterator[subprocess.Popen[bytes]]:
        """The server behind everything, on loopback's *port* and on *sockets*."""
        process = subprocess.Popen([self._folder / "paced_backend", str(port), *sockets])
        try:
            wait_for(sockets[-1].exists, "the backend listens")
            yield process
        finally:
            process.kill()
            process.wait()

    def small(self, port: int, connections: int, seconds: float) -> Served:
        """Load A: small JSON answers, over so many connections, as fast as they come."""
        command = ["wrk", "-t1", f"-c{connections}", f"-d{max(1, round(seconds))}s", "--timeout", "20s", "--latency"]
        command += ["-s", str(self._script), f"http://127.0.0.1:{port}"]
        text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        if "Non-2xx" in text or "Socket errors" in text:
            raise RuntimeError(f"load A on port {port} met errors:\n{text}")
        rate = re.search(r"Requests/sec:\s+([\d.]+)", text)
        found = dict(re.findall(r"(50|99)%\s+([\d.]+(?:us|ms|s))", text))
        assert rate is not None, text
        return Served(float(rate[1]), _seconds(found["50"]), _seconds(found["99"]))

    @contextmanager
    def busy(self, port: int, connections: int) -> Iterator[None]:
        """Load A for the length of the block."""
        command = ["wrk", "-t1", f"-c{connections}", "-d600s", "-s", str(self._script), f"http://127.0.0.1:{port}"]
        with subprocess.Popen(command, stdout=subprocess.DEVNULL) as process:
            try:
                yield
            finally:
                process.kill()

    def streams(self, port: int, connections: int, seconds: float, *, chunks: int, gap_ms: float) -> Streamed:
        """Streams on so many connections, each of *chunks*, one every *gap_ms*; measured once all have begun."""
        with self.streaming(port, connections, seconds, chunks=chunks, gap_ms=gap_ms) as process:
            out, errors = process.communicate()
        if process.returncode:
            raise RuntimeError(f"the streams failed: {errors}")
        return Streamed(**json.loads(out))

    @contextmanager
    def streaming(
        self, port: int, connections: int, seconds: float, *, chunks: int, gap_ms: float
    ) -> Iterator[subprocess.Popen[str]]:
        """The same, while it goes on."""
        requests = self._folder / "streams"
        asked = SMALL | {"stream": True, "max_tokens": chunks, "seed": round(gap_ms * 1000)}
        requests.write_bytes(b"".join(_request(asked, caller) + b"\0" for caller in range(CALLERS)))
        options = map(str, (connections, seconds, round(chunks * gap_ms), port, requests))
        command = [str(self._folder / "stream_client"), *options]
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
            try:
                yield process
            finally:
                if process.poll() is None:
                    process.kill()


def _request(asked: object, caller: int) -> bytes:
    body = json.dumps(asked)
    lines = ["POST /v1/chat/completions HTTP/1.1", "Host: 127.0.0.1", f"Content-Length: {len(body)}"]
    lines += [f"{name}: {value}" for name, value in headers(caller).items()]
    return "\r\n".join([*lines, "", body]).encode()


def _lua() -> str:
    """A script for wrk: requests made once, taken in turn; those with a new head get its trace in between."""
    fields = [", ".join(f"['{n}'] = '{v}'" for n, v in headers(caller).items()) for caller in range(CALLERS)]
    made = "\n".join(f"  make({i}, {{{f}}})" for i, f in enumerate(fields))
    return f"""
local known, before, after = {{}}, {{}}, {{}}
local count, began, trace = 0, os.time(), string.rep('@', 32)
local function make(i, headers)
  known[i] = wrk.format('POST', '/v1/chat/completions', headers, [[{json.dumps(SMALL)}]])
  headers['Traceparent'] = '00-' .. trace .. '-0123456789abcdef-01'
  local text = wrk.format('POST', '/v1/chat/completions', headers, [[{json.dumps(SMALL)}]])
  local at = string.find(text, trace, 1, true)
  before[i], after[i] = string.sub(text, 1, at - 1), string.sub(text, at + 32)
end
function init(args)
{made}
end
function request()
  count = count + 1
  local turn = count % {CALLERS}
  if (count + math.floor(count / {CALLERS})) % {NEW_HEADS} ~= 0 then return known[turn] end
  return before[turn] .. string.format('%016x%016x', began, count) .. after[turn]
end
"""


def _seconds(text: str) -> float:
    match = re.fullmatch(r"([\d.]+)(\w+)", text)
    assert match is not None
    return float(match[1]) * _UNITS[match[2]]
