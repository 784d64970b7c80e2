"""One run: where it comes from, its curve and its log, live."""

from __future__ import annotations

from typing import ClassVar

from textual import work
from textual.app import ComposeResult
from textual.binding import BindingType
from textual.containers import Horizontal

from stoker.types.training import ACTIVE_PHASES, Run
from stoker_tui.actions import bindings
from stoker_tui.model import Curves
from stoker_tui.screens.base import WIDE, StokerScreen
from stoker_tui.store import Store, Watch
from stoker_tui.text import Line, line
from stoker_tui.views import run as words
from stoker_tui.widgets.drawn import Drawn
from stoker_tui.widgets.keys import Keys
from stoker_tui.widgets.log import LogView


class RunScreen(StokerScreen):
    """State, parameters, lineage; a curve of each metric; the log."""

    BINDINGS: ClassVar[list[BindingType]] = bindings("run", "detail")
    places = ("run", "log", "detail", "everywhere")

    def __init__(self, store: Store, name: str) -> None:
        super().__init__(store)
        self.run_name = name
        self._key: str | None = None
        self._is_log = False

    @property
    def run(self) -> Run | None:
        """The run, as long as the daemon knows it."""
        return self.view.runs.get(self.run_name)

    @property
    def curves(self) -> Curves | None:
        """Its metrics so far."""
        return self.view.curves.get(self.run_name)

    @property
    def key(self) -> str | None:
        """The metric that is drawn."""
        curves = self.curves
        if curves is None or not curves.by_key:
            return None
        if self._key in curves.by_key:
            return self._key
        main = curves.main()
        return main[0] if main is not None else None

    def compose(self) -> ComposeResult:
        """Title; facts beside the curve where there's room; the log."""
        yield self.header()
        yield Drawn(self._title, id="title")
        with Horizontal(id="figures", classes="body"):
            yield Drawn(self._sheet, id="sheet")
            yield Drawn(self._curve, id="curve")
        yield LogView(id="log")
        yield Keys()

    def on_mount(self) -> None:
        """Start to read the log."""
        super().on_mount()
        self.query_one(LogView).focus()
        self._follow_log()

    def wanted(self) -> Watch:
        """Its metrics, until all are here."""
        curves = self.curves
        is_all_here = curves is not None and curves.complete
        return Watch(curves=frozenset() if is_all_here else frozenset({self.run_name}))

    @work(exclusive=True, group="log")
    async def _follow_log(self) -> None:
        await self.read_log("run", self.run_name, "LOG", self._is_over)

    def _is_over(self) -> bool:
        return self.run is None or self.run.phase not in ACTIVE_PHASES

    def show(self) -> None:
        """Draw, and hide the keys that make no sense any more."""
        super().show()
        self.refresh_bindings_if_changed((self.run is not None and words.is_cancellable(self.run), bool(self.key)))

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:
        """Cancel only what is on, choose among metrics only if there are some."""
        if action == "cancel":
            return self.run is not None and words.is_cancellable(self.run)
        if action in ("next_metric", "previous_metric", "log_scale"):
            return self.key is not None
        return True

    def _title(self, width: int, _: int) -> list[Line]:
        if self.run is None:
            return [line(f" {self.run_name}   ", ("the daemon no longer knows this run", "warn"))]
        made = words.title(self.run, self.clock, width)
        return made if self.size.width >= WIDE else [*made, *words.summary(self.run, width, 4)]

    def _sheet(self, width: int, _: int) -> list[Line]:
        return words.sheet(self.run, width) if self.run is not None else []

    def _curve(self, width: int, rows: int) -> list[Line]:
        return words.curve(self.curves, self.key, width, rows, is_log=self._is_log, is_over=self._is_over())

    def _step_key(self, by: int) -> None:
        curves = self.curves
        if curves is not None and curves.by_key:
            keys = list(curves.by_key)
            at = keys.index(self.key) if self.key in keys else 0
            self._key = keys[(at + by) % len(keys)]
            self.show()

    def action_next_metric(self) -> None:
        """Draw the next metric."""
        self._step_key(1)

    def action_previous_metric(self) -> None:
        """Draw the metric before."""
        self._step_key(-1)

    def action_log_scale(self) -> None:
        """Logarithmic, or linear again."""
        self._is_log = not self._is_log
        self.show()

    @work(exclusive=True, group="act")
    async def action_cancel(self) -> None:
        """Ask, then cancel."""
        if self.run is not None:
            name = self.run_name
            await self.ask_and_do(
                f"Cancel {name}?",
                words.consequence(self.run),
                "cancel it",
                lambda: self.store.cancel(name),
                f"{name} is being cancelled.",
            )
