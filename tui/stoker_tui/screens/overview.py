"""Everything at one look: the machine, what is served, what moves, what trains, what has happened."""

from __future__ import annotations

from typing import ClassVar

from textual import on
from textual.app import ComposeResult
from textual.binding import BindingType
from textual.containers import Horizontal, Vertical
from textual.widgets import Input

from stoker_tui.actions import bindings
from stoker_tui.model import Lost
from stoker_tui.screens.base import WIDE, OpenLog, OpenResource, StokerScreen
from stoker_tui.store import Watch
from stoker_tui.text import Line, line, wrapped
from stoker_tui.views import common, host, overview
from stoker_tui.widgets.drawn import Drawn
from stoker_tui.widgets.grid import Grid
from stoker_tui.widgets.keys import Keys
from stoker_tui.words import duration

SECTIONS = ("deployments", "rollouts", "runs", "events")
CURVES = 10
"""Of so many runs, those on top, the loss is followed."""
WATCHED = 20
ROOMY = 12
"""Rows that the feed must have left over before sections get an empty row between them."""


class Overview(StokerScreen):
    """The first screen."""

    BINDINGS: ClassVar[list[BindingType]] = bindings("overview")
    places = ("overview", "grid", "everywhere")

    filter_word = ""

    def compose(self) -> ComposeResult:
        """From top to bottom."""
        yield self.header()
        yield Drawn(self._waiting, id="waiting")
        with Vertical(id="body", classes="body"):
            with Horizontal(id="machine"):
                yield Drawn(self._host, id="host")
                yield Drawn(lambda width, rows: host.history(self.view, self.clock, width, rows), id="history")
            yield Grid(lambda: overview.deployments(self.view).only(self.filter_word), id="deployments")
            yield Grid(lambda: overview.rollouts(self.view, self.clock).only(self.filter_word), id="rollouts")
            yield Grid(lambda: overview.runs(self.view, self.clock).only(self.filter_word), id="runs")
            yield Grid(lambda: overview.events(self.view, self.clock).only(self.filter_word), id="events")
        yield Drawn(self._message, id="message")
        yield Input(placeholder="show only rows with…   (enter keeps, esc shows all)", id="filter", compact=True)
        yield Keys()

    def on_mount(self) -> None:
        """The cursor starts on what is served."""
        self.query_one("#filter").display = False
        self.query_one("#deployments").focus()
        super().on_mount()

    def wanted(self) -> Watch:
        """Host and traffic; the loss of the runs on top; what moves between two events."""
        view = self.view
        runs = [r.name for r in overview.ordered_runs(view)[:CURVES]]
        moving = [("rollout", r.name) for r in view.active_rollouts()]
        moving += [("replica", r.name) for r in view.replicas.values() if r.phase not in ("ready", "failed")]
        return Watch(
            host=True,
            traffic=True,
            curves=frozenset(n for n in runs if n not in view.curves or not view.curves[n].complete),
            resources=frozenset(moving[:WATCHED]),
        )

    def lay_out(self) -> None:
        """A message till there's something to show; then rows for each section, and the feed gets what is left."""
        is_known = self.view.host is not None
        self.query_one("#waiting").display = not is_known
        self.query_one("#body").display = is_known
        self.query_one("#message").display = is_known
        if is_known:
            self._share_rows()

    def _share_rows(self) -> None:
        width, height = self.size
        tall = host.is_tall(height)
        wants = [self.query_one(f"#{name}", Grid).wanted_height() for name in SECTIONS]
        machine = host.height(self.view, height)
        room = height - 2 - machine - (1 if self.query_one("#filter").display else 0) - self._message_rows()
        gaps = len(SECTIONS) if room - sum(wants[:-1]) - len(SECTIONS) >= ROOMY else 0
        given = overview.allocate(room - gaps, wants)
        self.query_one("#machine").styles.height = machine
        self.query_one("#history").display = tall and width >= WIDE
        self.set_class(bool(gaps), "-roomy")
        for name, rows in zip(SECTIONS, given, strict=True):
            grid = self.query_one(f"#{name}", Grid)
            grid.display = rows > 0
            if rows:
                grid.styles.height = rows
        self.query_one("#message").styles.height = self._message_rows()

    def _message_rows(self) -> int:
        return 2 if self.size.width < WIDE else 1

    def _host(self, width: int, rows: int) -> list[Line]:
        return host.lines(self.view, self.clock, width, rows, tall=host.is_tall(self.size.height))

    def _message(self, width: int, rows: int) -> list[Line]:
        """What can't be told, else what the row under the cursor has to say in full."""
        problems = self.view.problems
        if problems and self.view.is_live:
            what, why = next(iter(problems.items()))
            return wrapped(line((f" ! {what}: ", "warn")), why, width)[:rows]
        if not self.view.is_live:
            return wrapped(line(" "), common.as_of(self.view, self.clock), width)[:rows]
        grid = self.focused
        row = grid.current if isinstance(grid, Grid) else None
        return wrapped(line(" "), row.more, width)[:rows] if row is not None and row.more else []

    def _waiting(self, width: int, rows: int) -> list[Line]:
        """No daemon has answered yet: what was tried, what to do, that it goes on trying."""
        link = self.view.link
        if not isinstance(link, Lost):
            return [line(), line((f"  connecting to {self.store.client.socket} …", "muted"))]
        gone = duration(self.clock.monotonic() - link.since)
        return [
            line(),
            line("  ", ("No daemon yet", "strong")),
            line(),
            *wrapped(line("  "), link.message, width - 2),
            *wrapped(line("  "), link.hint, width - 2),
            line(),
            line((f"  Trying again by itself, for {gone} now. This screen fills when it answers.", "muted")),
        ]

    @on(Grid.Moved)
    def _moved(self) -> None:
        self.query_one("#message", Drawn).redraw()

    @on(Grid.Opened)
    def _opened(self, message: Grid.Opened) -> None:
        kinds = {"deployments": "deployment", "rollouts": "rollout", "runs": "run"}
        if message.grid.id in kinds:
            self.post_message(OpenResource(kinds[message.grid.id], message.key))
            return
        found = next((e for e in self.view.events if str(e.id) == message.key), None)
        if found is not None:
            self.post_message(OpenResource(found.kind, found.name))

    def action_next_section(self) -> None:
        """The next table."""
        self.focus_next(Grid)

    def action_previous_section(self) -> None:
        """The table before."""
        self.focus_previous(Grid)

    def action_filter(self) -> None:
        """Ask for a word."""
        field = self.query_one("#filter", Input)
        field.display = True
        field.focus()
        self.show()

    def action_clear_filter(self) -> None:
        """Show all again."""
        field = self.query_one("#filter", Input)
        field.value = ""
        self._leave_filter()

    def action_gateway_log(self) -> None:
        """The front door's own log."""
        self.post_message(OpenLog("gateway", "gateway"))

    @on(Input.Changed, "#filter")
    def _filter_changed(self, event: Input.Changed) -> None:
        self.filter_word = event.value.strip()
        self.show()

    @on(Input.Submitted, "#filter")
    def _leave_filter(self) -> None:
        field = self.query_one("#filter", Input)
        if field.has_focus:
            found = [g for g in self.query(Grid) if g.table.rows]
            (found or list(self.query(Grid)))[0].focus()
        field.display = bool(field.value)
        self.show()
