"""The one table of what a person can do. Footer, help, palette and key bindings are all made from it.

An action's ``id`` is the name of the method ``action_ID`` on the screen or widget of its ``place``; ``place.id`` names
its binding, so that a keymap of the user's own can move it to another key.
"""

from __future__ import annotations

from dataclasses import dataclass

from textual.binding import Binding, BindingType


@dataclass(frozen=True)
class Action:
    """One thing to do: where, by which keys, in a word (footer) and in a sentence (help, palette)."""

    place: str
    id: str
    keys: str
    label: str
    help: str
    shown: bool = True
    key_display: str | None = None
    in_palette: bool = True


ACTIONS = (
    Action("everywhere", "help", "question_mark", "help", "Show all keys and what the symbols mean.", key_display="?"),
    Action("everywhere", "quit", "q", "quit", "Leave. Nothing that Stoker runs is touched."),
    Action(
        "everywhere",
        "command_palette",
        "ctrl+p",
        "palette",
        "Find an action or a resource by typing.",
        False,
        in_palette=False,
        key_display="^p",
    ),
    Action("grid", "open", "enter", "open", "Open what the row is about.", key_display="↵", in_palette=False),
    Action(
        "grid",
        "cursor_down",
        "down,j",
        "down",
        "Next row; from the last one on to the next section.",
        False,
        "↓ j",
        False,
    ),
    Action(
        "grid",
        "cursor_up",
        "up,k",
        "up",
        "Row before; from the first one on to the section before.",
        False,
        "↑ k",
        False,
    ),
    Action("grid", "page_down", "pagedown,ctrl+f", "page down", "A screenful down.", False, "pgdn", False),
    Action("grid", "page_up", "pageup,ctrl+b", "page up", "A screenful up.", False, "pgup", False),
    Action("grid", "cursor_home", "home,g", "first", "To the first row.", False, "home g", False),
    Action("grid", "cursor_end", "end,G", "last", "To the last row.", False, "end G", False),
    Action(
        "overview",
        "next_section",
        "tab,l,right",
        "section",
        "Go to the next section; shift+tab goes back.",
        True,
        "tab",
        False,
    ),
    Action(
        "overview", "previous_section", "shift+tab,h,left", "back", "Go to the section before.", False, "⇧tab", False
    ),
    Action(
        "overview",
        "filter",
        "slash",
        "filter",
        "Show only the rows with a word in them; esc shows all.",
        key_display="/",
    ),
    Action("overview", "clear_filter", "escape", "show all", "Show all rows again.", False, "esc", False),
    Action("overview", "gateway_log", "L", "gateway log", "Read the gateway's log.", False),
    Action(
        "detail",
        "back",
        "escape,backspace,h",
        "back",
        "Back to where you came from.",
        key_display="esc",
        in_palette=False,
    ),
    Action("run", "next_metric", "m", "metric", "Draw the next metric."),
    Action("run", "previous_metric", "M", "metric before", "Draw the metric before.", False),
    Action(
        "run", "log_scale", "y", "log scale", "Draw the metric on a logarithmic scale, or back on a linear one.", False
    ),
    Action("run", "cancel", "c", "cancel", "Stop this run and all its processes, after a question."),
    Action("log", "follow", "end,G,f", "follow", "Follow the log's end.", key_display="end"),
    Action("log", "scroll_up", "up,k", "up", "Scroll a line up; following stops.", False, "↑ k", False),
    Action("log", "scroll_down", "down,j", "down", "Scroll a line down.", False, "↓ j", False),
    Action("log", "page_up", "pageup,ctrl+b", "page up", "A screenful back.", False, "pgup", False),
    Action("log", "page_down", "pagedown,ctrl+f,space", "page down", "A screenful on.", False, "pgdn", False),
    Action("log", "scroll_home", "home,g", "start", "To the log's first line.", False, "home g"),
    Action("rollout", "promote", "p", "promote", "Give all traffic to the new version now, after a question."),
    Action("rollout", "approve", "o", "approve", "Say that it may go on, where a step asks for it, after a question."),
    Action(
        "rollout",
        "abort",
        "a,b",
        "abort",
        "Give all traffic back to the old version, after a question; b does the same.",
        key_display="a",
    ),
    Action("rollout", "pause", "space", "pause", "Hold the rollout where it is, after a question."),
    Action("rollout", "resume", "space", "resume", "Go on with a paused rollout, after a question."),
    Action("rollout", "rollback", "b", "roll back", "Go back to the old version after promotion, after a question."),
    Action("rollout", "scroll_down", "down,j", "down", "A row down.", False, "↓ j", False),
    Action("rollout", "scroll_up", "up,k", "up", "A row up.", False, "↑ k", False),
    Action("rollout", "page_down", "pagedown,ctrl+f", "page down", "A screenful down.", False, "pgdn", False),
    Action("rollout", "page_up", "pageup,ctrl+b", "page up", "A screenful up.", False, "pgup", False),
    Action("deployment", "open_rollout", "r", "rollout", "Open the rollout that is going on."),
)

PLACES = {
    "everywhere": "Everywhere",
    "grid": "In a table",
    "overview": "Overview",
    "detail": "On a detail screen",
    "run": "Run",
    "log": "In a log",
    "rollout": "Rollout",
    "deployment": "Deployment",
}
"""The places, in the order in which the help lists them."""


def actions(place: str) -> list[Action]:
    """What can be done at *place*."""
    return [a for a in ACTIONS if a.place == place]


def bindings(*places: str) -> list[BindingType]:
    """The key bindings of some places, for a class's ``BINDINGS``."""
    return [
        Binding(
            action.keys,
            action.id,
            action.label,
            show=action.shown,
            key_display=action.key_display,
            tooltip=action.help,
            id=f"{place}.{action.id}",
        )
        for place in places
        for action in actions(place)
        if action.id != "command_palette"  # Textual binds that one by itself
    ]


def keys_shown(action: Action) -> str:
    """The keys of an action, for the help."""
    return action.key_display or action.keys.replace(",", " ")
