"""A bench whose processes are in cgroups of their own, on hosts that allow it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from stokerd.processes.groups import Groups, find_groups, name_of
from stokerd.processes.states import Bounds, Command
from stokerd.processes.supervisor import Supervisor
from tests.process_kit import Bench, until


class GroupedBench(Bench):
    """As `Bench`; `groups` is what its supervisors make groups with."""

    def __init__(self, root: Path) -> None:
        self.groups: Groups = find_groups(name_of(root))
        super().__init__(root)

    def again(self, **options: Any) -> Supervisor:
        return super().again(**({"groups": self.groups} | options))

    def bounded(self, script: str, process: str = "p", **bounds: int) -> None:
        """Start a shell script in these bounds."""
        command = self.command("sh", "-c", script)
        command = Command(command.argv, command.cwd, command.env, command.log, Bounds(**bounds))
        self.supervisor.start(process, command)

    def folders(self, process: str = "p") -> list[Path]:
        """Where the group of *process* is now."""
        return [path for each in self.groups.folders(process) if (path := Path(each)).is_dir()]

    def clean(self) -> None:
        super().clean()
        last = self.again()
        for process in last.ids():
            last.forget(process)

        def has_no_folder(base: Path) -> bool:
            return not base.exists() or not any(each.is_dir() for each in base.iterdir())

        for base in {Path(each).parent for each in self.groups.folders("p")}:
            until(partial(has_no_folder, base))
            if base.exists():
                base.rmdir()


@pytest.fixture
def grouped(tmp_path: Path) -> Iterator[GroupedBench]:
    bench = GroupedBench(tmp_path)
    if not bench.groups.folders("p"):
        pytest.skip(f"no cgroup can be made here: {bench.groups.message}")
    yield bench
    bench.clean()


def needs(bench: GroupedBench, controller: str) -> None:
    """Skip the test where *controller* can't be used."""
    if not any(controller in each.controllers for each in bench.groups._hierarchies):
        pytest.skip(f"the controller {controller} can't be used here: {bench.groups.message}")


def needs_root() -> None:
    if os.geteuid() != 0:
        pytest.skip("only root may do this")
