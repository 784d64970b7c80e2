"""The plan of a rollout in a terminal: where the candidate runs, each step with its time, the way back."""

from __future__ import annotations

from rich.text import Text

from stoker.cli import output
from stoker.cli.human import count, span
from stoker.types.rollouts import ApproveStep, PlannedStep, RolloutPlan


def print_plan(name: str, plan: RolloutPlan) -> None:
    """All of it; the last line says that nothing was started."""
    fits = Text("fits", style="green") if plan.fits else Text("does not fit", style="red")
    output.line(f"plan of {name}: {plan.deployment}@{plan.from_version} -> @{plan.to_version}", fits)
    print_place(plan, indent=2)
    output.paragraph(_traffic(plan), label="traffic:", indent=2)
    if plan.steps:
        output.heading("steps")
        _print_steps(plan.steps)
        known = None if plan.seconds is None else f"about {span(plan.seconds)}, if all goes well"
        output.line(f"  in all: {known or 'nobody can say how long it takes'}")
    if plan.way_back:
        output.heading("way back")
        output.paragraph(plan.way_back, indent=2)
    if plan.warnings:
        output.heading("warnings")
        for warning in plan.warnings:
            output.paragraph(warning, label=" -")
    output.line("")
    output.line("Nothing was started." if plan.fits else "Nothing was started, and nothing would be.")


def print_place(plan: RolloutPlan, *, indent: int = 0) -> None:
    """Where the candidate runs, or why it can't."""
    output.paragraph(plan.says or "-", label=f"{plan.placement}:", indent=indent)


def _traffic(plan: RolloutPlan) -> str:
    if not plan.requests_per_hour:
        return "none of late"
    callers = f", of {count(plan.callers, 'caller')}" if plan.callers else ""
    return f"{_per_hour(plan.requests_per_hour)} requests an hour of late{callers}"


def _print_steps(steps: list[PlannedStep]) -> None:
    rows: list[list[output.Cell]] = [
        [
            f"  {i}.",
            planned.step.words,
            planned.step.least or "-",
            _per_hour(planned.requests_per_hour) if planned.requests_per_hour else "-",
            _expected(planned),
        ]
        for i, planned in enumerate(steps, 1)
    ]
    heads = ["", "STEP", "TAKES AT LEAST", "REQUESTS/H", "EXPECTED"]
    output.table(heads, rows, notes=[p.says for p in steps])


def _expected(planned: PlannedStep) -> str:
    if planned.seconds is not None:
        return span(planned.seconds)
    return "when approved" if isinstance(planned.step, ApproveStep) else "unknown"


def _per_hour(rate: float) -> str:
    return f"{rate:.0f}" if rate >= 10 else f"{rate:.2g}"
