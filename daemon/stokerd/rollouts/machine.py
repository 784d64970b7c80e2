"""The states of a rollout and every way from one to another. Pure: facts and verbs in, the next state out.

    from           to            when
    preparing      stepping      the candidate's replicas are ready
    stepping       stepping      the step passed: enough requests, callers and time, every guard holds; or a pause is
                                 over; or somebody approved
                   promoting     the same, of the last step
                   paused        starved or failed, or passed the last step, where the spec says hold or shadow; or a
                                 person says pause
                   rolling-back  a guard failed; or the verdict is starved, and the spec says so
    paused         stepping      a person says resume; the same step starts anew
                   rolling-back  a verdict held it for too long
    stepping, paused -> promoting         a person says promote
    promoting      promoted      the gateway confirmed that the candidate has all traffic
    preparing to promoting -> rolling-back    the candidate failed, a hard trip, or a person says abort or rollback
    promoted       returning     a person says rollback
                   rolling-back  the same, or a hard trip, while the old version's replicas stand by
    returning      rolling-back  the old version's replicas are ready
                   promoted      they were given up, or a person says abort; in a swap by way of promoting
    rolling-back   rolled-back   the gateway confirmed that stable has all traffic; aborted, if a person asked for it

`advance` is asked each second and after each batch of records; most often the answer is None: it stays.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Literal, assert_never

from stoker.errors import Conflict, Internal
from stoker.types.rollouts import (
    FINAL_PHASES,
    VERBS,
    Aborted,
    ApproveStep,
    CanaryStep,
    Fail,
    Pass,
    Paused,
    PauseStep,
    Preparing,
    Promoted,
    PromoteStep,
    Promoting,
    Returning,
    RolledBack,
    RollingBack,
    RolloutSpec,
    RolloutState,
    ShadowStep,
    Step,
    Stepping,
    TargetStep,
    Verb,
    Verdict,
)
from stoker.words import span

_GUARDS = "guards"
_HOST = "host"


@dataclass(frozen=True, slots=True)
class Facts:
    """What is observed now, and all that `advance` looks at.

    ``candidate_failed``, ``stable_failed`` (it was given up) and ``trip`` are sentences, None when all is well.
    ``step_requests``, ``step_callers`` and ``verdict`` are of the tested arm (candidate, or shadow in a shadow step)
    since the state began. ``unread``: there may be requests that they lack, measured while the daemon was away; nothing
    passes before those were read. ``routed``: the gateway confirmed the `split` of the present state. ``seconds``:
    spent in the present state, however the clock was set meanwhile. ``next_event``: the id that the event of a change
    of state will get, 0 where it isn't known yet. ``stable_at_hand``: one of stable's replicas is ready,
    ``stable_ready``: all are. ``is_swap``: only one of the versions can run at a time. ``stable_sleeps``: meanwhile,
    the other one's servers are asleep, and not gone.
    """

    now: datetime
    seconds: float = 0.0
    candidate_ready: bool = False
    candidate_failed: str | None = None
    stable_ready: bool = True
    stable_at_hand: bool = True
    stable_failed: str | None = None
    step_requests: int = 0
    step_callers: int = 0
    verdict: Verdict | None = None
    trip: str | None = None
    unread: bool = False
    routed: bool = False
    is_swap: bool = False
    stable_sleeps: bool = False
    next_event: int = 0


@dataclass(frozen=True, slots=True)
class Split:
    """Percent of requests that stable and candidate answer (they make 100), and that are copied to the shadow.

    ``exposes``: the candidate has an arm, be it for targets alone, of whom ``max_callers`` may get it (0: any number).
    """

    stable: float = 100.0
    candidate: float = 0.0
    shadow: float = 0.0
    exposes: bool = False
    max_callers: int = 0


_STABLE = Split()
_CANDIDATE = Split(0.0, 100.0, exposes=True)


def advance(spec: RolloutSpec, state: RolloutState, facts: Facts) -> RolloutState | None:
    """The state after *state*, or None when it stays.

    A trip or a failing guard outranks all else, so that a candidate which fails at the last moment isn't promoted.
    """
    because = facts.candidate_failed or facts.trip
    match state:
        case Preparing():
            if facts.candidate_failed:
                return _roll_back(facts, facts.candidate_failed)
            return _next_step(spec, -1, facts) if facts.candidate_ready else None
        case Stepping():
            return _roll_back(facts, because) if because else _advance_step(spec, state, facts)
        case Paused(by=by):
            if not because and not by:
                because = _held_in_vain(spec, state, facts)
            return _roll_back(facts, because) if because else None
        case Promoting():
            if because:
                return _roll_back(facts, because)
            may_end = facts.routed and facts.candidate_ready and not facts.unread
            return _promoted(spec, facts) if may_end else None
        case Promoted(warm_until=warm_until):
            is_back_at_hand = warm_until is not None and (facts.stable_at_hand or facts.stable_sleeps)
            return _roll_back(facts, because) if because and is_back_at_hand else None
        case Returning():
            if facts.stable_failed and facts.is_swap:
                return Promoting(since=facts.now)  # it is started again, and gets what is held meanwhile
            if facts.stable_failed:
                return Promoted(finished_at=facts.now, because=f"the way back failed: {facts.stable_failed}")
            if not facts.stable_ready:
                return None
            return RollingBack(since=facts.now, because=state.because, aborted=state.aborted)
        case RollingBack(because=why, aborted=aborted):
            if not facts.routed or (facts.is_swap and not facts.stable_ready):
                return None
            end = Aborted if aborted else RolledBack
            return end(finished_at=facts.now, because=why)
        case RolledBack() | Aborted():
            return None


def _held_in_vain(spec: RolloutSpec, state: Paused, facts: Facts) -> str | None:
    """Why what a verdict paused is rolled back; None: it isn't. What was starved or passed may be proven bad later."""
    if isinstance(facts.verdict, Fail) and state.verdict != "fail" and spec.on_fail == "roll-back":
        return facts.verdict.reason
    if facts.seconds >= spec.hold_limit:
        return f"held for {span(spec.hold_limit)} without a decision ({state.because})"
    return None


def _advance_step(spec: RolloutSpec, state: Stepping, facts: Facts) -> RolloutState | None:
    step, verdict, seconds = step_of(spec, state), facts.verdict, facts.seconds
    if isinstance(verdict, Fail):
        return _failed(spec, state, facts, verdict.reason)
    if facts.unread:
        return None
    match step:
        case PauseStep(duration=duration):
            return _next_step(spec, state.step, facts) if seconds >= duration else None
        case ApproveStep(max_duration=limit):
            return _starved(spec, state, facts, f"nobody approved within {span(limit)}") if seconds >= limit else None
        case PromoteStep():
            return Promoting(since=facts.now)
        case ShadowStep() | CanaryStep() | TargetStep():
            pass
        case _ as never:
            assert_never(never)
    has_enough = facts.step_requests >= step.min_requests and facts.step_callers >= step.min_callers
    if has_enough and seconds >= step.min_duration and isinstance(verdict, Pass):
        return _passed(spec, state, facts, verdict.reason)
    if seconds < step.max_duration:
        return None
    if facts.step_requests < step.min_requests:
        missing = f"{facts.step_requests} of {step.min_requests} requests after {span(step.max_duration)}"
    elif facts.step_callers < step.min_callers:
        missing = f"{facts.step_callers} of {step.min_callers} callers after {span(step.max_duration)}"
    else:
        missing = verdict.reason if verdict else "nothing was judged"
    return _starved(spec, state, facts, missing)


def _passed(spec: RolloutSpec, state: Stepping, facts: Facts, reason: str) -> RolloutState:
    following = _next_step(spec, state.step, facts)
    if not isinstance(following, Promoting) or spec.on_pass == "promote":
        return following
    return _hold(state, facts, "pass", f"passed: {reason}", as_shadow=spec.on_pass == "shadow")


def _failed(spec: RolloutSpec, state: Stepping, facts: Facts, reason: str) -> RolloutState:
    if spec.on_fail == "roll-back":
        return _roll_back(facts, reason)
    return _hold(state, facts, "fail", f"failed: {reason}", as_shadow=spec.on_fail == "shadow")


def _starved(spec: RolloutSpec, state: Stepping, facts: Facts, missing: str) -> RolloutState:
    """Silence is no approval; and where a last step that passed must wait, one that was starved must, too."""
    because = f"starved: {missing}"
    if spec.on_starved == "roll-back":
        return _roll_back(facts, because)
    is_shadow = spec.on_starved == "shadow"
    if spec.on_starved == "promote" and not isinstance(step_of(spec, state), ApproveStep):
        following = _next_step(spec, state.step, facts)
        if not isinstance(following, Promoting) or spec.on_pass == "promote":
            return following
        is_shadow = spec.on_pass == "shadow"
    return _hold(state, facts, "starved", because, as_shadow=is_shadow)


def _hold(
    state: Stepping, facts: Facts, verdict: Literal["pass", "fail", "starved"], because: str, *, as_shadow: bool
) -> Paused:
    exposure: Literal["kept", "shadow"] = "shadow" if as_shadow and not facts.is_swap else "kept"
    return Paused(
        step=state.step, since=facts.now, because=because, verdict=verdict, exposure=exposure, began=facts.next_event
    )


def _next_step(spec: RolloutSpec, step: int, facts: Facts) -> RolloutState:
    """What follows *step*. In a swap there is nobody to whom a shadow could be compared."""
    for index in range(step + 1, len(spec.steps)):
        following = spec.steps[index]
        if isinstance(following, PromoteStep):
            break
        if not (facts.is_swap and isinstance(following, ShadowStep)):
            return Stepping(step=index, since=facts.now, began=facts.next_event)
    return Promoting(since=facts.now)


def _promoted(spec: RolloutSpec, facts: Facts) -> Promoted:
    """In a swap the old version has no replicas that could stand by, unless they sleep."""
    is_warm = spec.keep_warm > 0 and (not facts.is_swap or facts.stable_sleeps)
    until = facts.now + timedelta(seconds=spec.keep_warm) if is_warm else None
    return Promoted(finished_at=facts.now, warm_until=until)


def _roll_back(facts: Facts, because: str) -> RollingBack:
    return RollingBack(since=facts.now, because=because)


def led_by(before: str, state: RolloutState, following: RolloutState, facts: Facts) -> str:
    """Who led from *state* to *following*: guards, or host (what happened to replicas), or who led to *state* already.

    That is *before*: whoever started it, as long as nothing was judged; whoever began the promotion or the way back, of
    its end. People's decisions come by `command`.
    """
    if isinstance(following, RollingBack) and not isinstance(state, Returning):
        return _HOST if facts.candidate_failed else _GUARDS
    if isinstance(state, Preparing | Returning) or isinstance(following, Promoted | RollingBack | RolledBack | Aborted):
        return before
    return _GUARDS


def command(
    spec: RolloutSpec,
    state: RolloutState,
    verb: Verb,
    now: datetime,
    by: str,
    *,
    is_warm: bool = False,
    is_swap: bool = False,
    next_event: int = 0,
) -> RolloutState:
    """The state after *by* (a person's name) said *verb*.

    Resuming starts the step anew: what was measured while nobody judged doesn't count.

    Args:
        is_warm: whether the old version's replicas stand by, after promotion.
        is_swap: whether only one of the versions can run at a time.
        next_event: the id that the event of this change will get.

    Raises:
        Conflict: the verb doesn't fit, and it says what does; or somebody else has to approve.
    """
    if verb not in VERBS.get(state.phase, ()):
        raise _refusal(spec, state, verb)
    match verb, state:
        case "pause", Stepping():
            return Paused(step=state.step, since=now, because=f"paused by {by}", by=by, began=next_event)
        case "resume", Paused():
            return Stepping(step=state.step, since=now, began=next_event)
        case "approve", Stepping():
            step = step_of(spec, state)
            if not isinstance(step, ApproveStep):
                raise Conflict(
                    f"rollout {spec.name} asks for no approval in step {state.step + 1} ({step.words}).",
                    "`stoker rollout promote` skips all steps that are left.",
                    phase=state.phase,
                )
            if step.by and step.by != by:
                raise Conflict(
                    f"rollout {spec.name} is to be approved by {step.by}, and you are {by}.",
                    "Ask them.",
                    code="not-you",
                )
            return _next_step(spec, state.step, Facts(now, is_swap=is_swap, next_event=next_event))
        case "promote", Stepping(step=at) | Paused(step=at):
            asked = next((s.by for s in spec.steps[at:] if isinstance(s, ApproveStep) and s.by not in ("", by)), "")
            if asked:
                raise Conflict(
                    f"rollout {spec.name} is to be approved by {asked}, and you are {by}: that can't be skipped.",
                    "Wait for its step, or ask them to promote it.",
                    code="not-you",
                )
            return Promoting(since=now)
        case "rollback", Promoted() if not is_warm:
            return Returning(since=now, because=f"rolled back by {by} after promotion", aborted=True)
        case "rollback", Promoted():
            return RollingBack(since=now, because=f"rolled back by {by} after promotion", aborted=True)
        case "abort", Returning() if is_swap:
            return Promoting(since=now)
        case "abort", Returning():
            return Promoted(finished_at=now, because=f"{by} called off the way back")
        case (("abort" | "rollback"), _):
            said = "aborted" if verb == "abort" else "rolled back"
            return RollingBack(since=now, because=f"{said} by {by}", aborted=True)
    raise _refusal(spec, state, verb)


def _refusal(spec: RolloutSpec, state: RolloutState, verb: Verb) -> Conflict:
    allowed = VERBS.get(state.phase, ())
    if isinstance(state, Promoted):
        hint = f"It has ended. To go back to what was served before: `stoker rollout rollback {spec.name}`."
    elif state.phase in FINAL_PHASES:
        hint = "It is over; apply another rollout to move the deployment."
    elif not allowed:
        hint = (
            "Wait until the traffic is back, then apply another rollout. If stable's servers were given up, apply the "
            "deployment again as it is: that tries them anew."
        )
    elif verb == "promote" and isinstance(state, Preparing):
        hint = f"Its replicas aren't ready yet; what it takes now: {', '.join(allowed)}."
    else:
        hint = f"What it takes now: {', '.join(allowed)}."
    return Conflict(f"rollout {spec.name} is {state.phase}: {verb} doesn't fit.", hint, phase=state.phase)


def step_of(spec: RolloutSpec, state: Stepping | Paused) -> Step:
    """The step that *state* is in. Raises `Internal` when the spec has no such step."""
    if not 0 <= state.step < len(spec.steps):
        raise Internal(f"rollout {spec.name} is in step {state.step + 1} but has only {len(spec.steps)}.")
    return spec.steps[state.step]


def exposing_step(spec: RolloutSpec, state: Stepping | Paused) -> ShadowStep | CanaryStep | TargetStep | None:
    """The step by which traffic is split in *state*: its own, or of those before it the last that says how."""
    step_of(spec, state)
    return next(
        (s for s in reversed(spec.steps[: state.step + 1]) if isinstance(s, ShadowStep | CanaryStep | TargetStep)), None
    )


def split(spec: RolloutSpec, state: RolloutState, *, is_swap: bool = False) -> Split:
    """Who gets what in *state*. When it is promoted, stable is the new version.

    In a swap, everybody gets the version that runs; until it does, their requests are held for it.
    """
    match state:
        case Stepping() | Paused() | Preparing() if is_swap:
            return _CANDIDATE
        case Stepping() | Paused():
            step = exposing_step(spec, state)
            is_shadow = isinstance(state, Paused) and state.exposure == "shadow"
            match step:
                case None:
                    return _STABLE
                case TargetStep():
                    return _STABLE if is_shadow else Split(exposes=True)
                case ShadowStep(percent=percent):
                    return Split(shadow=percent)
                case CanaryStep(percent=percent) if is_shadow:
                    return Split(shadow=percent)
                case CanaryStep(percent=percent, max_callers=cap):
                    return Split(100.0 - percent, percent, exposes=True, max_callers=cap)
        case Promoting() | Returning():
            return _CANDIDATE
    return _STABLE


def whom(spec: RolloutSpec, divided: Split) -> dict[str, str]:
    """In words, who gets each arm that somebody gets."""
    targets = ", ".join(f"key {t.key}" if t.key else f"{t.header}: {t.value or 'any'}" for t in spec.targets)
    found = {"stable": "everybody" if divided.stable == 100 and not divided.exposes else "everybody else"}
    if divided.exposes:
        share = f"{divided.candidate:g} % of callers" if divided.candidate else ""
        share += f", at most {divided.max_callers}" if divided.max_callers else ""
        found["candidate"] = "everybody" if divided.candidate == 100 else " and ".join(filter(None, (targets, share)))
    if divided.shadow:
        found["shadow"] = f"nobody: copies of {divided.shadow:g} % of requests"
    return {arm: words for arm, words in found.items() if arm != "stable" or divided.stable}
