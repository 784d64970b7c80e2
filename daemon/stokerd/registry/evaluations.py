"""What was found of versions. Each function runs inside the transaction that it is given."""

from __future__ import annotations

from stoker.types.registry import Evaluation, RecordEvaluation
from stokerd.registry.models import resolve_version
from stokerd.store.store import Transaction


def record_evaluation(
    tx: Transaction, model: str, reference: str, metric: str, found: RecordEvaluation, by: str
) -> Evaluation:
    """Keep what *by* (a person's name) found of a version, by its number or alias. Raises `NotFound`.

    An earlier finding of the same metric gives way; its event stays.
    """
    version = resolve_version(tx, model, int(reference) if reference.isdigit() else reference)
    evaluation = Evaluation(
        name=f"{version.name}:{metric}",
        model=model,
        number=version.number,
        metric=metric,
        score=found.score,
        passed=found.passed,
        note=found.note,
        by=by,
    )
    said = [] if found.score is None else [f"{metric} {found.score:g}"]
    said += [] if found.passed is None else [f"{'passed' if found.passed else 'failed'} {metric}"]
    note = f" ({found.note})" if found.note else ""
    tx.save(evaluation, "VersionEvaluated", f"{version.name}: {', '.join(said)}{note}.", by=by, **found.model_dump())
    return evaluation
