"""What the supervisor says of a process: one of these, each with the facts that are true in it."""

from __future__ import annotations

from dataclasses import dataclass, replace


@dataclass(frozen=True, slots=True)
class Absent:
    """Nothing was ever started under this id, or it was forgotten."""


@dataclass(frozen=True, slots=True)
class Alive:
    """Its shim lives. ``pid`` is the child's, None until the shim has started it; ``started_at`` in unix seconds."""

    pid: int | None
    started_at: float | None


@dataclass(frozen=True, slots=True)
class Exited:
    """It ended by itself or was stopped: exactly one of ``exit_code`` and ``signal`` is set. Times in unix seconds.

    ``message`` is set when the program could not be started at all (not found, not executable). ``was_asked``: a stop
    was under way when it ended. ``out_of_memory``: the kernel killed it, or some of it, for want of memory, its own or
    the machine's; ``memory_limit_bytes`` is what it might have taken.
    """

    exit_code: int | None
    signal: int | None
    started_at: float
    ended_at: float
    message: str = ""
    was_asked: bool = False
    out_of_memory: bool = False
    memory_limit_bytes: int | None = None


@dataclass(frozen=True, slots=True)
class Lost:
    """Its shim is gone and left no exit status: killed from outside, or (``by_reboot``) the machine went down."""

    message: str
    by_reboot: bool = False


Observed = Absent | Alive | Exited | Lost


@dataclass(frozen=True, slots=True)
class Bounds:
    """What a process may take, with all that it starts; None: as much as there is.

    ``processes`` counts threads, too; ``cpu_weight`` is as cgroup v2 has it: 1 to 10,000, and 100 without one.
    ``oom_score_adj`` (0 to 1000, over that of the daemon) says who is killed first when the machine is out of memory.
    `stokerd.processes.groups` says how far they can be enforced on this host.
    """

    memory_bytes: int | None = None
    processes: int | None = None
    cpu_weight: int | None = None
    oom_score_adj: int = 0


@dataclass(frozen=True, slots=True)
class Command:
    """What to start. ``env`` is the whole environment; ``log`` takes stdout and stderr, appended."""

    argv: tuple[str, ...]
    cwd: str
    env: dict[str, str]
    log: str
    bounds: Bounds = Bounds()


def ending(observed: Exited | Lost) -> str:
    """How a process ended, as half a sentence."""
    match observed:
        case Lost(message=message):
            return f"its process was lost: {message}"
        case Exited(message=message) if message:
            return f"its program could not be started: {message}"
        case Exited(out_of_memory=True, signal=9):
            return f"the kernel killed it: {_out_of_memory(observed)}"
        case Exited(out_of_memory=True):
            how = ending(replace(observed, out_of_memory=False))
            return f"{how}, after the kernel had killed some of it: {_out_of_memory(observed)}"
        case Exited(signal=signal) if signal is not None:
            return f"it was killed by signal {signal}"
        case Exited(exit_code=exit_code):
            return f"it exited with code {exit_code}"


def _out_of_memory(exited: Exited) -> str:
    if exited.memory_limit_bytes is None:
        return "out of memory"
    return f"out of memory (limit {exited.memory_limit_bytes / 2**20:.10g} MiB)"
