"""Deployments, replicas and the engines behind them."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from stoker.types.base import Bytes, Name, Resource, Seconds, Spec, State, Time
from stoker.types.supervision import Limits, Restart

ArmName = Literal["stable", "candidate", "shadow"]


class VllmEngine(Spec):
    """A vLLM OpenAI server, reached over its own Unix socket."""

    type: Literal["vllm"]
    python: str | None = Field(default=None, description="interpreter that has vllm; default: configured engine_python")
    args: list[str] = Field(default=[], description="further options of vLLM's api_server")
    env: dict[str, str] = {}


class CommandEngine(Spec):
    """Any program that serves the OpenAI API on the socket or port that it is told."""

    type: Literal["command"]
    command: list[str] = Field(
        min_length=1,
        description="argv; {socket} or {port}, and {model} (the version's folder), {version}, {name} are filled in",
    )
    env: dict[str, str] = {}
    ready_path: str = Field(default="/v1/completions", description="a real inference is asked of this path")
    health_path: str = Field(default="/health", description="any answer to a GET of this path shows that it lives")


Engine = Annotated[VllmEngine | CommandEngine, Field(discriminator="type")]


class DeploymentSpec(Spec):
    """A served name: which model, from which version on, by which engine."""

    kind: Literal["deployment"]
    name: Name
    model: Name
    version: int | Name = Field(description="number or alias to start with; later versions arrive by rollout")
    engine: Engine
    replicas: int = Field(default=1, ge=1, le=64)
    devices: int = Field(default=0, ge=0, description="GPUs for each replica")
    device_memory: Bytes | None = Field(
        default=None, ge=1 << 20, description="of each of them, the rest being left to others; else the whole device"
    )
    start_timeout: Seconds = Field(default=600.0, description="from start to ready; then the replica counts as failed")
    drain_timeout: Seconds = Field(default=30.0, description="how long requests in flight may take when it stops")
    stall_timeout: Seconds = Field(
        default=60.0,
        gt=0,
        description="without progress or an answer for so long it gets no requests; for twice as long, it is restarted",
    )
    restart: Restart = Restart()
    limits: Limits = Limits()


class Starting(State):
    """Its process is wanted; no inference has been answered yet."""

    phase: Literal["starting"] = "starting"
    process: str
    since: Time
    message: str = Field(default="", description="the engine's own progress, from its log")


class Ready(State):
    """A real inference was answered."""

    phase: Literal["ready"] = "ready"
    process: str
    since: Time


class Unwell(State):
    """Its process lives, but it makes no progress (stalled) or does not answer (unreachable). Gets no new requests.

    It is ready again when that ends, and restarted when it doesn't.
    """

    phase: Literal["stalled", "unreachable"]
    process: str
    since: Time = Field(description="of the last sign of progress")
    ready_since: Time
    message: str


class Draining(State):
    """Gets no new requests; ends when none is in flight or at the deadline."""

    phase: Literal["draining"] = "draining"
    process: str
    since: Time


class Stopping(State):
    """Its process tree is being ended."""

    phase: Literal["stopping"] = "stopping"
    process: str
    since: Time


class BackingOff(State):
    """It ended unasked; it is started again at ``retry_at``."""

    phase: Literal["backing-off"] = "backing-off"
    retry_at: Time
    message: str


class ReplicaFailed(State):
    """Given up: too many failures in a row, or never ready in time."""

    phase: Literal["failed"] = "failed"
    since: Time
    message: str


class Pending(State):
    """Not started yet."""

    phase: Literal["pending"] = "pending"
    message: str = ""


ReplicaState = Annotated[
    Pending | Starting | Ready | Unwell | Draining | Stopping | BackingOff | ReplicaFailed, Field(discriminator="phase")
]


class Replica(Resource):
    """One supervised server process, named ``deployment-vVERSION-INDEX``. Gone when it has stopped."""

    kind: ClassVar[str] = "replica"
    plural: ClassVar[str] = "replicas"

    deployment: str
    version: int
    index: int
    wanted: bool = Field(default=True, description="False: it drains, stops and is forgotten")
    failures: int = Field(default=0, description="in a row; back to 0 after a healthy period")
    starts: int = 0
    address: str = Field(default="", description="unix:PATH or HOST:PORT")
    devices: list[str] = Field(default=[], description="UUIDs of the GPUs that it holds now")
    device_memory: int | None = Field(default=None, description="bytes that it holds of each; None: whole devices")
    launch_digest: str = Field(default="", description="hash of the engine's spec that it was made for")
    state: ReplicaState = Pending()

    @property
    def phase(self) -> str:
        """Shorthand for ``state.phase``."""
        return self.state.phase


class Deployment(Resource):
    """A deployment, kept. ``version`` is what the stable arm serves."""

    kind: ClassVar[str] = "deployment"
    plural: ClassVar[str] = "deployments"

    spec: DeploymentSpec
    version: int
    previous_version: int | None = None
    deleting: bool = False
    phase: Literal["starting", "ready", "degraded", "failed", "deleting"] = "starting"
    message: str = ""
    rollout: str | None = Field(default=None, description="the rollout that is going on")
