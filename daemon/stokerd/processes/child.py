"""How the shim's fork becomes the program. Light: each shim loads it."""

# ruff: noqa: PTH110, PTH123

from __future__ import annotations

import json
import os
import signal

from stokerd.processes.kernel import PR_SET_PDEATHSIG, prctl
from stokerd.processes.records import COMMAND

TYPE_CHECKING = False
if TYPE_CHECKING:  # the real one lives in a module that would cost each shim a megabyte
    from typing import Any

CANNOT_EXECUTE, NOT_FOUND = 126, 127  # exit codes of a program that could not be started, as shells have them


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
        }
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise StartError(f"The record of what to start can't be read: {error!r}.") from error


def become(command: dict[str, Any], shim: int, pipes: tuple[int, int, int]) -> str:
    """In the fork: wait until the shim has recorded us, then become the program. Returns why that could not be.

    Args:
        command: what to become.
        shim: the pid of our parent.
        pipes: the go-ahead's reading and writing end (both, to close the latter), and where output goes.
    """
    go, start, out = pipes
    os.close(start)
    prctl(PR_SET_PDEATHSIG, signal.SIGKILL)  # follows the thread that forked: the shim has one
    if os.getppid() != shim:
        os._exit(1)  # it died before we had asked
    os.setsid()
    if not os.read(go, 1):
        os._exit(1)
    for number in signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP}:
        signal.signal(number, signal.SIG_DFL)  # what is ignored here would stay ignored there
    signal.pthread_sigmask(signal.SIG_SETMASK, [])
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(out, 1)
    os.dup2(out, 2)
    argv, cwd, env = command["argv"], command["cwd"], command["env"]
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


def _not_found(program: str, env: dict[str, str]) -> str:
    if "/" not in program:
        return f"The program '{program}' was not found in its PATH ({env.get('PATH', os.defpath)})."
    if os.path.exists(program):
        return f"The interpreter that '{program}' names in its first line was not found."
    return f"The program '{program}' was not found."
