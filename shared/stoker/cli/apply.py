"""`stoker apply`: what spec files say becomes so."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.text import Text

from stoker.cli import output
from stoker.cli.options import Home, Json, connect, examples, verb_app
from stoker.client import read_list
from stoker.documents import Problem
from stoker.errors import InvalidSpec, StokerError
from stoker.specs import Located, decode, locate_specs, read_file, refusal, twice
from stoker.types.apply import Applied, ApplyRequest

app = verb_app()


@app.command(
    epilog=examples(
        "stoker apply -f jobs.yaml",
        "stoker apply -f jobs.yaml -f chat.yaml --dry-run",
        "sed s/VERSION/3/ rollout.yaml | stoker apply -f -",
    )
)
def apply(
    context: typer.Context,
    files: Annotated[
        list[str],
        typer.Option("--file", "-f", metavar="FILE", help="A spec file, or - for standard input. Repeatable."),
    ],
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show what would change; change nothing.")] = False,
    home: Home = None,
    as_json: Json = False,
) -> None:
    """Create or change what spec files say: jobs, schedules, models, deployments, rollouts.

    A file holds one or several YAML documents, each with its kind. All of it is taken, or nothing. Applying the same
    again changes nothing. Relative paths in a spec start from its file's folder.
    """
    located = _read_all(files)
    request = ApplyRequest(specs=[x.spec for x in located], dry_run=dry_run)
    with connect(context, home) as client:
        try:
            answer = client.request("POST", "/v1/apply", json=request.model_dump(mode="json"))
        except StokerError as error:
            raise _with_lines(error, located) from error
    applied = read_list(Applied, answer)
    if as_json:
        output.print_json(applied)
        return
    for item in applied:
        _print(item, dry_run=dry_run)


def _read_all(files: list[str]) -> list[Located]:
    """The specs of all files. Raises `InvalidSpec` with the problems of all of them."""
    located: list[Located] = []
    problems: list[Problem] = []
    for file in files:
        try:
            if file == "-":
                text, base = decode(sys.stdin.buffer.read(), "<stdin>"), Path.cwd()
            else:
                text, base = read_file(Path(file))
        except InvalidSpec as error:  # not text at all; the other files are still looked at
            problems += [Problem(**p) for p in error.details["problems"]]
            continue
        found, wrong = locate_specs(text, "<stdin>" if file == "-" else file, base)
        located += found
        problems += wrong
    problems += [p for p in twice(located) if p not in problems]
    if problems:
        raise refusal(problems)
    return located


def _with_lines(error: StokerError, located: list[Located]) -> StokerError:
    """What the daemon refused, with the file and line of the spec that it names in ``details``."""
    problems = error.details.get("problems")
    for problem in problems if isinstance(problems, list) else [error.details]:
        for item in located:
            if isinstance(problem, dict) and (problem.get("kind"), problem.get("name")) == (
                item.spec.kind,
                item.spec.name,
            ):
                field = str(problem.get("field") or "").removeprefix(f"{item.spec.kind}.") or _field_in(error.message)
                place = f"{item.document.file}:{item.document.line_of(_where(field))}"
                if not error.message.startswith(place):
                    error.message = f"{place}: {error.message}"
                    error.args = (error.message,)
                return error
    return error


def _field_in(message: str) -> str:
    """The field in a sentence such as ``job tune: code: there is no folder``."""
    found = re.match(r"\w+ \S+: ([\w.\[\]-]+): ", message)
    return found[1] if found else ""


def _where(field: str) -> tuple[str | int, ...]:
    parts = field.replace("[", ".").replace("]", "").split(".")
    return tuple(int(p) if p.isdigit() else p for p in parts if p)


def _print(item: Applied, *, dry_run: bool) -> None:
    action = Text(item.action, style={"created": "green", "changed": "yellow"}.get(item.action, ""))
    output.line(f"{item.kind}/{item.name}", action, *(["(dry run)"] if dry_run else []))
    if item.action != "changed":  # of something new, everything is new: the file says it already
        return
    for field, (before, after) in sorted(item.changes.items()):
        output.line(f"  {field}: {_value(before)} -> {_value(after)}")


def _value(value: Any) -> str:
    if isinstance(value, float) and value.is_integer():  # durations are kept as floats: 30, as it was written
        value = int(value)
    return "(none)" if value is None else json.dumps(value, ensure_ascii=False)
