"""What the requests of a rollout say: samples of its arms, kept up to date by the records as they come."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

from stoker.types.rollouts import Exposure, Paused, Promoted, Rollout, ShadowStep, Stepping
from stoker.types.serving import Ready, Replica
from stokerd.gateway.wire import Record
from stokerd.rollouts import machine
from stokerd.rollouts.sample import ColdStart, Sample
from stokerd.rollouts.verdict import hard_trip, is_refusal, is_refused_by_gateway
from stokerd.telemetry.metrics import Metrics

MAX_RECORDS = 200_000  # are read of one step; past that the newest are judged
BASELINE_RECORDS = 20_000
BASELINE_SECONDS = 3600.0  # before the rollout, in which stable's own requests tell how it was without a candidate
_MARGIN_SECONDS = 2 * 3600.0  # requests of a step are told by their table; their times may be those of a clock set back


class Evidence:
    """The records of one rollout, sorted into what guards, trips and people need.

    ``stable`` and ``tested`` are the samples of the present step, ``last`` the newest answers of the tested arm, in
    order, and ``exposure`` sums up all steps. ``baseline`` is stable before the rollout, once `look_back` has read it.
    """

    def __init__(self, rollout: Rollout) -> None:
        self._deployment = rollout.deployment
        self._from, self._to = rollout.from_version, rollout.to_version
        self._first_table = rollout.began
        self._cold = ColdStart(rollout.spec.cold_requests)
        self._keeps = rollout.spec.max_errors_in_a_row
        self._cursor: int | None = None
        self._key: object = None
        self._began = 0
        self._exposed: set[str] = set()
        self._before = rollout.exposure
        self._requests = self._errors = 0
        self.baseline: Sample | None = None
        self._begin(rollout)

    def _begin(self, rollout: Rollout) -> None:
        """Be without any request of the present state."""
        state = rollout.state
        self._key = state_key(rollout)
        self._began, self._since = 0, 0.0
        if isinstance(state, Stepping | Paused | Promoted):
            self._began = state.began
            moment = state.finished_at if isinstance(state, Promoted) else state.since
            self._since = 0.0 if state.began else moment.timestamp()  # else an older Stoker began it
        self.tested_arm = tested_arm(rollout)
        self._watched_arm = {"promoting": "candidate", "promoted": "stable"}.get(rollout.phase, self.tested_arm)
        self.stable = Sample(f"v{self._from}")
        self.tested = Sample(f"v{self._to}")
        self.last: deque[Record] = deque(maxlen=self._keeps)
        self._refused_by_stable = 0
        self._streaks: dict[str, int] = {}
        self._failed_caller = ""

    async def update(self, metrics: Metrics, rollout: Rollout, replicas: Sequence[Replica]) -> None:
        """Take in what is new. Raises `Unavailable` when what was stored earlier can't be read."""
        if self._key != state_key(rollout):
            self._begin(rollout)
        fresh = metrics.recent(self._cursor) if self._cursor is not None else None
        if fresh is None:
            fresh = await self._read_again(metrics, rollout)
        else:
            self._cursor = metrics.records_stored
        for replica in replicas:
            if isinstance(replica.state, Ready):
                self._cold.ready(replica.address, replica.version, replica.state.since.timestamp())
        self._take(r for r in fresh if r.deployment == self._deployment)

    async def _read_again(self, metrics: Metrics, rollout: Rollout) -> list[Record]:
        """All of this rollout that is stored: after a start of the daemon, or when more came than memory keeps."""
        self._begin(rollout)
        self._cold = ColdStart(rollout.spec.cold_requests)
        self._exposed.clear()
        self._requests = self._errors = 0
        since = rollout.created_at.timestamp() - (_MARGIN_SECONDS if self._began else 0.0)
        records, self._cursor = await metrics.all_records(rollout.deployment, since=since, limit=MAX_RECORDS)
        return records

    def _take(self, records: Iterable[Record]) -> None:
        for record in records:
            if record.table_version < self._first_table or record.is_pinned:
                continue  # of a rollout before, or of somebody who chose
            if record.arm == "candidate" and record.version == self._to:
                self._expose(record)
            is_cold = self._cold.is_cold(record)
            if record.table_version < self._began or record.time < self._since:
                continue
            if record.fell_back:  # for stable, the time that was lost elsewhere would count
                if record.lost_version == self._to and self._watched_arm == "candidate":
                    self._take_answer(replace(record, arm="candidate", version=self._to, status=0, is_error=True))
            elif record.arm == self._watched_arm and record.version == self._to:
                self._take_answer(record, is_cold=is_cold)
            elif record.arm == "stable" and record.version == self._from and self.tested_arm is not None:
                self.stable.add(record, is_cold=is_cold)
                self._refused_by_stable += is_refusal(record) and not is_refused_by_gateway(record)

    def _take_answer(self, record: Record, *, is_cold: bool = False) -> None:
        if self.tested_arm is not None:
            self.tested.add(record, is_cold=is_cold)
        self._note_answer(record)

    def _note_answer(self, record: Record) -> None:
        if (not record.is_error and record.client_gone) or is_refused_by_gateway(record):
            return
        self.last.append(record)
        if not record.caller or self._failed_caller:
            return
        if record.is_error and not is_refusal(record):
            self._streaks[record.caller] = streak = self._streaks.get(record.caller, 0) + 1
            if streak >= self._keeps:
                self._failed_caller = record.caller
        else:
            self._streaks.pop(record.caller, None)

    def trip(self) -> str | None:
        """Why the version must go at once, in a sentence; None: nothing says so.

        Beside the last answers to all, those to each caller are looked at: a version that fails one of many for good is
        a fraction of a point in their rates. Refusals (4xx) don't count there, as one caller alone may ask nonsense.
        """
        if self._failed_caller:
            return f"v{self._to} failed {self._keeps} times in a row for one caller ({self._failed_caller})"
        return hard_trip(self.last, self._keeps, self._refused_by_stable)

    def _expose(self, record: Record) -> None:
        self._requests += 1
        self._errors += record.is_error
        if record.caller:
            self._exposed.add(record.caller)

    @property
    def exposure(self) -> Exposure:
        """Never less than was kept of it: telemetry is forgotten after a while, and a rollout may be longer."""
        return Exposure(
            requests=max(self._requests, self._before.requests),
            errors=max(self._errors, self._before.errors),
            callers=max(len(self._exposed), self._before.callers),
        )

    async def look_back(self, metrics: Metrics, rollout: Rollout) -> Sample:
        """Stable's requests before the rollout. Raises `Unavailable`."""
        if self.baseline is None:
            until = rollout.created_at.timestamp()
            records = await metrics.records(
                rollout.deployment, since=until - BASELINE_SECONDS, arms=["stable"], limit=BASELINE_RECORDS
            )
            baseline = Sample(f"v{self._from}")
            for record in records:
                if record.version == self._from and record.time < until:
                    baseline.add(record)
            self.baseline = baseline
        return self.baseline


def tested_arm(rollout: Rollout) -> str | None:
    """The arm whose requests are judged in the present state; None: none is."""
    state = rollout.state
    if not isinstance(state, Stepping | Paused):
        return None
    if rollout.is_swap:
        return "candidate"
    step = machine.exposing_step(rollout.spec, state)
    is_shadow = isinstance(step, ShadowStep) or (isinstance(state, Paused) and state.exposure == "shadow")
    return None if step is None else "shadow" if is_shadow else "candidate"


def state_key(rollout: Rollout) -> object:
    """What is the same as long as the same step is judged."""
    return rollout.state.model_dump_json() if isinstance(rollout.state, Stepping | Paused) else rollout.phase


def by_name(samples: Mapping[str, Sample]) -> dict[str, Sample]:
    """Those that have anything, and stable."""
    return {name: sample for name, sample in samples.items() if sample.requests or name == "stable"}
