"""Pictures of every screen, accepted by a person who looked at them. `pytest --snapshot-update` takes them anew."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from textual.pilot import Pilot

from stoker.errors import Conflict
from stoker.paths import Home
from stoker.types.serving import BackingOff, Warm
from tests.tui import rollouts, world
from tests.tui.pilots import app_of, sees, shown, until
from tests.tui.screenshot import picture
from tests.tui.server import CannedDaemon
from tests.tui.world import StillClock

Looks = Callable[..., bool]


def at(*sizes: tuple[int, int]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("size", sizes, ids=lambda s: f"{s[0]}x{s[1]}")


SMALL, LARGE, HUGE = (80, 24), (160, 45), (200, 50)


def press(*keys: str) -> Callable[[Pilot[Any]], Any]:
    async def steps(pilot: Pilot[Any]) -> None:
        await pilot.press(*keys)

    return steps


@at(SMALL, LARGE, HUGE)
def test_overview(daemon: CannedDaemon, looks_right: Looks, size: tuple[int, int]) -> None:
    """I want to see at one look whether all is well: machine, deployments, rollouts, runs, and what happened last."""
    assert looks_right(size)


@at(SMALL, HUGE)
def test_overview_of_a_gpu_host(daemon: CannedDaemon, looks_right: Looks, size: tuple[int, int]) -> None:
    """I want to see each GPU's load, memory, power and heat, and who has it; on a small terminal the rest summed up."""
    daemon.host = world.gpu_host(8)
    assert looks_right(size)


def test_overview_of_an_empty_home(empty_daemon: CannedDaemon, looks_right: Looks) -> None:
    """On my first day nothing is there yet: I want to be told how to begin."""
    empty_daemon.start()
    assert looks_right(SMALL)


def test_no_daemon(clock: StillClock, looks_right: Looks) -> None:
    """I started the program before the daemon: I want to know what is missing, what to do, and that it keeps trying."""

    async def steps(pilot: Pilot[Any]) -> None:
        clock.advance(12)

    assert looks_right(SMALL, steps)


def test_daemon_gone(daemon: CannedDaemon, clock: StillClock, looks_right: Looks) -> None:
    """The daemon restarts under my eyes: I want to keep what I saw, and to see that it is old and how old."""

    async def steps(pilot: Pilot[Any]) -> None:
        daemon.stop()
        await sees(pilot, "reconnecting…")
        await until(pilot, lambda: "No such file" in shown(app_of(pilot)), "the second try")
        clock.advance(12)

    assert looks_right(SMALL, steps)


@at(SMALL, LARGE, HUGE)
def test_rollout(daemon: CannedDaemon, looks_right: Looks, size: tuple[int, int]) -> None:
    """I have to decide on a rollout: whom it has reached, its step, what the guards say and why, both versions."""
    assert looks_right(size, press("tab", "enter"))


def test_rollout_below_the_fold(daemon: CannedDaemon, looks_right: Looks) -> None:
    """On a small terminal I scroll down: both versions' latencies one above the other, and who decided what."""
    assert looks_right(SMALL, press("tab", "enter", "pagedown"))


@at(SMALL, LARGE)
def test_rollout_in_a_shadow_step(daemon: CannedDaemon, looks_right: Looks, size: tuple[int, int]) -> None:
    """It only answers copies: I want to see that nobody gets them, what stable suffers, and what is still to come."""
    daemon.put(rollouts.shadowed())
    assert looks_right(size, press("tab", "enter"))


def test_rollout_that_asks_for_approval(daemon: CannedDaemon, looks_right: Looks) -> None:
    """It waits for one of us: I want to see for whom, how long it waits, and the key."""
    daemon.put(rollouts.at_step(3))
    assert looks_right(SMALL, press("tab", "enter"))


def test_rollout_paused(daemon: CannedDaemon, looks_right: Looks) -> None:
    """It paused for want of traffic: I want to see why, who gets what meanwhile, and the key that goes on."""
    daemon.put(rollouts.starved())
    assert looks_right(SMALL, press("tab", "enter"))


@at(SMALL, LARGE)
def test_rollout_that_was_rolled_back(daemon: CannedDaemon, looks_right: Looks, size: tuple[int, int]) -> None:
    """It was rolled back while I slept: I want the reason, how fast, and how many bad answers my users got."""
    daemon.put(rollouts.failing(), "RolloutRolledBack", "v3 has all traffic.", by="guards", step=1)
    assert looks_right(size, press("tab", "enter"))


def test_rollout_that_was_promoted(daemon: CannedDaemon, looks_right: Looks) -> None:
    """It is done: I want to know how long there is a quick way back, and the key for it."""
    daemon.put(rollouts.promoted())
    daemon.put(world.deployment(version=4, warm=Warm(version=3, until=world.ago(-400), rollout="chat-v4")))
    assert looks_right(SMALL, press("tab", "enter"))


def test_question_before_rolling_back_what_was_promoted(daemon: CannedDaemon, looks_right: Looks) -> None:
    """Before I take back a version that serves everybody I want to read how that will go."""
    daemon.put(rollouts.promoted(-1))
    daemon.put(world.deployment(version=4))
    assert looks_right(SMALL, press("tab", "enter", "b"))


def test_question_before_promoting(daemon: CannedDaemon, looks_right: Looks) -> None:
    """Before all traffic moves I want to read in a sentence what will happen, with "no" as the default."""
    assert looks_right(SMALL, press("tab", "enter", "p"))


def test_refused(daemon: CannedDaemon, looks_right: Looks) -> None:
    """When the daemon refuses, I want its reason and what to do about it, not a silent nothing."""
    daemon.refusals["/v1/rollouts/chat-v4/promote"] = Conflict(
        "chat-v4 can't be promoted: no replica of v4 is ready.", "Wait until one is: `stoker get replicas`."
    )
    assert looks_right(SMALL, press("tab", "enter", "p", "y"))


@at(SMALL, LARGE, HUGE)
def test_run(daemon: CannedDaemon, looks_right: Looks, size: tuple[int, int]) -> None:
    """While it trains I want its loss, what it was given, where that comes from, and its log, all moving."""
    assert looks_right(size, press("tab", "tab", "enter"))


def test_run_that_failed(daemon: CannedDaemon, looks_right: Looks) -> None:
    """It failed: I want the reason on top and the end of its log, without a search."""
    daemon.write(
        "tune-10", b"Traceback (most recent call last):\n  File \"train.py\", line 3\nKeyError: 'lr'\n", end=True
    )
    assert looks_right(SMALL, press("tab", "tab", "down", "down", "down", "enter"))


@at(SMALL, LARGE)
def test_deployment(daemon: CannedDaemon, looks_right: Looks, size: tuple[int, int]) -> None:
    """I want to see who serves, how each version does, and what each server writes."""
    assert looks_right(size, press("enter"))


def test_deployment_that_cannot_start(daemon: CannedDaemon, looks_right: Looks) -> None:
    """Its server dies at once: I want the reason, when it is tried again, and the log that shows why."""
    state = BackingOff(retry_at=world.ago(-8), message="it exited with code 1: port 8000 is taken.")
    daemon.put(world.replica("embed", 1, 0, state=state, starts=4, failures=3))
    assert looks_right(SMALL, press("down", "enter"))


def test_filter(daemon: CannedDaemon, looks_right: Looks) -> None:
    """With many runs I want to see only those that have a word in them."""
    assert looks_right(SMALL, press("slash", "v", "3", "enter"))


def test_help(daemon: CannedDaemon, looks_right: Looks) -> None:
    """I want all keys on one page, and what the symbols mean."""
    assert looks_right(LARGE, press("question_mark"))


def test_palette(daemon: CannedDaemon, looks_right: Looks) -> None:
    """I know what I want but not its key: I type a part of its name."""
    assert looks_right(SMALL, press("tab", "enter", "ctrl+p", "p", "r", "o", "m"))


def test_without_colours(
    daemon: CannedDaemon, home: Home, clock: StillClock, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    """I set NO_COLOR: nothing may be coloured, nothing unreadable, and every state still be told apart."""
    monkeypatch.setenv("NO_COLOR", "1")
    assert request.getfixturevalue("looks_right")(SMALL)


def test_the_readme_shows_the_program_as_it_is(home: Home) -> None:
    """The picture that made me try it is true: `python -m tests.tui.screenshot docs/overview.svg` drew it."""
    docs = Path(__file__).parents[2] / "docs" / "overview.svg"
    assert asyncio.run(picture(home.root)) == docs.read_text(), "draw it anew"


def test_sixteen_colours(daemon: CannedDaemon, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    """My terminal has 16 colours: I want its own, not the nearest to somebody's shades of grey."""
    monkeypatch.delenv("COLORTERM")
    monkeypatch.setenv("TERM", "xterm")
    assert request.getfixturevalue("looks_right")(SMALL)
