from __future__ import annotations

import subprocess
import sys

import pytest


def loaded(program: str, *names: str) -> list[str]:
    """Which of these modules a Python that ran *program* has."""
    program += f"\nimport sys\nprint(*[m for m in {names!r} if sys.modules.get(m)])"
    return subprocess.check_output([sys.executable, "-c", program], text=True).split()


def test_the_daemon_loads_nothing_large_that_it_has_no_use_for() -> None:
    """Each of these is some megabytes, for all its life."""
    unused = ("alembic", "mako", "pygments", "rich", "textual", "typer", "torch")
    assert loaded("import stokerd.main", *unused) == []


def test_its_routes_load_no_older_pydantic() -> None:
    program = "import stokerd.main\nfrom stokerd.api import rollouts, server\n"
    program += "app = server.build([rollouts.router(None, None, None)])\nassert app.openapi()['paths']"
    assert loaded(program, "pydantic", "pydantic.v1") == ["pydantic"]


def test_a_host_without_a_driver_does_without_nvidias_binding() -> None:
    program = "import stokerd.main\nfrom stokerd.devices import nvml\n"
    program += "try:\n    print(nvml.start_up())\nexcept nvml.NoDriver as error:\n    print('is missing' in str(error))"
    found = loaded(program, "pynvml")
    if found[0] != "True":
        pytest.skip("there is a driver")
    assert found == ["True"]
