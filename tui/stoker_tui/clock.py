"""The time, as one thing that a test can hold still."""

from __future__ import annotations

import time
from datetime import datetime, tzinfo

from stoker.types.base import now


class Clock:
    """The present: wall time for what is shown, monotonic time for how long something took."""

    def __init__(self, zone: tzinfo | None = None) -> None:
        self.zone = zone
        """Time zone for what is shown; None is the local one."""

    def now(self) -> datetime:
        """The present, in UTC."""
        return now()

    def monotonic(self) -> float:
        """Seconds that never jump."""
        return time.monotonic()

    def local(self, moment: datetime) -> datetime:
        """*moment* in the time zone that is shown."""
        return moment.astimezone(self.zone)

    def since(self, moment: datetime) -> float:
        """Seconds from *moment* to now; never negative."""
        return max(0.0, (self.now() - moment).total_seconds())
