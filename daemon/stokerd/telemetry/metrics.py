"""The face of metrics.db: what the samplers and the gateway's puller write, and what everyone else reads."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import deque
from collections.abc import Collection, Sequence
from functools import partial
from itertools import islice
from pathlib import Path

from stoker.errors import Invalid, Unavailable
from stoker.types.host import Series, TrafficStats
from stokerd.gateway.wire import Record, ShadowPair
from stokerd.telemetry import pairs, retention, series, traffic
from stokerd.telemetry.database import RESERVE_BYTES, Database
from stokerd.telemetry.series import Sample

__all__ = ["Metrics", "Sample"]

MOST_KEPT = 20_000  # samples in memory, about 4 MB: ten minutes of eight GPUs, should the disk be full
RECENT_RECORDS = 20_000  # of requests in memory, about 10 MB, while a rollout goes on
_EVIDENCE_RESERVE_BYTES = 8 * 2**20  # is left to state.db by what a rollout is judged by
PAIRS_SHARE = 0.25  # of the bytes allowed, at most, is for pairs of answers: they are larger than all else


class Metrics:
    """metrics.db: large and expendable. WAL, synchronous=NORMAL, one writer thread, bounded by age and bytes.

    Every method may raise `Unavailable` (disk full, file locked or unwritable): nothing of that call was stored, and
    a later call may work. A file that is damaged, or of another schema version, is set aside as
    ``metrics.db.corrupt-TIME`` and started anew, also while the daemon runs; of those, the newest is kept.

    Samples may be handed in one by one, by `keep`: they wait in memory for `flush`, since a transaction costs as much
    as a hundred of them. Whoever reads series sees them all the same. What waits is lost with the process: flush once a
    minute, and a daemon that is killed loses a minute of drawings and nothing else.

    ``dropped`` counts samples that were kept in vain, ``grown`` the rows that were stored since the last `trim`;
    ``records_stored`` the records of requests that ever were: while it stands still, there is nothing new to read.
    With ``keeps_recent``, somebody decides by them: the newest stay in memory for `recent`, and they are stored on a
    disk that has too little room for other metrics, and so are pairs.

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
        self._kept: list[Sample] = []
        self._flushing = asyncio.Lock()
        self.dropped = 0
        self.grown = 0
        self.records_stored = 0
        self.keeps_recent = False
        self._recent: deque[Record] = deque(maxlen=RECENT_RECORDS)
        self._last_seq: dict[str, int] = {}

    def keep(self, samples: Sequence[Sample]) -> None:
        """Let *samples* wait for the next `flush`; beyond `MOST_KEPT`, the oldest are dropped. Never raises."""
        self._kept += samples
        excess = max(len(self._kept) - MOST_KEPT, 0)
        del self._kept[:excess]
        self.dropped += excess

    async def flush(self) -> None:
        """Store what is kept; after an error it still is."""
        async with self._flushing:
            taken, self._kept = self._kept, []
            try:
                await self.write_samples(taken)
            except BaseException:  # cancelled: it may be stored by now, and a second time changes nothing
                taken, self._kept = self._kept, taken
                self.keep(taken)
                raise

    async def write_samples(self, samples: Sequence[Sample]) -> None:
        """Store *samples*: all, or none. NaN and infinities are dropped."""
        if samples:
            await self._database.write(lambda c: series.write(c, samples))
            self.grown += len(samples)

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
        with contextlib.suppress(Unavailable):  # what is stored can be read from a full disk, too
            await self.flush()
        return await self._database.read(
            lambda c: series.read(c, name, since=since, until=until, max_points=max_points)
        )

    async def moments(
        self, name: str, *, since: float, until: float, most: int, devices: Collection[str] = ()
    ) -> list[float]:
        """Read what was measured as *name* at each moment, as it was measured: for judging. See `series.moments`."""
        with contextlib.suppress(Unavailable):
            await self.flush()
        return await self._database.read(
            lambda c: series.moments(c, name, since=since, until=until, most=most, devices=devices)
        )

    @property
    def _reserve_of_evidence(self) -> int | None:
        return _EVIDENCE_RESERVE_BYTES if self.keeps_recent else None

    async def write_records(self, epoch: str, records: Sequence[Record]) -> None:
        """Store what the gateway measured in its life *epoch*: all, or none. A record stored before is left alone."""
        await self._database.write(
            lambda c: traffic.write(c, epoch, records, now=time.time()), reserve_bytes=self._reserve_of_evidence
        )
        last = self._last_seq.get(epoch, 0)
        fresh = [record for record in records if record.seq > last]
        if fresh:
            self._last_seq[epoch] = max(record.seq for record in fresh)
        if self.keeps_recent:
            self._recent.extend(fresh)
        else:
            self._recent.clear()
        self.grown += len(records)
        self.records_stored += len(fresh)

    def recent(self, after: int) -> list[Record] | None:
        """Those stored since ``records_stored`` was *after*, in that order; None: they are not in memory any more."""
        count = self.records_stored - after
        if count > len(self._recent):
            return None
        newest = list(islice(reversed(self._recent), count))  # from the end: most often there are few
        return newest[::-1]

    async def records(
        self,
        deployment: str,
        *,
        since: float,
        arms: Collection[str] | None = None,
        errors_only: bool = False,
        limit: int = 20000,
    ) -> list[Record]:
        """Read requests that began at *since* (unix seconds) or later, in order of their time.

        Times are those of the gateway to 1 µs. Of more than *limit*, those that ended last are given.
        """
        return await self._database.read(
            lambda c: traffic.read(c, deployment, since=since, arms=arms, errors_only=errors_only, limit=limit)
        )

    async def all_records(self, deployment: str, *, since: float, limit: int) -> tuple[list[Record], int]:
        """As `records`, with the `records_stored` that they amount to: `recent` after it has none of them, and no gap.

        Writers wait meanwhile (two seconds for 200,000): it is for who begins to follow, and then lives by `recent`.
        """
        found = await self._database.read(
            lambda c: traffic.read(c, deployment, since=since, arms=None, errors_only=False, limit=limit), in_turn=True
        )
        return found, self.records_stored  # nothing is awaited between: see `Database.read`

    async def last_record(self, epoch: str) -> int:
        """The highest ``seq`` ever stored of that life of the gateway, 0 if none: where the puller goes on."""
        return await self._database.read(lambda c: traffic.last_seq(c, epoch))

    async def write_pairs(self, epoch: str, found: Sequence[ShadowPair]) -> None:
        """Store answers of stable and shadow that the gateway kept in its life *epoch*, as `write_records` does."""
        await self._database.write(
            lambda c: pairs.write(c, epoch, found, now=time.time()), reserve_bytes=self._reserve_of_evidence
        )
        self.grown += len(found)

    async def pairs(self, rollout: str, *, since: float, limit: int) -> list[ShadowPair]:
        """Read pairs of answers to requests that came at *since* (unix seconds) or later, in order of their time.

        Of more than *limit*, the newest are given.
        """
        return await self._database.read(lambda c: pairs.read(c, rollout, since=since, limit=limit))

    async def last_pair(self, epoch: str) -> int:
        """The highest ``seq`` of a pair ever stored of that life of the gateway, 0 if none."""
        return await self._database.read(lambda c: pairs.last_seq(c, epoch))

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
        grown = self.grown
        now_ms = round(time.time() * 1000)
        too_old = now_ms - round(self._max_age_seconds * 1000)
        await self._forget(too_old)
        await self._database.write(lambda c: retention.forget_epochs(c, too_old), reserve_bytes=0)
        excess = await self._database.read(lambda c: pairs.too_many(c, round(PAIRS_SHARE * self._max_bytes)))
        if excess is not None:
            await self._database.write(lambda c: pairs.forget(c, excess), reserve_bytes=0)
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
        self.grown -= grown

    async def _forget(self, before_ms: int) -> None:
        for origin in await self._database.read(retention.origins):
            forget = partial(retention.forget, origin=origin, before_ms=before_ms)
            await self._database.write(forget, reserve_bytes=0)
        await self._database.write(lambda c: pairs.forget(c, before_ms), reserve_bytes=0)

    def close(self) -> None:
        """Finish what is queued and close the file. What is kept is lost: `flush` first."""
        self._database.close()
