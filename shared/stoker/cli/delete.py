"""`stoker delete`."""

from __future__ import annotations

from contextlib import suppress
from typing import Annotated

import typer

from stoker.cli import output
from stoker.cli.follow import Follower
from stoker.cli.kinds import kind_of
from stoker.cli.options import Home, Json, connect, examples, verb_app
from stoker.client import path_of
from stoker.errors import Invalid, NotFound

app = verb_app()
_DELETABLE = ("job", "schedule", "deployment", "key")


@app.command(epilog=examples("stoker delete schedule nightly", "stoker delete deployment chat --wait"))
def delete(
    context: typer.Context,
    kind: Annotated[str, typer.Argument(metavar="KIND", help=", ".join(_DELETABLE))],
    name: Annotated[str, typer.Argument(metavar="NAME")],
    wait: Annotated[bool, typer.Option("--wait", "-w", help="Return when it is gone, its processes included.")] = False,
    home: Home = None,
    as_json: Json = False,
) -> None:
    """Delete a job, a schedule, a deployment or an API key.

    A deployment drains first. Runs, versions and rollouts are history: they stay.
    """
    found = kind_of(kind)
    if found.type.kind not in _DELETABLE:
        raise Invalid(
            f"{found.type.plural} are never deleted.", f"What can be: {', '.join(_DELETABLE)}.", code="not-deletable"
        )
    with connect(context, home) as client:
        client.request("DELETE", path_of(found.type.plural, name))
        if wait:
            with suppress(NotFound):
                Follower(client, is_quiet=as_json).until(found.type, name, lambda r: False, lambda r: None)
    if as_json:
        output.print_json({"kind": found.type.kind, "name": name, "deleted": True})
    else:
        is_gone = wait or found.type.kind == "key"
        output.line(f"{found.type.kind}/{name} {'deleted' if is_gone else 'is being deleted'}")
