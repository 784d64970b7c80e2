"""One deployment: its arms' traffic, its replicas, and the log of the replica under the cursor."""

from __future__ import annotations

from typing import ClassVar

from textual import on, work
from textual.app import ComposeResult
from textual.binding import BindingType

from stoker.types.serving import Deployment
from stoker_tui.actions import bindings
from stoker_tui.screens.base import OpenResource, StokerScreen
from stoker_tui.store import Store, Watch
from stoker_tui.text import Line, line, wrapped
from stoker_tui.views import deployment as words
from stoker_tui.widgets.drawn import Drawn
from stoker_tui.widgets.grid import Grid
from stoker_tui.widgets.keys import Keys
from stoker_tui.widgets.log import LogView


class DeploymentScreen(StokerScreen):
    """Who serves, how well, and what they say."""

    BINDINGS: ClassVar[list[BindingType]] = bindings("deployment", "detail")
    places = ("deployment", "grid", "log", "detail", "everywhere")

    def __init__(self, store: Store, name: str) -> None:
        super().__init__(store)
        self.deployment_name = name
        self._logged = ""

    @property
    def deployment(self) -> Deployment | None:
        """The deployment, as long as the daemon knows it."""
        return self.view.deployments.get(self.deployment_name)

    def compose(self) -> ComposeResult:
        """From top to bottom."""
        yield self.header()
        yield Drawn(self._title, id="title")
        yield Drawn(self._traffic, id="traffic")
        yield Grid(lambda: words.replicas(self.deployment_name, self.view, self.clock), id="replicas")
        yield Drawn(self._message, id="message")
        yield LogView(id="log")
        yield Keys()

    def on_mount(self) -> None:
        """The cursor is on the first replica."""
        super().on_mount()
        self.query_one(Grid).focus()

    def wanted(self) -> Watch:
        """Its traffic, and the replicas whose progress has no event."""
        moving = [r.name for r in self.view.replicas_of(self.deployment_name) if r.phase not in ("ready", "failed")]
        return Watch(traffic=True, resources=frozenset(("replica", n) for n in moving))

    def show(self) -> None:
        """Draw, and follow the log of the replica under the cursor."""
        super().show()
        self._choose_log()
        self.refresh_bindings_if_changed(bool(self.deployment and self.deployment.rollout))

    def lay_out(self) -> None:
        """Room for all replicas, up to a third of the screen."""
        grid = self.query_one(Grid)
        grid.styles.height = min(grid.wanted_height(), max(3, self.size.height // 3))

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:
        """No rollout, no key for it; a replica opens no further screen."""
        if action == "open_rollout":
            return bool(self.deployment and self.deployment.rollout)
        return True

    def _title(self, width: int, _: int) -> list[Line]:
        if self.deployment is None:
            return [line(f" {self.deployment_name}   ", ("the daemon no longer knows this deployment", "warn"))]
        return words.title(self.deployment, self.clock, width)

    def _traffic(self, width: int, _: int) -> list[Line]:
        return words.traffic(self.deployment, self.view, width) if self.deployment is not None else []

    def _message(self, width: int, _: int) -> list[Line]:
        row = self.query_one(Grid).current
        return wrapped(line("  "), row.more, width) if row is not None and row.more else []

    @on(Grid.Moved)
    def _moved(self) -> None:
        self.query_one("#message", Drawn).redraw()
        self._choose_log()

    @on(Grid.Opened)
    def _opened(self) -> None:
        self.query_one(LogView).focus()

    def _choose_log(self) -> None:
        row = self.query_one(Grid).current
        if row is not None and row.key != self._logged:
            self._logged = row.key
            self._follow_log(row.key)

    @work(exclusive=True, group="log")
    async def _follow_log(self, name: str) -> None:
        await self.read_log("replica", name, f"LOG {name}", lambda: name not in self.view.replicas)

    def action_open_rollout(self) -> None:
        """The rollout that is going on."""
        if self.deployment is not None and self.deployment.rollout:
            self.post_message(OpenResource("rollout", self.deployment.rollout))
