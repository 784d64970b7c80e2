from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import asynccontextmanager
from functools import wraps
from pathlib import Path
from typing import Any, ParamSpec

import pytest

from stoker.types.serving import VllmEngine
from stokerd.serving.asking import ask
from stokerd.serving.engines.vllm import Vllm
from stokerd.serving.gateway import Traffic
from stokerd.serving.health import Condition, Look, Sick, Vitals, diagnose
from stokerd.serving.looks import Looks, Patient, look_at
from tests.harness import DEADLINE

P = ParamSpec("P")
Answer = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


def run_in_loop(test: Callable[P, Coroutine[Any, Any, None]]) -> Callable[P, None]:
    """Make a test of a coroutine."""

    @wraps(test)
    def run(*args: P.args, **kwargs: P.kwargs) -> None:
        asyncio.run(test(*args, **kwargs))

    return run


@asynccontextmanager
async def served(folder: Path, answer: Answer) -> AsyncIterator[str]:
    """The address of a server that does *answer* to each connection."""
    path = folder / "s"

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await answer(reader, writer)
        finally:
            writer.close()

    server = await asyncio.start_unix_server(handle, path)
    try:
        yield f"unix:{path}"
    finally:
        server.close()


def says(*pieces: bytes, asked: list[bytes] | None = None) -> Answer:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        line = (await reader.readuntil(b"\r\n\r\n")).split(b"\r\n")[0]
        if asked is not None:
            asked.append(line)
        for piece in pieces:
            writer.write(piece)
            await writer.drain()

    return answer


async def hangs(_reader: asyncio.StreamReader, _writer: asyncio.StreamWriter) -> None:
    await asyncio.sleep(3600)


@pytest.mark.parametrize("status", [b"200 OK", b"404 Not Found", b"503 Service Unavailable"])
@run_in_loop
async def test_any_http_answer_is_one(tmp_path: Path, status: bytes) -> None:
    asked: list[bytes] = []
    answer = says(b"HTTP/1.1 ", status, b"\r\n\r\n", b"body", asked=asked)
    async with served(tmp_path, answer) as address:
        assert await ask(address, "/health", DEADLINE) == f"HTTP/1.1 {status.decode()}\r\n\r\nbody"
    assert asked == [b"GET /health HTTP/1.0"]


@run_in_loop
async def test_no_answer_is_none(tmp_path: Path) -> None:
    assert await ask(f"unix:{tmp_path}/none", "/health", DEADLINE) is None
    assert await ask("nonsense", "/health", DEADLINE) is None
    async with served(tmp_path, says(b"SSH-2.0")) as address:
        assert await ask(address, "/health", DEADLINE) is None
    async with served(tmp_path, says()) as address:
        assert await ask(address, "/health", DEADLINE) is None


@run_in_loop
async def test_a_server_that_hangs_is_waited_for_no_longer_than_told(tmp_path: Path) -> None:
    async with served(tmp_path, hangs) as address:
        assert await ask(address, "/health", 0.05) is None


@run_in_loop
async def test_an_answer_that_has_no_end_is_one_all_the_same(tmp_path: Path) -> None:
    async def begins(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\n\r\n")
        await hangs(reader, writer)

    async with served(tmp_path, begins) as address:
        # Long enough for the first bytes to come on any machine, as they are there before it is asked.
        assert await ask(address, "/health", 2) == "HTTP/1.1 200 OK\r\n\r\n"


METRICS = b'HTTP/1.1 200 OK\r\n\r\nvllm:iteration_tokens_total_count{engine="0"} 7.0\n'


@pytest.mark.parametrize(
    ("traffic", "condition", "expected"),
    [
        (None, "ready", None),
        (Traffic(0.0, 5), "ready", None),
        (Traffic(1.0, 5), "ready", 7.0),
        (Traffic(0.0, 5), "stalled", 7.0),
    ],
)
@run_in_loop
async def test_metrics_are_asked_only_of_a_server_that_has_work(
    tmp_path: Path, traffic: Traffic | None, condition: str, expected: float | None
) -> None:
    asked: list[bytes] = []

    async def present() -> Traffic | None:
        return traffic

    engine = Vllm(VllmEngine(type="vllm"), "/py")
    async with served(tmp_path, says(METRICS, asked=asked)) as address:
        look = await look_at(address, engine, condition, present, DEADLINE)  # type: ignore[arg-type]
    assert (look.has_answered, look.steps) == (True, expected)
    assert look.received == (5 if traffic else None)
    assert (b"GET /metrics HTTP/1.0" in asked) is (expected is not None)


class Server:
    """Is looked at when the test says what there is to see."""

    def __init__(self) -> None:
        self.seen: asyncio.Queue[Look | Exception] = asyncio.Queue()
        self.looked: asyncio.Queue[Condition] = asyncio.Queue()

    async def look(self, condition: Condition) -> Look:
        self.looked.put_nowait(condition)
        seen = await self.seen.get()
        if isinstance(seen, Exception):
            raise seen
        return seen

    async def shows(self, seen: Look | Exception) -> Condition:
        """Have that seen, and return as what it is looked at after that."""
        self.seen.put_nowait(seen)
        return await self.is_looked_at()

    async def is_looked_at(self) -> Condition:
        async with asyncio.timeout(DEADLINE):
            return await self.looked.get()


def silent(at: float) -> Look:
    return Look(at=at, has_answered=False)


@run_in_loop
async def test_looks_are_made_one_at_a_time_and_never_waited_for() -> None:
    looks, server = Looks(lambda: None), Server()
    patient = Patient("ready", 1.0, server.look)
    assert looks.vitals("p", patient) is None
    assert looks.vitals("p", patient) is None
    await server.is_looked_at()
    assert server.looked.empty()
    await server.shows(silent(1.0))
    await server.shows(silent(3.0))
    second = looks.vitals("p", patient)
    assert second is not None
    assert second.silent_seconds == 2.0
    await server.shows(RuntimeError("a bug of ours"))
    assert looks.vitals("p", patient) == second
    looks.begin_anew("p")
    assert looks.vitals("p", patient) is None
    await server.shows(silent(9.0))
    looks.keep_only(("p",))
    assert looks.vitals("p", patient) is not None
    looks.keep_only(())
    server.seen.put_nowait(silent(11.0))  # nobody looks any more
    assert looks.vitals("p", patient) is None
    await looks.close()


@run_in_loop
async def test_only_a_look_that_changes_something_is_news() -> None:
    told: list[str] = []
    looks, server = Looks(lambda: told.append("news")), Server()

    def vitals(condition: Condition) -> Vitals | None:
        return looks.vitals("p", Patient(condition, 1.0, server.look))

    vitals("ready")
    assert await server.is_looked_at() == "ready"
    await server.shows(silent(1.0))
    await server.shows(Look(at=1.5, has_answered=True))
    await server.shows(silent(2.0))
    assert not told
    await server.shows(silent(2.6))
    assert told == ["news"]
    found = vitals("ready")
    assert found is not None
    assert isinstance(diagnose(found, "ready", 1.0), Sick)
    looks.counts_as("p", "unreachable")
    assert await server.shows(silent(2.7)) == "unreachable"
    assert told == ["news"]
    await server.shows(Look(at=2.8, has_answered=True))
    assert told == ["news", "news"]
    await looks.close()
