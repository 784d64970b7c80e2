"""The training script's side of tracking. Stdlib only, so that any training environment can import it.

What is logged is appended to ``$STOKER_RUN_DIR/tracking.jsonl``, a line each; the daemon reads it from there. So a run
never waits for the daemon, and what it says is kept while the daemon is away.
"""

from __future__ import annotations

import json
import math
import os
import shutil
import time
from pathlib import Path

_ENV = "STOKER_RUN_DIR"


def is_active() -> bool:
    """Whether this process is part of a Stoker run."""
    return _ENV in os.environ


def checkpoint() -> Path | None:
    """What an earlier attempt of this run left to go on from; None at the first, or when the job names no checkpoint.

    The job's ``checkpoint`` says which files of ``$STOKER_OUTPUT`` count. Write each under another name first and then
    rename it, so that one that was cut off is never taken.
    """
    found = os.environ.get("STOKER_CHECKPOINT")
    return Path(found) if found else None


def _append(line: dict[str, object]) -> None:
    folder = os.environ.get(_ENV)
    if folder is None:
        return
    data = (json.dumps({"time": time.time(), **line}) + "\n").encode()
    # One write to a file opened with O_APPEND: lines of several processes of one run don't mix.
    handle = os.open(Path(folder) / "tracking.jsonl", os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    try:
        os.write(handle, data)
    finally:
        os.close(handle)


def log_metric(key: str, value: float, step: int = 0) -> None:
    """Report one value of metric *key* at *step*. Raises ValueError for a value that is not finite."""
    number = float(value)
    if not math.isfinite(number):
        raise ValueError(f"metric {key!r} is {number} at step {step}: only finite values can be kept")
    _append({"type": "metric", "key": str(key), "value": number, "step": int(step)})


def log_params(params: dict[str, str | int | float | bool]) -> None:
    """Report parameters that the script chose by itself; they are kept beside those that the job gave."""
    _append({"type": "params", "params": dict(params)})


def log_artifact(path: str | os.PathLike[str], name: str | None = None) -> None:
    """Keep a copy of the file or folder at *path* with the run, as *name* (default: its own name).

    Raises FileNotFoundError if there is nothing at *path* (also outside Stoker, so that it is seen early).
    """
    source = Path(path)
    if not source.exists():
        raise FileNotFoundError(f"artifact {source} does not exist")
    folder = os.environ.get(_ENV)
    if folder is None:
        return
    target = Path(folder) / "artifacts" / (name or source.name)
    target.parent.mkdir(parents=True, exist_ok=True)
    if source.is_dir():
        shutil.copytree(source, target, dirs_exist_ok=True)
    else:
        shutil.copy2(source, target)
    _append({"type": "artifact", "name": name or source.name})
