"""How a rollout looks in a terminal."""

from __future__ import annotations

from stoker.cli import output
from stoker.cli.human import ago, count, latency, local, moment, span
from stoker.cli.kinds import message_of, state_phase
from stoker.cli.rollout_numbers import exposure_words, print_arms, print_guards
from stoker.cli.rollout_plan import print_place
from stoker.types.base import now
from stoker.types.rollouts import ApproveStep, CanaryStep, Rollout, ShadowStep, Step, TargetStep
from stoker.types.traffic import Answer, AnswerPair

_POLICIES = {"promote": "goes on", "hold": "holds", "roll-back": "rolls back", "shadow": "holds as a shadow"}


def print_rollout(rollout: Rollout) -> None:
    """All of it: the move, who decided, the steps, the arms side by side, the guards, who was exposed, how it ended."""
    versions = f"{rollout.deployment}@{rollout.from_version} -> @{rollout.to_version}"
    by = f" by {rollout.started_by}" if rollout.started_by else ""
    output.line(rollout.name, state_phase(rollout), versions, f"began {ago(rollout.created_at, now())}{by}")
    _print_situation(rollout)
    _print_steps(rollout)
    if any(s.requests for s in rollout.arms.values()):
        output.heading("arms, in this step")
        print_arms(rollout.arms)
    if rollout.readings:
        print_guards("guards", rollout.readings)
    if rollout.contention:
        print_guards("contention: stable against itself before the candidate came", rollout.contention)
    output.heading("blast radius")
    output.paragraph(exposure_words(rollout.exposure))
    if text := outcome(rollout):
        output.line("")
        output.paragraph(text)


def _print_situation(rollout: Rollout) -> None:
    """What is so now, and what somebody may want to do about it; a line each."""
    if said := message_of(rollout):
        output.paragraph(said)
    if rollout.plan is not None:
        print_place(rollout.plan)
    if rollout.decided is not None:
        who = rollout.decided
        output.line(f"{who.by} said {who.verb} at {moment(who.at, now())}.")
    match rollout.present_step:
        case at, ApproveStep(by=by) if rollout.phase == "stepping":
            output.line(
                f"It waits until {by or 'somebody'} says `stoker rollout approve {rollout.name} --step {at + 1}`."
            )
    if (until := getattr(rollout.state, "warm_until", None)) is not None and until > now():
        back = f"`stoker rollout rollback {rollout.name}` returns to it at once"
        output.paragraph(f"Version {rollout.from_version} stands by until {moment(until, now())}: {back}.")


def _print_steps(rollout: Rollout) -> None:
    output.heading("steps")
    current = getattr(rollout.state, "step", None)
    for i, step in enumerate(rollout.spec.steps):
        mark = ">" if i == current else " "
        output.line(f"{mark} {i + 1}. {_step_text(step)}")
    spec = rollout.spec
    last = "promotes" if spec.on_pass == "promote" else _POLICIES[spec.on_pass]
    policies = f"failed: {_POLICIES[spec.on_fail]}; starved: {_POLICIES[spec.on_starved]}; all passed: {last}"
    output.paragraph(f"{policies}; held for {span(spec.hold_limit)}: rolls back", indent=2)


def _step_text(step: Step) -> str:
    if isinstance(step, ShadowStep | CanaryStep | TargetStep):
        return f"{step.words}: at least {step.least}; at most {span(step.max_duration)}"
    return f"{step.words}: at most {span(step.max_duration)}" if isinstance(step, ApproveStep) else step.words


def arms_line(rollout: Rollout) -> str:
    """The arms' numbers in a few words."""
    parts = []
    for name, s in rollout.arms.items():
        parts.append(f"{name}: {s.requests} answered, {s.errors} failed, ttft p90 {latency(s.ttft_p90)}")
    return "; ".join(parts)


def print_pair(pair: AnswerPair) -> None:
    """What was asked, and two answers to it, one below the other."""
    is_same = (pair.stable.status, pair.stable.text) == (pair.shadow.status, pair.shadow.text)
    output.heading(f"{local(pair.time)}  {pair.path}  {'same' if is_same else 'different'}")
    rows = [_answer(name, a) for name, a in (("stable", pair.stable), ("shadow", pair.shadow))]
    asked: list[list[output.Cell]] = [["asked", "", "", "", "", pair.question]] if pair.question else []
    output.table(["ARM", "STATUS", "END", "TOTAL", "TOKENS", "TEXT"], [*asked, *rows])


def _answer(arm: str, answer: Answer) -> list[output.Cell]:
    return [
        f"{arm} @{answer.version}",
        str(answer.status or "none"),
        answer.finish_reason or "-",
        latency(answer.total_seconds),
        "-" if answer.completion_tokens is None else str(answer.completion_tokens),
        answer.text + ("…" if answer.is_cut else ""),
    ]


def outcome(rollout: Rollout) -> str:
    """How it ended, in one sentence; nothing while it goes on."""
    state = rollout.state
    finished = getattr(state, "finished_at", None)
    if finished is None:
        return ""
    took = f"after {span((finished - rollout.created_at).total_seconds())}"
    if state.phase == "promoted":
        return f"promoted {took}: {rollout.deployment} serves version {rollout.to_version}."
    text = f"{state.phase} {took}: {rollout.deployment} serves version {rollout.from_version}."
    if rollout.exposure.errors:
        text += f" Clients saw {count(rollout.exposure.errors, 'failed answer')}."
    if rollout.verdict_at and rollout.restored_at:
        back = (rollout.restored_at - rollout.verdict_at).total_seconds()
        text += f" Stable had all traffic {latency(back)} after the verdict, at {local(rollout.verdict_at)}."
    return text
