from __future__ import annotations

import asyncio
import logging
import time

import pytest

from stokerd.loop import HELD_SECONDS, WatchedLoop, watch_loop


def said(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [r.getMessage() for r in caplog.records if r.name == "stokerd.loop"]


def test_what_holds_the_loop_is_logged_and_waiting_is_not(caplog: pytest.LogCaptureFixture) -> None:
    async def work() -> None:
        time.sleep(2 * HELD_SECONDS)  # a start  # noqa: ASYNC251
        watch_loop()
        await asyncio.sleep(2 * HELD_SECONDS)
        assert said(caplog) == []
        time.sleep(2 * HELD_SECONDS)  # noqa: ASYNC251
        await asyncio.sleep(0)
        assert len(said(caplog)) == 1

    with caplog.at_level(logging.WARNING), asyncio.Runner(loop_factory=WatchedLoop) as runner:
        runner.run(work())
    assert said(caplog)[0].startswith("the event loop was held for ")


def test_elsewhere_there_is_nothing_to_watch() -> None:
    async def work() -> None:
        watch_loop()

    asyncio.run(work())
