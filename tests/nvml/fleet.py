"""A simulated NVML for the real Python binding, and what it plays; fake_nvml.c says how it is told.

    fleet = Fleet(folder, 4)                        # four well GPUs
    with Stokerd(env=fleet.env()): ...              # or any program: its NVML is this one
    fleet.set(1, state=LOST)                        # GPU 1 falls off the bus
    fleet.hang(0, 30)                               # each call of GPU 0 hangs for 30 s
    fleet.xid(2, 79)                                # GPU 2 tells of the critical error XID 79
    fleet.set(3, ecc=2, processes=(Process(4711, 8192),))

Everything may be changed while programs run. The folder must outlive them.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

HANG = -1
LOST = 15  # NVML_ERROR_GPU_IS_LOST
SWITCH = -1


@dataclass(frozen=True)
class Process:
    """A process on a GPU; *mib* -1: the driver doesn't tell its memory. The pid may be of nobody: then it has died."""

    pid: int
    mib: int = 1024
    kind: str = "compute"


@dataclass(frozen=True)
class Gpu:
    """What one GPU says; -1 for a figure that it doesn't know. *state*: 0, an NVML error number, or `HANG`.

    *links* are the numbers of the GPUs that NVLink joins it to, or `SWITCH`; one entry for each link. *fails* are
    functions, as fake_nvml.c names them, and the NVML error that each gives.
    """

    state: int = 0
    total_mib: int = 81920
    used_mib: int = 1024
    utilisation_percent: int = 10
    power_milliwatts: int = 300_500
    temperature_celsius: int = 40
    ecc: int = -1
    processes: tuple[Process, ...] = ()
    links: tuple[int, ...] = ()
    fails: tuple[tuple[str, int], ...] = ()


class Fleet:
    """One simulated host with GPUs; programs started with its `env` see it.

    Args:
        folder: for the script and the record of calls; and for the library, unless *library* is given.
        gpus: how many well ones, or what each of them says.
        library: a compiled one, by `build`.
    """

    def __init__(self, folder: Path, gpus: int | Sequence[Gpu] = 1, *, library: Path | None = None) -> None:
        self._library = library or build(folder)
        self._script = folder / "script"
        self._calls = folder / "calls"
        self._gpus: list[Gpu] = []
        self._init = 0
        self._hangs: dict[int, float] = {}
        self._xids: list[tuple[int, int]] = []
        self.play(*([Gpu()] * gpus if isinstance(gpus, int) else gpus))

    def env(self) -> dict[str, str]:
        """The environment of this process, changed so that a program started with it finds the simulated library."""
        return {
            **os.environ,
            "LD_LIBRARY_PATH": str(self._library.parent),
            "FAKE_NVML_SCRIPT": str(self._script),
            "FAKE_NVML_CALLS": str(self._calls),
        }

    def play(self, *gpus: Gpu, init: int = 0) -> None:
        """Say how all GPUs are from now on; what hung ends. *init*: the driver's own state, as `Gpu.state`."""
        self._gpus, self._init, self._hangs = list(gpus), init, {}
        self._write()

    def set(self, index: int, **figures: Any) -> None:
        """Change fields of one `Gpu`."""
        self._gpus[index] = replace(self._gpus[index], **figures)
        self._write()

    def hang(self, index: int, seconds: float) -> None:
        """From now on, each call of that GPU hangs, and ends *seconds* from now as if nothing had been."""
        self._hangs[index] = time.time() + seconds
        self._write()

    def xid(self, index: int, code: int) -> None:
        """That GPU tells, once, of this critical error."""
        self._xids.append((index, code))
        self._write()

    def calls(self) -> list[str]:
        """What was called so far, each as "FUNCTION INDEX"."""
        return self._calls.read_text().splitlines() if self._calls.exists() else []

    @staticmethod
    def uuid(index: int) -> str:
        """The UUID of GPU number *index*."""
        return f"GPU-{index:08x}-0000-4000-8000-000000000000"

    def _write(self) -> None:
        lines = [f"init {self._init}"]
        for i, g in enumerate(self._gpus):
            lines.append(
                f"gpu {i} {g.state} {g.total_mib} {g.used_mib} {g.utilisation_percent} {g.power_milliwatts} "
                f"{g.temperature_celsius}"
            )
            lines.append(f"ecc {i} {g.ecc}")
            lines += [f"process {i} {p.pid} {p.mib} {p.kind}" for p in g.processes]
            lines += [f"link {i} {number} {peer}" for number, peer in enumerate(g.links)]
            lines += [f"fails {i} {function} {error}" for function, error in g.fails]
        lines += [f"hang {index} {until}" for index, until in self._hangs.items()]
        lines += [f"xid {index} {sequence} {code}" for sequence, (index, code) in enumerate(self._xids, 1)]
        new = self._script.with_suffix(".new")
        new.write_text("\n".join(lines) + "\n")
        new.rename(self._script)


def build(folder: Path) -> Path:
    """Compile the library into *folder*; skips the test where there is no C compiler."""
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("no C compiler (cc) to build the simulated NVML with")
    library = folder / "libnvidia-ml.so.1"
    source = Path(__file__).with_name("fake_nvml.c")
    subprocess.run([compiler, "-Wall", "-Wextra", "-Werror", "-shared", "-fPIC", "-o", library, source], check=True)
    return library
