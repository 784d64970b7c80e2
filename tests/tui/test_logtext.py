"""A log's bytes as lines, however they arrive."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from stoker_tui.logtext import LogText

PIECES = st.sampled_from(["loss 0.4", "é漢", "\n", "\r", "\r\n", "\x1b[31m", "\x1b[0m", "\x1b]0;t\x07", "\t", "\x07"])


def read(data: bytes, cuts: list[int] | None = None) -> list[str]:
    text = LogText()
    edges = [0, *sorted(c % (len(data) + 1) for c in cuts or []), len(data)]
    lines = [line for a, b in pairwise(edges) for line in text.feed(data[a:b])]
    return [*lines, text.unfinished]


@given(st.lists(PIECES, max_size=30).map("".join), st.lists(st.integers(0, 1000), max_size=8))
def test_where_the_bytes_are_cut_makes_no_difference(text: str, cuts: list[int]) -> None:
    assert read(text.encode(), cuts) == read(text.encode())


@given(st.binary(max_size=300))
def test_any_bytes_become_lines_that_cannot_move_the_cursor(data: bytes) -> None:
    lines = read(data)
    assert all(line.isprintable() for line in lines)
    assert len(lines) >= data.count(b"\n") + 1 or b"\x1b" in data


def test_a_progress_bar_shows_its_last_state() -> None:
    assert read(b" 10 %\r 20 %\r 30 %") == [" 30 %"]
    assert read(b" 10 %\r 99 %\rdone\nnext") == ["done", "next"]
    assert read(b"windows\r\nline") == ["windows", "line"]


def test_colours_of_the_engine_are_taken_out() -> None:
    assert read(b"\x1b[1;32mINFO\x1b[0m ready\n") == ["INFO ready", ""]


def test_an_escape_that_never_ends_is_not_waited_for_for_ever() -> None:
    text = LogText()
    text.feed(b"\x1b]" + b"x" * 10_000)
    assert text.feed(b"\nafter\n")[-1] == "after"
