from __future__ import annotations

import subprocess
import sys


def test_the_daemon_loads_nothing_large_that_it_has_no_use_for() -> None:
    """Each of these is some megabytes, for all its life."""
    unused = ["alembic", "mako", "pygments", "rich", "textual", "typer", "torch"]
    program = f"import stokerd.main, sys; print([m for m in {unused!r} if m in sys.modules])"
    assert subprocess.check_output([sys.executable, "-c", program], text=True) == "[]\n"
