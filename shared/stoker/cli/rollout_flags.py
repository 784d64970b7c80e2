"""What `stoker rollout start` is told by flags, read into a spec; values are judged by the spec's own validation."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from pydantic import TypeAdapter, ValidationError

from stoker.errors import Invalid
from stoker.explain import nearest
from stoker.types.base import Seconds
from stoker.types.guards import LATENCIES, RATES
from stoker.types.rollouts import DEFAULT_GUARDS, DEFAULT_STEPS, CanaryStep, TargetStep

_DURATION = TypeAdapter(Seconds)
_QUANTILE = re.compile(r"p(\d{1,2}(?:\.\d+)?)")
_MEASURED = ("min_requests", "min_duration")
_STEPS: dict[str, tuple[int, tuple[str, ...]]] = {  # how many fields it needs, and the fields that it takes, in order
    "shadow": (1, ("percent", *_MEASURED)),
    "canary": (1, ("percent", *_MEASURED)),
    "target": (0, _MEASURED),
    "approve": (0, ("by",)),
    "pause": (1, ("duration",)),
    "promote": (0, ()),
}
_FORMS = "shadow:10, canary:25, canary:25:50:5m, target:20, approve:alice, pause:10m or promote"


def usual_steps() -> str:
    """The steps that a rollout has by default, for the help."""
    return ", ".join(f"{s.type}:{s.percent:g}" for s in DEFAULT_STEPS if not isinstance(s, TargetStep))


def usual_guards() -> str:
    """The guards that a rollout has by default, for the help."""
    return ", ".join(f"{g.metric}={g.limit:g}" for g in DEFAULT_GUARDS)


def steps_of(texts: Sequence[str], max_callers: int | None) -> list[dict[str, Any]] | None:
    """The steps that *texts* say, else the usual ones, each canary step for at most *max_callers*.

    None: as the spec has it by default. Raises `Invalid`.
    """
    if max_callers is None:
        return [step(t) for t in texts] or None
    steps = [step(t) for t in texts] or [s.model_dump() for s in DEFAULT_STEPS]
    canaries = [s for s in steps if s["type"] == CanaryStep.model_fields["type"].default]
    if not canaries:
        raise Invalid("--max-callers bounds canary steps, and no --step is one.", "Write e.g. --step canary:25.")
    for each in canaries:
        each["max_callers"] = max_callers
    return steps


def step(text: str) -> dict[str, Any]:
    """``canary:25:50:5m`` as a step's spec. Raises `Invalid`."""
    kind, *values = text.split(":")
    if kind not in _STEPS:
        raise Invalid(f"--step {text!r}: there is no step {kind!r}{nearest(kind, [*_STEPS])}.", f"Write {_FORMS}.")
    needed, fields = _STEPS[kind]
    if not needed <= len(values) <= len(fields) or not all(values):
        raise Invalid(f"--step {text!r} can't be read: {_form(kind)} is expected.", f"Write {_FORMS}.")
    spec: dict[str, Any] = {"type": kind} | dict(zip(fields, values, strict=False))
    if "percent" in spec:
        spec["percent"] = spec["percent"].removesuffix("%")
    return spec | _time_limit(spec.get("min_duration"))


def _form(kind: str) -> str:
    needed, fields = _STEPS[kind]
    words = [f.removeprefix("min_").upper().replace("BY", "USER") for f in fields]
    more = "".join(f"[:{w}" for w in words[needed:]) + "]" * (len(words) - needed)
    return ":".join([kind, *words[:needed]]) + more


def _time_limit(least: str | None) -> dict[str, float]:
    """A step that is to last longer than steps usually may gets twice that; flags can't say more."""
    usual = float(CanaryStep.model_fields["max_duration"].default)
    try:
        seconds = _DURATION.validate_python(least) if least else 0.0
    except ValidationError:  # the spec's validation says so
        return {}
    return {"max_duration": 2 * seconds} if seconds > usual else {}


def guard(text: str) -> dict[str, Any]:
    """``ttft:p95=1.3``, ``score:helpfulness=0.02`` or ``total=8s`` as a guard's spec. Raises `Invalid`."""
    subject, equals, limit = text.rpartition("=")
    metric, colon, detail = subject.partition(":")
    metric = metric.replace("-", "_")
    if not equals or not metric or not limit or (colon and not detail):
        raise Invalid(
            f"--guard {text!r} can't be read.", "Write METRIC=LIMIT, e.g. ttft=1.5, ttft:p95=1.3 or error_rate=2%."
        )
    return {"metric": metric} | _detail(text, metric, detail) | _limit(text, metric, limit.strip())


def _detail(text: str, metric: str, detail: str) -> dict[str, Any]:
    if not detail or metric not in (*LATENCIES, "tokens_out"):
        return {"name": detail} if detail else {}
    found = _QUANTILE.fullmatch(detail)
    if not found or not 0 < float(found[1]) < 100:
        raise Invalid(f"--guard {text!r}: {detail!r} is no quantile.", f"Write e.g. {metric}:p95 or {metric}:p99.9.")
    return {"quantile": round(float(found[1]) / 100, 6)}


def _limit(text: str, metric: str, limit: str) -> dict[str, Any]:
    if limit.endswith("%"):
        if metric not in RATES:
            raise Invalid(
                f"--guard {text!r}: only rates have limits in %.", f"{metric} takes a number: 1.2 × is 20 % more."
            )
        return {"limit": _share(text, limit)}
    if not re.search(r"[a-z]$", limit) or limit.lower() in ("nan", "inf", "infinity"):
        return {"limit": limit}
    if metric not in LATENCIES:
        raise Invalid(f"--guard {text!r}: only latencies ({', '.join(LATENCIES)}) have a duration as their limit.")
    try:
        return {"limit": _DURATION.validate_python(limit), "against": "nothing"}
    except ValidationError as error:
        raise Invalid(
            f"--guard {text!r}: {limit!r} is no duration.", "Write e.g. 800ms or 8s; a plain number is times stable's."
        ) from error


def _share(text: str, limit: str) -> float:
    try:
        return round(float(limit.removesuffix("%")) / 100, 9)
    except ValueError as error:
        raise Invalid(f"--guard {text!r}: {limit!r} is no number.", "Write e.g. error_rate=2%.") from error


def target(text: str) -> dict[str, str]:
    """``x-team=ml`` or ``key:alice`` as a target's spec. Raises `Invalid`."""
    name, equals, value = text.partition("=")
    if text.startswith("key:") and len(text) > len("key:"):
        return {"key": text.removeprefix("key:")}
    if not equals or not name:
        raise Invalid(
            f"--target {text!r} can't be read.",
            "Write HEADER=VALUE (HEADER= for any value), e.g. x-team=ml, or key:NAME with the name of an API key.",
        )
    return {"header": name, "value": value}
