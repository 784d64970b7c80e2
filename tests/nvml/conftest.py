"""A simulated NVML for the real Python binding; fake_nvml.c says how it is told what to play.

def test_x(fake_nvml, gpu):
    fake_nvml.play(gpu(), gpu(state=15))
    subprocess.Popen([...], env=fake_nvml.env)
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest


@dataclass(frozen=True)
class Gpu:
    """What one GPU says; -1 for a figure that it doesn't know. *state*: 0, an NVML error number, or -1: it hangs."""

    state: int = 0
    total_mib: int = 81920
    used_mib: int = 1024
    utilisation_percent: int = 10
    power_milliwatts: int = 300_500
    temperature_celsius: int = 40


class FakeNvml:
    """One simulated host; programs started with its `env` see it."""

    def __init__(self, library: Path, folder: Path) -> None:
        self._script = folder / "script"
        self._calls = folder / "calls"
        self.env: Mapping[str, str] = {
            **os.environ,
            "LD_LIBRARY_PATH": str(library.parent),
            "FAKE_NVML_SCRIPT": str(self._script),
            "FAKE_NVML_CALLS": str(self._calls),
        }

    def play(self, *gpus: Gpu, init: int = 0) -> None:
        """Say how the GPUs are from now on."""
        lines = [f"init {init}"]
        lines += [
            f"gpu {i} {g.state} {g.total_mib} {g.used_mib} {g.utilisation_percent} {g.power_milliwatts} "
            f"{g.temperature_celsius}"
            for i, g in enumerate(gpus)
        ]
        new = self._script.with_suffix(".new")
        new.write_text("\n".join(lines) + "\n")
        new.rename(self._script)

    def calls(self) -> list[str]:
        """What was called so far, each as "FUNCTION INDEX"."""
        return self._calls.read_text().splitlines() if self._calls.exists() else []


@pytest.fixture(scope="session")
def fake_nvml_library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The compiled library."""
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("no C compiler (cc) to build the simulated NVML with")
    library = tmp_path_factory.mktemp("nvml") / "libnvidia-ml.so.1"
    source = Path(__file__).with_name("fake_nvml.c")
    subprocess.run([compiler, "-Wall", "-Wextra", "-Werror", "-shared", "-fPIC", "-o", library, source], check=True)
    return library


@pytest.fixture
def fake_nvml(fake_nvml_library: Path, tmp_path: Path) -> FakeNvml:
    """A host with one well GPU, until told otherwise."""
    fake = FakeNvml(fake_nvml_library, tmp_path)
    fake.play(Gpu())
    return fake


@pytest.fixture
def gpu() -> type[Gpu]:
    """Makes GPUs for `FakeNvml.play`."""
    return Gpu
