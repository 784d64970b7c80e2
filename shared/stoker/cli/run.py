"""`stoker run`."""

from __future__ import annotations

import json
import math
from typing import Annotated, Any

import typer

from stoker.cli import output
from stoker.cli.follow import Follower
from stoker.cli.kinds import duration_of, message_of, state_phase
from stoker.cli.logs import is_over, lines_of
from stoker.cli.options import Home, Json, connect, examples, verb_app
from stoker.client import path_of, read_as
from stoker.errors import Invalid
from stoker.types.training import ACTIVE_PHASES, Run

app = verb_app()
EXIT_ENDED_BADLY = 7
Value = str | int | float | bool


@app.command(
    epilog=examples(
        "stoker run tune",
        "stoker run tune -p lr=1e-4 -p steps=30 --follow",
        "stoker run tune -p 'tag=\"007\"' --wait --json",
    )
)
def run(
    context: typer.Context,
    job: Annotated[str, typer.Argument(metavar="JOB", help="A job's name.")],
    params: Annotated[
        list[str] | None,
        typer.Option(
            "--param",
            "-p",
            metavar="KEY=VALUE",
            help="Replaces a param of the job. Numbers, true and false are read so.",
        ),
    ] = None,
    wait: Annotated[bool, typer.Option("--wait", "-w", help="Return when the run has ended.")] = False,
    follow: Annotated[
        bool, typer.Option("--follow", "-f", help="Print its log, and return when it has ended.")
    ] = False,
    home: Home = None,
    as_json: Json = False,
) -> None:
    """Queue a run of a job; wait for its end if asked to.

    With --wait or --follow the exit code is 0 if the run succeeded and 7 if it failed or was cancelled. Ctrl-C stops
    the waiting, not the run. With --json the run is printed, after --wait as it ended; with --follow {"line": …} for
    each line of its log comes first.
    """
    body = {"params": read_params(params or [])}
    with connect(context, home) as client:
        made = read_as(Run, client.request("POST", path_of("jobs", job, "runs"), json=body, is_slow=True))
        if not (wait or follow):
            _print(made, as_json=as_json)
            return
        if not as_json:
            _print_state(made)
        try:
            ended = _attend(Follower(client, is_quiet=as_json), made, follow=follow, as_json=as_json)
        except KeyboardInterrupt:
            output.note(
                f"\nstoker: detached; run {made.name} goes on. "
                f"`stoker logs -f {made.name}` follows it, `stoker cancel {made.name}` stops it."
            )
            raise
    if as_json:
        output.print_json_line(ended.model_dump(mode="json")) if follow else output.print_json(ended)
    else:
        _print_state(ended)
    if ended.phase != "succeeded":
        raise typer.Exit(EXIT_ENDED_BADLY)


def read_params(given: list[str]) -> dict[str, Value]:
    """``key=value`` each; a value is JSON where it is a JSON scalar (so ``"7"`` in quotes is text), else text."""
    params: dict[str, Value] = {}
    for text in given:
        key, equals, value = text.partition("=")
        if not equals or not key:
            raise Invalid(f"{text!r} is no param.", "Write it as key=value, e.g. -p lr=1e-4.", code="usage")
        params[key] = _read_value(value)
    return params


def _read_value(text: str) -> Value:
    try:
        value: Any = json.loads(text)
    except ValueError:
        return text
    is_scalar = isinstance(value, str | int | float) and not (isinstance(value, float) and not math.isfinite(value))
    return value if is_scalar else text


def _attend(follower: Follower, made: Run, *, follow: bool, as_json: bool) -> Run:
    """Wait for the end of the run, telling each change of its state, or its log."""
    told = made.phase

    def tell(run: Run) -> None:
        nonlocal told
        if run.phase != told and not as_json and run.phase in ACTIVE_PHASES:
            _print_state(run)
        told = run.phase

    if follow:
        follower.until(Run, made.name, lambda r: r.phase != "queued", tell)  # before that there is no log
        client = follower.client
        chunks = follower.log(Run.kind, made.name, 0, lambda: is_over(client, Run.kind, made.name))
        if as_json:
            for line in lines_of(chunks):
                output.print_json_line({"line": line})
        else:
            for chunk in chunks:
                output.write_bytes(chunk)
    return follower.until(Run, made.name, lambda r: r.phase not in ACTIVE_PHASES, tell)


def _print(run: Run, *, as_json: bool) -> None:
    if as_json:
        output.print_json(run)
    else:
        _print_state(run)


def _print_state(run: Run) -> None:
    took = f"after {duration_of(run)}" if run.phase not in ACTIVE_PHASES and duration_of(run) != "-" else ""
    output.line(f"run/{run.name}", state_phase(run), *(x for x in (took, message_of(run)) if x))
