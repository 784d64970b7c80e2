"""`stoker snapshot`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from stoker.cli import output
from stoker.cli.human import count, size
from stoker.cli.options import Home, Json, connect, examples, verb_app
from stoker.client import path_of, read_as
from stoker.types.training import DatasetVersion

app = verb_app()


@app.command(epilog=examples("stoker snapshot chats ./data/chats", "stoker snapshot chats chats.jsonl --json"))
def snapshot(
    context: typer.Context,
    dataset: Annotated[str, typer.Argument(metavar="DATASET", help="The dataset's name; it is made if there is none.")],
    path: Annotated[Path, typer.Argument(metavar="PATH", help="A file or folder on the daemon's host.")],
    home: Home = None,
    as_json: Json = False,
) -> None:
    """Keep a file or folder as a dataset's next version.

    A version is named by its contents: the same files give the version that there is.
    """
    body = {"path": str(path.expanduser().absolute())}
    with connect(context, home) as client:
        answer = client.request("POST", path_of("datasets", dataset, "versions"), json=body, is_slow=True)
    version = read_as(DatasetVersion, answer)
    if as_json:
        output.print_json(version)
    else:
        output.line(version.name, f"{count(version.files, 'file')}, {size(version.bytes)}, sha256:{version.digest}")
