"""`stoker evaluate`: what was found of a version."""

from __future__ import annotations

import math
from typing import Annotated

import typer

from stoker.cli import output
from stoker.cli.options import Home, Json, connect, examples, verb_app
from stoker.client import Client, path_of, read_as
from stoker.errors import Invalid, NotFound
from stoker.types.registry import Evaluation, Model, RecordEvaluation

app = verb_app()


@app.command(
    epilog=examples(
        "stoker evaluate smol@2 helpfulness --score 0.82",
        'stoker evaluate smol@challenger safety --failed --note "3 of 200 prompts got through"',
        "stoker get evaluations --model smol",
    )
)
def evaluate(
    context: typer.Context,
    version: Annotated[
        str,
        typer.Argument(metavar="MODEL@VERSION", help="By number or alias: smol@2, smol@champion."),
    ],
    metric: Annotated[str, typer.Argument(metavar="METRIC", help="What was looked at, e.g. helpfulness.")],
    score: Annotated[
        float | None, typer.Option("--score", metavar="NUMBER", help="How good it is; more is better.")
    ] = None,
    passed: Annotated[
        bool | None, typer.Option("--passed/--failed", help="A gate: rollouts to a version that failed are refused.")
    ] = None,
    note: Annotated[str, typer.Option("--note", metavar="TEXT", help="What people should know of it.")] = "",
    home: Home = None,
    as_json: Json = False,
) -> None:
    """Keep what was found of a version: a score, whether it passed, or both.

    A later finding takes the place of an earlier one of the same metric. Guards of rollouts compare scores
    (--guard score:METRIC=LIMIT).
    """
    if score is None and passed is None:
        raise Invalid("expected --score, --passed or --failed.", "See `stoker evaluate --help`.", code="usage")
    if score is not None and not math.isfinite(score):
        raise Invalid(f"{score} is no score.", "Give a finite number.", code="usage")
    body = RecordEvaluation(score=score, passed=passed, note=note)
    with connect(context, home) as client:
        model, number = _find(client, version)
        path = path_of("models", model, "versions", str(number), "evaluations", metric)
        kept = read_as(Evaluation, client.request("PUT", path, json=body.model_dump(mode="json")))
    if as_json:
        output.print_json(kept)
        return
    output.line(f"evaluation/{kept.name}", "" if kept.score is None else f"{kept.score:g}", verdict(kept))
    if kept.passed is False:
        output.line(f"  rollouts to {kept.model}@{kept.number} are refused until it passes")


def verdict(evaluation: Evaluation) -> output.Cell:
    """Whether it passed; nothing where that isn't the question."""
    if evaluation.passed is None:
        return ""
    return output.phase("passed" if evaluation.passed else "failed")


def _find(client: Client, text: str) -> tuple[str, int]:
    """Model and number of ``smol@2`` or ``smol@champion``. Raises `Invalid` or `NotFound`."""
    model, at, version = text.partition("@")
    if not (model and at and version):
        raise Invalid(f"{text!r} names no version.", "Write MODEL@NUMBER or MODEL@ALIAS, e.g. smol@2.", code="usage")
    if version.isascii() and version.isdigit():
        return model, int(version)
    aliases = client.get(Model, model).aliases
    if version not in aliases:
        known = ", ".join(sorted(aliases)) or "none"
        raise NotFound(f"{model} has no alias {version!r}.", f"It has: {known}. `stoker get versions --model {model}`.")
    return model, aliases[version]
