"""`stoker key`: make, list and delete API keys of the gateway."""

from __future__ import annotations

from typing import Annotated

import typer

from stoker.cli import output
from stoker.cli.kinds import KINDS
from stoker.cli.options import Home, Json, connect, examples, verb_app
from stoker.client import path_of, read_as
from stoker.types.keys import ApiKey, NewKey

app = verb_app("Make, list and delete API keys of the gateway.")

Name = Annotated[str, typer.Argument(metavar="NAME", help="Whose it is, or what for.")]


def _limit(option: str, help: str) -> typer.models.OptionInfo:
    return typer.Option(option, metavar="N", min=0, help=help, show_default=False)  # type: ignore[no-any-return]


@app.command(epilog=examples("stoker key create alice", "stoker key create app --model chat --requests-per-minute 600"))
def create(
    context: typer.Context,
    name: Name,
    models: Annotated[
        list[str] | None,
        typer.Option("--model", "-m", metavar="DEPLOYMENT", help="What it may use. Repeatable. Default: everything."),
    ] = None,
    requests_per_minute: Annotated[int, _limit("--requests-per-minute", "Default: any number.")] = 0,
    tokens_per_minute: Annotated[
        int, _limit("--tokens-per-minute", "Of prompts and answers together. Default: any number.")
    ] = 0,
    in_flight: Annotated[
        int, _limit("--in-flight", "Requests at once, for each worker of the gateway. Default: any number.")
    ] = 0,
    home: Home = None,
    as_json: Json = False,
) -> None:
    """Make a key, and print it: this once, since only its hash is kept."""
    body = {
        "name": name,
        "models": models or [],
        "requests_per_minute": requests_per_minute,
        "tokens_per_minute": tokens_per_minute,
        "in_flight": in_flight,
    }
    with connect(context, home) as client:
        made = read_as(NewKey, client.request("POST", "/v1/keys", json=body))
    if as_json:
        output.print_json(made)
    else:
        output.line(made.text)
        output.note(f"key/{name} created; keep its text: it can't be shown again")


@app.command("list", epilog=examples("stoker key list", "stoker key list --json"))
def list_keys(context: typer.Context, home: Home = None, as_json: Json = False) -> None:
    """List the keys; their texts are not kept."""
    with connect(context, home) as client:
        keys = client.list(ApiKey)
    if as_json:
        output.print_json(keys)
    elif keys:
        columns = KINDS["key"].columns
        output.table([head for head, _ in columns], [[cell(key) for _, cell in columns] for key in keys])
    else:
        output.note("no keys")


@app.command(epilog=examples("stoker key delete alice"))
def delete(context: typer.Context, name: Name, home: Home = None, as_json: Json = False) -> None:
    """Delete a key: what is asked with it from now on is refused."""
    with connect(context, home) as client:
        client.request("DELETE", path_of("keys", name))
    if as_json:
        output.print_json({"kind": "key", "name": name, "deleted": True})
    else:
        output.line(f"key/{name} deleted")
