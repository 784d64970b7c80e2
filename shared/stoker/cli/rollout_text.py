"""How a rollout looks in a terminal."""

from __future__ import annotations

from stoker.cli import output
from stoker.cli.human import ago, count, latency, moment, share, span
from stoker.cli.kinds import message_of, state_phase
from stoker.types.base import now
from stoker.types.rollouts import ArmStats, Guard, Rollout, Step


def print_rollout(rollout: Rollout) -> None:
    """All of it: the move, the steps, the arms side by side, the guards, how it ended."""
    versions = f"{rollout.deployment}@{rollout.from_version} -> @{rollout.to_version}"
    output.line(rollout.name, state_phase(rollout), versions, f"began {ago(rollout.created_at, now())}")
    if said := message_of(rollout):
        output.line(said)
    output.heading("steps")
    current = getattr(rollout.state, "step", None)
    for i, step in enumerate(rollout.spec.steps):
        mark = ">" if i == current else " "
        output.line(f"{mark} {i + 1}. {_step_text(step)}")
    if any(s.requests for s in rollout.arms.values()):
        output.heading("arms, in this step")
        _print_arms(rollout.arms)
    if rollout.readings:
        output.heading("guards")
        rows: list[list[output.Cell]] = [
            [_guard_text(r.guard), output.phase(r.verdict.verdict), r.verdict.reason] for r in rollout.readings
        ]
        output.table(["GUARD", "VERDICT", "WHY"], rows)
    if text := outcome(rollout):
        output.line("")
        output.line(text)


def _step_text(step: Step) -> str:
    least = [count(step.min_requests, "request")] + ([span(step.min_duration)] if step.min_duration else [])
    return f"{step.type} {step.percent:g} %, at least {' and '.join(least)}, at most {span(step.max_duration)}"


def _guard_text(guard: Guard) -> str:
    if guard.metric == "error_rate":
        return f"errors at most {100 * guard.limit:g} points over stable"
    return f"{guard.metric} p{100 * guard.quantile:g} at most {guard.limit:g} x stable"


def _print_arms(arms: dict[str, ArmStats]) -> None:
    order = [a for a in ("stable", "candidate", "shadow") if a in arms] + sorted(
        set(arms) - {"stable", "candidate", "shadow"}
    )
    stats = [arms[a] for a in order]
    rows: list[list[output.Cell]] = [
        ["requests", *(str(s.requests) for s in stats)],
        ["errors", *(f"{s.errors} ({share(s.errors, s.requests)})" for s in stats)],
    ]
    for title, field in (("first token", "ttft"), ("between tokens", "inter_token"), ("whole answer", "total")):
        for quantile in ("p50", "p90"):
            values = [latency(getattr(s, f"{field}_{quantile}")) for s in stats]
            rows.append([f"{title}, {quantile}", *values])
    output.table(["", *(a.upper() for a in order)], rows)


def arms_line(rollout: Rollout) -> str:
    """The arms' numbers in a few words."""
    parts = []
    for name, s in rollout.arms.items():
        parts.append(f"{name}: {s.requests} answered, {s.errors} failed, ttft p90 {latency(s.ttft_p90)}")
    return "; ".join(parts)


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
    if rollout.candidate_errors:
        text += f" Clients saw {count(rollout.candidate_errors, 'failed answer')}."
    if rollout.verdict_at and rollout.restored_at:
        back = (rollout.restored_at - rollout.verdict_at).total_seconds()
        text += f" Stable had all traffic {latency(back)} after the verdict ({moment(rollout.verdict_at, now())})."
    return text
