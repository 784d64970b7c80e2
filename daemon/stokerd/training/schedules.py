"""When jobs fire. APScheduler decides when; the database decides what, and what was missed.

Each schedule remembers the moment it last fired for. At start, and whenever one changes, its trigger is rebuilt from
its row and firings missed since that moment are made up for by the schedule's misfire policy.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator
from datetime import datetime, timedelta
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from apscheduler.jobstores.memory import MemoryJobStore
from apscheduler.schedulers.asyncio import AsyncIOScheduler
from apscheduler.triggers.base import BaseTrigger
from apscheduler.triggers.cron import CronTrigger
from apscheduler.triggers.date import DateTrigger
from apscheduler.triggers.interval import IntervalTrigger

from stoker.errors import InvalidSpec, StokerError, Unavailable
from stoker.types.base import now
from stoker.types.training import Schedule, ScheduleSpec
from stokerd.store.store import Store, Transaction
from stokerd.training.jobs import Jobs

log = logging.getLogger(__name__)
MAX_MADE_UP = 100  # runs that the policy "all" makes for one absence


def trigger_of(spec: ScheduleSpec, start: datetime) -> BaseTrigger:
    """APScheduler's trigger of a schedule that was made at *start*. Raises `InvalidSpec`."""
    try:
        zone = ZoneInfo(spec.timezone)
    except (ZoneInfoNotFoundError, ValueError, OSError) as error:
        raise InvalidSpec(
            f"schedule {spec.name}: timezone: there is no time zone {spec.timezone!r}.", "Write one as Europe/Berlin."
        ) from error
    if spec.cron is not None:
        try:
            return CronTrigger.from_crontab(spec.cron, timezone=zone)
        except ValueError as error:
            raise InvalidSpec(
                f"schedule {spec.name}: cron: {spec.cron!r} can't be read ({error}).",
                "Expected five fields: minute hour day-of-month month day-of-week, e.g. '0 3 * * *'.",
            ) from error
    if spec.interval is not None:
        every = max(round(spec.interval), 1)
        first = start + timedelta(seconds=spec.interval)
        if start > now():  # the clock was set back since: the same beat, but from now on and not from then
            first -= timedelta(seconds=every) * math.ceil((first - now()) / timedelta(seconds=every))
        return IntervalTrigger(seconds=every, start_date=first, timezone=zone)
    return DateTrigger(spec.date, timezone=zone)


def due(trigger: BaseTrigger, after: datetime, until: datetime) -> list[datetime]:
    """The last moments, `MAX_MADE_UP` at most, over *after* and up to *until* at which *trigger* fires, in order.

    Looks back in growing windows, so that a year's absence of a schedule that fires each second costs nothing.
    """
    for lookback in (timedelta(minutes=2), timedelta(hours=2), timedelta(days=5), until - after):
        start = max(after, until - lookback)
        found = list(_moments(trigger, start, until))
        if len(found) >= MAX_MADE_UP or start == after:
            return found[-MAX_MADE_UP:]
    return []


def _moments(trigger: BaseTrigger, after: datetime, until: datetime) -> Iterator[datetime]:
    moment = trigger.get_next_fire_time(None, after + timedelta(microseconds=1))
    while moment is not None and moment <= until:
        if moment > after:  # a date trigger answers with its date, however long ago that was
            yield moment
        following = trigger.get_next_fire_time(moment, moment + timedelta(microseconds=1))
        if following is None or following <= moment:
            return
        moment = following


def resume_intervals(tx: Transaction) -> None:
    """Count intervals whose last firing lies in the future, since the clock was set back, from now on."""
    present = now()
    for schedule in tx.all(Schedule):
        if schedule.spec.interval is not None and _since(schedule) > present:
            schedule.last_fired_at = schedule.spec_set_at = present
            tx.save(schedule)


def _since(schedule: Schedule) -> datetime:
    """Firings up to then are settled."""
    return max(schedule.last_fired_at or schedule.spec_set_at, schedule.spec_set_at)


def _settle(tx: Transaction, name: str, moment: datetime, reason: str, message: str, **data: int) -> None:
    """Tell what came of the firings up to *moment*, and never look at them again: a crash does neither or both."""
    schedule = tx.find(Schedule, name)
    if schedule is not None:
        schedule.last_fired_at = moment
        tx.save(schedule)
    tx.record("schedule", name, reason, message, **data)


class Schedules:
    """Loads schedules into APScheduler and makes runs when they fire."""

    def __init__(self, store: Store, jobs: Jobs) -> None:
        self._store = store
        self._jobs = jobs
        self._scheduler = AsyncIOScheduler(jobstores={"default": MemoryJobStore()}, timezone="UTC")
        self._loaded: dict[str, str] = {}

    def start(self) -> None:
        """Start APScheduler in the running loop."""
        self._scheduler.start()

    def close(self) -> None:
        """Stop firing."""
        self._scheduler.shutdown(wait=False)

    async def clock_was_set(self, seconds: float) -> None:
        """Work the next firings out anew: timers that were set by the old clock would ring at the wrong moment.

        A clock that went back by *seconds* (negative) leaves firings that are settled already in the future. For cron
        and date they stay settled, since none is to happen twice; an interval goes on from now.
        """
        if seconds < 0:
            await self._store.write(resume_intervals)
        self._loaded.clear()

    async def step(self) -> None:
        """Bring APScheduler's jobs in line with the rows; make up for what was missed.

        Raises `Unavailable` when the disk did not allow it for some of them: call it again.
        """
        held_up: Unavailable | None = None
        schedules = await self._store.read(lambda q: q.all(Schedule))
        wanted = {s.name: s for s in schedules if not s.spec.paused}
        for name in set(self._loaded) - set(wanted):
            del self._loaded[name]
            if self._scheduler.get_job(name):
                self._scheduler.remove_job(name)
        for name, schedule in wanted.items():
            fingerprint = schedule.spec.model_dump_json()
            if self._loaded.get(name) != fingerprint:
                try:
                    await self._load(schedule)
                except Unavailable as error:
                    held_up = error
                    continue
                except Exception:  # it concerns this schedule alone
                    log.exception("schedule %s could not be loaded; it is tried again when it changes", name)
                self._loaded[name] = fingerprint
        if held_up is not None:
            raise held_up

    async def _load(self, schedule: Schedule) -> None:
        trigger = trigger_of(schedule.spec, schedule.created_at)
        await self._make_up(schedule, due(trigger, _since(schedule), now()))
        following = trigger.get_next_fire_time(None, now())
        if following is None or following <= now():  # a date that has passed: APScheduler would fire it at once
            if self._scheduler.get_job(schedule.name):
                self._scheduler.remove_job(schedule.name)
            await self._remember(schedule.name, None)
            return
        self._scheduler.add_job(
            self._fire,
            trigger,
            args=[schedule.name],
            id=schedule.name,
            replace_existing=True,
            misfire_grace_time=None,
            coalesce=True,
            max_instances=1,
            next_run_time=following,
        )
        await self._remember(schedule.name, None)

    async def _make_up(self, schedule: Schedule, moments: list[datetime]) -> None:
        """Settle *moments* that were missed, by the schedule's misfire policy."""
        if not moments:
            return
        made_up = {"skip": [], "once": moments[-1:], "all": moments}[schedule.spec.misfire]
        for moment in made_up:
            await self._run(schedule.name, moment)
        skipped = len(moments) - len(made_up)
        message = f"{schedule.name} missed {len(moments)} firing(s); {len(made_up)} made up for."
        await self._store.write(
            lambda tx: _settle(tx, schedule.name, moments[-1], "ScheduleMisfired", message, skipped=skipped)
        )
        await self._remember(schedule.name, moments[-1])

    async def _fire(self, name: str) -> None:
        """APScheduler calls this at the moment, or late when the loop was held up."""
        schedule = await self._store.read(lambda q: q.find(Schedule, name))
        if schedule is None or schedule.spec.paused:
            return
        trigger = trigger_of(schedule.spec, schedule.created_at)
        moments = due(trigger, _since(schedule), now())
        if not moments:
            return
        # One run at a time makes runs here, and the host may have slept: what lies before the last moment was missed.
        if schedule.spec.misfire == "all":
            await self._make_up(schedule, moments[:-1])
        await self._run(name, moments[-1])
        await self._remember(name, moments[-1])

    async def _run(self, name: str, moment: datetime) -> None:
        schedule = await self._store.read(lambda q: q.find(Schedule, name))
        if schedule is None:
            return
        key = f"schedule:{name}@{moment.isoformat(timespec='seconds')}"
        try:
            run = await self._jobs.create_run(schedule.spec.job, dict(schedule.spec.params), key=key)
            reason, message = "ScheduleFired", f"{name} fired: {run.name}."
        except StokerError as error:
            reason, message = "ScheduleFailed", f"{name} could not make a run: {error}"
            log.warning("schedule %s", message)
        await self._store.write(lambda tx: _settle(tx, name, moment, reason, message))

    async def _remember(self, name: str, fired: datetime | None) -> None:
        job = self._scheduler.get_job(name)
        following = getattr(job, "next_run_time", None)

        def save(tx: Transaction) -> None:
            schedule = tx.find(Schedule, name)
            if schedule is not None:
                schedule.last_fired_at = fired or schedule.last_fired_at
                schedule.next_fire_at = following
                tx.save(schedule, "ScheduleSet", f"{name} fires next at {following or 'no moment'}.")

        await self._store.write(save)
