"""The terminal program: composes the store and the screens. `main` is what the bare `stoker` command runs."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable
from functools import partial
from typing import Any, ClassVar

from textual import on, work
from textual.app import App, SystemCommand
from textual.binding import BindingType
from textual.screen import Screen

from stoker.client import AsyncClient
from stoker.paths import Home
from stoker_tui.actions import ACTIONS, bindings
from stoker_tui.clock import Clock
from stoker_tui.screens.base import OpenLog, OpenResource, StokerScreen
from stoker_tui.screens.deployment import DeploymentScreen
from stoker_tui.screens.help import Help
from stoker_tui.screens.log import LogScreen
from stoker_tui.screens.overview import Overview
from stoker_tui.screens.rollout import RolloutScreen
from stoker_tui.screens.run import RunScreen
from stoker_tui.store import Store, Watch
from stoker_tui.text import ROLES
from stoker_tui.words import mark

TICK_SECONDS = 1.0


class StokerApp(App[None]):
    """One daemon, looked at and steered."""

    TITLE = "stoker"
    CSS_PATH = "stoker.tcss"
    BINDINGS: ClassVar[list[BindingType]] = bindings("everywhere")
    COMPONENT_CLASSES: ClassVar[set[str]] = {f"role--{role}" for role in ROLES}

    def __init__(self, home: Home, clock: Clock | None = None) -> None:
        # Without colours, nothing but the terminal's own: themes turned to grey can end as black on black.
        super().__init__(ansi_color=True if "NO_COLOR" in os.environ else None)
        if self.no_color or self.console.color_system == "standard":
            self.theme = "ansi-dark"
        self.store = Store(AsyncClient(home.socket), clock or Clock(), self._changed)
        self.store.wanted = self._wanted
        self._is_due = False

    def get_default_screen(self) -> Screen[None]:
        """The overview."""
        return Overview(self.store)

    def on_mount(self) -> None:
        """Follow the daemon; let what counts seconds count."""
        self._follow_daemon()
        self.set_interval(TICK_SECONDS, self._show)

    @work(exclusive=True, group="store")
    async def _follow_daemon(self) -> None:
        try:
            await self.store.run()
        finally:
            await self.store.client.close()

    def front(self) -> StokerScreen | None:
        """The screen in front, looking through dialogs."""
        return next((s for s in reversed(self.screen_stack) if isinstance(s, StokerScreen)), None)

    def _wanted(self) -> Watch:
        front = self.front()
        return front.wanted() if front is not None else Watch()

    def _changed(self) -> None:
        """The view changed: show it once, however many changes come in this turn of the loop."""
        if not self._is_due:
            self._is_due = True
            self.call_next(self._show)

    def _show(self) -> None:
        self._is_due = False
        front = self.front()
        if front is not None and front.is_mounted:
            front.show()

    def open_resource(self, kind: str, name: str) -> None:
        """Show a resource in full."""
        view = self.store.view
        if kind == "replica" and name in view.replicas:
            kind, name = "deployment", view.replicas[name].deployment
        screens = {"run": RunScreen, "rollout": RolloutScreen, "deployment": DeploymentScreen}
        if kind in screens and name in view.of(kind):
            self.push_screen(screens[kind](self.store, name))
        else:
            self.notify(f"There is no more to see of {kind} {name} here: `stoker get {kind} {name}`.", markup=False)

    @on(OpenResource)
    def _open_resource(self, message: OpenResource) -> None:
        self.open_resource(message.kind, message.name)

    @on(OpenLog)
    def _open_log(self, message: OpenLog) -> None:
        self.push_screen(LogScreen(self.store, message.kind, message.name))

    def action_help(self) -> None:
        """All keys."""
        front = self.front()
        if not isinstance(self.screen, Help):
            self.push_screen(Help(front.places if front is not None else ()))

    def get_system_commands(self, screen: Screen[Any]) -> Iterable[SystemCommand]:
        """The palette: what can be done here, then every resource, then the looks."""
        places = screen.places if isinstance(screen, StokerScreen) else ("everywhere",)
        for action in ACTIONS:
            owner: App[Any] | Screen[Any] = self if action.place == "everywhere" else screen
            can_do = hasattr(owner, f"action_{action.id}") and owner.check_action(action.id, ())
            if action.in_palette and action.place in places and can_do:
                yield SystemCommand(action.label.capitalize(), action.help, partial(self.run_action, action.id, owner))
        for kind in ("deployment", "rollout", "run"):
            for name, resource in self.store.view.of(kind).items():
                yield SystemCommand(
                    f"{kind.capitalize()} {name}",
                    f"Open it ({mark(getattr(resource, 'phase', '')).word}).",
                    partial(self.open_resource, kind, name),
                )
        yield SystemCommand("Theme", "Change the colours.", self.action_change_theme)


def main(home: Home) -> int:
    """Run the terminal program on the daemon of *home* until the person leaves; returns the exit code.

    The daemon needn't be there: the program says so and waits for it.
    """
    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        print("stoker: the terminal program needs a terminal; `stoker status` prints the same.", file=sys.stderr)
        return 2
    app = StokerApp(home)
    app.run()
    return app.return_code or 0
