"""The headless half: what is known stays true, whatever the daemon does."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import Any

import pytest

from stoker.client import AsyncClient
from stoker.errors import Conflict, Internal, NotFound, StokerError
from stoker.paths import Home
from stoker.types.training import Succeeded
from stoker_tui.model import Connected, Lost
from stoker_tui.store import Store, Watch, owned, retry_delay
from tests.harness import DEADLINE
from tests.tui import world
from tests.tui.server import CannedDaemon
from tests.tui.world import StillClock

ALL = Watch(host=True, traffic=True)


@asynccontextmanager
async def following(home: Home, clock: StillClock, wanted: Watch = ALL) -> AsyncIterator[Store]:
    store = Store(AsyncClient(home.socket), clock, lambda: None)
    store.wanted = lambda: wanted
    task = asyncio.create_task(store.run())
    try:
        yield store
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await store.client.close()


async def until(condition: Callable[[], bool], seconds: float = DEADLINE) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        await asyncio.sleep(0.005)


async def rounds(store: Store, count: int = 2) -> None:
    goal = store.rounds + count

    def asked() -> bool:
        store.hurry()
        return store.rounds >= goal

    await until(asked)


def run(body: Coroutine[Any, Any, None]) -> None:
    asyncio.run(body)


def test_everything_is_listed_once_and_then_only_what_changed_is_asked_for(
    daemon: CannedDaemon, home: Home, clock: StillClock
) -> None:
    async def body() -> None:
        async with following(home, clock, Watch()) as store:
            await until(lambda: len(store.view.events) == 12)
            assert len(store.view.runs) == 5 and len(store.view.replicas) == 4
            daemon.asked.clear()
            daemon.put(world.run(12, state=Succeeded(started_at=world.NOON, finished_at=world.NOON)), "RunSucceeded")
            await until(lambda: store.view.runs["tune-12"].phase == "succeeded")
            assert daemon.asked == {"GET /v1/runs/tune-12": 1}

    run(body())


def test_a_deleted_resource_is_gone(daemon: CannedDaemon, home: Home, clock: StillClock) -> None:
    async def body() -> None:
        async with following(home, clock) as store:
            await until(lambda: "embed-v1-0" in store.view.replicas)
            daemon.remove(daemon.resources["replicas"]["embed-v1-0"], "ReplicaStopped")
            await until(lambda: "embed-v1-0" not in store.view.replicas)

    run(body())


def test_a_burst_of_events_about_one_thing_costs_few_questions(
    daemon: CannedDaemon, home: Home, clock: StillClock
) -> None:
    async def body() -> None:
        async with following(home, clock, Watch()) as store:
            await until(lambda: len(store.view.events) == 12)
            daemon.asked.clear()
            with daemon.at_once():
                for step in range(200):
                    daemon.tell("rollout", "chat-v4", "GuardJudged", f"look {step}")
            await until(lambda: len(store.view.events) == 212)
            await until(lambda: daemon.asked["GET /v1/rollouts/chat-v4"] > 0)
            assert daemon.asked["GET /v1/rollouts/chat-v4"] < 20

    run(body())


def test_no_event_is_missed_or_doubled_over_a_restart_of_the_daemon(
    daemon: CannedDaemon, home: Home, clock: StillClock
) -> None:
    async def body() -> None:
        async with following(home, clock) as store:
            await until(lambda: len(store.view.events) == 12)
            daemon.stop()
            await until(lambda: isinstance(store.view.link, Lost))
            assert len(store.view.runs) == 5, "the last view is kept"
            for step in range(5):
                daemon.tell("run", "tune-12", "Told", f"while nobody listened, {step}")
            daemon.put(world.run(14))
            daemon.start()
            await until(lambda: len(store.view.events) == 17)
            assert [e.id for e in store.view.events] == list(range(1, 18))
            assert isinstance(store.view.link, Connected)
            assert "tune-14" in store.view.runs

    run(body())


def test_another_home_behind_the_same_socket_is_begun_anew(daemon: CannedDaemon, home: Home, clock: StillClock) -> None:
    async def body() -> None:
        async with following(home, clock, Watch(curves=frozenset({"tune-12"}))) as store:
            await until(lambda: len(store.view.events) == 12 and "tune-12" in store.view.curves)
            daemon.stop()
            daemon.events.clear()
            daemon.resources["runs"].clear()
            daemon.tell("host", "attic", "DaemonStarted", "stokerd started.")
            daemon.start()
            await until(lambda: [e.reason for e in store.view.events] == ["DaemonStarted"])
            assert not store.view.runs

    run(body())


def test_how_long_the_daemon_is_gone_is_counted_from_its_first_absence(
    daemon: CannedDaemon, home: Home, clock: StillClock
) -> None:
    async def body() -> None:
        async with following(home, clock) as store:
            await until(lambda: store.view.is_live)
            daemon.stop()
            await until(lambda: isinstance(store.view.link, Lost))
            first = store.view.link
            clock.advance(30)
            await until(lambda: store.view.link is not first)
            assert isinstance(first, Lost) and isinstance(store.view.link, Lost)
            assert store.view.link.since == first.since
            assert "Start one with `stokerd`" in store.view.link.hint

    run(body())


@pytest.mark.parametrize(
    "refusal",
    [
        Internal("a bug.", "See the log."),
        b"not json",
        b'{"points": 7, "next": null}',
        b'[{"name": "x", "of": "another version"}]',
    ],
    ids=lambda r: r.decode() if isinstance(r, bytes) else r.code,
)
@pytest.mark.parametrize(
    "path", ["/v1/runs", "/v1/traffic", "/v1/series", "/v1/events", "/v1/host", "/v1/runs/tune-12"]
)
def test_no_answer_of_the_daemon_ends_the_program(
    daemon: CannedDaemon, home: Home, clock: StillClock, path: str, refusal: StokerError | bytes
) -> None:
    async def body() -> None:
        daemon.refusals[path] = refusal
        wanted = Watch(True, True, frozenset({"tune-12"}), frozenset({("run", "tune-12")}))
        async with following(home, clock, wanted) as store:
            await until(lambda: store.rounds > 0 or isinstance(store.view.link, Lost))
            daemon.refusals.clear()
            store.hurry()
            await until(lambda: store.view.is_live and len(store.view.events) == 12)
            clock.advance(10)
            await rounds(store, 3)
            await until(lambda: len(store.view.runs) == 5 and not store.view.problems)
            assert "tune-12" in store.view.curves and len(store.view.traffic) == 2

    run(body())


def test_what_cannot_be_listed_is_said_and_the_rest_is_there(
    daemon: CannedDaemon, home: Home, clock: StillClock
) -> None:
    async def body() -> None:
        daemon.refusals["/v1/rollouts"] = Internal("rollouts can't be read.", "See the daemon's log.")
        async with following(home, clock) as store:
            await until(lambda: store.view.is_live)
            assert store.view.problems == {"rollouts": "rollouts can't be read. See the daemon's log."}
            assert len(store.view.deployments) == 2

    run(body())


def test_a_screen_that_wants_nothing_costs_the_daemon_a_heartbeat_only(
    daemon: CannedDaemon, home: Home, clock: StillClock
) -> None:
    async def body() -> None:
        async with following(home, clock, Watch()) as store:
            await until(lambda: len(store.view.events) == 12)
            daemon.asked.clear()
            await rounds(store, 3)
            assert not daemon.asked
            clock.advance(6)
            await rounds(store, 3)
            assert daemon.asked == {"GET /v1/host": 1}

    run(body())


def test_metrics_are_read_on_from_where_the_last_answer_ended(
    daemon: CannedDaemon, home: Home, clock: StillClock
) -> None:
    async def body() -> None:
        async with following(home, clock, Watch(curves=frozenset({"tune-12", "tune-11"}))) as store:
            await until(lambda: "tune-12" in store.view.curves and store.view.curves["tune-12"].next == 174)
            daemon.measure("tune-12", "loss", 58, 0.4)
            await rounds(store, 3)
            curve = store.view.curves["tune-12"].by_key["loss"]
            assert len(curve.points) == 59 and curve.last is not None and curve.last.value == 0.4
            assert store.view.curves["tune-11"].complete and not store.view.curves["tune-12"].complete

    run(body())


def test_a_log_loses_and_doubles_no_byte_when_the_daemon_restarts_in_the_middle(
    daemon: CannedDaemon, home: Home, clock: StillClock
) -> None:
    async def body() -> None:
        async with following(home, clock) as store:
            await until(lambda: store.view.is_live)
            read = bytearray()
            async with owned(store.log("run", "tune-12", lambda: "tune-12" in daemon.ended)) as chunks:
                async for chunk in chunks:
                    first = not read
                    read += chunk
                    if first:
                        await asyncio.to_thread(daemon.stop)
                        await until(lambda: isinstance(store.view.link, Lost))
                        daemon.write("tune-12", b"written while the daemon was away\n", end=True)
                        daemon.start()
            assert bytes(read) == daemon.logs["tune-12"]

    run(body())


def test_a_log_that_is_not_there_yet_is_waited_for(daemon: CannedDaemon, home: Home, clock: StillClock) -> None:
    async def body() -> None:
        async with following(home, clock) as store:
            await until(lambda: store.view.is_live)
            chunks = store.log("run", "tune-13", lambda: False)
            first = asyncio.ensure_future(anext(aiter(chunks)))
            await until(lambda: daemon.asked["GET /v1/logs/run/tune-13"] > 0)
            daemon.write("tune-13", b"now\n")
            assert await first == b"now\n"
            await chunks.aclose()  # type: ignore[attr-defined]

    run(body())


def test_a_refused_deed_tells_why_and_changes_nothing(daemon: CannedDaemon, home: Home, clock: StillClock) -> None:
    async def body() -> None:
        async with following(home, clock) as store:
            await until(lambda: store.view.is_live)
            daemon.refusals["/v1/rollouts/chat-v4/abort"] = Conflict("too late.", "It is promoted.")
            with pytest.raises(Conflict, match="too late"):
                await store.steer("chat-v4", "abort")
            with pytest.raises(NotFound):
                await store.cancel("tune-99")
            assert store.view.rollouts["chat-v4"].phase == "stepping"

    run(body())


def test_it_tries_again_soon_at_first_and_never_seldom() -> None:
    assert [retry_delay(n) for n in (1, 2, 3, 4, 5, 100)] == [0.25, 0.5, 1.0, 2.0, 2.0, 2.0]
