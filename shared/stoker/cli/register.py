"""`stoker register`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from stoker.cli import output
from stoker.cli.human import count, size
from stoker.cli.options import Home, Json, connect, examples, verb_app
from stoker.client import path_of, read_as
from stoker.types.registry import Version

app = verb_app()


@app.command(
    epilog=examples("stoker register smol ./SmolLM2-135M-Instruct --alias base", "stoker register smol ./out --json")
)
def register(
    context: typer.Context,
    model: Annotated[str, typer.Argument(metavar="MODEL", help="A model's name; `stoker apply` makes models.")],
    path: Annotated[Path, typer.Argument(metavar="PATH", help="A folder of weights on the daemon's host.")],
    aliases: Annotated[
        list[str] | None, typer.Option("--alias", metavar="NAME", help="An alias to point to it. Repeatable.")
    ] = None,
    home: Home = None,
    as_json: Json = False,
) -> None:
    """Keep a folder of weights as a model's next version.

    A version is named by its contents: the same weights give the version that there is. A run of a job that says
    `registers` does this by itself, with its lineage.
    """
    body = {"path": str(path.expanduser().absolute()), "aliases": aliases or []}
    with connect(context, home) as client:
        answer = client.request("POST", path_of("models", model, "versions"), json=body, is_slow=True)
    version = read_as(Version, answer)
    if as_json:
        output.print_json(version)
        return
    output.line(version.name, f"{count(version.files, 'file')}, {size(version.bytes)}, sha256:{version.digest}")
    for alias in aliases or []:
        output.line(f"  {model}@{alias} -> {version.name}")
