"""What a person may do to a rollout, and what will happen then."""

from __future__ import annotations

from stoker.types.rollouts import (
    VERBS,
    ApproveStep,
    CanaryStep,
    Paused,
    PromoteStep,
    Rollout,
    ShadowStep,
    Stepping,
    TargetStep,
)
from stoker.types.serving import Deployment
from stoker.words import span
from stoker_tui.clock import Clock
from stoker_tui.model import View
from stoker_tui.text import printable
from stoker_tui.views.arms import is_shadow, weights
from stoker_tui.views.common import warm_until


def allowed(rollout: Rollout, view: View) -> tuple[str, ...]:
    """What may be done now, as far as one sees from here; the daemon has the last word."""
    verbs: tuple[str, ...] = VERBS.get(rollout.phase, ())
    present = rollout.present_step
    if present is None or not isinstance(present[1], ApproveStep):
        verbs = tuple(verb for verb in verbs if verb != "approve")
    deployment = view.deployments.get(rollout.deployment)
    if rollout.phase == "promoted" and deployment is not None:
        is_moving = deployment.deleting or deployment.rollout not in (None, "", rollout.name)
        return () if is_moving or deployment.version != rollout.to_version else verbs
    return verbs


def step_meant(rollout: Rollout, verb: str) -> int | None:
    """The step (from 0) that a person who says *verb* has looked at; None: what they say holds of any.

    While they read, somebody else may have said the same. The way back is open whatever has happened meanwhile.
    """
    present = rollout.present_step
    return present[0] if present is not None and verb in ("approve", "promote", "resume") else None


def consequence(rollout: Rollout, verb: str, view: View, clock: Clock) -> str:
    """What will happen when a person says *verb*, in a few sentences."""
    match verb:
        case "promote":
            return _promote(rollout)
        case "approve":
            return _approve(rollout)
        case "abort" | "rollback" if rollout.phase == "promoted":
            return _back_after_promotion(rollout, view, clock)
        case "abort" | "rollback":
            return _back(rollout, view)
        case "pause":
            return _pause(rollout)
    return _resume(rollout)


def _versions(rollout: Rollout) -> tuple[str, str]:
    return f"v{rollout.from_version}", f"v{rollout.to_version}"


def _promote(rollout: Rollout) -> str:
    old, new = _versions(rollout)
    if rollout.is_swap:
        traffic = f"{new} keeps all traffic. {old} has stopped already: the way back will take as long as its start."
    elif rollout.spec.keep_warm:
        warm = span(rollout.spec.keep_warm)
        traffic = f"All traffic goes to {new}. {old} stands by for {warm}, for a quick way back; then it stops."
    else:
        traffic = f"All traffic goes to {new}; {old} drains and stops. The way back will take as long as its start."
    return f"{traffic} Steps and guards that are left are skipped.{_doubts(rollout)}"


def _doubts(rollout: Rollout) -> str:
    """What its guards say against it."""
    verdicts = [r.verdict.verdict for r in rollout.readings]
    failing, starved = verdicts.count("fail"), verdicts.count("starved")
    if failing:
        return f" Now {failing} of its guards fail{'s' if failing == 1 else ''}!"
    return f" {starved} of its guards can't say yet." if starved else ""


def _approve(rollout: Rollout) -> str:
    old, new = _versions(rollout)
    present = rollout.present_step
    left = rollout.spec.steps[present[0] + 1 :] if present is not None else []
    following = next((s for s in left if not (rollout.is_swap and isinstance(s, ShadowStep))), PromoteStep())
    if isinstance(following, PromoteStep):
        return f"No step is left. {_promote(rollout)}"
    match following:
        case _ if rollout.is_swap:
            then = f"{new} keeps all traffic"
        case CanaryStep(percent=percent, max_callers=cap):
            then = f"{new} answers {percent:g} % of callers" + (f", {cap} at most" if cap else "")
        case ShadowStep(percent=percent):
            then = f"{new} answers copies of {percent:g} % of requests, and {old} all clients"
        case TargetStep():
            then = f"{new} answers the targets, and nobody else"
        case _:
            then = "traffic stays as it is"
    number = len(rollout.spec.steps) - len(left) + left.index(following) + 1
    return f"It goes on with step {number}, {following.words}: {then}. Guards go on judging.{_doubts(rollout)}"


def _held(deployment: Deployment | None) -> str:
    """What happens to requests while neither version runs."""
    if deployment is None:
        return "held meanwhile"
    return f"held for up to {span(deployment.spec.longest_hold)}, then refused"


def _back(rollout: Rollout, view: View) -> str:
    old, new = _versions(rollout)
    deployment = view.deployments.get(rollout.deployment)
    if rollout.is_swap and rollout.phase == "returning":
        return (
            f"{old}, which is not ready yet, stops, and {new} starts again. Meanwhile requests are {_held(deployment)}."
        )
    if rollout.is_swap:
        return (
            f"{new} stops and {old} starts on its devices, which takes as long as a start. "
            f"Until it is ready, requests are {_held(deployment)}."
        )
    if rollout.phase == "returning":
        return f"{new} goes on answering everybody; {old}, which is not ready yet, stops again."
    if rollout.phase == "preparing":
        return f"{old} keeps all traffic; {new}, which has got none, stops. That ends the rollout."
    if is_shadow(rollout):
        return (
            f"{old} keeps all traffic; {new}, whose answers nobody gets now, drains and stops. That ends the rollout."
        )
    return f"All traffic goes back to {old} at once; {new} finishes what it has begun, drains and stops. That ends it."


def _back_after_promotion(rollout: Rollout, view: View, clock: Clock) -> str:
    old, new = _versions(rollout)
    until = warm_until(rollout, view, clock)
    if until is not None and rollout.is_swap:
        return (
            f"{new} stops and {old}, which sleeps till {clock.local(until):%H:%M:%S}, wakes up in its place. "
            f"Until it is awake, requests are {_held(view.deployments.get(rollout.deployment))}."
        )
    if until is not None:
        return (
            f"All traffic goes back to {old} at once: its replicas stand by till {clock.local(until):%H:%M:%S}. "
            f"{new} finishes what it has begun, drains and stops."
        )
    if rollout.is_swap:
        return (
            f"{new} stops and {old} starts on its devices, which takes as long as a start. "
            f"Until it is ready, requests are {_held(view.deployments.get(rollout.deployment))}."
        )
    return (
        f"The replicas of {old} stand by no longer: they start first, and {new} answers until they are ready. "
        f"Then all traffic goes back to {old}; {new} drains and stops."
    )


def _pause(rollout: Rollout) -> str:
    new = f"v{rollout.to_version}"
    share = weights(rollout)[1]
    return (
        f"{new} keeps its share of the traffic ({share}) until you go on. Guards no longer judge; "
        f"{rollout.spec.max_errors_in_a_row} failed answers in a row still roll back."
    )


def _resume(rollout: Rollout) -> str:
    new = f"v{rollout.to_version}"
    present = rollout.present_step
    step = f"Step {present[0] + 1} ({present[1].words})" if present is not None else "The step"
    answers = ""
    if isinstance(rollout.state, Paused) and rollout.state.exposure == "shadow" and not rollout.is_swap:
        going = rollout.model_copy(update={"state": Stepping(step=rollout.state.step, since=rollout.state.since)})
        answers = "" if is_shadow(going) else f" Clients get answers of {new} again: {weights(going)[1]}."
    return f"{step} begins anew, and the guards judge {new} again: what was measured so far doesn't count.{answers}"


def done(rollout: Rollout, verb: str) -> str:
    """That it was said, in a sentence."""
    name = printable(rollout.name)
    words = {
        "promote": "is being promoted",
        "abort": "is being taken back",
        "rollback": "is being rolled back",
        "pause": "is paused",
        "resume": "goes on",
        "approve": "is approved and goes on",
    }
    return f"{name} {words[verb]}."
