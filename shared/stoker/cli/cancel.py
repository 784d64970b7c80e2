"""`stoker cancel`."""

from __future__ import annotations

from typing import Annotated

import typer

from stoker.cli import output
from stoker.cli.follow import Follower
from stoker.cli.kinds import state_phase
from stoker.cli.options import Home, Json, connect, examples, verb_app
from stoker.client import path_of, read_as
from stoker.types.training import ACTIVE_PHASES, Run

app = verb_app()


@app.command(epilog=examples("stoker cancel tune-3", "stoker cancel tune-3 --wait"))
def cancel(
    context: typer.Context,
    name: Annotated[str, typer.Argument(metavar="RUN", help="A run's name, e.g. tune-3.")],
    wait: Annotated[bool, typer.Option("--wait", "-w", help="Return when all its processes have ended.")] = False,
    home: Home = None,
    as_json: Json = False,
) -> None:
    """Stop a run with all its processes, or take it out of the queue."""
    with connect(context, home) as client:
        run = read_as(Run, client.request("POST", path_of("runs", name, "cancel")))
        if wait and run.phase in ACTIVE_PHASES:
            follower = Follower(client, is_quiet=as_json)
            run = follower.until(Run, name, lambda r: r.phase not in ACTIVE_PHASES, lambda r: None)
    if as_json:
        output.print_json(run)
    else:
        output.line(f"run/{run.name}", state_phase(run))
