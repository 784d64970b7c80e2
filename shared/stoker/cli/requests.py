"""`stoker requests`."""

from __future__ import annotations

import time
from typing import Annotated, Any

import typer
from rich.text import Text

from stoker.cli import output
from stoker.cli.human import latency, local, span
from stoker.cli.options import Home, Json, connect, duration, examples, verb_app
from stoker.client import path_of, read_list
from stoker.types.traffic import Request

app = verb_app()
_COLUMNS = ("TIME", "VERSION", "ARM", "STATUS", "QUEUED", "TTFT", "GAP", "TOTAL", "TOKENS", "END", "CALLER", "PATH")


@app.command(
    epilog=examples(
        "stoker requests chat",
        "stoker requests chat --arm candidate --errors --since 1d",
        "stoker requests chat --last 1000 --json | jq '.[] | select(.ttft_seconds > 1)'",
    )
)
def requests(
    context: typer.Context,
    deployment: Annotated[str, typer.Argument(metavar="DEPLOYMENT")],
    since: Annotated[
        float, typer.Option("--since", metavar="DURATION", parser=duration, help="Only those of the last 10m, 1d, ….")
    ] = "1h",  # type: ignore[assignment]  # parsed, as what is given is
    arm: Annotated[
        str | None, typer.Option("--arm", metavar="ARM", help="Only those of stable, candidate or shadow.")
    ] = None,
    errors: Annotated[bool, typer.Option("--errors", help="Only those that went wrong.")] = False,
    last: Annotated[int, typer.Option("--last", "-n", metavar="N", min=1, max=10_000, help="At most so many.")] = 50,
    home: Home = None,
    as_json: Json = False,
) -> None:
    """Print the last requests of a deployment, each with what the gateway measured.

    GAP is the longest pause between two pieces of a streamed answer, END the answer's own word for why it ended.
    """
    params: dict[str, Any] = {"since": time.time() - since, "limit": last, "errors": errors}
    params |= {"arm": arm} if arm is not None else {}
    with connect(context, home) as client:
        data = client.request("GET", path_of("deployments", deployment, "requests"), params=params)
    if as_json:
        output.print_json(data)
        return
    found = read_list(Request, data)
    if not found:
        output.note(f"no requests of {deployment} in the last {span(since)}")
        return
    output.table(_COLUMNS, [_row(r) for r in found])


def _row(request: Request) -> list[output.Cell]:
    tokens = "/".join("-" if n is None else str(n) for n in (request.prompt_tokens, request.completion_tokens))
    return [
        local(request.time),
        f"@{request.version}",
        request.arm,
        _status(request),
        latency(request.queued_seconds or None),
        latency(request.ttft_seconds),
        latency(request.max_gap_seconds),
        latency(request.total_seconds),
        tokens,
        "client gone" if request.client_gone else request.finish_reason or "-",
        request.caller[:8] or "-",
        request.path,
    ]


def _status(request: Request) -> Text:
    return Text(str(request.status or "none"), style="red" if request.is_error else "")
