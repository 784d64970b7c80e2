"""How long the steps of a rollout take, by the deployment's own traffic of late. Pure.

It is reckoned as if that traffic went on evenly, and for a candidate that passes. Callers are spread evenly, too: those
that a step of ten minutes sees are more than a sixth of an hour's, so that what is said of callers is rather too long.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import inf

from stoker.types.guards import LATENCIES
from stoker.types.rollouts import (
    ApproveStep,
    CanaryStep,
    JudgedStep,
    PauseStep,
    PlannedStep,
    PromoteStep,
    RolloutSpec,
    ShadowStep,
    Step,
    TargetStep,
)
from stoker.words import span

_LIKELY_NOBODY = 0.2  # the chance that no caller is drawn, from which on it is said


@dataclass(frozen=True, slots=True)
class LateTraffic:
    """A deployment's traffic of late, as far as it is known.

    ``callers``: distinct ones that could be told apart, in the ``hours`` that were looked at. ``start_seconds``: how
    long the last starts of its replicas took; None: not known.
    """

    requests_per_hour: float = 0.0
    callers: int = 0
    hours: float = 0.0
    start_seconds: float | None = None


class Pace:
    """What is to be expected of each step.

    Args:
        stable: what the version that serves is called: ``v6``.
        replicas: how many the candidate has; each of them begins cold.
        is_swap: the candidate answers everything, and stable nothing.
    """

    def __init__(self, spec: RolloutSpec, traffic: LateTraffic, *, stable: str, replicas: int, is_swap: bool) -> None:
        self._spec, self._traffic, self._stable, self._is_swap = spec, traffic, stable, is_swap
        self._steps: list[Step] = [step for step in spec.steps if not isinstance(step, PromoteStep)]
        self._cold = spec.cold_requests * replicas
        self._rate = traffic.requests_per_hour if is_swap else 0.0

    def steps(self) -> list[PlannedStep]:
        """Each step of the spec, and promotion, written or not."""
        return [*(self._planned(step) for step in self._steps), self._promotion()]

    def warnings(self) -> Iterator[str]:
        """What of the spec doesn't go with the traffic, or with the rest of it."""
        steps, guards, traffic = self._steps, self._spec.guards, self._traffic
        if not traffic.requests_per_hour:
            seen = f"in the last {span(traffic.hours * 3600)}" if traffic.hours else "so far"
            yield f"There were no requests {seen}: without any, each step that is judged ends as starved."
        elif not traffic.callers and any(isinstance(s, CanaryStep) and s.max_callers for s in steps):
            yield (
                "No caller of late could be told apart (by a session, a user or a key): with max_callers, all stay "
                f"with {self._stable}."
            )
        if not guards:
            yield "There are no guards: nothing but a candidate that breaks down takes it back."
        has_shadow = not self._is_swap and any(isinstance(s, ShadowStep) for s in steps)
        idle = sorted({guard.metric for guard in guards if guard.needs_answers}) if not has_shadow else []
        if idle:
            why = "in a swap there are none" if self._is_swap else "there is none"
            yield f"Guards of {', '.join(idle)} judge answers of shadow steps, and {why}."
        if any(guard.proof for guard in guards):
            yield "Guards with `proof` take more requests than is reckoned here: how many depends on what is measured."
        if self._spec.on_starved == "promote":
            yield "A step without enough traffic goes on to the next one, though nothing was shown (on_starved)."

    def _planned(self, step: Step) -> PlannedStep:
        match step:
            case ShadowStep() if self._is_swap:
                says = f"left out: {self._stable} isn't there to be compared with"
                return PlannedStep(step=step, seconds=0.0, says=says)
            case PauseStep(duration=duration):
                return PlannedStep(step=step, seconds=duration, requests_per_hour=self._rate)
            case ApproveStep(max_duration=limit):
                says = f"waits for somebody, at most {span(limit)}"
                return PlannedStep(step=step, requests_per_hour=self._rate, says=says)
            case PromoteStep():
                return self._promotion()
            case ShadowStep() | CanaryStep() | TargetStep():
                return self._judged(step)

    def _promotion(self) -> PlannedStep:
        """A step that isn't judged (somebody approved, a pause is over) leads to it, whatever ``on_pass`` says."""
        rate = self._traffic.requests_per_hour
        is_held = self._spec.on_pass != "promote" and not isinstance(self._last, ApproveStep | PauseStep)
        if not is_held or self._last is None:
            return PlannedStep(step=PromoteStep(), seconds=0.0, requests_per_hour=rate)
        says = f"waits for somebody, at most {span(self._spec.hold_limit)} (on_pass: {self._spec.on_pass})"
        return PlannedStep(step=PromoteStep(), requests_per_hour=rate, says=says)

    @property
    def _last(self) -> Step | None:
        return self._steps[-1] if self._steps else None

    def _judged(self, step: JudgedStep) -> PlannedStep:
        share, bound = self._share(step)
        self._rate = self._traffic.requests_per_hour * share
        if isinstance(step, TargetStep) and not self._is_swap:
            return PlannedStep(step=step, says="how much its targets ask isn't known")
        seconds, missing = self._wait(step, share)
        if seconds <= step.max_duration:
            return PlannedStep(step=step, seconds=seconds, requests_per_hour=self._rate, says=bound)
        says = "; ".join(filter(None, (bound, f"would starve: {missing} in {span(step.max_duration)}")))
        after = step.max_duration if self._spec.on_starved == "promote" else None
        return PlannedStep(step=step, seconds=after, requests_per_hour=self._rate, says=says)

    def _share(self, step: JudgedStep) -> tuple[float, str]:
        """The candidate's share of requests, 0 to 1, and what is to be said of it."""
        if self._is_swap:
            return 1.0, "in a swap, the candidate answers everything"
        if isinstance(step, TargetStep):
            return 0.0, ""
        share, callers = step.percent / 100, self._traffic.callers
        if isinstance(step, ShadowStep) or not self._traffic.requests_per_hour:
            return share, ""
        if step.max_callers and not callers:
            return 0.0, f"callers can't be told apart, so that all stay with {self._stable}"
        if step.max_callers and step.max_callers < callers * share:
            return step.max_callers / callers, f"bounded to {step.max_callers} of {callers} callers of late"
        if callers and (1 - share) ** callers > _LIKELY_NOBODY:
            return share, f"by chance, it may be none of the {callers} callers of late"
        return share, ""

    def _wait(self, step: JudgedStep, share: float) -> tuple[float, str]:
        """Seconds until the step has all that it needs, and what of it there is after its longest time."""
        requests, stables = self._needs(step)
        needs: list[tuple[int, float, str]] = [(requests, self._rate, "requests")]
        if not self._is_swap:
            beside = self._traffic.requests_per_hour * (1 - share if isinstance(step, CanaryStep) else 1)
            needs.append((stables, beside, f"requests of {self._stable} to compare with"))
        if step.min_callers:
            needs.append((step.min_callers, self._callers_per_hour(step, share), "callers"))
        seconds, missing = step.min_duration, ""
        for count, per_hour, what in needs:
            wait = count / per_hour * 3600 if per_hour else inf if count else 0.0
            if wait > seconds:
                seconds, missing = wait, f"{per_hour * step.max_duration / 3600:.0f} of {count} {what}"
        most = step.max_callers if isinstance(step, CanaryStep) else 0
        if most and most < step.min_callers:
            return inf, f"{most} of {step.min_callers} callers, as it may have no more (max_callers),"
        return seconds, missing

    def _callers_per_hour(self, step: JudgedStep, share: float) -> float:
        """How many the candidate gets; of those who can't be told apart, each request counts as one."""
        if not self._traffic.callers or not self._traffic.hours:
            return self._rate
        return self._traffic.callers * share / self._traffic.hours

    def _needs(self, step: JudgedStep) -> tuple[int, int]:
        """How many requests of the candidate, and of stable, it takes until every guard can say something."""
        requests, stables = step.min_requests, 0
        is_first = step is next((s for s in self._steps if isinstance(s, ShadowStep | CanaryStep | TargetStep)), None)
        for guard in self._spec.guards:
            if guard.metric in ("score", "series") or (guard.needs_answers and not isinstance(step, ShadowStep)):
                continue
            cold = self._cold if is_first and guard.metric in LATENCIES else 0
            requests = max(requests, guard.min_requests + cold)
            if guard.is_compared:
                stables = max(stables, guard.min_requests)
        return requests, stables
