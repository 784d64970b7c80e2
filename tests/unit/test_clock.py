from __future__ import annotations

from datetime import UTC, datetime, timedelta

from stokerd.clock import Elapsed

T0 = datetime(2026, 1, 1, tzinfo=UTC)
HOUR = timedelta(hours=1)


class Clocks:
    """A wall clock that people set, and a monotonic one that they can't."""

    def __init__(self) -> None:
        self.wall, self.monotonic = T0, 1000.0
        self.elapsed = Elapsed(lambda: self.monotonic, lambda: self.wall)

    def pass_seconds(self, seconds: float) -> None:
        self.wall += timedelta(seconds=seconds)
        self.monotonic += seconds


def test_time_passes_as_it_does_and_not_as_the_clock_is_set() -> None:
    clocks = Clocks()
    clocks.pass_seconds(5)
    assert clocks.elapsed.since("r", T0) == 5
    for jump in (HOUR, -2 * HOUR, HOUR):
        clocks.wall += jump
        assert clocks.elapsed.since("r", T0) == 5
    clocks.pass_seconds(7)
    assert clocks.elapsed.since("r", T0) == 12


def test_after_a_restart_the_clock_is_all_there_is_and_the_future_counts_as_now() -> None:
    clocks = Clocks()
    clocks.pass_seconds(30)
    assert Elapsed(lambda: 0.0, lambda: clocks.wall).since("r", T0) == 30
    assert Elapsed(lambda: 0.0, lambda: T0 - HOUR).since("r", T0) == 0


def test_a_moment_comes_when_so_much_time_has_passed() -> None:
    clocks = Clocks()
    retry = T0 + timedelta(seconds=10)
    assert not clocks.elapsed.has_come("r", retry, 60)
    clocks.wall += HOUR  # set forward: it has not waited yet
    assert not clocks.elapsed.has_come("r", retry, 60)
    clocks.wall -= 2 * HOUR  # and back
    clocks.pass_seconds(10)
    assert clocks.elapsed.has_come("r", retry, 60)


def test_nothing_waits_longer_than_is_meant_when_the_clock_was_set_back_while_the_daemon_was_away() -> None:
    clocks = Clocks()
    retry = T0 + HOUR
    assert not clocks.elapsed.has_come("r", retry, 60)
    clocks.pass_seconds(60)
    assert clocks.elapsed.has_come("r", retry, 60)
    assert clocks.elapsed.has_come("past", T0, 60)


def test_another_moment_of_the_same_thing_is_counted_anew_and_old_ones_are_forgotten() -> None:
    clocks = Clocks()
    for number in range(10_000):
        clocks.elapsed.since(f"r{number}", T0)
    clocks.pass_seconds(3)
    assert clocks.elapsed.since("r9999", T0 + timedelta(seconds=1)) == 2
    assert clocks.elapsed.since("r9999", T0) == 3
