"""`stoker logs`."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Annotated

import typer

from stoker.cli import output
from stoker.cli.follow import Follower
from stoker.cli.kinds import kind_of
from stoker.cli.options import Home, Json, connect, examples, verb_app
from stoker.client import Client
from stoker.errors import Conflict, Invalid, NotFound
from stoker.types.serving import Deployment, Replica
from stoker.types.training import ACTIVE_PHASES, Job, Run

app = verb_app()
_LOOKS = (1 << 16, 1 << 20, 1 << 24)  # bytes from the end in which the last lines are sought
_GATEWAY = "gateway"


@app.command(
    epilog=examples(
        "stoker logs tune-3",
        "stoker logs -f tune            # the newest run of job tune",
        "stoker logs --tail 50 chat     # the replica of deployment chat",
        "stoker logs replica/chat-v1-0",
        "stoker logs -f gateway         # its first worker; gateway/1 is the second",
    )
)
def logs(
    context: typer.Context,
    name: Annotated[
        str, typer.Argument(metavar="[KIND/]NAME", help="A run, a replica, a job, a deployment, or `gateway`.")
    ],
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on until whatever writes it has ended.")] = False,
    tail: Annotated[int | None, typer.Option("--tail", "-n", metavar="N", min=0, help="Only the last N lines.")] = None,
    home: Home = None,
    as_json: Json = False,
) -> None:
    """Print the log of a run, a replica or the gateway.

    A job's name stands for its newest run, a deployment's for its replica. With --json, {"line": …} for each line.
    """
    with connect(context, home) as client:
        kind, target = find_log(client, name)
        offset = 0
        if tail is not None:
            kept, offset = last_lines(client, kind, target, tail)
            print_log([kept], as_json=as_json)
        if follow:
            follower = Follower(client, is_quiet=as_json)
            print_log(follower.log(kind, target, offset, lambda: is_over(client, kind, target)), as_json=as_json)
        elif tail is None:
            print_log(client.log(kind, target), as_json=as_json)


def find_log(client: Client, name: str) -> tuple[str, str]:
    """The kind and name of the log that *name* means. Raises `NotFound`, `Conflict` (several), `Invalid`."""
    word, slash, rest = name.partition("/")
    if word == _GATEWAY:
        return _GATEWAY, rest or _GATEWAY
    if not slash:
        for kind in (Run, Replica):
            try:
                return kind.kind, client.get(kind, name).name
            except NotFound:
                continue
        try:
            return _newest_run(client, name)
        except NotFound:
            pass
        try:
            return _only_replica(client, name)
        except NotFound:
            return _former_replica(client, name)
    kind_name = kind_of(word).type.kind
    if kind_name == Job.kind:
        return _newest_run(client, rest)
    if kind_name == Deployment.kind:
        return _only_replica(client, rest)
    if kind_name not in (Run.kind, Replica.kind):
        raise Invalid(f"a {kind_name} has no log.", "Runs, replicas and the gateway have.")
    return kind_name, rest


def _newest_run(client: Client, job: str) -> tuple[str, str]:
    runs = client.list(Run, job=client.get(Job, job).name)
    if not runs:
        raise Conflict(f"job {job} has had no run yet.", f"Start one with `stoker run {job}`.")
    return Run.kind, max(runs, key=lambda r: r.number).name


def _only_replica(client: Client, deployment: str) -> tuple[str, str]:
    replicas = client.list(Replica, deployment=client.get(Deployment, deployment).name)
    if not replicas:
        raise Conflict(f"deployment {deployment} has no replica now.", f"See `stoker get deployment {deployment}`.")
    if len(replicas) > 1:
        names = ", ".join(r.name for r in replicas)
        raise Conflict(f"deployment {deployment} has {len(replicas)} replicas.", f"Name one of them: {names}.")
    return Replica.kind, replicas[0].name


def _former_replica(client: Client, name: str) -> tuple[str, str]:
    """The log of a replica that has stopped and was forgotten: it outlives the replica."""
    try:
        with client.open_log(Replica.kind, name, offset=-1):
            return Replica.kind, name
    except NotFound:
        raise NotFound(
            f"nothing that has a log is named {name!r}.",
            "`stoker get runs` and `stoker get replicas` list what has; `gateway` has one too.",
        ) from None


def is_over(client: Client, kind: str, name: str) -> bool:
    """Whether nothing will be added to the log any more."""
    if kind == _GATEWAY:
        return False
    try:
        if kind == Run.kind:
            return client.get(Run, name).phase not in ACTIVE_PHASES
        return client.get(Replica, name).phase == "failed"
    except NotFound:
        return True


def last_lines(client: Client, kind: str, name: str, count: int) -> tuple[bytes, int]:
    """The last *count* lines of a log, and the offset of its end. Reads from the end, more and more."""
    for size in (*_LOOKS, None):
        with client.open_log(kind, name, offset=-size if size else 0) as (start, chunks):
            data = b"".join(chunks)
        if start is not None and (size is None or len(data) < size or data.count(b"\n") > count):
            return _tail(data, count), start + len(data)
    raise AssertionError("the last look is at everything")


def _tail(data: bytes, count: int) -> bytes:
    if count == 0:
        return b""
    position = len(data) - 1 if data.endswith(b"\n") else len(data)
    for _ in range(count):
        position = data.rfind(b"\n", 0, position)
        if position < 0:
            return data
    return data[position + 1 :]


def print_log(chunks: Iterable[bytes], *, as_json: bool) -> None:
    """Put a log out: its bytes as they are, or a JSON value for each line."""
    if not as_json:
        for chunk in chunks:
            output.write_bytes(chunk)
        return
    for line in lines_of(chunks):
        output.print_json_line({"line": line})


def lines_of(chunks: Iterable[bytes]) -> Iterator[str]:
    """The log's lines as text, without their ends; what is not UTF-8 is replaced."""
    rest = b""
    for chunk in chunks:
        *lines, rest = (rest + chunk).split(b"\n")
        for line in lines:
            yield line.decode(errors="replace").removesuffix("\r")
    if rest:
        yield rest.decode(errors="replace")
