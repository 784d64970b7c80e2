"""Deployments, replicas and the engines behind them."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from stoker.types.base import Bytes, Name, Resource, Seconds, Spec, State, Strict, Time
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


class AdapterEngine(Spec):
    """LoRA weights, loaded at run time into the servers of another deployment: a version more costs no other server."""

    type: Literal["adapter"]
    base: Name = Field(description="deployment whose servers load it; its engine is vllm with --enable-lora in args")


Engine = Annotated[VllmEngine | CommandEngine | AdapterEngine, Field(discriminator="type")]


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
    aliases: list[Name] = Field(default=[], description='other names that clients may use in "model"')
    hold_timeout: Seconds = Field(
        default=0.0, description="how long the gateway keeps a request waiting while no replica is there at all"
    )
    max_in_flight: int = Field(
        default=1024, ge=0, description="requests that a replica gets at once; more of them wait in turn; 0: any number"
    )
    max_queue: int = Field(default=1024, ge=0, description="requests that may wait; past it, clients are answered 429")

    @property
    def longest_hold(self) -> float:
        """How long, in seconds, a request may wait for a version that is swapped in: as long as its start may take."""
        return max(self.hold_timeout, self.start_timeout)


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


class Asleep(State):
    """Its process lives, but its weights are in the host's memory. Gets no requests, and holds no lease on devices."""

    phase: Literal["asleep"] = "asleep"
    process: str
    since: Time
    devices: list[str] = Field(default=[], description="UUIDs of the GPUs that its process is bound to")
    device_memory: int | None = Field(default=None, description="bytes of each that it needs then; None: whole devices")
    message: str = Field(default="", description="what it waits for, when it is to wake up")


class Waking(State):
    """It has its devices again; after its sleep, no inference has been answered yet."""

    phase: Literal["waking"] = "waking"
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
    Pending | Starting | Ready | Unwell | Draining | Asleep | Waking | Stopping | BackingOff | ReplicaFailed,
    Field(discriminator="phase"),
]


class Replica(Resource):
    """One supervised server process, named ``deployment-vVERSION-INDEX``. Gone when it has stopped."""

    kind: ClassVar[str] = "replica"
    plural: ClassVar[str] = "replicas"

    deployment: str
    version: int
    index: int
    wanted: bool = Field(default=True, description="False: it drains, stops and is forgotten")
    rests: bool = Field(default=False, description="it gets no requests: it is to sleep, and serve again later")
    failures: int = Field(default=0, description="in a row; back to 0 after a healthy period")
    starts: int = 0
    start_seconds: float | None = Field(default=None, description="what its last start took, until it was ready")
    address: str = Field(default="", description="unix:PATH or HOST:PORT")
    devices: list[str] = Field(default=[], description="UUIDs of the GPUs that it holds now")
    device_memory: int | None = Field(default=None, description="bytes that it holds of each; None: whole devices")
    host: str = Field(default="", description="of an adapter: the replica whose server has it loaded")
    launch_digest: str = Field(default="", description="hash of the engine's spec that it was made for")
    state: ReplicaState = Pending()

    @property
    def phase(self) -> str:
        """Shorthand for ``state.phase``."""
        return self.state.phase


class ArmShare(Strict):
    """What one arm of a deployment gets."""

    arm: ArmName
    version: int
    percent: float = Field(description="of requests that it answers, or as shadow gets copies of")
    whom: str = Field(description="that is, in words")


class Warm(Strict):
    """A version that no longer serves, whose replicas stand by."""

    version: int
    until: Time
    rollout: str = Field(description="that brought the version which serves now")
    rests: bool = Field(default=False, description="its replicas sleep meanwhile, and are not replaced where they end")


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
    warm: Warm | None = None
    shares: list[ArmShare] = Field(default=[], description="who gets what, as the gateway confirmed; [] : all, stable")
