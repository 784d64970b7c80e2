"""The help: every key and every symbol, from the tables that define them."""

from __future__ import annotations

from stoker_tui.actions import PLACES, actions, keys_shown
from stoker_tui.text import Line, fit, line, wrapped
from stoker_tui.words import legend


def lines(width: int, places: tuple[str, ...]) -> list[Line]:
    """Keys of *places* first, then those of the other places, then the symbols."""
    ordered = [*places, *(p for p in PLACES if p not in places)]
    made: list[Line] = []
    for place in ordered:
        here = actions(place)
        made.append(fit(line((f"  {PLACES[place].upper()}", "head")), width))
        made[-1] = tuple((text, "head") for text, _ in made[-1])
        for action in here:
            made.extend(wrapped(line("  ", (f"{keys_shown(action):<9}", "accent strong")), action.help, width))
        made.append(line())
    made.append(tuple((text, "head") for text, _ in fit(line("  SYMBOLS"), width)))
    cell = 18
    across = max(1, (width - 2) // cell)
    marks = sorted(legend(), key=lambda m: m.symbol)
    rows = [marks[start : start + across] for start in range(0, len(marks), across)]
    return [*made, *(line("  ", *((f"{m.text:<{cell}}", m.role) for m in row)) for row in rows)]
