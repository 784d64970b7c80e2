"""What a person does with keys, and what comes of it."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Coroutine
from typing import Any

import pytest
from textual.command import CommandList
from textual.pilot import Pilot
from textual.widgets import Input

from stoker.errors import Conflict
from stoker.types.rollouts import Exposure, Paused, Promoting, RollingBack, Rollout, Stepping
from stoker.types.serving import Warm
from stoker.types.training import Cancelling, Run, Running, Succeeded
from stoker_tui.actions import ACTIONS, PLACES, bindings
from stoker_tui.app import StokerApp
from stoker_tui.screens.confirm import Confirm
from stoker_tui.screens.deployment import DeploymentScreen
from stoker_tui.screens.help import Help
from stoker_tui.screens.log import LogScreen
from stoker_tui.screens.overview import Overview
from stoker_tui.screens.rollout import RolloutScreen
from stoker_tui.screens.run import RunScreen
from stoker_tui.widgets.grid import Grid
from stoker_tui.widgets.log import LogView
from tests.tui import rollouts, world
from tests.tui.pilots import sees, settled, shown, until
from tests.tui.server import CannedDaemon
from tests.tui.world import StillClock

Body = Callable[[Pilot[Any]], Coroutine[Any, Any, None]]
Play = Callable[..., None]


@pytest.fixture
def play(app: StokerApp) -> Play:
    import asyncio

    def played(body: Body, size: tuple[int, int] = (80, 24)) -> None:
        async def all_of_it() -> None:
            async with app.run_test(size=size) as pilot:
                app.animation_level = "none"
                await settled(pilot)
                await body(pilot)

        asyncio.run(all_of_it())

    return played


def test_arrows_go_through_all_sections_and_enter_opens_what_is_there(
    daemon: CannedDaemon, app: StokerApp, play: Play
) -> None:
    async def body(pilot: Pilot[Any]) -> None:
        await pilot.press("j", "j")
        assert app.focused is app.screen.query_one("#rollouts")
        await pilot.press("enter")
        assert isinstance(app.screen, RolloutScreen) and app.screen.rollout_name == "chat-v4"
        await pilot.press("escape", "k", "enter")
        assert isinstance(app.screen, DeploymentScreen) and app.screen.deployment_name == "embed"
        await pilot.press("escape", "tab", "tab", "enter")
        assert isinstance(app.screen, RunScreen) and app.screen.run_name == "tune-12"
        await pilot.press("escape", "shift+tab")
        assert app.focused is app.screen.query_one("#rollouts")

    play(body)


def test_enter_on_an_event_opens_what_it_is_about(daemon: CannedDaemon, app: StokerApp, play: Play) -> None:
    async def body(pilot: Pilot[Any]) -> None:
        await pilot.press("tab", "tab", "tab", "down", "enter")
        assert isinstance(app.screen, DeploymentScreen) and app.screen.deployment_name == "embed"
        await pilot.press("escape", "end", "up", "up", "enter")
        await until(pilot, lambda: isinstance(app.screen, RunScreen), "the run of the oldest events")

    play(body)


def test_the_cursor_stays_on_its_row_when_others_come_and_on_its_place_when_it_goes(
    daemon: CannedDaemon, app: StokerApp, play: Play
) -> None:
    async def body(pilot: Pilot[Any]) -> None:
        await pilot.press("tab", "tab", "down")
        grid = app.screen.query_one("#runs", Grid)
        assert grid.current is not None and grid.current.key == "tune-13"
        daemon.put(world.run(14, created_at=world.NOON), "RunStarted", "tune-14 started.")
        await until(pilot, lambda: "tune-14" in app.store.view.runs)
        await sees(pilot, "tune-14 started.")
        assert grid.current.key == "tune-13"
        daemon.remove(daemon.resources["runs"]["tune-13"], "RunForgotten")
        await until(pilot, lambda: grid.current is not None and grid.current.key == "tune-11")

    play(body)


def test_a_person_who_reads_old_events_is_not_moved_by_new_ones(
    daemon: CannedDaemon, app: StokerApp, play: Play
) -> None:
    async def body(pilot: Pilot[Any]) -> None:
        grid = app.screen.query_one("#events", Grid)
        daemon.tell("run", "tune-12", "Told", "the very newest")
        await sees(pilot, "the very newest")
        await pilot.press("tab", "tab", "tab", "down", "down")
        before = grid.current
        daemon.tell("run", "tune-12", "Told", "newer still")
        await until(pilot, lambda: len(app.store.view.events) == 14)
        assert grid.current == before

    play(body)


def test_what_happens_at_the_daemon_is_on_the_screen_without_a_key(
    daemon: CannedDaemon, app: StokerApp, play: Play
) -> None:
    async def body(pilot: Pilot[Any]) -> None:
        over = Succeeded(started_at=world.ago(130), finished_at=world.NOON, registered="smollm@5")
        daemon.put(world.run(12, state=over), "RunSucceeded", "tune-12 succeeded and registered smollm@5.")
        await sees(pilot, "smollm@5", "tune-12 succeeded and registered smollm@5.")
        daemon.host = daemon.host.model_copy(update={"cpu_percent": 98.0})
        await sees(pilot, "98 %")

    play(body)


def test_the_loss_moves_while_it_trains(daemon: CannedDaemon, app: StokerApp, play: Play) -> None:
    async def body(pilot: Pilot[Any]) -> None:
        await pilot.press("tab", "tab", "enter")
        await sees(pilot, "[loss] 0.4974 at step 57")
        daemon.measure("tune-12", "loss", 58, 0.1234)
        daemon.write("tune-12", b"step 58 done\n")
        await sees(pilot, "[loss] 0.1234 at step 58", "step 58 done")
        await pilot.press("m")
        await sees(pilot, "[tokens_per_second]")
        await pilot.press("M", "M")
        await sees(pilot, "[grad_norm]")
        await pilot.press("y")
        await sees(pilot, "log scale")

    play(body)


def test_a_log_is_followed_until_it_is_scrolled_and_holds_every_line(
    daemon: CannedDaemon, app: StokerApp, play: Play
) -> None:
    async def body(pilot: Pilot[Any]) -> None:
        await pilot.press("tab", "tab", "enter")
        log = app.screen.query_one(LogView)
        await sees(pilot, "step  57")
        await pilot.press("pageup")
        assert not log.is_following
        before = log.lines[1:]
        daemon.write("tune-12", b"".join(b"line %d\n" % i for i in range(500)))
        await until(pilot, lambda: "line 499" in log.text)
        await sees(pilot, "end follows again")
        assert log.lines[1:] == before, "what I read stays where it is"
        await pilot.press("end")
        await sees(pilot, "line 499")
        await pilot.press("g")
        await sees(pilot, "loading smollm@1")
        assert log.text.splitlines() == daemon.logs["tune-12"].decode().splitlines()

    play(body)


def test_a_log_survives_another_width(daemon: CannedDaemon, app: StokerApp, play: Play) -> None:
    async def body(pilot: Pilot[Any]) -> None:
        daemon.write("tune-12", b"x" * 300 + b"END\n")
        await pilot.press("tab", "tab", "enter")
        await sees(pilot, "END")
        await pilot.resize_terminal(160, 45)
        await until(pilot, lambda: app.screen.has_class("-wide"))
        await sees(pilot, "END", "x" * 158)

    play(body)


def test_cancelling_a_run_asks_first_and_no_is_the_default(daemon: CannedDaemon, app: StokerApp, play: Play) -> None:
    def cancel(found: Any) -> Run:
        assert isinstance(found, Run) and isinstance(found.state, Running)
        state = Cancelling(process="p", started_at=found.state.started_at, because="cancelled")
        return found.model_copy(update={"state": state})

    daemon.verbs["cancel"] = cancel

    async def body(pilot: Pilot[Any]) -> None:
        await pilot.press("tab", "tab", "enter")
        await pilot.press("c", "enter")
        await until(pilot, lambda: isinstance(app.screen, RunScreen), "the dialog to close")
        assert daemon.asked["POST /v1/runs/tune-12/cancel"] == 0
        await pilot.press("c")
        await until(pilot, lambda: isinstance(app.screen, Confirm), "the question")
        await pilot.press("y")
        await sees(pilot, "▽ cancelling")
        assert daemon.asked["POST /v1/runs/tune-12/cancel"] == 1
        assert not app.screen.check_action("cancel", ()), "it can't be cancelled twice"

    play(body)


def _steered(verb: str) -> Callable[[Any], Rollout]:
    states = {
        "promote": Promoting(since=world.NOON),
        "pause": Paused(step=1, since=world.NOON, because="a person paused it."),
        "resume": Stepping(step=1, since=world.NOON),
    }

    def changed(found: Any) -> Rollout:
        assert isinstance(found, Rollout)
        return found.model_copy(update={"state": states[verb]})

    return changed


def test_a_rollout_is_paused_resumed_and_promoted_by_key(daemon: CannedDaemon, app: StokerApp, play: Play) -> None:
    daemon.verbs.update({verb: _steered(verb) for verb in ("pause", "resume", "promote")})

    async def body(pilot: Pilot[Any]) -> None:
        await pilot.press("tab", "enter", "space", "y")
        await sees(pilot, "= paused at step 2 of 3", "a person paused it.")
        await pilot.press("space", "y")
        await sees(pilot, "▸ step 2 of 3")
        await pilot.press("p", "y")
        await sees(pilot, "▸ promoting")
        assert app.screen.check_action("abort", ()), "never too late"
        assert not app.screen.check_action("pause", ())
        assert [n.severity for n in app._notifications] == ["information"] * 3

    play(body)


def test_a_step_that_asks_for_approval_is_approved_by_key_and_no_other_is(
    daemon: CannedDaemon, app: StokerApp, play: Play
) -> None:
    daemon.put(rollouts.at_step(3))

    def approved(found: Any) -> Rollout:
        assert isinstance(found, Rollout)
        return found.model_copy(update={"state": Stepping(step=4, since=world.NOON)})

    daemon.verbs["approve"] = approved

    async def body(pilot: Pilot[Any]) -> None:
        await pilot.press("tab", "enter")
        await sees(pilot, "waits for grace to approve it", "o approve")
        await pilot.press("o")
        await until(pilot, lambda: isinstance(app.screen, Confirm), "the question")
        assert "It goes on with step 5, canary 50 %" in str(app.screen.query_one("#question").render())
        await pilot.press("y")
        await sees(pilot, "▸ step 5 of 7, canary 50 %")
        assert not app.screen.check_action("approve", ())
        assert "o approve" not in shown(app)

    play(body)
    (query,) = [query for path, query in daemon.queries.items() if path.endswith("/approve")]
    assert query == {"step": "3"}, "should somebody else have been faster, it is refused"


def test_what_was_promoted_is_rolled_back_by_key_while_the_old_version_stands_by(
    daemon: CannedDaemon, app: StokerApp, play: Play
) -> None:
    daemon.put(rollouts.promoted())
    until_then = world.ago(-400)
    daemon.put(world.deployment(version=4, warm=Warm(version=3, until=until_then, rollout="chat-v4")))

    def rolled_back(found: Any) -> Rollout:
        assert isinstance(found, Rollout)
        state = RollingBack(since=world.NOON, because="rolled back by ada after promotion", aborted=True)
        return found.model_copy(update={"state": state})

    daemon.verbs["rollback"] = rolled_back

    async def body(pilot: Pilot[Any]) -> None:
        await pilot.press("enter")
        await sees(pilot, "v3 stands by, warm, till 14:36:40: chat-v4 can be rolled back at once")
        await pilot.press("escape", "tab", "enter")
        await sees(pilot, "✓ promoted", "v3 stands by, warm", "b roll back")
        await pilot.press("b")
        await until(pilot, lambda: isinstance(app.screen, Confirm), "the question")
        assert "its replicas stand by till 14:36:40" in str(app.screen.query_one("#question").render())
        await pilot.press("y")
        await sees(pilot, "◂ rolling back", "rolled back by ada after promotion")
        assert daemon.asked["POST /v1/rollouts/chat-v4/rollback"] == 1

    play(body)


def test_what_a_rollout_has_come_to_is_seen_live(daemon: CannedDaemon, app: StokerApp, play: Play) -> None:
    async def body(pilot: Pilot[Any]) -> None:
        await pilot.press("tab", "enter")
        await sees(pilot, "37 requests of 19 callers got v4", "1.13 × 0.81 to 1.41")
        exposure = Exposure(requests=52, errors=1, callers=24)
        daemon.put(rollouts.rollout(exposure=exposure))  # no event tells of it
        await sees(pilot, "52 requests of 24 callers got v4")
        daemon.put(rollouts.failing(), "RolloutRolledBack", "v3 has all traffic.", by="guards", step=1)
        await sees(pilot, "✗ fails", "1.44 × 1.31 to 1.58", "rolled back in this step", "guards    chat-v4: v3 has all")

    play(body)


def test_what_will_happen_is_said_before_it_does(daemon: CannedDaemon, app: StokerApp, play: Play) -> None:
    async def body(pilot: Pilot[Any]) -> None:
        await pilot.press("tab", "enter")
        for key, words in (
            ("p", "All traffic goes to v4. v3 stands by for 10m"),
            ("a", "All traffic goes back to v3 at once"),
            ("b", "All traffic goes back to v3 at once"),
            ("space", "v4 keeps its share of the traffic (25 %)"),
        ):
            await pilot.press(key)
            await until(pilot, lambda: isinstance(app.screen, Confirm), "the question")
            assert words in str(app.screen.query_one("#question").render())
            await pilot.press("escape")
            await until(pilot, lambda: isinstance(app.screen, RolloutScreen), "the dialog to close")
        assert not [a for a in daemon.asked if a.startswith("POST")]

    play(body)


def test_a_refusal_is_shown_with_its_hint(daemon: CannedDaemon, app: StokerApp, play: Play) -> None:
    daemon.refusals["/v1/rollouts/chat-v4/promote"] = Conflict("no replica of v4 is ready.", "Wait until one is.")

    async def body(pilot: Pilot[Any]) -> None:
        await pilot.press("tab", "enter", "p", "y")
        await until(pilot, lambda: len(app._notifications) == 1, "the notification")
        assert [n.message for n in app._notifications] == ["no replica of v4 is ready.\nWait until one is."]

    play(body)


def test_a_deed_while_the_daemon_is_gone_is_refused_and_nothing_breaks(
    daemon: CannedDaemon, app: StokerApp, play: Play
) -> None:
    async def body(pilot: Pilot[Any]) -> None:
        await pilot.press("tab", "enter")
        daemon.stop()
        await sees(pilot, "reconnecting…")
        await pilot.press("a", "y")
        await until(pilot, lambda: len(app._notifications) == 1, "the notification")
        assert "Start one with `stokerd`" in next(iter(app._notifications)).message
        daemon.start()
        await sees(pilot, "✓ connected")

    play(body)


def test_it_reconnects_by_itself_and_says_meanwhile_that_it_shows_the_past(
    daemon: CannedDaemon, app: StokerApp, clock: StillClock, play: Play
) -> None:
    async def body(pilot: Pilot[Any]) -> None:
        daemon.stop()
        await sees(pilot, "reconnecting…")
        clock.advance(12)
        await sees(pilot, "daemon gone since 12 s", "What is shown was so at 14:30:00", "tune-12")
        assert app.screen.has_class("-stale")
        daemon.put(world.run(15), "RunQueued", "tune-15 came while nobody looked.")
        daemon.start()
        await sees(pilot, "✓ connected", "tune-15 came while nobody looked.")
        assert not app.screen.has_class("-stale")

    play(body)


def test_a_daemon_that_comes_later_fills_the_screen(empty_daemon: CannedDaemon, app: StokerApp, play: Play) -> None:
    async def body(pilot: Pilot[Any]) -> None:
        await sees(pilot, "No daemon yet", "Start one with `stokerd`")
        world.fill(empty_daemon)
        empty_daemon.start()
        await sees(pilot, "✓ connected", "tune-12")

    play(body)


def test_what_the_daemon_cannot_tell_is_said_on_the_overview(daemon: CannedDaemon, app: StokerApp, play: Play) -> None:
    daemon.refusals["/v1/traffic"] = Conflict("the metrics are being moved.", "Wait a minute.")

    async def body(pilot: Pilot[Any]) -> None:
        await sees(pilot, "! traffic: the metrics are being moved. Wait a minute.", "tune-12")
        daemon.refusals.clear()
        await until(pilot, lambda: "! traffic" not in shown(app))

    play(body)


def test_only_the_screen_in_front_costs_the_daemon_anything(daemon: CannedDaemon, app: StokerApp, play: Play) -> None:
    async def body(pilot: Pilot[Any]) -> None:
        await pilot.press("tab", "tab", "down", "down", "enter")  # tune-11: over, all its metrics are here soon
        await until(pilot, lambda: app.store.view.curves["tune-11"].complete)
        await settled(pilot)
        daemon.asked.clear()
        await settled(pilot)
        assert not daemon.asked
        await pilot.press("escape")
        await settled(pilot)
        assert daemon.asked["GET /v1/traffic"] and daemon.asked["GET /v1/host"]

    play(body)


def test_the_log_is_of_the_replica_under_the_cursor(daemon: CannedDaemon, app: StokerApp, play: Play) -> None:
    async def body(pilot: Pilot[Any]) -> None:
        await pilot.press("enter")
        await sees(pilot, "LOG chat-v4-0", "api_server.py: ready")
        await pilot.press("down")
        await sees(pilot, "LOG chat-v3-0", "KV cache")
        assert "api_server.py" not in shown(app)
        await pilot.press("r")
        assert isinstance(app.screen, RolloutScreen)

    play(body)


def test_filter_shows_only_rows_with_the_word_until_escape(daemon: CannedDaemon, app: StokerApp, play: Play) -> None:
    async def body(pilot: Pilot[Any]) -> None:
        await pilot.press("slash", *"embed", "enter")
        assert "tune-12" not in shown(app) and "embed-v1-0 exited" in shown(app)
        await pilot.press("enter")
        assert isinstance(app.screen, DeploymentScreen)
        await pilot.press("escape", "escape")
        await sees(pilot, "tune-12")
        assert not app.screen.query_one(Input).display

    play(body)


def test_help_and_gateway_log_open_by_key(daemon: CannedDaemon, app: StokerApp, play: Play) -> None:
    daemon.write("gateway", b"gateway: listening on 127.0.0.1:8700\n")

    async def body(pilot: Pilot[Any]) -> None:
        await pilot.press("question_mark")
        assert isinstance(app.screen, Help)
        await pilot.press("escape", "L")
        assert isinstance(app.screen, LogScreen)
        await sees(pilot, "listening on 127.0.0.1:8700")
        await pilot.press("escape")
        assert isinstance(app.screen, Overview)

    play(body)


def offered(app: StokerApp) -> str | None:
    """What the palette would do now."""
    chosen = [commands.highlighted_option for commands in app.screen.query(CommandList)]
    return str(chosen[0].prompt).partition("\n")[0] if chosen and chosen[0] else None


def test_the_palette_offers_what_can_be_done_here_and_every_resource(
    daemon: CannedDaemon, app: StokerApp, play: Play
) -> None:
    async def body(pilot: Pilot[Any]) -> None:
        await pilot.press("tab", "enter")
        titles = [c.title for c in app.get_system_commands(app.screen)]
        assert {"Promote", "Abort", "Pause", "Help", "Quit", "Run tune-12", "Deployment chat"} <= set(titles)
        assert not {"Resume", "Cancel", "Filter"} & set(titles)
        await pilot.press("ctrl+p", *"tune-12")
        await until(pilot, lambda: offered(app) == "Run tune-12", "the palette to have found it")
        await pilot.press("enter")
        await until(pilot, lambda: isinstance(app.screen, RunScreen), "the run, opened by name")

    play(body)


def test_any_size_of_terminal_is_drawn(daemon: CannedDaemon, app: StokerApp, play: Play) -> None:
    async def body(pilot: Pilot[Any]) -> None:
        for keys in ((), ("enter",), ("escape", "tab", "enter"), ("escape", "tab", "enter")):
            await pilot.press(*keys)
            for size in ((1, 1), (130, 50)):
                await pilot.resize_terminal(*size)
                await pilot.pause()

    play(body)


def test_q_leaves(daemon: CannedDaemon, app: StokerApp, play: Play) -> None:
    async def body(pilot: Pilot[Any]) -> None:
        await pilot.press("q")
        assert app.return_code == 0

    play(body)


def test_every_action_has_a_place_a_sentence_and_a_method() -> None:
    owners: dict[str, tuple[type, ...]] = {
        "everywhere": (StokerApp,),
        "grid": (Grid,),
        "log": (LogView,),
        "overview": (Overview,),
        "run": (RunScreen,),
        "rollout": (RolloutScreen,),
        "deployment": (DeploymentScreen,),
        "detail": (RunScreen, RolloutScreen, DeploymentScreen, LogScreen),
    }
    assert set(owners) == set(PLACES) == {a.place for a in ACTIONS}
    for action in ACTIONS:
        assert action.help.endswith(".") and action.label
        assert all(hasattr(owner, f"action_{action.id}") for owner in owners[action.place]), action
    assert all(bindings(place) for place in PLACES)


def test_the_program_loads_no_server_no_sql_and_no_torch() -> None:
    code = "import sys, stoker_tui.app; print('\\n'.join(sys.modules))"
    loaded = set(
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    )
    assert not {m.partition(".")[0] for m in loaded} & {"stokerd", "sqlmodel", "sqlalchemy", "fastapi", "torch", "vllm"}
    assert "sqlite3" not in loaded


def test_without_a_terminal_it_says_so() -> None:
    code = (
        "from stoker_tui.app import main; from stoker.paths import find_home; raise SystemExit(main(find_home('/x')))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, stdin=subprocess.DEVNULL)
    assert done.returncode == 2 and "needs a terminal" in done.stderr
