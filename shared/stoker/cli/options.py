"""What the verbs have in common: their options, their help's form, the way to the daemon."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from pydantic import TypeAdapter, ValidationError

from stoker.client import Client
from stoker.paths import find_home
from stoker.types.base import Seconds

Home = Annotated[
    Path | None,
    # No envvar here: it would win over `stoker --home DIR VERB`, which reads STOKER_HOME by itself.
    typer.Option("--home", metavar="DIR", help="The daemon's home folder; else STOKER_HOME.", show_default=False),
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON instead of text.")]


def verb_app(help: str | None = None) -> typer.Typer:
    """A Typer that one verb fills, alone or with its own verbs."""
    return typer.Typer(
        help=help,
        add_completion=False,
        rich_markup_mode=None,
        pretty_exceptions_enable=False,
        no_args_is_help=help is not None,
        context_settings={"help_option_names": ["-h", "--help"]},
    )


def examples(*lines: str) -> str:
    """The end of a verb's help."""
    return "\b\nExamples:\n" + "\n".join(f"  {line}" for line in lines)


def duration(text: str) -> float:
    """What an option takes as ``30s``, ``5m``, ``1.5h`` or ``2d``, in seconds."""
    try:
        return TypeAdapter(Seconds).validate_python(text)
    except ValidationError as error:
        raise typer.BadParameter("expected a duration such as 30s, 5m, 1.5h or 2d") from error


def connect(context: typer.Context, home: Path | None) -> Client:
    """A client of the daemon that `stoker --home`, the verb's own --home or STOKER_HOME name."""
    return Client(find_home(home or context.find_root().params.get("home")).socket)
