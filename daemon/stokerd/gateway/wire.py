"""What the daemon and the gateway say to each other, over HTTP on the gateway's control socket.

``PUT /routes`` takes a `RouteTable` and answers a `GatewayState`: when the answer is there, every new request follows
the table. ``GET /state`` answers a `GatewayState`. ``GET /records?epoch=E&after=N&wait=S`` answers a `RecordBatch` of
records with ``seq > N`` (all that are kept, if *epoch* is another life of the gateway), oldest first and at most 1,000,
within 20 ms if there are any, else after at most *wait* seconds. Asking with ``after=N`` in the same epoch says that
the records up to N are safe with the daemon: the gateway forgets them. One reader at a time. Stdlib only.

Refusals have the one shape ``{"code", "message", "hint", "details"}``: 400 for a bad table (the old one stays).
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

WIRE_VERSION = 1
"""Raise it when a daemon can't speak to the gateway of an earlier one any more: then it starts another one."""
MAX_SOCKET_PATH = 107  # bytes; sun_path in Linux's sockaddr_un, less the closing NUL


class BadTable(ValueError):
    """A route table that can't be followed; the old one stays."""


@dataclass(frozen=True, slots=True)
class Arm:
    """A version that answers ``weight`` percent of a route's requests, at any of *addresses* (unix:PATH, HOST:PORT)."""

    name: str
    version: int
    weight: float
    addresses: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Route:
    """A deployment as clients name it in ``"model"``. ``shadow`` gets copies of its ``weight`` percent of requests."""

    deployment: str
    salt: str
    arms: tuple[Arm, ...]
    shadow: Arm | None = None


@dataclass(frozen=True, slots=True)
class RouteTable:
    """All routes; ``version`` grows with each change."""

    version: int
    routes: tuple[Route, ...] = ()

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready form; `parse_table` reads it."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class Record:
    """One request, as measured. Times in seconds; ``time`` is unix time at its first byte; ``status`` 0: no answer.

    ``arm`` is stable, candidate or shadow. ``is_error``: status 400 or more, or a broken or stalled answer; a client
    that went away is not an error of the arm (``client_gone``). ``inter_token_seconds`` is the mean gap between the
    chunks of a streamed answer. ``fell_back``: the arm chosen by weight had no healthy replica, and stable answered.
    """

    seq: int
    time: float
    deployment: str
    arm: str
    version: int
    address: str
    path: str
    status: int
    is_error: bool
    is_stream: bool
    client_gone: bool
    fell_back: bool
    ttft_seconds: float | None
    inter_token_seconds: float | None
    total_seconds: float
    prompt_tokens: int | None
    completion_tokens: int | None
    table_version: int


@dataclass(frozen=True, slots=True)
class RecordBatch:
    """Records in order of ``seq``; ``dropped`` counts those that the bounded buffer lost, over the gateway's life."""

    epoch: str
    records: tuple[Record, ...]
    dropped: int

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready form; `parse_batch` reads it."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class GatewayState:
    """What the gateway does now. ``in_flight`` counts requests by replica address, those of past tables included.

    ``waiting`` says, by address, for how many seconds the request that waits longest there has waited for the next
    byte; one whose own client takes nothing does not wait. ``received`` counts the pieces of answers that came from an
    address, for those in the table and in flight: it grows as long as any byte comes.
    ``listen`` is HOST:PORT as bound. ``problem`` is a sentence when something needs a person (the table could not be
    saved: it holds, but only until the gateway restarts), else empty.
    """

    epoch: str
    table_version: int
    connections: int
    in_flight: dict[str, int] = field(default_factory=dict)
    waiting: dict[str, float] = field(default_factory=dict)
    received: dict[str, int] = field(default_factory=dict)
    listen: str = ""
    problem: str = ""

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready form."""
        return asdict(self)


def split_address(address: str) -> str | tuple[str, int]:
    """Read ``unix:/PATH`` (gives the path) or ``HOST:PORT`` (gives the pair). Raises `BadTable`."""
    if address.startswith("unix:/"):
        path = address.removeprefix("unix:")
        if len(path.encode()) <= MAX_SOCKET_PATH:
            return path
        raise BadTable(f"socket path {path} is longer than {MAX_SOCKET_PATH} bytes")
    host, _, port = address.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    if host and "/" not in host and port.isascii() and port.isdigit() and 0 < int(port) < 65536:
        return host, int(port)
    raise BadTable(f"address {address!r} can't be read: expected unix:/PATH or HOST:PORT")


def _arm(data: dict[str, Any]) -> Arm:
    arm = Arm(str(data["name"]), int(data["version"]), float(data["weight"]), tuple(map(str, data["addresses"])))
    if not 0 <= arm.weight <= 100:
        raise BadTable(f"arm {arm.name} has weight {arm.weight:g}: expected 0 to 100")
    if not arm.name.isidentifier():
        raise BadTable(f"arm name {arm.name!r} is no word")
    for address in arm.addresses:
        split_address(address)
    return arm


def parse_table(data: dict[str, Any]) -> RouteTable:
    """Read a route table. Raises `BadTable` saying what is wrong with it."""
    try:
        routes = tuple(
            Route(
                deployment=str(r["deployment"]),
                salt=str(r["salt"]),
                arms=tuple(_arm(a) for a in r["arms"]),
                shadow=_arm(r["shadow"]) if r.get("shadow") else None,
            )
            for r in data["routes"]
        )
        table = RouteTable(int(data["version"]), routes)
    except (KeyError, TypeError, ValueError) as error:
        if isinstance(error, BadTable):
            raise
        raise BadTable(f"the route table can't be read: {error!r}") from error
    for route in table.routes:
        if [a.name for a in route.arms].count("stable") != 1:
            raise BadTable(f"route {route.deployment} has no stable arm, or several")
    if len({route.deployment for route in table.routes}) != len(table.routes):
        raise BadTable("two routes have the same deployment name")
    return table


def parse_batch(data: dict[str, Any]) -> RecordBatch:
    """Read a batch of records."""
    return RecordBatch(str(data["epoch"]), tuple(Record(**r) for r in data["records"]), int(data["dropped"]))
