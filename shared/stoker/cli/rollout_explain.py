"""A rollout told from its events: each decision with its evidence."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pydantic import BaseModel, ValidationError
from rich.text import Text

from stoker.cli import output
from stoker.cli.human import local
from stoker.cli.kinds import state_phase
from stoker.cli.rollout_numbers import exposure_words, print_arms, print_verdicts
from stoker.cli.rollout_plan import print_place
from stoker.cli.rollout_text import outcome
from stoker.types.events import Event
from stoker.types.rollouts import ArmStats, Exposure, GuardReading, Rollout, RolloutPlan

_INDENT = 4


class _Evidence(BaseModel):
    """What an event of a rollout has to show. Further fields are left alone: a newer daemon may write some."""

    by: str = ""
    because: str = ""
    step: int | None = None
    readings: list[GuardReading] = []
    arms: dict[str, ArmStats] = {}
    exposure: Exposure | None = None
    plan: RolloutPlan | None = None


def print_explained(rollout: Rollout, events: Sequence[Event]) -> None:
    """*events*, all of *rollout*, in order; then how it ended."""
    versions = f"{rollout.deployment}@{rollout.from_version} -> @{rollout.to_version}"
    by = f"started by {rollout.started_by}" if rollout.started_by else ""
    output.line(rollout.name, state_phase(rollout), versions, by)
    if not events:
        output.line("")
        output.line("None of its events are kept any more.")
    shown = _Evidence()
    for event in events:
        output.line("")
        shown = _print_decision(rollout, event, shown)
    if text := outcome(rollout):
        output.line("")
        output.paragraph(text)


def _print_decision(rollout: Rollout, event: Event, before: _Evidence) -> _Evidence:
    """One of them. What was shown *before* isn't shown again; gives what is shown now."""
    evidence, is_whole = _read(event.data)
    output.line(
        local(event.time),
        Text(event.reason, style="bold"),
        f"by {_who(evidence.by)}" if evidence.by else "",
        _step(rollout, evidence.step, event.message),
    )
    output.paragraph(event.message.removeprefix(f"{rollout.name}: "), indent=_INDENT)
    if evidence.because and evidence.because.rstrip(".") not in event.message:
        output.paragraph(evidence.because, label="because", indent=_INDENT)
    if evidence.plan is not None:
        print_place(evidence.plan, indent=_INDENT)
    if evidence.readings and (evidence.readings, evidence.arms) == (before.readings, before.arms):
        output.line(f"{' ' * _INDENT}its evidence is what it was before")
    else:
        print_verdicts(evidence.readings, indent=_INDENT)
        print_arms(evidence.arms, indent=_INDENT)
    if evidence.exposure is not None and evidence.exposure != before.exposure:
        output.paragraph(exposure_words(evidence.exposure), label="exposed:", indent=_INDENT)
    if not is_whole:
        output.paragraph("part of its evidence is of another version of Stoker: see --json", indent=_INDENT)
    return evidence


def _read(data: dict[str, Any]) -> tuple[_Evidence, bool]:
    """What is understood of *data*, field by field, and whether that is all: events outlive the version that wrote."""
    known = {k: v for k, v in data.items() if k in _Evidence.model_fields}
    try:
        return _Evidence.model_validate(known), True
    except ValidationError as error:
        wrong = {str(e["loc"][0]) for e in error.errors()}
        return _Evidence.model_validate({k: v for k, v in known.items() if k not in wrong}), False


def _who(by: str) -> str:
    return {"guards": "the guards", "host": "the host"}.get(by, by)


def _step(rollout: Rollout, step: int | None, said: str) -> str:
    """Which step was on, unless that was *said*."""
    steps = rollout.spec.steps
    if step is None or not 0 <= step < len(steps) or steps[step].words in said:
        return ""
    return f"(step {step + 1}/{len(steps)}: {steps[step].words})"
