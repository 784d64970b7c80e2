"""What is known of one daemon at this moment. Data only: `stoker_tui.store` fills it, the views read it."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import ClassVar

from stoker.types.base import Resource
from stoker.types.events import Event
from stoker.types.host import Host, TrafficStats
from stoker.types.rollouts import FINAL_PHASES, Rollout
from stoker.types.serving import Deployment, Replica
from stoker.types.training import ACTIVE_PHASES, MetricPoint, Run

KINDS: dict[str, type[Resource]] = {k.kind: k for k in (Deployment, Replica, Rollout, Run)}
"""The resources that are shown, by the kind that events name."""

MAX_EVENTS = 500
MAX_POINTS = 8192
HISTORY_SECONDS = 600.0

Ref = tuple[str, str]
"""A resource: (kind, name)."""


@dataclass(frozen=True)
class Connecting:
    """Nobody has answered yet, nobody has refused."""


@dataclass(frozen=True)
class Connected:
    """What is shown is what is."""


@dataclass(frozen=True)
class Lost:
    """Nobody answers. ``since`` and ``retry_at`` in monotonic seconds; ``message`` and ``hint`` as the client said."""

    since: float
    retry_at: float
    message: str
    hint: str


Link = Connecting | Connected | Lost


class Curve:
    """A metric's values over steps, of bounded length: when full, every second point goes and the stride doubles."""

    def __init__(self) -> None:
        self.points: list[tuple[float, float]] = []
        self.last: MetricPoint | None = None
        self._stride = 1
        self._seen = 0

    def add(self, point: MetricPoint) -> None:
        """Take the next value."""
        self.last = point
        if self._seen % self._stride == 0:
            self.points.append((float(point.step), point.value))
        self._seen += 1
        if len(self.points) > MAX_POINTS:
            self.points = self.points[::2]
            self._stride *= 2

    def drawn(self) -> list[tuple[float, float]]:
        """The points to draw, the last value always among them; counted when all have the same step."""
        points = list(self.points)
        if self.last is not None and (not points or points[-1] != (float(self.last.step), self.last.value)):
            points.append((float(self.last.step), self.last.value))
        if len(points) > 1 and points[0][0] == points[-1][0]:
            return [(float(i), y) for i, (_, y) in enumerate(points)]
        return points


@dataclass
class Curves:
    """The metrics of one run. ``next`` is where to go on reading; ``complete`` when no more will come."""

    by_key: dict[str, Curve] = field(default_factory=dict)
    next: int = 0
    complete: bool = False

    def add(self, points: list[MetricPoint]) -> None:
        """Take the next points."""
        for point in points:
            self.by_key.setdefault(point.key, Curve()).add(point)

    def main(self) -> tuple[str, Curve] | None:
        """The key to show when there's room for one: a loss if there is one, else the first."""
        if not self.by_key:
            return None
        key = min(self.by_key, key=lambda k: (k != "loss", "loss" not in k, list(self.by_key).index(k)))
        return key, self.by_key[key]


@dataclass
class View:
    """All of it."""

    RESOURCES: ClassVar[tuple[str, ...]] = tuple(KINDS)

    link: Link = field(default_factory=Connecting)
    host: Host | None = None
    deployments: dict[str, Deployment] = field(default_factory=dict)
    replicas: dict[str, Replica] = field(default_factory=dict)
    rollouts: dict[str, Rollout] = field(default_factory=dict)
    runs: dict[str, Run] = field(default_factory=dict)
    events: deque[Event] = field(default_factory=lambda: deque(maxlen=MAX_EVENTS))
    traffic: list[TrafficStats] = field(default_factory=list)
    curves: dict[str, Curves] = field(default_factory=dict)
    history: dict[str, deque[tuple[float, float]]] = field(default_factory=dict)
    """Past of ``cpu`` and ``gpu`` utilisation: (unix seconds, percent)."""
    problems: dict[str, str] = field(default_factory=dict)
    """What the daemon couldn't tell, by what it was asked for: a sentence each."""

    @property
    def is_live(self) -> bool:
        """Whether what is shown is what is."""
        return isinstance(self.link, Connected)

    def of(self, kind: str) -> dict[str, Resource]:
        """The resources of a kind, by name."""
        return getattr(self, KINDS[kind].plural)  # type: ignore[no-any-return]

    def put(self, resource: Resource) -> None:
        """Keep what a resource has become."""
        self.of(resource.kind)[resource.name] = resource

    def replace(self, kind: str, resources: list[Resource]) -> None:
        """Keep exactly these resources of a kind."""
        kept = self.of(kind)
        kept.clear()
        kept.update((r.name, r) for r in resources)

    def remove(self, kind: str, name: str) -> None:
        """Forget a resource that is no more."""
        self.of(kind).pop(name, None)
        if kind == "run":
            self.curves.pop(name, None)

    def replicas_of(self, deployment: str) -> list[Replica]:
        """A deployment's replicas, the newest version first."""
        found = [r for r in self.replicas.values() if r.deployment == deployment]
        return sorted(found, key=lambda r: (-r.version, r.index))

    def traffic_of(self, deployment: str) -> list[TrafficStats]:
        """A deployment's arms, stable first."""
        found = [t for t in self.traffic if t.deployment == deployment]
        return sorted(found, key=lambda t: (t.arm != "stable", t.arm, -t.version))

    def active_rollouts(self) -> list[Rollout]:
        """Those that aren't over."""
        return [r for r in self.rollouts.values() if r.phase not in FINAL_PHASES]

    def active_runs(self) -> list[Run]:
        """Those that aren't over, the oldest first."""
        return [r for r in self.runs.values() if r.phase in ACTIVE_PHASES]

    def remember(self, key: str, moment: float, value: float) -> None:
        """Add to a history and let go of what is too old."""
        past = self.history.setdefault(key, deque())
        if past and moment <= past[-1][0]:
            return
        past.append((moment, value))
        while past and past[0][0] < moment - HISTORY_SECONDS - 60:
            past.popleft()
