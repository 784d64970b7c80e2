"""Which tests may run side by side: each file is for one worker, and so are all that start a real vLLM (for memory)."""

from __future__ import annotations

from pathlib import Path

import pytest

FOLDER = Path(__file__).parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the tests of a file into one group, unless they are in another: they share a daemon."""
    for item in items:
        if item.path.is_relative_to(FOLDER) and item.get_closest_marker("xdist_group") is None:
            item.add_marker(pytest.mark.xdist_group(item.path.stem))
