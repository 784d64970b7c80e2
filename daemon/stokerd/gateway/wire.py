"""What the daemon and the gateway say to each other, over HTTP on the gateway's control socket.

``PUT /routes`` takes a `RouteTable` and answers a `GatewayState`: when the answer is there, every new request follows
the table. ``GET /state`` answers a `GatewayState`. ``GET /records?epoch=E&after=N&wait=S`` answers a `RecordBatch` of
records with ``seq > N`` (all that are kept, if *epoch* is another life of the gateway), oldest first and at most 1,000,
within 100 ms if there are any (20 ms if a request failed), else after at most *wait* seconds. Asking with ``after=N``
in the same epoch says that the records up to N are safe with the daemon: the gateway forgets them. One reader at a
time. With ``as=rows`` a gateway that can do so leaves the names of their fields out: see `parse_batch`. ``GET /pairs``
answers in the same way a `PairBatch`, of about 1 MiB at most. Stdlib only.

Refusals have the one shape ``{"code", "message", "hint", "details"}``: 400 for a bad table (the old one stays).
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field, fields
from typing import Any

WIRE_VERSION = 2
"""Raise it when a daemon can't speak to the gateway of an earlier one any more: then it starts another one."""
BATCH = 1_000
"""Most records that a reader gets at once: with fewer, it has all."""
DEFAULT_QUEUE = 1024
MAX_SOCKET_PATH = 107  # bytes; sun_path in Linux's sockaddr_un, less the closing NUL


class BadTable(ValueError):
    """A route table that can't be followed; the old one stays."""


@dataclass(frozen=True, slots=True)
class Arm:
    """A version that answers ``weight`` percent of a route's requests, at any of *addresses* (unix:PATH, HOST:PORT).

    ``model`` is what its servers call it, where that is not the deployment's name (an adapter of a shared server).
    """

    name: str
    version: int
    weight: float
    addresses: tuple[str, ...]
    model: str = ""


@dataclass(frozen=True, slots=True)
class Target:
    """Callers that get *arm* whatever the weights say: those with the API key *key* (its id), or with *header*.

    ``header`` is a lower-case name; an empty ``value`` takes any value. Exactly one of ``header`` and ``key`` is set.
    """

    arm: str
    header: str = ""
    value: str = ""
    key: str = ""


@dataclass(frozen=True, slots=True)
class Route:
    """A deployment as clients name it in ``"model"``. ``shadow`` gets copies of its ``weight`` percent of requests.

    Attributes:
        salt: what callers are hashed with; the rollout's name, so that each rollout draws anew.
        targets: callers that are assigned by name, the first that fits.
        max_callers: the most distinct callers that arms other than stable answer (those of *targets* not counted);
            0: any number. Callers that can't be told apart (anonymous) stay with stable then.
        aliases: other names of the deployment in ``"model"``.
        versions: for ``deployment@word``: which version is meant; those without an arm aren't served.
        hold_seconds: how long a request may wait while no replica is there at all (one starts, wakes or is swapped).
        in_flight: requests that each replica gets at once; what is more waits. 0: any number.
        queue: how many requests may wait for a replica or for their turn; past it, 429.
        keeps_shadow: pairs of answers of stable and shadow are kept, for comparison.
        stage: another number for each stage of a rollout, so that its table is new, and its records can be told from
            those before, though the same callers get the same arms.
    """

    deployment: str
    salt: str
    arms: tuple[Arm, ...]
    shadow: Arm | None = None
    targets: tuple[Target, ...] = ()
    max_callers: int = 0
    aliases: tuple[str, ...] = ()
    versions: tuple[tuple[str, int], ...] = ()
    hold_seconds: float = 0.0
    in_flight: int = 0
    queue: int = DEFAULT_QUEUE
    keeps_shadow: bool = False
    stage: int = 0


@dataclass(frozen=True, slots=True)
class Key:
    """An API key: known by the SHA-256 of its text, in hex. Limits of 0 are none.

    Attributes:
        id: its name, as shown and as `Target.key` and records have it.
        models: deployments that it may use; none named: all.
        requests_per_minute: over all workers, in a bucket that holds as many.
        tokens_per_minute: prompt and completion tokens as they are counted afterwards; the bucket may be overdrawn by
            what is in flight, and then lets nothing in until it has filled up again.
        in_flight: requests at the same time, for each worker.
    """

    id: str
    digest: str
    models: tuple[str, ...] = ()
    requests_per_minute: int = 0
    tokens_per_minute: int = 0
    in_flight: int = 0


@dataclass(frozen=True, slots=True)
class RouteTable:
    """All routes and keys; ``version`` grows with each change. With *needs_key*, nobody is served without one."""

    version: int
    routes: tuple[Route, ...] = ()
    keys: tuple[Key, ...] = ()
    needs_key: bool = False

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready form; `parse_table` reads it."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class Record:
    """One request, as measured. Times in seconds; ``time`` is unix time at its first byte; ``status`` 0: no answer.

    ``arm`` is stable, candidate or shadow. ``is_error``: status 400 or more, or a broken or stalled answer; a client
    that went away is not an error of the arm (``client_gone``). ``inter_token_seconds`` is the mean gap between the
    chunks of a streamed answer, ``max_gap_seconds`` the longest. ``fell_back``: the arm chosen by weight had no healthy
    replica, and stable answered; ``lost_version``: that arm's version if one of its replicas died with it, else 0.
    ``finish_reason`` is the answer's own word (stop, length, tool_calls, …), of the first
    choice; empty if it tells none. ``caller`` is a hash of what the caller is known by, in hex, empty for an anonymous
    one; ``key`` the id of its API key. ``queued_seconds``: it waited so long in the gateway before a replica got it;
    part of TTFT and total. ``request_bytes`` and ``response_bytes`` are those of the bodies. ``trace`` is the trace id
    of a W3C ``traceparent``. ``is_pinned``: the version was asked for by name, as testers do.
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
    max_gap_seconds: float | None = None
    finish_reason: str = ""
    request_bytes: int = 0
    response_bytes: int = 0
    caller: str = ""
    key: str = ""
    queued_seconds: float = 0.0
    trace: str = ""
    lost_version: int = 0
    is_pinned: bool = False


RECORD_FIELDS = tuple(each.name for each in fields(Record))
"""In the order of rows: new ones come last, with a default."""


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
class PairedAnswer:
    """What one version answered. Times in seconds since the request's first byte; ``status`` 0: no answer.

    ``text`` is what it says: the content of the first choice (message, delta, text, tool calls), streamed or not, or
    the body itself where it has none (embeddings, errors). ``is_cut``: the text goes on, past what is kept of it.
    """

    version: int
    status: int
    is_error: bool
    finish_reason: str
    ttft_seconds: float | None
    total_seconds: float
    completion_tokens: int | None
    text: str
    is_cut: bool


@dataclass(frozen=True, slots=True)
class ShadowPair:
    """One request that stable answered to its client, and shadow answered to nobody. ``time`` is unix time.

    ``question``: the text of the user's last message, or the prompt; a long one without its middle. Empty: the request
    has no such thing, or is too large to be read for it.
    """

    seq: int
    time: float
    deployment: str
    rollout: str
    path: str
    caller: str
    stable: PairedAnswer
    shadow: PairedAnswer
    question: str = ""


@dataclass(frozen=True, slots=True)
class PairBatch:
    """Pairs in order of ``seq``; ``dropped`` counts those that were not kept, over the gateway's life."""

    epoch: str
    pairs: tuple[ShadowPair, ...]
    dropped: int


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
    arm = Arm(
        str(data["name"]),
        int(data["version"]),
        float(data["weight"]),
        tuple(map(str, data["addresses"])),
        str(data.get("model", "")),
    )
    if not 0 <= arm.weight <= 100:
        raise BadTable(f"arm {arm.name} has weight {arm.weight:g}: expected 0 to 100")
    if not arm.name.isidentifier():
        raise BadTable(f"arm name {arm.name!r} is no word")
    for address in arm.addresses:
        split_address(address)
    return arm


def _target(data: dict[str, Any]) -> Target:
    target = Target(**{name: str(value) for name, value in data.items()})
    if bool(target.header) == bool(target.key) or target.header != target.header.lower():
        raise BadTable(f"a target of arm {target.arm} must name a header, in lower case, or a key")
    return target


def _key(data: dict[str, Any]) -> Key:
    numbers = {n: int(data.get(n, 0)) for n in ("requests_per_minute", "tokens_per_minute", "in_flight")}
    key = Key(str(data["id"]), str(data["digest"]), tuple(map(str, data.get("models", ()))), **numbers)
    if len(key.digest) != 64 or not set(key.digest) <= set("0123456789abcdef") or min(numbers.values()) < 0:
        raise BadTable(f"key {key.id} can't be read: expected a SHA-256 in hex, and limits from 0 on")
    return key


def _route(data: dict[str, Any]) -> Route:
    route = Route(
        deployment=str(data["deployment"]),
        salt=str(data["salt"]),
        arms=tuple(_arm(a) for a in data["arms"]),
        shadow=_arm(data["shadow"]) if data.get("shadow") else None,
        targets=tuple(_target(t) for t in data.get("targets", ())),
        max_callers=int(data.get("max_callers", 0)),
        aliases=tuple(map(str, data.get("aliases", ()))),
        versions=tuple((str(word), int(version)) for word, version in data.get("versions", ())),
        hold_seconds=float(data.get("hold_seconds", 0.0)),
        in_flight=int(data.get("in_flight", 0)),
        queue=int(data.get("queue", DEFAULT_QUEUE)),
        keeps_shadow=bool(data.get("keeps_shadow", False)),
        stage=int(data.get("stage", 0)),
    )
    names = [a.name for a in route.arms]
    if names.count("stable") != 1 or len(set(names)) != len(names):
        raise BadTable(f"route {route.deployment} has no stable arm, or several arms of one name")
    if min(route.max_callers, route.in_flight, route.queue) < 0 or not 0.0 <= route.hold_seconds < math.inf:
        raise BadTable(f"route {route.deployment} has a bound below 0, or an endless one")
    return route


def parse_table(data: dict[str, Any]) -> RouteTable:
    """Read a route table. Raises `BadTable` saying what is wrong with it."""
    try:
        table = RouteTable(
            int(data["version"]),
            tuple(_route(r) for r in data["routes"]),
            tuple(_key(k) for k in data.get("keys", ())),
            bool(data.get("needs_key", False)),
        )
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        if isinstance(error, BadTable):
            raise
        raise BadTable(f"the route table can't be read: {error!r}") from error
    names = [name for route in table.routes for name in (route.deployment, *route.aliases)]
    if len(set(names)) != len(names):
        raise BadTable("two routes have the same deployment name or alias")
    if len({key.digest for key in table.keys}) != len(table.keys):
        raise BadTable("two API keys are the same")
    return table


def parse_batch(data: dict[str, Any]) -> RecordBatch:
    """Read a batch of records: each an object, or a row of its values less ``seq``, which counts on from ``first``."""
    if "rows" in data:
        kept = len(RECORD_FIELDS) - 1  # a newer gateway may have more to tell
        records = tuple(Record(seq, *row[:kept]) for seq, row in enumerate(data["rows"], int(data["first"])))
        return RecordBatch(str(data["epoch"]), records, int(data["dropped"]))
    return RecordBatch(str(data["epoch"]), tuple(Record(**r) for r in data["records"]), int(data["dropped"]))


def parse_pairs(data: dict[str, Any]) -> PairBatch:
    """Read a batch of pairs."""
    pairs = tuple(
        ShadowPair(**{**pair, "stable": PairedAnswer(**pair["stable"]), "shadow": PairedAnswer(**pair["shadow"])})
        for pair in data["pairs"]
    )
    return PairBatch(str(data["epoch"]), pairs, int(data["dropped"]))
