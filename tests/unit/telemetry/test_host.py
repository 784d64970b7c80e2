from __future__ import annotations

import os
from pathlib import Path

import pytest

from stokerd.telemetry.host import HostReader, read_disk


def test_the_figures_are_those_of_this_machine() -> None:
    found = HostReader().read()
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    assert found["cpu_count"] == os.cpu_count()
    assert found["memory_total"] == pytest.approx(total, rel=0.05)
    assert 0 < int(found["memory_used"] or 0) < total
    assert 0 <= float(found["cpu_percent"] or 0) <= 100


def test_the_disk_of_a_home_that_is_not_made_yet_is_known(tmp_path: Path) -> None:
    assert read_disk(tmp_path / "not" / "yet")["disk_total"] == read_disk(tmp_path)["disk_total"]
