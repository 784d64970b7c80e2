"""`stoker alias`."""

from __future__ import annotations

from typing import Annotated

import typer

from stoker.cli import output
from stoker.cli.options import Home, Json, connect, examples, verb_app
from stoker.client import path_of, read_as
from stoker.errors import Invalid
from stoker.types.registry import Model

app = verb_app()


@app.command(epilog=examples("stoker alias smol champion 2", "stoker alias smol challenger --remove"))
def alias(
    context: typer.Context,
    model: Annotated[str, typer.Argument(metavar="MODEL")],
    name: Annotated[str, typer.Argument(metavar="ALIAS", help="A movable name, e.g. champion.")],
    version: Annotated[str | None, typer.Argument(metavar="[VERSION]", help="A version's number, 2 or smol@2.")] = None,
    remove: Annotated[bool, typer.Option("--remove", help="Remove the alias; the version stays.")] = False,
    home: Home = None,
    as_json: Json = False,
) -> None:
    """Let an alias of a model point to a version, or remove it."""
    if remove == (version is not None):
        raise Invalid("expected either a VERSION or --remove.", "See `stoker alias --help`.", code="usage")
    path = path_of("models", model, "aliases", name)
    with connect(context, home) as client:
        if version is None:
            client.request("DELETE", path)
            changed = client.get(Model, model)
        else:
            changed = read_as(Model, client.request("PUT", path, json={"version": _number(model, version)}))
    if as_json:
        output.print_json(changed)
    elif version is None:
        output.line(f"{model}@{name} removed")
    else:
        output.line(f"{model}@{name} -> {model}@{changed.aliases.get(name, version)}")


def _number(model: str, version: str) -> int:
    number = version.removeprefix(f"{model}@").removeprefix("@")
    if not (number.isascii() and number.isdigit()):
        raise Invalid(
            f"{version!r} is no version of {model}.", f"Give a number: `stoker get versions --model {model}`."
        )
    return int(number)
