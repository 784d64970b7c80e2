"""`stoker events`."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from typing import Annotated

import typer

from stoker.cli import output
from stoker.cli.details import print_event
from stoker.cli.follow import Follower
from stoker.cli.kinds import kind_of
from stoker.cli.options import Home, Json, connect, examples, verb_app
from stoker.client import Client
from stoker.errors import StokerError
from stoker.types.events import Event

app = verb_app()
_LAST = 50


@app.command(
    epilog=examples(
        "stoker events",
        "stoker events -f --kind rollout",
        "stoker events --kind run --name tune-3 --json",
        "stoker events -f --after 120 --json",
    )
)
def events(
    context: typer.Context,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on with what happens from now on.")] = False,
    after: Annotated[
        int | None,
        typer.Option("--after", metavar="ID", min=0, help="All events over this id; 0 for all that are kept."),
    ] = None,
    last: Annotated[int, typer.Option("--last", "-n", min=0, help="How many, when --after isn't given.")] = _LAST,
    kind: Annotated[str | None, typer.Option("--kind", metavar="KIND", help="Only of this kind.")] = None,
    name: Annotated[str | None, typer.Option("--name", metavar="NAME", help="Only of this resource.")] = None,
    home: Home = None,
    as_json: Json = False,
) -> None:
    """Print what happened, in order.

    With --follow it goes on until Ctrl-C, also over restarts of the daemon: no event is missed or shown twice. With
    --json, one event a line.
    """
    wanted = _kind_name(kind) if kind else None
    with connect(context, home) as client:
        newest = client.host().last_event_id
        _print(_past(client, after, last, wanted, name, newest), as_json=as_json)
        if follow:
            follower = Follower(client, is_quiet=as_json)
            _print(follower.events(max(newest, after or 0), kind=wanted, name=name), as_json=as_json)


def _kind_name(word: str) -> str:
    """The kind as events bear it; kinds that `get` doesn't list (host, gateway) are taken as they are."""
    try:
        return kind_of(word).type.kind
    except StokerError:
        return word


def _past(
    client: Client, after: int | None, last: int, kind: str | None, name: str | None, newest: int
) -> Iterable[Event]:
    """Events up to the id *newest*: what comes later belongs to the following."""
    past = (e for e in client.events(after or 0, follow=False, kind=kind, name=name) if e.id <= newest)
    return past if after is not None else deque(past, maxlen=last)


def _print(events: Iterable[Event], *, as_json: bool) -> None:
    for event in events:
        if as_json:
            output.print_json_line(event.model_dump(mode="json"))
        else:
            print_event(event, with_id=True)
