"""The kinds that `get` lists: what people may call them, and the columns of their tables."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from rich.text import Text

from stoker.cli.human import age, ago, size, span
from stoker.cli.output import Cell, phase
from stoker.errors import Invalid
from stoker.types.base import Resource, now
from stoker.types.keys import ApiKey
from stoker.types.registry import Evaluation, Model, Version
from stoker.types.rollouts import Rollout
from stoker.types.serving import Deployment, Replica
from stoker.types.training import Dataset, DatasetVersion, Job, Run, Schedule

Column = tuple[str, Callable[[Any], Cell]]


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of resource. ``filters`` are the fields by which the daemon narrows a list."""

    type: type[Resource]
    short: str
    columns: list[Column]
    filters: frozenset[str] = field(default=frozenset())


def _age(resource: Resource) -> str:
    return age(resource.created_at, now())


def _maybe_ago(then: datetime | None) -> str:
    return ago(then, now()) if then else "-"


def _limit(number: int) -> str:
    return str(number) if number else "-"


def _trigger(schedule: Schedule) -> str:
    spec = schedule.spec
    if spec.cron:
        return f"cron {spec.cron}" + (f" {spec.timezone}" if spec.timezone != "UTC" else "")
    return f"every {span(spec.interval)}" if spec.interval else f"at {spec.date}"


def state_phase(resource: Any) -> Text:
    """The phase of a resource's state, with the step of a rollout."""
    text = phase(resource.phase)
    if isinstance(resource, Rollout) and (step := getattr(resource.state, "step", None)) is not None:
        text.append(f" {step + 1}/{len(resource.spec.steps)}", style="none")
    return text


def message_of(resource: Any) -> str:
    """The sentence that a resource's state has for people, if any."""
    state = resource.state
    for name in ("message", "because", "why"):
        if said := getattr(state, name, ""):
            return str(said)
    return f"registered {state.registered}" if getattr(state, "registered", None) else ""


def duration_of(run: Run) -> str:
    """How long a run took, or has taken till now."""
    started = getattr(run.state, "started_at", None)
    if started is None:
        return "-"
    return span(max(0.0, ((getattr(run.state, "finished_at", None) or now()) - started).total_seconds()))


_NAME: Column = ("NAME", lambda r: r.name)
_AGE: Column = ("AGE", _age)
_STATE: list[Column] = [("PHASE", state_phase), _AGE, ("MESSAGE", message_of)]

KINDS = {
    k.type.kind: k
    for k in (
        Kind(Dataset, "ds", [_NAME, ("LATEST", lambda r: f"@{r.latest}" if r.latest else "-"), _AGE]),
        Kind(
            DatasetVersion,
            "dv",
            [
                _NAME,
                ("FILES", lambda r: str(r.files)),
                ("SIZE", lambda r: size(r.bytes)),
                ("DIGEST", lambda r: r.digest[:12]),
                _AGE,
                ("SOURCE", lambda r: r.source),
            ],
            frozenset({"dataset"}),
        ),
        Kind(
            Job,
            "j",
            [
                _NAME,
                ("RUNS", lambda r: str(r.runs)),
                ("DATASET", lambda r: r.spec.dataset or "-"),
                ("REGISTERS", lambda r: r.spec.registers.model if r.spec.registers else "-"),
                _AGE,
                ("COMMAND", lambda r: " ".join(r.spec.command)),
            ],
        ),
        Kind(
            Schedule,
            "sched",
            [
                _NAME,
                ("JOB", lambda r: r.spec.job),
                ("WHEN", _trigger),
                ("LAST", lambda r: _maybe_ago(r.last_fired_at)),
                ("NEXT", lambda r: "paused" if r.spec.paused else _maybe_ago(r.next_fire_at)),
            ],
        ),
        Kind(
            Run,
            "r",
            [
                _NAME,
                ("PHASE", state_phase),
                ("TOOK", duration_of),
                ("ATTEMPT", lambda r: f"{r.attempt}/{r.spec.retries + 1}"),
                ("TRIGGER", lambda r: r.trigger),
                _AGE,
                ("MESSAGE", message_of),
            ],
            frozenset({"job"}),
        ),
        Kind(
            Model,
            "m",
            [
                _NAME,
                ("LATEST", lambda r: f"@{r.latest}" if r.latest else "-"),
                ("ALIASES", lambda r: " ".join(f"{a}=@{v}" for a, v in sorted(r.aliases.items())) or "-"),
                _AGE,
                ("DESCRIPTION", lambda r: r.spec.description),
            ],
        ),
        Kind(
            Version,
            "v",
            [
                _NAME,
                ("SIZE", lambda r: size(r.bytes)),
                ("DIGEST", lambda r: r.digest[:12]),
                ("RUN", lambda r: r.lineage.run or "-"),
                ("DATASET", lambda r: r.lineage.dataset_version or "-"),
                ("BASE", lambda r: r.lineage.base_version or "-"),
                _AGE,
            ],
            frozenset({"model"}),
        ),
        Kind(
            Evaluation,
            "ev",
            [
                _NAME,
                ("SCORE", lambda r: "-" if r.score is None else f"{r.score:g}"),
                ("RESULT", lambda r: "-" if r.passed is None else phase("passed" if r.passed else "failed")),
                ("BY", lambda r: r.by),
                ("AGE", lambda r: age(r.at, now())),
                ("NOTE", lambda r: r.note),
            ],
            frozenset({"model"}),
        ),
        Kind(
            Deployment,
            "dep",
            [
                _NAME,
                ("SERVES", lambda r: f"{r.spec.model}@{r.version}"),
                ("ENGINE", lambda r: r.spec.engine.type),
                ("REPLICAS", lambda r: str(r.spec.replicas)),
                ("PHASE", lambda r: phase(r.phase)),
                ("ROLLOUT", lambda r: r.rollout or "-"),
                _AGE,
                ("MESSAGE", lambda r: r.message),
            ],
        ),
        Kind(
            Replica,
            "rep",
            [
                _NAME,
                ("DEPLOYMENT", lambda r: r.deployment),
                ("VERSION", lambda r: f"@{r.version}"),
                ("STARTS", lambda r: str(r.starts)),
                *_STATE,
            ],
            frozenset({"deployment"}),
        ),
        Kind(
            ApiKey,
            "key",
            [
                _NAME,
                ("DIGEST", lambda r: r.digest[:12]),
                ("MODELS", lambda r: " ".join(r.models) or "all"),
                ("REQUESTS/MIN", lambda r: _limit(r.requests_per_minute)),
                ("TOKENS/MIN", lambda r: _limit(r.tokens_per_minute)),
                ("IN FLIGHT", lambda r: _limit(r.in_flight)),
                _AGE,
            ],
        ),
        Kind(
            Rollout,
            "ro",
            [
                _NAME,
                ("DEPLOYMENT", lambda r: r.deployment),
                ("VERSIONS", lambda r: f"@{r.from_version} -> @{r.to_version}"),
                *_STATE,
            ],
            frozenset({"deployment"}),
        ),
    )
}


def kind_of(word: str) -> Kind:
    """The kind that *word* means: singular, plural or short, any case. Raises `Invalid`."""
    asked = word.lower().replace("_", "-")
    more = {"deploy": "deployment", "schedules": "schedule", "versions": "version", "evals": "evaluation"}
    for name, kind in KINDS.items():
        if more.get(asked, asked) in (name, kind.type.plural, kind.short):
            return kind
    raise Invalid(f"there is no kind {word!r}.", f"Kinds: {', '.join(['host', *KINDS])}.", code="unknown-kind")
