"""The parts below the widgets: text, tables, bars, curves, and which cells go over the wire."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.cells import cell_len

from stoker_tui.braille import nice_range, plot, trend
from stoker_tui.chart import Figure, draw
from stoker_tui.model import MAX_POINTS, Curve, Curves
from stoker_tui.table import Column, widths
from stoker_tui.text import Align, Line, chop, cut, fit, line, plain, width_of, wrap, wrapped
from stoker_tui.views.overview import allocate
from stoker_tui.widgets.drawn import cells, damage
from stoker_tui.words import bar, duration, errors, latency, legend, mark, number, short
from tests.tui import world

TEXT = st.text(st.sampled_from("ab ✗→漢字é%"), max_size=12)
LINES = st.lists(st.tuples(TEXT, st.sampled_from(["", "good", "bad"])), max_size=5).map(tuple)
FINITE = st.floats(-1e12, 1e12, allow_nan=False)


@given(LINES, st.integers(0, 40), st.sampled_from(["left", "right"]))
def test_a_cell_is_exactly_as_wide_as_its_column(spans: Line, width: int, align: Align) -> None:
    assert width_of(fit(spans, width, align)) == width


@given(LINES, st.integers(0, 40))
def test_what_is_cut_says_so_and_what_fits_is_whole(spans: Line, width: int) -> None:
    text = plain(fit(spans, width))
    assert text.rstrip() == plain(spans).rstrip() if width_of(spans) <= width else not width or "…" in text
    assert width_of(cut(spans, width)) == min(width, width_of(spans))


@given(st.text(max_size=200), st.integers(1, 40))
def test_wrapping_loses_no_word_and_keeps_to_the_width(text: str, width: int) -> None:
    rows = wrap(text, max(2, width))
    assert all(cell_len(row) <= max(2, width) for row in rows)
    printable = "".join(c if c.isprintable() else " " for c in text)
    assert "".join(rows).replace(" ", "") == "".join(printable.split())


@given(st.text(st.sampled_from("ab漢"), max_size=60), st.integers(2, 20))
def test_a_long_log_line_is_cut_into_rows_without_loss(text: str, width: int) -> None:
    assert "".join(chop(text, width)) == text
    assert all(cell_len(piece) <= width for piece in chop(text, width))


def test_a_wrapped_sentence_stays_right_of_its_label() -> None:
    assert [plain(x) for x in wrapped(line("> "), "one two three", 9)] == ["> one two", "  three"]


@given(LINES, LINES, st.integers(1, 40))
def test_repainting_the_damage_alone_makes_the_new_line(old: Line, new: Line, width: int) -> None:
    screen, wanted = cells(fit(old, width)), cells(fit(new, width))
    for start, length in filter(None, [damage(old, new, width)]):
        assert wanted[start][0] != "", "a wide character was cut"
        screen[start : start + length] = wanted[start : start + length]
    assert screen == wanted


def test_a_changed_number_costs_its_own_cells_only() -> None:
    assert damage(line("chat      ", "12.3", "   ✓ ready"), line("chat      ", "12.4", "   ✓ ready"), 80) == (13, 1)


COLUMNS = st.lists(
    st.builds(Column, st.just("T"), st.integers(0, 20), st.just("left"), st.booleans(), st.integers(0, 5)),
    min_size=1,
    max_size=8,
)


@given(COLUMNS, st.lists(st.integers(0, 60), min_size=8, max_size=8), st.integers(1, 300))
def test_columns_fit_the_room_or_only_those_that_must_stay_are_left(
    columns: list[Column], natural: list[int], room: int
) -> None:
    given_ = widths(columns, natural[: len(columns)], room)
    shown = [w for w in given_ if w]
    total = sum(shown) + 2 * (len(shown) - 1)
    assert total <= room or all(w == 0 for w, c in zip(given_, columns, strict=True) if c.drop)
    assert all(w > 0 for w, c in zip(given_, columns, strict=True) if not c.drop)


def test_the_least_important_column_goes_first_and_the_flexible_one_gives_way() -> None:
    columns = (Column("NAME", 4, flex=True), Column("A", 5, drop=1), Column("B", 5, drop=2))
    assert widths(columns, (30, 5, 5), 80) == [66, 5, 5]
    assert widths(columns, (30, 5, 5), 30) == [16, 5, 5]
    assert widths(columns, (30, 5, 5), 17) == [10, 5, 0]
    assert widths(columns, (30, 5, 5), 8) == [8, 0, 0]


@given(st.integers(0, 60), st.lists(st.integers(2, 40), min_size=4, max_size=4))
def test_sections_share_the_screen_and_never_overflow_it(room: int, wants: list[int]) -> None:
    given_ = allocate(room, wants)
    assert sum(given_) <= room
    assert all(g == 0 or g >= 2 for g in given_), "a heading without a row says nothing"
    assert given_[3] == 0 or sum(given_) == room, "the feed takes what is left"


def test_a_small_terminal_still_shows_something_of_every_section() -> None:
    assert allocate(18, [5, 9, 40, 200]) == [5, 4, 4, 5]
    assert allocate(8, [5, 9, 40, 200]) == [3, 3, 2, 0]


@given(st.lists(st.tuples(FINITE, FINITE), min_size=1, max_size=50), st.integers(1, 30), st.integers(1, 8))
def test_a_curve_has_a_dot_in_every_column_between_its_ends(
    points: list[tuple[float, float]], width: int, height: int
) -> None:
    points = sorted(points)
    xs, values = (points[0][0], points[-1][0]), [y for _, y in points]
    rows = plot(points, width, height, xs, (min(values), max(values)))
    assert len(rows) == height and all(len(row) == width for row in rows)
    if xs[1] > xs[0]:
        assert all(any(row[x] != " " for row in rows) for x in range(width))


def test_a_falling_loss_falls() -> None:
    assert plot([(0, 3.0), (7, 0.0)], 4, 1, (0, 7), (0, 3)) == ["⠉⠒⠤⣀"]
    assert plot([(0, 3.0), (1, 0.0)], 1, 1, (0, 1), (0, 3)) == ["⢱"]


def test_one_spike_among_many_values_is_seen() -> None:
    points = [(float(i), 9.0 if i == 5000 else 0.0) for i in range(10000)]
    assert any(c != " " for c in plot(points, 10, 4, (0, 9999), (0, 9))[0])


@given(FINITE, FINITE)
def test_axis_bounds_hold_the_values(a: float, b: float) -> None:
    low, high = nice_range(min(a, b), max(a, b))
    slack = 1e-9 * max(abs(a), abs(b))
    assert low <= min(a, b) + slack and high >= max(a, b) - slack and high > low and math.isfinite(high - low)


@pytest.mark.parametrize("values", [[], [1.0], [2.0, 2.0], [1e-300, 0.0]])
def test_odd_trends_are_drawn_anyway(values: list[float]) -> None:
    assert len(trend(values, 12)) == 12


@given(
    st.lists(st.tuples(st.integers(0, 9), st.floats()), max_size=20),
    st.integers(0, 90),
    st.integers(0, 30),
    st.booleans(),
)
def test_a_chart_of_any_values_in_any_room_is_drawn(
    points: list[tuple[int, float]], width: int, height: int, is_log: bool
) -> None:
    figure = Figure(line("T"), sorted((float(x), y) for x, y in points), is_log=is_log)
    assert all(width_of(row) <= max(width, 1) for row in draw(figure, width, height))


def test_a_million_points_are_kept_in_little_memory_with_both_ends() -> None:
    curve = Curve()
    for step in range(100_000):
        curve.add(world.point("loss", step, float(step)))
    points = curve.drawn()
    assert len(points) <= MAX_POINTS + 1
    assert points[0] == (0.0, 0.0) and points[-1] == (99_999.0, 99_999.0)


def test_a_script_that_counts_no_steps_still_gets_a_curve() -> None:
    curve = Curve()
    for value in (3.0, 2.0, 1.0):
        curve.add(world.point("loss", 0, value))
    assert curve.drawn() == [(0.0, 3.0), (1.0, 2.0), (2.0, 1.0)]


def test_the_loss_is_what_is_shown_first() -> None:
    curves = Curves()
    curves.add([world.point(k, 0, 1.0) for k in ("lr", "eval_loss", "accuracy", "loss")])
    main = curves.main()
    assert main is not None and main[0] == "loss"


def test_bars_can_be_read_without_colour() -> None:
    assert [bar(x, 6) for x in (0.0, 0.5, 1.0, 7.0, None)] == ["▕    ▏", "▕██  ▏", "▕████▏", "▕████▏", "▕    ▏"]


def test_numbers_are_said_with_their_units() -> None:
    assert [latency(x) for x in (None, 0.0012, 0.31, 0.9996, 1.239, 75.0)] == [
        "–",
        "1.2 ms",
        "310 ms",
        "1.00 s",
        "1.24 s",
        "75 s",
    ]
    assert [duration(x) for x in (0.2, 59.9, 130, 3900, 273600)] == [
        "0 s",
        "59 s",
        "2 min 10 s",
        "1 h 05 min",
        "3 d 4 h",
    ]
    assert [number(x) for x in (0.0, 0.83123, 12.3456, 1250.4, 0.00002)] == ["0", "0.8312", "12.35", "1250", "2e-05"]
    assert [errors(*x) for x in ((0, 0), (0, 9), (3, 140))] == ["–", "0", "3 (2.1 %)"]
    assert short("3fa9c1d0b7e2+dirty") == "3fa9c1d0+dirty"


def test_every_state_has_a_symbol_and_a_word_of_its_own() -> None:
    words = [m.word for m in legend()]
    assert len(set(words)) == len(words)
    assert all(cell_len(m.symbol) == 1 and m.word for m in legend())
    assert mark("a-phase-of-tomorrow").text == "· a phase of tomorrow"
