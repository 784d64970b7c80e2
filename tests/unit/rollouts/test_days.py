"""Days of rollouts in seconds: the machine, the route table and the gateway's choice of an arm, driven by a fake clock
and by callers who come and go, with people, trouble and a gateway that answers when it likes.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from math import sqrt
from random import Random
from typing import Any

from hypothesis import Phase, event, given, settings
from hypothesis import strategies as st

from stoker.errors import Conflict
from stoker.types.rollouts import (
    FINAL_PHASES,
    ApproveStep,
    CanaryStep,
    Guard,
    Paused,
    PauseStep,
    Preparing,
    Promoted,
    RolloutPlan,
    RolloutSpec,
    RolloutState,
    ShadowStep,
    Step,
    Stepping,
    Target,
    TargetStep,
    Verb,
)
from stoker.types.rollouts import VERBS as ALLOWED
from stoker.types.rollouts import Rollout as RolloutRow
from stoker.types.serving import Deployment, DeploymentSpec, Ready, Warm
from stoker.types.serving import Replica as ReplicaRow
from stokerd.gateway.balance import Replica
from stokerd.gateway.bodies import Asked
from stokerd.gateway.call import Call
from stokerd.gateway.callers import Callers
from stokerd.gateway.limits import Limits
from stokerd.gateway.request import Request
from stokerd.gateway.routing import Plan
from stokerd.gateway.surface import ENDPOINTS
from stokerd.gateway.wire import Record, Route
from stokerd.rollouts import evidence, machine
from stokerd.rollouts.sample import Sample
from stokerd.rollouts.verdict import hard_trip, judge_all, overall
from stokerd.serving.plan import is_same_split, route, wanted_versions

T0 = datetime(2026, 1, 1, tzinfo=UTC)
TICK_SECONDS = 120.0
DAYS = 5
BUSY_DAYS = 2  # people interfere before promotion; then whoever paused it lets it go on, as a pause has no limit
SIGMAS = 6.0  # one false alarm in 500 million
GUARDS = [Guard(metric="error_rate", limit=0.05)]
DEPLOYMENT: dict[str, Any] = {
    "kind": "deployment", "name": "chat", "model": "m", "version": 1,
    "engine": {"type": "command", "command": ["serve"]},
}  # fmt: skip


@dataclass
class Kept:
    """What the present step has seen: who got which arm, and what came of it."""

    arms: dict[bytes, str] = field(default_factory=dict)
    stable: Sample = field(default_factory=lambda: Sample("v1"))
    tested: Sample = field(default_factory=lambda: Sample("v2"))
    last: list[Record] = field(default_factory=list)


class World:
    """A deployment of version 1, the rollouts that it goes through one after the other, and all who have to do with it.

    *badness* is the share of the candidate's answers that fail.
    """

    def __init__(self, chance: Random, callers: int) -> None:
        self.chance = chance
        self.clock = T0
        self.callers = [b"caller-%d" % n for n in range(callers)]
        self.deployment = Deployment(name="chat", spec=DeploymentSpec.model_validate(DEPLOYMENT), version=1)
        self.rollout: RolloutRow | None = None
        self.badness = 0.0
        self.starts: dict[int, datetime] = {1: T0}
        self.served_by: Route = route(self.deployment, self.replicas(), None)
        self.known = Callers(None)
        self._since = T0
        self._event = 0
        self._kept = Kept()
        self._exposed: set[bytes] = set()
        self._most = 0
        self._is_bounded = True
        self._steps: list[tuple[CanaryStep, set[bytes]]] = []

    # What there is.

    def replicas(self) -> list[ReplicaRow]:
        """Those of the versions that there should be; a new one takes ten minutes, or less, to get ready."""
        rows = []
        for version, moment in self.starts.items():
            if moment <= self.clock:
                state = Ready(process=f"v{version}", since=moment)
                rows.append(
                    ReplicaRow(
                        name=f"chat-v{version}-0", deployment="chat", version=version, index=0, launch_digest="",
                        address=f"unix:/{version}", state=state,
                    )
                )  # fmt: skip
        return rows

    def is_ready(self, version: int) -> bool:
        return any(r.version == version for r in self.replicas())

    def begin(self, spec: RolloutSpec, to: int, badness: float, *, is_swap: bool) -> None:
        """Apply a rollout."""
        assert self.deployment.rollout is None
        self.badness = badness
        plan = RolloutPlan(
            deployment="chat", from_version=self.deployment.version, to_version=to, fits=True, says="",
            placement="swap" if is_swap else "beside",
        )  # fmt: skip
        self.rollout = RolloutRow(
            name=spec.name, spec=spec, deployment="chat", from_version=self.deployment.version, to_version=to,
            state=Preparing(since=self.clock), plan=plan,
        )  # fmt: skip
        self.deployment.rollout, self.deployment.warm = spec.name, None
        self._exposed, self._most, self._is_bounded, self._steps = set(), 0, True, []
        self._enter()

    @property
    def is_at_rest(self) -> bool:
        """Whether its rollout has ended, and nothing stands by for a way back."""
        return self.deployment.rollout is None and self.deployment.warm is None

    # One tick.

    def tick(self) -> None:
        """Two minutes go by."""
        self.clock += timedelta(seconds=TICK_SECONDS)
        rollout = self.rollout
        assert rollout is not None
        self._scale(rollout)
        if self.chance.random() < 0.9:  # else the gateway doesn't answer, and goes on by what it has
            self.served_by = route(self.deployment, self.replicas(), self._active())
        self._ask(self.chance.randrange(40))
        facts = self._facts(rollout)
        state = machine.advance(rollout.spec, rollout.state, facts)
        if isinstance(rollout.state, Promoted):
            state = state if self.deployment.warm else None
            if rollout.state.warm_until is not None and self.clock >= rollout.state.warm_until:
                self.deployment.warm = state = None
        if state is not None:
            self.go(state)

    def say(self, verb: Verb) -> bool:
        """Have somebody say it; whether it fitted."""
        rollout = self.rollout
        assert rollout is not None
        is_warm = self.deployment.warm is not None and self.is_ready(rollout.from_version)
        try:
            state = machine.command(
                rollout.spec, rollout.state, verb, self.clock, "ada", is_warm=is_warm, is_swap=rollout.is_swap,
                next_event=self._event + 1,
            )  # fmt: skip
        except Conflict:
            return False
        self.go(state)
        return True

    def go(self, state: RolloutState) -> None:
        """Keep that decision, and what it means for the deployment."""
        rollout = self.rollout
        assert rollout is not None
        self._check_step(rollout)
        assert rollout.phase not in ("rolled-back", "aborted"), "what was taken back doesn't come again"
        was_promoted = isinstance(rollout.state, Promoted)
        rollout.state = state
        if was_promoted:
            assert self.deployment.version == rollout.to_version
            self.deployment.rollout, self.deployment.warm = rollout.name, None
        if state.phase in FINAL_PHASES:
            is_promoted = isinstance(state, Promoted)
            self.deployment.rollout = None
            self.deployment.version = rollout.to_version if is_promoted else rollout.from_version
            if isinstance(state, Promoted) and state.warm_until is not None:
                self.deployment.warm = Warm(version=rollout.from_version, until=state.warm_until, rollout=rollout.name)
        self._enter()

    def _active(self) -> RolloutRow | None:
        return self.rollout if self.deployment.rollout else None

    def _enter(self) -> None:
        self._event += 1
        self._since = self.clock
        self._kept = Kept()

    def _scale(self, rollout: RolloutRow) -> None:
        wanted = wanted_versions(self.deployment, self._active())
        for version in [v for v in self.starts if v not in wanted]:
            del self.starts[version]
        for version in wanted:
            delay = timedelta(seconds=self.chance.choice([0, 300, 600]))
            self.starts.setdefault(version, self.clock + delay)

    def _ask(self, count: int) -> None:
        """So many requests: of callers who are known, of a target, and of people whom nothing tells apart."""
        plan = Plan(self.served_by, lambda address: Replica(address, Limits()))
        is_now = is_same_split(self.served_by, route(self.deployment, self.replicas(), self._active()))
        for _ in range(count):
            caller = self.chance.choice([*self.callers, *[b"target"] * 10, *[b""] * 10])
            arm = plan.assign(call_of(caller), self.known)
            answering = arm if arm.replicas else plan.stable
            assert answering.replicas or plan.hold_seconds, "who isn't answered at once is held"
            if is_now:
                self._take(caller, arm.name, answering.version)

    def _take(self, caller: bytes, arm: str, version: int) -> None:
        rollout, kept = self.rollout, self._kept
        assert rollout is not None
        if self._active() is None:
            assert arm == "stable"
            assert version == self.deployment.version
            return
        if caller:
            assert kept.arms.setdefault(caller, arm) == arm, "nobody flips arms within a step"
        if arm == "candidate" and caller not in (b"", b"target"):
            self._exposed.add(caller)
        is_candidate = version == rollout.to_version
        record = record_of(caller, arm, version, is_error=is_candidate and self.chance.random() < self.badness)
        if is_candidate:
            kept.tested.add(record)
            kept.last.append(record)
        else:
            kept.stable.add(record)
            if evidence.tested_arm(rollout) == "shadow":
                shadow = record_of(caller, "shadow", rollout.to_version, is_error=self.chance.random() < self.badness)
                kept.tested.add(shadow)
                kept.last.append(shadow)

    def _facts(self, rollout: RolloutRow) -> machine.Facts:
        kept = self._kept
        readings = judge_all(rollout.spec.guards, kept.stable, kept.tested, 0.05) if self._is_judged() else []
        wanted = route(self.deployment, self.replicas(), self._active())
        return machine.Facts(
            now=self.clock,
            seconds=(self.clock - self._since).total_seconds(),
            candidate_ready=self.is_ready(rollout.to_version),
            candidate_failed="v2: it ended" if self.chance.random() < 0.0002 else None,
            stable_ready=self.is_ready(rollout.from_version),
            stable_failed="v1: given up" if self.chance.random() < 0.02 else None,
            step_requests=kept.tested.requests,
            step_callers=kept.tested.callers,
            verdict=overall(readings) if self._is_judged() else None,
            trip=hard_trip(kept.last, rollout.spec.max_errors_in_a_row),
            routed=is_same_split(self.served_by, wanted),
            is_swap=rollout.is_swap,
            next_event=self._event + 1,
        )

    def _is_judged(self) -> bool:
        return self.rollout is not None and self.rollout.phase in ("stepping", "paused")

    # What must hold.

    def _check_step(self, rollout: RolloutRow) -> None:
        """What a step that ends now did: how many it exposed, and to whom."""
        state = rollout.state
        if not isinstance(state, Stepping) or rollout.is_swap:
            return
        step = machine.exposing_step(rollout.spec, state)
        arms = {caller: arm for caller, arm in self._kept.arms.items() if caller != b"target"}
        got = {caller for caller, arm in arms.items() if arm == "candidate"}
        if not isinstance(step, CanaryStep):
            assert not got, f"{step} exposes nobody but targets"
            return
        for earlier, had in self._steps:
            is_wider = not step.max_callers or 0 < earlier.max_callers <= step.max_callers
            if is_wider and earlier.percent <= step.percent:
                assert had & arms.keys() <= got, "who has it keeps it when the share grows"
        self._steps.append((step, got))
        if step.max_callers:
            assert len(got) <= step.max_callers
            self._most = max(self._most, step.max_callers)
        else:
            self._is_bounded = False
            share, n = step.percent / 100, len(arms)
            assert abs(len(got) - n * share) <= SIGMAS * sqrt(n * share * (1 - share)) + 1e-9
        if self._is_bounded:
            assert len(self._exposed) <= self._most, "over all steps, too"


def call_of(caller: bytes) -> Call:
    request = Request(0.0)
    request.target, request.body = b"/v1/chat/completions", b'{"model": "chat"}'
    if caller == b"target":
        request.lines = [b"x-team: ml\r\n"]
    if caller:
        request.noted[b"x-stoker-session"] = caller
    return Call(request, ENDPOINTS[b"/v1/chat/completions"], Asked("chat"), None)


def record_of(caller: bytes, arm: str, version: int, *, is_error: bool) -> Record:
    return Record(
        seq=0, time=0.0, deployment="chat", arm=arm, version=version, address="", path="",
        status=500 if is_error else 200, is_error=is_error, is_stream=False, client_gone=False, fell_back=False,
        ttft_seconds=0.1, inter_token_seconds=None, total_seconds=0.1, prompt_tokens=None, completion_tokens=None,
        table_version=0, caller=caller.decode(),
    )  # fmt: skip


HOURS = st.fixed_dictionaries(
    {"min_requests": st.integers(1, 200), "min_duration": st.floats(0, 3600), "max_duration": st.floats(3600, 6 * 3600)}
)
PERCENTS = st.floats(1, 100)
STEPS = st.lists(
    st.builds(lambda p, h: ShadowStep(percent=p, **h), PERCENTS, HOURS)
    | st.builds(
        lambda p, n, h: CanaryStep(percent=p, max_callers=n, **h), PERCENTS, st.sampled_from([0, 0, 3, 8]), HOURS
    )
    | st.builds(lambda h: TargetStep(**h), HOURS)
    | st.builds(PauseStep, duration=st.floats(60, 7200))
    | st.builds(ApproveStep, max_duration=st.floats(600, 12 * 3600)),
    min_size=1,
    max_size=5,
)
POLICIES = st.fixed_dictionaries(
    {
        "on_pass": st.sampled_from(["promote", "promote", "hold", "shadow"]),
        "on_fail": st.sampled_from(["roll-back", "hold", "shadow"]),
        "on_starved": st.sampled_from(["hold", "roll-back", "shadow", "promote"]),
        "hold_limit": st.floats(600, 12 * 3600),
        "keep_warm": st.sampled_from([0.0, 1200.0, 14400.0]),
    }
)
"""How one rollout is meant, how bad its version is, and whether it takes stable's place."""
ROLLOUT = st.tuples(
    STEPS, POLICIES, st.sampled_from([0.0, 0.0, 0.0, 0.02, 0.3, 1.0]), st.sampled_from([False, False, True])
)
VERBS: tuple[Verb, ...] = ("pause", "resume", "approve", "approve", "promote", "abort", "rollback")


def spec_of(name: str, steps: list[Step], policies: dict[str, Any]) -> RolloutSpec:
    targets = [Target(header="X-Team", value="ml")]
    spec = RolloutSpec(kind="rollout", name=name, deployment="chat", to=2, steps=steps, guards=GUARDS, targets=targets)
    return spec.model_copy(update=policies)


@settings(max_examples=15, phases=[Phase.explicit, Phase.reuse, Phase.generate])  # a shrunk world would cost minutes
@given(st.integers(0, 2**32), st.lists(ROLLOUT, min_size=1, max_size=3), st.sampled_from([0.0, 0.002, 0.02]))
def test_days_of_rollouts_expose_whom_they_may_and_end_with_one_version_serving(
    seed: int, rollouts: list[Any], busy: float
) -> None:
    """*busy*: how often somebody interferes before promotion; after it, people do so anyway."""
    chance = Random(seed)  # not hypothesis's own, which likes extremes: its callers would be always the same
    world = World(chance, callers=200)
    for number, (steps, policies, badness, is_swap) in enumerate(rollouts):
        before = world.deployment.version
        to = number + 2
        world.begin(spec_of(f"r{number}", steps, policies), to, badness, is_swap=is_swap)
        rollout = world.rollout
        assert rollout is not None
        calm = world.clock + timedelta(days=BUSY_DAYS)
        end = world.clock + timedelta(days=DAYS)
        left = chance.choice([0, 60])  # ticks after its end, in which somebody may want to go back
        while world.clock < end and (left > 0 or not world.is_at_rest):
            left -= world.is_at_rest
            is_after = rollout.phase in ("promoted", "returning")
            if isinstance(rollout.state, Paused) and rollout.state.by and world.clock >= calm:
                world.say("resume")
            elif chance.random() < (0.1 if is_after else busy if world.clock < calm else 0.0):
                world.say(chance.choice(chance.choice([VERBS, ALLOWED.get(rollout.phase, VERBS)])))
            world.tick()
            assert world.deployment.version in (before, to)
        event(f"{rollout.phase}")
        assert rollout.phase in FINAL_PHASES, "nothing goes on for ever"
        assert world.deployment.rollout is None
        assert world.deployment.version == (to if rollout.phase == "promoted" else before)
        for _ in range(20):  # the gateway follows, and everybody gets what is served
            world.tick()
        assert [r.version for r in world.replicas()] == [world.deployment.version]
        (arm,) = world.served_by.arms
        assert (arm.version, arm.weight, len(arm.addresses)) == (world.deployment.version, 100, 1)
        assert world.served_by.shadow is None
