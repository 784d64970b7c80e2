"""The face of metrics.db: what the samplers and the gateway's puller write, and what everyone else reads."""

from __future__ import annotations

import time
from collections.abc import Collection, Sequence
from functools import partial
from pathlib import Path

from stoker.errors import Invalid
from stoker.types.host import Series, TrafficStats
from stokerd.gateway.wire import Record
from stokerd.telemetry import retention, series, traffic
from stokerd.telemetry.database import RESERVE_BYTES, Database
from stokerd.telemetry.series import Sample

__all__ = ["Metrics", "Sample"]


class Metrics:
    """metrics.db: large and expendable. WAL, synchronous=NORMAL, one writer thread, bounded by age and bytes.

    Every method may raise `Unavailable` (disk full, file locked or unwritable): nothing of that call was stored, and
    a later call may work. A file that is damaged, or of another schema version, is set aside as
    ``metrics.db.corrupt-TIME`` and started anew, also while the daemon runs; of those, the newest is kept.

    Args:
        path: the file.
        max_age_seconds: what is older is forgotten by `trim`.
        max_bytes: what the file may have after a `trim`; the oldest goes first.
        reserve_bytes: nothing is written while the disk has less than this free, so that state.db can still grow.
    """

    def __init__(
        self, path: Path, *, max_age_seconds: float, max_bytes: int, reserve_bytes: int = RESERVE_BYTES
    ) -> None:
        self._max_age_seconds = max_age_seconds
        self._max_bytes = max_bytes
        self._database = Database(path, reserve_bytes=reserve_bytes)

    async def write_samples(self, samples: Sequence[Sample]) -> None:
        """Store *samples*: all, or none. NaN and infinities are dropped."""
        await self._database.write(lambda c: series.write(c, samples))

    async def series(self, name: str, *, since: float, until: float, max_points: int) -> list[Series]:
        """Read the series of that *name*, or all whose names begin as it does before a closing ``*``.

        Args:
            name: exact, or with ``*`` at its end.
            since: unix seconds, included.
            until: unix seconds, included.
            max_points: a series of more samples is averaged over that many buckets of time: for drawing only.

        Raises:
            Invalid: *max_points* is less than 1.
        """
        if max_points < 1:
            raise Invalid(f"max_points is {max_points}: expected 1 or more.")
        return await self._database.read(
            lambda c: series.read(c, name, since=since, until=until, max_points=max_points)
        )

    async def write_records(self, epoch: str, records: Sequence[Record]) -> None:
        """Store what the gateway measured in its life *epoch*: all, or none. A record stored before is left alone."""
        await self._database.write(lambda c: traffic.write(c, epoch, records, now=time.time()))

    async def records(
        self, deployment: str, *, since: float, arms: Collection[str] | None = None, limit: int = 20000
    ) -> list[Record]:
        """Read requests that began at *since* (unix seconds) or later, in order of their time.

        Times are those of the gateway to 1 µs. Of more than *limit*, those that ended last are given.
        """
        return await self._database.read(lambda c: traffic.read(c, deployment, since=since, arms=arms, limit=limit))

    async def last_record(self, epoch: str) -> int:
        """The highest ``seq`` ever stored of that life of the gateway, 0 if none: where the puller goes on."""
        return await self._database.read(lambda c: traffic.last_seq(c, epoch))

    async def traffic(self, window_seconds: float) -> list[TrafficStats]:
        """Sum up requests answered in the last *window_seconds*, by deployment, version and arm.

        Quantiles are those of single requests; see `quantiles.arm_stats` for which ones count.

        Raises:
            Invalid: the window isn't longer than nothing.
        """
        if not window_seconds > 0:
            raise Invalid(f"the window is {window_seconds:g} s: expected more than 0.")
        return await self._database.read(lambda c: traffic.stats(c, window_seconds=window_seconds, now=time.time()))

    async def trim(self) -> None:
        """Forget what is too old, then the oldest of what is too much. Writers get in between its short steps."""
        now_ms = round(time.time() * 1000)
        too_old = now_ms - round(self._max_age_seconds * 1000)
        await self._forget(too_old)
        await self._database.write(lambda c: retention.forget_epochs(c, too_old), ignore_reserve=True)
        found = await self._database.read(retention.extent)
        is_too_large = found.file_bytes > self._max_bytes
        while is_too_large:
            before = retention.cutoff(found, max_bytes=self._max_bytes, now_ms=now_ms)
            if before is None:
                break
            await self._forget(before)
            found = await self._database.read(retention.extent)
        free = found.file_bytes - found.used_bytes
        if is_too_large or free > retention.MAX_FREE * found.file_bytes:
            await self._database.shrink()

    async def _forget(self, before_ms: int) -> None:
        for origin in await self._database.read(retention.origins):
            forget = partial(retention.forget, origin=origin, before_ms=before_ms)
            await self._database.write(forget, ignore_reserve=True)

    def close(self) -> None:
        """Finish what is queued and close the file."""
        self._database.close()
