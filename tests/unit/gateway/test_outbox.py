from __future__ import annotations

import asyncio
from typing import Any

from stokerd.gateway.outbox import Outbox


class Transport:
    """Notes what is written, and in which order."""

    def __init__(self, name: str, log: list[tuple[str, bytes]]) -> None:
        self._name, self._log = name, log
        self.is_gone = False

    def write(self, data: bytes) -> None:
        assert not self.is_gone
        self._log.append((self._name, data))

    def is_closing(self) -> bool:
        return self.is_gone


async def make_busy(outbox: Outbox, transport: Any, log: list[tuple[str, bytes]]) -> int:
    """Write until something is held back; how many writes went out before."""
    for number in range(1000):
        outbox.write(transport, b"%d" % number)
        if len(log) == number:
            return number
    raise AssertionError("nothing is ever held back")


def test_a_few_writes_go_out_at_once() -> None:
    async def work() -> None:
        log: list[tuple[str, bytes]] = []
        outbox, one = Outbox(), Transport("one", log)
        for number in range(10):
            outbox.write(one, b"%d" % number)  # type: ignore[arg-type]
            assert len(log) == number + 1

    asyncio.run(work())


def test_under_load_writes_wait_for_the_end_of_the_turn_and_stay_in_order() -> None:
    async def work() -> None:
        log: list[tuple[str, bytes]] = []
        outbox, one, two = Outbox(), Transport("one", log), Transport("two", log)
        count = await make_busy(outbox, one, log)
        outbox.write(two, b"a")  # type: ignore[arg-type]
        outbox.write(one, b"b")  # type: ignore[arg-type]
        assert len(log) == count
        await asyncio.sleep(0)
        assert log[count:] == [("one", b"%d" % count), ("two", b"a"), ("one", b"b")]
        outbox.write(two, b"c")  # type: ignore[arg-type]
        await asyncio.sleep(0)  # one alone is no load any more
        outbox.write(two, b"d")  # type: ignore[arg-type]
        assert log[-2:] == [("two", b"c"), ("two", b"d")]

    asyncio.run(work())


def test_what_must_come_first_can_be_flushed_and_who_has_gone_gets_nothing() -> None:
    async def work() -> None:
        log: list[tuple[str, bytes]] = []
        outbox, one, two = Outbox(), Transport("one", log), Transport("two", log)
        count = await make_busy(outbox, one, log)
        outbox.write(two, b"a")  # type: ignore[arg-type]
        two.is_gone = True
        outbox.flush()
        assert log[count:] == [("one", b"%d" % count)]
        await asyncio.sleep(0)
        assert len(log) == count + 1

    asyncio.run(work())


def test_no_more_is_held_back_than_fits() -> None:
    async def work() -> None:
        log: list[tuple[str, bytes]] = []
        outbox, one = Outbox(), Transport("one", log)
        count = await make_busy(outbox, one, log)
        outbox.write(one, b"x" * 40_000)  # type: ignore[arg-type]
        assert len(log) == count
        outbox.write(one, b"y" * 40_000)  # type: ignore[arg-type]
        assert [data[:1] for _, data in log[count:]][1:] == [b"x", b"y"]

    asyncio.run(work())
