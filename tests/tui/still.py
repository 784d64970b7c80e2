"""The still time in which the tests' world stands."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone

from stoker_tui.clock import Clock

NOON = datetime(2026, 3, 14, 13, 30, 0, tzinfo=UTC)
ZONE = timezone(timedelta(hours=1))


class StillClock(Clock):
    """A clock that stands until a test moves it."""

    def __init__(self, moment: datetime = NOON) -> None:
        super().__init__(ZONE)
        self.moment = moment
        self.passed = 100.0

    def now(self) -> datetime:
        return self.moment

    def monotonic(self) -> float:
        return self.passed

    def advance(self, seconds: float) -> None:
        self.moment += timedelta(seconds=seconds)
        self.passed += seconds


def ago(seconds: float) -> datetime:
    return NOON - timedelta(seconds=seconds)
