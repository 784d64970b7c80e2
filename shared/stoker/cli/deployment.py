"""`stoker deployment`: what a deployment has served."""

from __future__ import annotations

import time
from typing import Annotated

import typer

from stoker.cli import output
from stoker.cli.human import local, span
from stoker.cli.options import Home, Json, connect, duration, examples, verb_app
from stoker.client import path_of, read_list
from stoker.types.base import now
from stoker.types.traffic import Served

app = verb_app("Say which version a deployment served, to whom, when and by whose decision.")


@app.callback()
def _verbs() -> None:  # with a callback, Typer takes even a single verb by its name
    pass


@app.command(
    epilog=examples(
        "stoker deployment history chat",
        "stoker deployment history chat --since 2d",
        "stoker deployment history chat --json | jq '.[] | select(.version == 7)'",
    )
)
def history(
    context: typer.Context,
    name: Annotated[str, typer.Argument(metavar="DEPLOYMENT")],
    since: Annotated[
        float | None,
        typer.Option(
            "--since", metavar="DURATION", parser=duration, help="Only the last 2h, 2d, …. Default: all that is kept."
        ),
    ] = None,
    home: Home = None,
    as_json: Json = False,
) -> None:
    """Print which version served this name, to whom and when.

    And by whose decision, because of what, in which rollout. To the second, as the gateway confirmed it, in local time.
    Newest last; what is still so has no end.
    """
    params = {} if since is None else {"since": time.time() - since}
    with connect(context, home) as client:
        data = client.request("GET", path_of("deployments", name, "history"), params=params)
    if as_json:
        output.print_json(data)
        return
    served = read_list(Served, data)
    if not served:
        output.note(f"{name} served nothing" + ("" if since is None else f" in the last {span(since)}"))
        return
    heads = ["SINCE", "UNTIL", "FOR", "VERSION", "ARM", "SHARE"]
    output.table(heads, [_row(s) for s in served], notes=[_decision(s) for s in served])


def _row(served: Served) -> list[output.Cell]:
    return [
        local(served.since),
        local(served.until) if served.until else "now",
        span(max(0.0, ((served.until or now()) - served.since).total_seconds())),
        f"@{served.version}",
        served.arm,
        f"{served.percent:g} %" if served.percent else "-",
    ]


def _decision(served: Served) -> str:
    """To whom, who decided it, in which rollout, because of what."""
    who = {"guards": "the guards", "gateway": "the gateway", "host": "the host"}.get(served.by, served.by)
    text = f"to {served.whom}; " if served.whom else ""
    text += f"by {who or 'nobody known'}" + (f", in rollout {served.rollout}" if served.rollout else "")
    return f"{text}: {served.because}" if served.because else text
