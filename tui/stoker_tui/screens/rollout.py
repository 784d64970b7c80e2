"""One rollout: whom it reaches, its ladder, guards, arms and history; and the keys that steer it."""

from __future__ import annotations

from typing import ClassVar

from textual import work
from textual.app import ComposeResult
from textual.binding import BindingType
from textual.containers import VerticalScroll

from stoker.types.events import Event
from stoker.types.rollouts import FINAL_PHASES, Rollout
from stoker_tui.actions import bindings
from stoker_tui.screens.base import WIDE, StokerScreen
from stoker_tui.store import Store, Watch, owned
from stoker_tui.text import Line, line
from stoker_tui.views import arms, guards, steering
from stoker_tui.views import rollout as words
from stoker_tui.widgets.drawn import Drawn
from stoker_tui.widgets.keys import Keys

TALL = 40
"""Rows from which on there's room for higher histograms, where two columns are."""
STEERING = ("promote", "approve", "abort", "pause", "resume", "rollback")


class RolloutScreen(StokerScreen):
    """All that a person needs to decide whether it goes on."""

    BINDINGS: ClassVar[list[BindingType]] = bindings("rollout", "detail")
    places = ("rollout", "detail", "everywhere")

    def __init__(self, store: Store, name: str) -> None:
        super().__init__(store)
        self.rollout_name = name
        self._events: list[Event] = []

    @property
    def rollout(self) -> Rollout | None:
        """The rollout, as long as the daemon knows it."""
        return self.view.rollouts.get(self.rollout_name)

    def compose(self) -> ComposeResult:
        """One column, or two where there's room."""
        yield self.header()
        yield Drawn(self._title, id="title")
        with VerticalScroll(id="columns", classes="body", can_focus=False):
            with VerticalScroll(id="left", can_focus=False):
                yield Drawn(self._exposure, id="exposure")
                yield Drawn(self._ladder, id="ladder")
                yield Drawn(self._guards, id="guards")
                yield Drawn(self._contention, id="contention")
            with VerticalScroll(id="right", can_focus=False):
                yield Drawn(self._arms, id="arms")
                yield Drawn(self._story, id="story")
        yield Keys()

    def on_mount(self) -> None:
        """Start to read what has happened to it."""
        super().on_mount()
        self._read_story()

    def wanted(self) -> Watch:
        """Its arms change without an event until it's over; and the traffic of both versions."""
        is_over = self.rollout is None or self.rollout.phase in FINAL_PHASES
        return Watch(traffic=True, resources=frozenset() if is_over else frozenset({("rollout", self.rollout_name)}))

    def show(self) -> None:
        """Draw, and hide the keys that make no sense any more."""
        super().show()
        self.refresh_bindings_if_changed(self._allowed())

    @work(exclusive=True, group="story")
    async def _read_story(self) -> None:
        async with owned(self.store.story("rollout", self.rollout_name)) as events:
            async for event in events:
                self._events.append(event)
                self.query_one("#story", Drawn).redraw()
                self.query_one("#ladder", Drawn).redraw()

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:
        """Only what can be done in the present state."""
        if action not in STEERING:
            return True
        allowed = self._allowed()
        # While it goes on, abort does the same: one key for one deed.
        return action in allowed and not (action == "rollback" and "abort" in allowed)

    def _allowed(self) -> tuple[str, ...]:
        return steering.allowed(self.rollout, self.view) if self.rollout is not None else ()

    def _title(self, width: int, _: int) -> list[Line]:
        if self.rollout is None:
            return [line(f" {self.rollout_name}   ", ("the daemon no longer knows this rollout", "warn"))]
        return words.title(self.rollout, self.view, self.clock, width)

    def _exposure(self, width: int, _: int) -> list[Line]:
        return words.exposure(self.rollout, width) if self.rollout is not None else []

    def _ladder(self, width: int, _: int) -> list[Line]:
        if self.rollout is None:
            return []
        return words.ladder(self.rollout, self.clock, width, words.came_to(self._events))

    def _guards(self, width: int, _: int) -> list[Line]:
        return guards.guards(self.rollout, width, in_full=self._is_wide) if self.rollout is not None else []

    def _contention(self, width: int, _: int) -> list[Line]:
        return guards.contention(self.rollout, width, in_full=self._is_wide) if self.rollout is not None else []

    def _arms(self, width: int, _: int) -> list[Line]:
        if self.rollout is None:
            return []
        return arms.arms(self.rollout, self.view, width, tall=self._is_wide and self.size.height >= TALL)

    def _story(self, width: int, _: int) -> list[Line]:
        return words.story(self._events, self.clock, width)

    @property
    def _is_wide(self) -> bool:
        return self.size.width >= WIDE

    @work(exclusive=True, group="act")
    async def _steer(self, verb: str) -> None:
        if self.rollout is not None:
            name, said = self.rollout_name, "roll back" if verb == "rollback" else verb
            step = steering.step_meant(self.rollout, verb)
            await self.ask_and_do(
                f"{said.capitalize()} {name}?",
                steering.consequence(self.rollout, verb, self.view, self.clock),
                said,
                lambda: self.store.steer(name, verb, step),
                steering.done(self.rollout, verb),
            )

    def _scrolled(self) -> list[VerticalScroll]:
        """What scrolls: both columns as one, or each."""
        return [self.query_one(f"#{name}", VerticalScroll) for name in ("columns", "left", "right")]

    def action_scroll_down(self) -> None:
        """A row down."""
        for part in self._scrolled():
            part.scroll_relative(y=1, animate=False)

    def action_scroll_up(self) -> None:
        """A row up."""
        for part in self._scrolled():
            part.scroll_relative(y=-1, animate=False)

    def action_page_down(self) -> None:
        """A screenful down."""
        for part in self._scrolled():
            part.scroll_page_down(animate=False)

    def action_page_up(self) -> None:
        """A screenful up."""
        for part in self._scrolled():
            part.scroll_page_up(animate=False)

    def action_promote(self) -> None:
        """All traffic to the new version."""
        self._steer("promote")

    def action_abort(self) -> None:
        """All traffic back to the old version."""
        self._steer("abort")

    def action_pause(self) -> None:
        """Hold."""
        self._steer("pause")

    def action_resume(self) -> None:
        """Go on."""
        self._steer("resume")

    def action_approve(self) -> None:
        """Go on, where a step asks a person."""
        self._steer("approve")

    def action_rollback(self) -> None:
        """Back to the old version, after promotion too."""
        self._steer("rollback")
