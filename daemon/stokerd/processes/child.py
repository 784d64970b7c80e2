"""How the shim's fork becomes the program. Light: each shim loads it."""

# ruff: noqa: PTH100, PTH110, PTH116, PTH119, PTH123

from __future__ import annotations

import contextlib
import json
import os
import signal

from stokerd.processes.kernel import PR_SET_PDEATHSIG, prctl, stat_fields
from stokerd.processes.records import COMMAND

TYPE_CHECKING = False
if TYPE_CHECKING:  # the real one lives in a module that would cost each shim a megabyte
    from typing import Any

CANNOT_EXECUTE, NOT_FOUND = 126, 127  # exit codes of a program that could not be started, as shells have them

MARK = "STOKER_PROCESS"  # in the environment of the program, and so of all that it starts; see `mark_of`

GO, GO_UNBOUNDED = b".", b"r"  # what the fork is told: its group bounds its memory, or it has to do so itself


def mark_of(folder: str, pid: int, start_ticks: int) -> str:
    """What tells the tree of this one start from all others, of other homes, too. Raises OSError.

    A process that left the session and closed the log pipe is known by it, where no cgroup holds it.

    Args:
        folder: of the process; known by its inode, for its path may have many names.
        pid: of the program.
        start_ticks: of the program, as /proc/PID/stat counts them: a later one may have its pid.
    """
    path = os.path.abspath(folder)
    return f"{os.path.basename(path)}:{pid}:{start_ticks}:{os.stat(path).st_ino}"


class StartError(Exception):
    """The program could not be started: why, in a sentence, and the exit code that a shell would give."""

    def __init__(self, message: str, exit_code: int = CANNOT_EXECUTE) -> None:
        super().__init__(message)
        self.message, self.exit_code = message, exit_code


def read_command() -> dict[str, Any]:
    """Return what command.json in the present folder says. Raises StartError when it can't be read."""
    try:
        with open(COMMAND, "rb") as file:
            command = json.load(file)
        return {
            "argv": [str(word) for word in command["argv"]],
            "cwd": str(command["cwd"]),
            "env": {str(key): str(value) for key, value in command["env"].items()},
            "log": str(command["log"]),
            "log_segment_bytes": int(command["log_segment_bytes"]),
            "log_segments_kept": int(command["log_segments_kept"]),
            "log_max_age_seconds": _number(command["log_max_age_seconds"], float),
            "groups": [str(folder) for folder in command["groups"]],
            "memory_bytes": _number(command["bounds"]["memory_bytes"], int),
            "oom_score_adj": int(command["bounds"]["oom_score_adj"]),
        }
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise StartError(f"The record of what to start can't be read: {error!r}.") from error


def _number(value: Any, kind: Any) -> Any:
    return None if value is None else kind(value)


def become(command: dict[str, Any], shim: int, pipes: tuple[int, int, int]) -> str:
    """In the fork: wait until the shim has recorded us, then become the program. Returns why that could not be.

    Args:
        command: what to become.
        shim: the pid of our parent.
        pipes: the go-ahead's reading and writing end (both, to close the latter), and where output goes. The go-ahead
            is `GO` or `GO_UNBOUNDED`.
    """
    go, start, out = pipes
    os.close(start)
    prctl(PR_SET_PDEATHSIG, signal.SIGKILL)  # follows the thread that forked: the shim has one
    if os.getppid() != shim:
        os._exit(1)  # it died before we had asked
    os.setsid()
    word = os.read(go, 1)
    if not word:
        os._exit(1)
    if word == GO_UNBOUNDED and command["memory_bytes"] is not None:
        _bound_memory(command["memory_bytes"])
    _raise_oom_score(command["oom_score_adj"])
    for number in signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP}:
        signal.signal(number, signal.SIG_DFL)  # what is ignored here would stay ignored there
    signal.pthread_sigmask(signal.SIG_SETMASK, [])
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(out, 1)
    os.dup2(out, 2)
    argv, cwd, env = command["argv"], command["cwd"], command["env"]
    with contextlib.suppress(OSError):
        env[MARK] = mark_of(os.curdir, os.getpid(), int(stat_fields(os.getpid())[19]))
    try:
        os.chdir(cwd)
    except OSError as error:
        return f"{CANNOT_EXECUTE} The working directory '{cwd}' can't be entered: {error.strerror}."
    try:
        os.execvpe(argv[0], argv, env)
    except FileNotFoundError:
        return f"{NOT_FOUND} {_not_found(argv[0], env)}"
    except OSError as error:
        return f"{CANNOT_EXECUTE} The program '{argv[0]}' can't be executed: {error.strerror}."


def _bound_memory(memory_bytes: int) -> None:
    """The second best, where no cgroup does it: for this process and each that it starts, not for all together.

    What it may write to (RLIMIT_DATA), not its address space (RLIMIT_AS): CUDA reserves more of that than any machine
    has memory, and would not start.
    """
    import resource  # here, for only a fork needs it: in the shim it would stay

    with contextlib.suppress(OSError, ValueError):
        _, hard = resource.getrlimit(resource.RLIMIT_DATA)
        limit = memory_bytes if hard == resource.RLIM_INFINITY else min(memory_bytes, hard)
        resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))


def _raise_oom_score(by: int) -> None:
    """Have the kernel kill this rather than the daemon. Only raised, never lowered: that takes no privilege."""
    if by <= 0:
        return
    with contextlib.suppress(OSError, ValueError), open("/proc/self/oom_score_adj", "r+") as file:
        ours = int(file.read())
        file.seek(0)
        file.write(str(min(ours + by, 1000)))


def _not_found(program: str, env: dict[str, str]) -> str:
    if "/" not in program:
        return f"The program '{program}' was not found in its PATH ({env.get('PATH', os.defpath)})."
    if os.path.exists(program):
        return f"The interpreter that '{program}' names in its first line was not found."
    return f"The program '{program}' was not found."
