from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from stokerd.gateway.limits import Limits
from stokerd.gateway.upstream import Pool, UpstreamConnection
from tests.harness import DEADLINE

ANSWER = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok"


class Broken:
    """A taker of answers with a bug in it."""

    def __init__(self) -> None:
        self.told = asyncio.Event()
        self.reason = ""

    def received(self, *_: object) -> None:
        raise ZeroDivisionError("a bug")

    def broken(self, _upstream: UpstreamConnection, reason: str) -> None:
        self.reason = reason
        self.told.set()


def test_a_bug_in_handing_an_answer_on_ends_the_request_and_leaves_nobody_waiting(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(ANSWER)
        await reader.read()
        writer.close()
        await writer.wait_closed()

    async def work() -> Broken:
        path = tmp_path / "r.sock"
        server = await asyncio.start_unix_server(answer, path)
        sink, pool = Broken(), Pool(Limits())
        address = f"unix:{path}"
        pool.know({address})
        upstream = await pool.connect(address)
        upstream.send(sink, b"POST / HTTP/1.1\r\n\r\n", b"")
        await asyncio.wait_for(sink.told.wait(), DEADLINE)
        assert pool.take(address) is None  # nor is the connection used again
        server.close()
        await server.wait_closed()
        return sink

    sink = asyncio.run(work())
    assert "error inside the gateway" in sink.reason
    assert "can't be handed on" in caplog.text
