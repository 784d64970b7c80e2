"""The states of a rollout and every way from one to another. Pure: facts and verbs in, the next state out.

    from           to            when
    preparing      stepping 0    the candidate's replicas are ready
    stepping       next step     enough requests, enough time, every guard passes; after the last step: promoting
    stepping       paused        its time is over without that (starved), or a person says pause
    paused         stepping      a person says resume; the same step starts anew
    stepping, paused -> promoting         a person says promote
    promoting      promoted      the gateway confirmed that the candidate has all traffic
    all of these but promoted -> rolling-back    the candidate failed, or a person says abort
    stepping, paused -> rolling-back      a hard trip; in stepping also a failing guard
    rolling-back   rolled-back   the gateway confirmed that stable has all traffic; aborted, if a person asked for it

`advance` is asked each second and after each batch of records; most often the answer is None: it stays.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Literal

from stoker.errors import Conflict, Internal
from stoker.types.rollouts import (
    FINAL_PHASES,
    Aborted,
    Fail,
    Pass,
    Paused,
    Preparing,
    Promoted,
    Promoting,
    RolledBack,
    RollingBack,
    RolloutSpec,
    RolloutState,
    Step,
    Stepping,
    Verdict,
)

Verb = Literal["pause", "resume", "promote", "abort"]

VERBS: dict[str, tuple[Verb, ...]] = {
    "preparing": ("abort",),
    "stepping": ("pause", "promote", "abort"),
    "paused": ("resume", "promote", "abort"),
    "promoting": ("abort",),
}
"""What a person may do, by phase; a phase that isn't here allows nothing."""


@dataclass(frozen=True, slots=True)
class Facts:
    """What is observed now, and all that `advance` looks at.

    ``candidate_failed`` and ``trip`` are sentences, None when all is well. ``step_requests`` and ``verdict`` are of the
    tested arm (candidate, or shadow in a shadow step) since the state's ``since``. ``routed``: the gateway confirmed
    the `weights` of the present state. ``seconds``: spent in the present state, however the clock was set meanwhile.
    """

    now: datetime
    seconds: float = 0.0
    candidate_ready: bool = False
    candidate_failed: str | None = None
    step_requests: int = 0
    verdict: Verdict | None = None
    trip: str | None = None
    routed: bool = False


def advance(spec: RolloutSpec, state: RolloutState, facts: Facts) -> RolloutState | None:
    """The state after *state*, or None when it stays. Final states stay for ever.

    A trip or a failing guard outranks all else, so that a candidate which fails at the last moment isn't promoted.
    """
    match state:
        case Preparing():
            if facts.candidate_failed:
                return _roll_back(facts, facts.candidate_failed)
            return Stepping(step=0, since=facts.now) if facts.candidate_ready else None
        case Stepping():
            return _advance_step(spec, state, facts)
        case Paused():
            because = facts.candidate_failed or facts.trip
            return _roll_back(facts, because) if because else None
        case Promoting():
            if facts.candidate_failed:
                return _roll_back(facts, facts.candidate_failed)
            return Promoted(finished_at=facts.now) if facts.routed else None
        case RollingBack(because=because, aborted=aborted):
            if not facts.routed:
                return None
            end = Aborted if aborted else RolledBack
            return end(finished_at=facts.now, because=because)
        case Promoted() | RolledBack() | Aborted():
            return None


def _advance_step(spec: RolloutSpec, state: Stepping, facts: Facts) -> RolloutState | None:
    step, verdict = step_of(spec, state), facts.verdict
    because = facts.candidate_failed or facts.trip
    if because is None and isinstance(verdict, Fail):
        because = verdict.reason
    if because:
        return _roll_back(facts, because)
    seconds = facts.seconds
    enough = facts.step_requests >= step.min_requests and seconds >= step.min_duration
    if enough and isinstance(verdict, Pass):
        if state.step + 1 < len(spec.steps):
            return Stepping(step=state.step + 1, since=facts.now)
        return Promoting(since=facts.now)
    if seconds < step.max_duration:
        return None
    if facts.step_requests < step.min_requests:
        missing = f"{facts.step_requests} of {step.min_requests} requests after {seconds:.0f} s"
    else:
        missing = verdict.reason if verdict else "nothing was judged"
    return Paused(step=state.step, since=facts.now, because=f"starved: {missing}")


def _roll_back(facts: Facts, because: str) -> RollingBack:
    return RollingBack(since=facts.now, because=because)


def command(spec: RolloutSpec, state: RolloutState, verb: Verb, now: datetime, by: str) -> RolloutState:
    """The state after *by* (a person's name) said *verb*. Raises `Conflict`, with what can be done, if it doesn't fit.

    Resuming starts the step anew: what was measured while nobody judged doesn't count.
    """
    if verb not in VERBS.get(state.phase, ()):
        raise _refusal(spec, state, verb)
    match verb, state:
        case "pause", Stepping():
            return Paused(step=state.step, since=now, because=f"paused by {by}")
        case "resume", Paused():
            return Stepping(step=state.step, since=now)
        case "promote", _:
            return Promoting(since=now)
        case "abort", _:
            return RollingBack(since=now, because=f"aborted by {by}", aborted=True)
    raise _refusal(spec, state, verb)


def _refusal(spec: RolloutSpec, state: RolloutState, verb: Verb) -> Conflict:
    allowed = VERBS.get(state.phase, ())
    if state.phase in FINAL_PHASES:
        hint = "It is over; apply another rollout to move the deployment."
    elif not allowed:
        hint = "Wait until the traffic is back, then apply another rollout."
    elif verb == "promote" and isinstance(state, Preparing):
        hint = "Its replicas aren't ready yet; wait until it is stepping, or abort it."
    else:
        hint = f"What it takes now: {', '.join(allowed)}."
    return Conflict(f"rollout {spec.name} is {state.phase}: {verb} doesn't fit.", hint, phase=state.phase)


def step_of(spec: RolloutSpec, state: Stepping | Paused) -> Step:
    """The step that *state* is in. Raises `Internal` when the spec has no such step."""
    if not 0 <= state.step < len(spec.steps):
        raise Internal(f"rollout {spec.name} is in step {state.step + 1} but has only {len(spec.steps)}.")
    return spec.steps[state.step]


def weights(spec: RolloutSpec, state: RolloutState) -> tuple[float, float, float]:
    """Percent of requests that stable and candidate answer, and percent that are copied to the shadow, in *state*.

    The first two make 100. When it is promoted, stable is the new version.
    """
    match state:
        case Stepping() | Paused():
            step = step_of(spec, state)
            if step.type == "shadow":
                return 100.0, 0.0, step.percent
            return 100.0 - step.percent, step.percent, 0.0
        case Promoting():
            return 0.0, 100.0, 0.0
        case _:
            return 100.0, 0.0, 0.0
