"""`stoker metrics`."""

from __future__ import annotations

import time
from collections.abc import Iterator
from itertools import groupby
from typing import Annotated, Any

import typer

from stoker.cli import output
from stoker.cli.follow import Follower
from stoker.cli.options import Home, Json, connect, examples, verb_app
from stoker.client import Client, path_of, read_list
from stoker.types.training import ACTIVE_PHASES, MetricPoint, Run

app = verb_app()
_POLL_SECONDS = 0.5


@app.command(
    epilog=examples("stoker metrics tune-3", "stoker metrics tune-3 -f --key loss", "stoker metrics tune-3 --json")
)
def metrics(
    context: typer.Context,
    name: Annotated[str, typer.Argument(metavar="RUN", help="A run's name, e.g. tune-3.")],
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on until the run has ended.")] = False,
    key: Annotated[str | None, typer.Option("--key", metavar="KEY", help="Only this metric.")] = None,
    home: Home = None,
    as_json: Json = False,
) -> None:
    """Print what a run reported: loss and the like, step by step.

    With --json a list of points, or with --follow a point a line.
    """
    with connect(context, home) as client:
        if follow:
            follower = Follower(client, is_quiet=as_json)
            for batch in _batches(follower, name, key):
                _print(batch, as_json=as_json)
            return
        points, _ = _read(client, name, 0, key)
    if as_json:
        output.print_json(points)
    else:
        _print(points, as_json=False)


def _read(client: Client, run: str, after: int, key: str | None) -> tuple[list[MetricPoint], int]:
    params: dict[str, Any] = {"after": after} | ({"key": key} if key is not None else {})
    answer = client.request("GET", path_of("runs", run, "metrics"), params=params)
    return read_list(MetricPoint, answer["points"]), int(answer["next"])


def _batches(follower: Follower, run: str, key: str | None) -> Iterator[list[MetricPoint]]:
    """Points as they come, until the run has ended and all were read."""
    client, after = follower.client, 0
    while True:
        # Asked before the points are read: what was written before the end is then surely read.
        is_active = follower.steadily(lambda: client.get(Run, run)).phase in ACTIVE_PHASES
        points, after = follower.steadily(lambda at=after: _read(client, run, at, key))  # type: ignore[misc]
        if points:
            yield points
        elif not is_active:
            return
        else:
            time.sleep(_POLL_SECONDS)


def _print(points: list[MetricPoint], *, as_json: bool) -> None:
    if as_json:
        for point in points:
            output.print_json_line(point.model_dump(mode="json"))
        return
    for step, group in groupby(points, key=lambda p: p.step):
        output.line(f"step {step:>6}", *(f" {p.key} {p.value:.6g}" for p in group))
