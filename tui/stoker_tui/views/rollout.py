"""A rollout in full: how it stands, whom it has reached, where it is on its ladder, what has happened and by whom.

Its arms are drawn in `stoker_tui.views.arms`, its guards in `stoker_tui.views.guards`.
"""

from __future__ import annotations

from collections.abc import Sequence

from stoker.types.events import Event
from stoker.types.rollouts import (
    FINAL_PHASES,
    ApproveStep,
    CanaryStep,
    Paused,
    PauseStep,
    PromoteStep,
    Rollout,
    ShadowStep,
    Step,
    Stepping,
    Target,
    TargetStep,
)
from stoker.words import span
from stoker_tui.clock import Clock
from stoker_tui.model import View
from stoker_tui.text import Line, fit, line, printable, width_of, wrap, wrapped
from stoker_tui.views.arms import candidate_stats, is_shadow, splitting_step, weights
from stoker_tui.views.common import because, heading, reached, step_name, warm_until
from stoker_tui.views.guards import still_needed
from stoker_tui.views.overview import event_role, event_sentence
from stoker_tui.words import bar, clock_time, latency, mark

_PLACES = {
    "beside": "runs beside {old}",
    "share": "shares the devices of {old}",
    "adapter": "is an adapter in the servers of {old}",
    "swap": "takes the place of {old}: one of them runs at a time",
}
_SAID = {
    "pause": "paused",
    "resume": "resumed",
    "approve": "approved",
    "promote": "promoted",
    "abort": "aborted",
    "rollback": "rolled back",
}
_WHO = 10
"""Cells for the one who decided, in the history."""


def title(rollout: Rollout, view: View, clock: Clock, width: int) -> list[Line]:
    """What moves where and how it stands with it, in one row if it fits; then why, and who has to do with it."""
    found = mark(rollout.phase)
    moved = f"{rollout.deployment} v{rollout.from_version} → v{rollout.to_version}"
    name = line(" ", (rollout.name, "strong"), f"   {moved}   ")
    seconds = clock.since(reached(rollout))
    when = f", {_whole(seconds)} ago" if rollout.phase in FINAL_PHASES else f", for {_whole(seconds)}"
    stands = line((f"{found.symbol} {_stands(rollout)}", f"{found.role} strong"), when)
    lines = [(*name, *stands)] if width_of((*name, *stands)) <= width else [name, (*line(" "), *stands)]
    if because(rollout):
        lines.extend(wrapped(line("   "), because(rollout), width))
    now = traffic_sentence(rollout, view, clock)
    if now:
        lines.extend(wrapped(line("   "), now, width))
    said = " ".join(filter(None, (_ended(rollout), _people(rollout, clock))))
    if said:
        lines.extend(wrapped(line("   "), said, width, "muted"))
    return lines


def _stands(rollout: Rollout) -> str:
    present = rollout.present_step
    word = mark(rollout.phase).word
    if present is None:
        return word
    where = f"step {present[0] + 1} of {len(rollout.spec.steps)}, {printable(step_name(present[1]))}"
    return where if isinstance(rollout.state, Stepping) else f"{word} at {where}"


def traffic_sentence(rollout: Rollout, view: View, clock: Clock) -> str:
    """Who answers now, where the state alone doesn't tell."""
    old, new = f"v{rollout.from_version}", f"v{rollout.to_version}"
    match rollout.phase:
        case "preparing":
            held = f"{old} has stopped, and requests are held until {new} is ready."
            return held if rollout.is_swap else f"The replicas of {new} start; it gets no traffic yet."
        case "paused" if is_shadow(rollout):
            return f"Clients get {old}; {new} only answers copies of requests ({weights(rollout)[1]})."
        case "paused":
            return f"{new} keeps its share of the traffic: {weights(rollout)[1]}."
        case "promoting":
            return f"All traffic goes to {new}."
        case "returning":
            held = f"{new} has stopped, and requests are held until {old} is ready."
            return held if rollout.is_swap else f"The replicas of {old} start; {new} answers until they are ready."
        case "rolling-back":
            held = f"Requests are held until {old} is ready."
            return held if rollout.is_swap else f"All traffic goes back to {old}; {new} drains."
        case "promoted":
            return _stands_by(rollout, view, clock)
    return ""


def _stands_by(rollout: Rollout, view: View, clock: Clock) -> str:
    old = f"v{rollout.from_version}"
    until = warm_until(rollout, view, clock)
    deployment = view.deployments.get(rollout.deployment)
    if until is not None:
        left = _whole((until - clock.now()).total_seconds())
        return f"{old} stands by, warm, for {left} more (till {clock.local(until):%H:%M:%S}): b rolls back at once."
    if deployment is not None and deployment.version != rollout.to_version:
        return f"{rollout.deployment} serves v{deployment.version} by now."
    return f"{old} no longer stands by: b rolls back, in the time that it takes to start."


def _ended(rollout: Rollout) -> str:
    if rollout.verdict_at is None or rollout.restored_at is None:
        return ""
    seconds = (rollout.restored_at - rollout.verdict_at).total_seconds()
    return f"Stable had all traffic again {latency(seconds)} after the verdict."


def _people(rollout: Rollout, clock: Clock) -> str:
    """Who started it, who said something last, and where the candidate runs."""
    parts = [f"Started by {printable(rollout.started_by)}"] if rollout.started_by else []
    if rollout.decided is not None:
        told = rollout.decided
        verb = _SAID.get(told.verb, told.verb)
        parts.append(f"{verb} by {printable(told.by)} {_whole(clock.since(told.at))} ago")
    if rollout.plan is not None and rollout.phase not in FINAL_PHASES:
        place = _PLACES.get(rollout.plan.placement, rollout.plan.placement)
        parts.append(f"v{rollout.to_version} {place.format(old=f'v{rollout.from_version}')}")
    text = "; ".join(parts)
    return f"{text}." if text else ""


def _whole(seconds: float) -> str:
    """A duration that is shown while it runs: no tenths."""
    return span(int(seconds))


def exposure(rollout: Rollout, width: int) -> list[Line]:
    """The blast radius: whom the candidate's answers have reached so far, and what bounds that in this step."""
    reach, new = rollout.exposure, f"v{rollout.to_version}"
    lines = [heading("BLAST RADIUS so far", width)]
    failed = reach.errors
    answers = f"✗ {_many(failed, 'failed answer')}"
    if not reach.requests and failed:  # of a time when nothing more was counted
        lines.append(line("  ", (f"{answers} of {new} seen by clients", "bad")))
    elif not reach.requests:
        lines.append(line("  ", (f"no client has got an answer of {new}", "strong")))
    else:
        got = line(
            "  ", (f"{_many(reach.requests, 'request')} of {_many(reach.callers, 'caller')} got {new}", "strong")
        )
        share = f"{answers} ({100 * failed / reach.requests:.1f} %)"
        told = (f"{share} seen by clients", share) if failed else ("none of its answers failed", "none failed")
        text = told[0] if width_of(got) + len(told[0]) + 2 <= width else told[1]
        lines.append(fit((*got, (", ", ""), (text, "bad" if failed else "")), width))
    return [*lines, *_cap(rollout, width)]


def _many(count: int, thing: str) -> str:
    return f"{count} {thing}" if count == 1 else f"{count} {thing}s"


def _cap(rollout: Rollout, width: int) -> list[Line]:
    """What bounds the exposure now."""
    if rollout.present_step is None:
        return []
    step = splitting_step(rollout)
    if rollout.is_swap:
        return wrapped(line("  "), "now: everybody, since only one version runs at a time", width, "muted")
    if step is None or is_shadow(rollout):
        return wrapped(line("  "), "now: nobody; only copies of requests are answered", width, "muted")
    if isinstance(step, CanaryStep) and step.max_callers:
        have = candidate_stats(rollout).callers
        filled = bar(have / step.max_callers, 12)
        also = ", and targets" if rollout.spec.targets else ""
        text = f"{have} of at most {_many(step.max_callers, 'caller')} in this step, {step.percent:g} %{also}"
        return wrapped(line("  ", (f"{filled} ", "accent")), text, width, "muted")
    targets = ", ".join(_target(t) for t in rollout.spec.targets)
    if isinstance(step, TargetStep):
        return wrapped(line("  "), f"now: {targets}, and nobody else", width, "muted")
    also = f", and {targets}" if targets else ""
    return wrapped(line("  "), f"now: {step.percent:g} % of callers{also}", width, "muted")


def _target(target: Target) -> str:
    if target.key:
        return f"key {target.key}"
    return f"{target.header}: {target.value}" if target.value else f"any {target.header}"


def ladder(rollout: Rollout, clock: Clock, width: int, came_to: int | None = None) -> list[Line]:
    """Its steps, the present one marked, with what it still needs; *came_to*: the last that is known to have begun."""
    steps: list[Step] = list(rollout.spec.steps)
    if not isinstance(steps[-1], PromoteStep):
        steps.append(PromoteStep())
    present = rollout.present_step
    at = _reached_step(rollout, len(steps), came_to)
    expected = _expected(rollout, len(steps))
    names = [f"{index + 1}  {printable(step.words)}" for index, step in enumerate(steps)]
    column = min(max(len(name) for name in names), max(22, width // 2 - 4)) + 2
    lines = [heading("STEPS", width, _plan_words(rollout))]
    for index, step in enumerate(steps):
        name = f"{names[index]:<{column}}"
        if present is not None and index == present[0]:
            symbol, role = ("=", "warn") if isinstance(rollout.state, Paused) else ("▸", "accent")
            label = line("  ", (f"{symbol} {name}", f"{role} strong"))
            lines.extend(_present(label, _needs(rollout, step, clock), _deadline(rollout, step, clock), width))
            foreseen = _foreseen(rollout, index)
            lines.extend(wrapped(line(" " * 7), foreseen, width, "muted") if foreseen else [])
        elif rollout.is_swap and isinstance(step, ShadowStep):
            lines.append(_rung("·", name, "muted", "left out: one version runs at a time", "", width))
        elif index < at:
            lines.append(_rung("✓", name, "good", "passed", "", width))
        elif index == at and rollout.phase in ("promoting", "returning"):
            found = mark(rollout.phase)
            lines.append(_rung(found.symbol, name, f"{found.role} strong", found.word, "", width))
        elif index == at and came_to is not None and rollout.phase in (*FINAL_PHASES, "rolling-back"):
            found = mark(rollout.phase)
            lines.append(_rung(found.symbol, name, f"{found.role} strong", f"{found.word} in this step", "", width))
        else:
            is_over = rollout.phase in FINAL_PHASES
            wish, later = ("", "") if is_over else (_wish(rollout, step), _about(expected[index]))
            lines.append(_rung("·", name, "muted", wish, later, width))
    return lines


def _plan_words(rollout: Rollout) -> str:
    plan = rollout.plan
    if plan is None or rollout.phase in FINAL_PHASES:
        return ""
    if plan.seconds is not None:
        return f"planned: {_about(plan.seconds)} in all"
    known = sum(p.seconds or 0.0 for p in plan.steps)
    if known and all(p.seconds is not None or isinstance(p.step, ApproveStep | PromoteStep) for p in plan.steps):
        return f"planned: {_about(known)}, and for approval"
    return "too little traffic to say how long"


def _about(seconds: float | None) -> str:
    """An expected time, no finer than it can be known."""
    if not seconds:
        return ""
    unit = 1 if seconds < 60 else 60 if seconds < 5 * 3600 else 3600
    return f"about {span(max(1, round(seconds / unit)) * unit)}"


def _expected(rollout: Rollout, count: int) -> list[float | None]:
    """What the plan expects of each step; None where it can't say."""
    planned = [p.seconds or None for p in rollout.plan.steps] if rollout.plan is not None else []
    return [*planned[:count], *([None] * (count - len(planned)))]


def _foreseen(rollout: Rollout, index: int) -> str:
    """What the plan said against a step."""
    planned = rollout.plan.steps if rollout.plan is not None else []
    return planned[index].says if index < len(planned) else ""


def _present(label: Line, needs: str, deadline: str, width: int) -> list[Line]:
    """The present step: on one row where there's room, else what it needs stands below it."""
    text = ", ".join(filter(None, (needs, deadline)))
    if not text:
        return [label]
    if width_of(label) + len(text) <= width:
        return [(*label, (text, ""))]
    return [(*label, (deadline, "muted")), *wrapped(line(" " * 7), needs, width)]


def _rung(symbol: str, name: str, role: str, more: str, expected: str, width: int) -> Line:
    room = width - len(expected) - 1
    return fit((*fit(line("  ", (f"{symbol} {name}", role), (more, "muted")), room), (expected, "muted")), width)


def _reached_step(rollout: Rollout, count: int, came_to: int | None) -> int:
    """How many steps were passed, as far as anybody says."""
    if rollout.phase == "promoted":
        return count
    if rollout.phase in ("promoting", "returning"):
        return count - 1
    present = rollout.present_step
    if present is not None:
        return present[0]
    return 0 if rollout.phase == "preparing" else came_to or 0


def _passed(rollout: Rollout, clock: Clock) -> float | None:
    """For how long the step has been on, in seconds; None when it isn't."""
    return clock.since(rollout.state.since) if isinstance(rollout.state, Stepping) else None


def _needs(rollout: Rollout, step: Step, clock: Clock) -> str:
    """What the present step still waits for."""
    passed = _passed(rollout, clock)
    match step:
        case PromoteStep():
            return ""
        case PauseStep(duration=duration):
            return f"goes on in {_whole(max(0.0, duration - passed))}" if passed is not None else ""
        case ApproveStep(by=by):
            return f"waits for {printable(by) or 'somebody'} to approve it: key o"
    have = candidate_stats(rollout)
    needs = [f"{bar(have.requests / step.min_requests, 8)} {have.requests} of {step.min_requests} requests"]
    if step.min_callers:
        needs.append(f"{have.callers} of {step.min_callers} callers")
    if step.min_duration and passed is not None:
        needs.append(f"{_whole(min(passed, step.min_duration))} of {_whole(step.min_duration)}")
    is_enough = have.requests >= step.min_requests and have.callers >= step.min_callers
    if passed is not None and is_enough and passed >= step.min_duration:
        guards = still_needed(rollout)
        needs.extend([f"waits for {', '.join(guards)}"] if guards else [])
    return ", ".join(needs)


def _deadline(rollout: Rollout, step: Step, clock: Clock) -> str:
    """How long the present step may still take."""
    passed = _passed(rollout, clock)
    if passed is None or isinstance(step, PauseStep | PromoteStep):
        return ""
    return f"starved in {_whole(max(0.0, step.max_duration - passed))}"


def _wish(rollout: Rollout, step: Step) -> str:
    """What a step that is to come will take."""
    if isinstance(step, PromoteStep) and rollout.spec.on_pass != "promote":
        before = [s for s in rollout.spec.steps if not isinstance(s, PromoteStep)]
        if before and isinstance(before[-1], ShadowStep | CanaryStep | TargetStep):
            return f"held before, {'as shadow, ' if rollout.spec.on_pass == 'shadow' else ''}till somebody says promote"
    return step.least


def story(events: Sequence[Event], clock: Clock, width: int) -> list[Line]:
    """What has happened to it and who decided it, the newest first."""
    lines = [heading("HISTORY", width)]
    if not events:
        return [*lines, line(("  nothing has happened yet", "muted"))]
    present = clock.local(clock.now())
    for event in reversed(events):
        time = clock_time(clock.local(event.time), present)
        by = event.data.get("by")
        who = printable(by)[:_WHO] if isinstance(by, str) else ""
        label = line("  ", (f"{time:<8}", "muted"), f"  {who:<{_WHO}}")
        lines.extend(wrapped(label, event_sentence(event), width, event_role(event)))
        reason = event.data.get("because") or event.data.get("verdict_reason")
        if isinstance(reason, str) and reason not in event.message:
            indent = width_of(label)
            lines.extend(line(" " * indent, (rest, "muted")) for rest in wrap(printable(reason), width - indent))
    return lines


def came_to(events: Sequence[Event]) -> int | None:
    """The last step that began, by what has happened; None if none did, or nobody said."""
    found = (event.data.get("step") for event in reversed(events))
    return next((step for step in found if isinstance(step, int) and not isinstance(step, bool)), None)
