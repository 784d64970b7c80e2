"""`stoker get`: lists, and one resource whole."""

from __future__ import annotations

from collections import deque
from typing import Annotated, Any

import typer

from stoker.cli import output
from stoker.cli.details import print_details, print_events
from stoker.cli.kinds import KINDS, Kind, kind_of
from stoker.cli.options import Home, Json, connect, examples, verb_app
from stoker.client import Client, path_of, read_as, read_list
from stoker.errors import Invalid
from stoker.types.events import Event

app = verb_app()
_RECENT_EVENTS = 10


def _filter(kind: str, plural: str) -> Any:
    return typer.Option(f"--{kind}", metavar="NAME", help=f"Of {plural}: only those of this {kind}.")


@app.command(
    epilog=examples(
        "stoker get runs",
        "stoker get runs --job tune",
        "stoker get run tune-3",
        "stoker get version smol@2 --json",
        "stoker get host",
    )
)
def get(
    context: typer.Context,
    kind: Annotated[str, typer.Argument(metavar="KIND", help=f"host, {', '.join(KINDS)}; plural or short forms too.")],
    name: Annotated[str | None, typer.Argument(metavar="[NAME]", help="One resource; without it, all of them.")] = None,
    job: Annotated[str | None, _filter("job", "runs")] = None,
    deployment: Annotated[str | None, _filter("deployment", "replicas and rollouts")] = None,
    model: Annotated[str | None, _filter("model", "versions and evaluations")] = None,
    dataset: Annotated[str | None, _filter("dataset", "dataset versions")] = None,
    home: Home = None,
    as_json: Json = False,
) -> None:
    """List resources of a kind, or show one with its recent events."""
    given = {"job": job, "deployment": deployment, "model": model, "dataset": dataset}
    filters = {k: v for k, v in given.items() if v is not None}
    with connect(context, home) as client:
        if kind.lower() in ("host", "hosts"):
            _get_host(client, as_json=as_json)
            return
        found = kind_of(kind)
        if wrong := sorted(set(filters) - found.filters):
            raise Invalid(f"{found.type.plural} can't be narrowed by --{wrong[0]}.", "See `stoker get --help`.")
        if name is None:
            _get_list(client, found, filters, as_json=as_json)
        elif filters:
            raise Invalid("a name and a filter were given.", "Give one of them.")
        else:
            _get_one(client, found, name, as_json=as_json)


def _get_host(client: Client, *, as_json: bool) -> None:
    if as_json:
        output.print_json(client.request("GET", "/v1/host"))
    else:
        print_details(client.host())


def _get_list(client: Client, kind: Kind, filters: dict[str, str], *, as_json: bool) -> None:
    data = client.request("GET", path_of(kind.type.plural), params=filters)
    if as_json:
        output.print_json(data)
        return
    resources = read_list(kind.type, data)
    if not resources:
        output.note(f"no {kind.type.plural}")  # on stderr: standard output stays an empty list for scripts
        return
    output.table([h for h, _ in kind.columns], [[cell(r) for _, cell in kind.columns] for r in resources])


def _get_one(client: Client, kind: Kind, name: str, *, as_json: bool) -> None:
    data = client.request("GET", path_of(kind.type.plural, name))
    if as_json:
        output.print_json(data)
        return
    print_details(read_as(kind.type, data))
    recent: deque[Event] = deque(client.events(follow=False, kind=kind.type.kind, name=name), maxlen=_RECENT_EVENTS)
    if recent:
        output.heading("events")
        print_events(recent)
