"""A simulated host for each test.

def test_x(fake_nvml):
    fake_nvml.play(Gpu(), Gpu(state=LOST))
    subprocess.Popen([...], env=fake_nvml.env())
"""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.nvml.fleet import Fleet, build


@pytest.fixture(scope="session")
def fake_nvml_library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The compiled library."""
    return build(tmp_path_factory.mktemp("nvml"))


@pytest.fixture
def fake_nvml(fake_nvml_library: Path, tmp_path: Path) -> Fleet:
    """A host with one well GPU, until told otherwise."""
    return Fleet(tmp_path, library=fake_nvml_library)
