"""Where cgroups can be made is found by trial, on each kind of host, and told in a sentence."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from stokerd.processes import groups as module
from stokerd.processes.group import Group, folder_name, is_of, process_of
from stokerd.processes.groups import Groups, find_groups, name_of
from stokerd.processes.states import Bounds
from tests.process_kit import is_running, until
from tests.unit.processes.grouped import GroupedBench

V2_FILES = ("cgroup.procs", "cgroup.subtree_control", "cgroup.events", "cgroup.kill")
PER_CONTROLLER = {
    "memory": ("memory.max", "memory.swap.max", "memory.oom.group", "memory.events"),
    "cpu": ("cpu.weight",),
    "pids": ("pids.max",),
}


class Tree:
    """A plain folder tree that stands for a mount of cgroup v2: what the kernel would put into a new group is laid.

    Args:
        root: its mount point.
        own: the group that this process is in.
        owned: folders beneath which this user may make groups; None: all.
    """

    def __init__(self, root: Path, own: str, controllers: str = "cpu memory pids", owned: str | None = None) -> None:
        self.root, self.own, self.owned = root, own, owned
        root.mkdir()
        self._lay(root, controllers)
        folder = root
        for name in own.strip("/").split("/"):
            folder = folder / name
            folder.mkdir()
            self._lay(folder, controllers)
        self._procs(own).write_text(f"{os.getpid()}\n")

    def _procs(self, own: str) -> Path:
        return self.root / own.strip("/") / "cgroup.procs"

    def _lay(self, folder: Path, controllers: str) -> None:
        for name in V2_FILES:
            (folder / name).touch()
        (folder / "cgroup.controllers").write_text(controllers)
        for controller in controllers.split():
            for name in PER_CONTROLLER.get(controller, ()):
                (folder / name).touch()

    def mkdir(self, path: str) -> None:
        """As the kernel does it."""
        folder = Path(path)
        if not folder.parent.exists():
            raise FileNotFoundError(2, "No such file or directory", path)
        inside = f"/{folder.parent.relative_to(self.root)}".replace("/.", "/")
        if self.owned is not None and not f"{inside}/".startswith(f"{self.owned}/"):
            raise PermissionError(13, "Permission denied", path)
        folder.mkdir()
        self._lay(folder, " ".join(self.enabled(folder.parent)))

    def enable(self, folder: Path, text: str) -> int:
        """Adds to what is there, and gives the groups beneath the controller's files."""
        if folder == self.root / self.own.strip("/"):
            raise OSError(16, "Device or resource busy", str(folder))  # processes are in it
        with (folder / "cgroup.subtree_control").open("a") as file:
            file.write(" " + text.removeprefix("+"))
        for inner in folder.iterdir():
            if inner.is_dir():
                self._lay(inner, " ".join(self.enabled(folder)))
        return len(text)

    def enabled(self, folder: Path) -> list[str]:
        return (folder / "cgroup.subtree_control").read_text().split()

    def find(self, tmp_path: Path, *, is_root: bool) -> Groups:
        (tmp_path / "mountinfo").write_text(
            f"31 23 0:28 / /elsewhere rw - tmpfs tmpfs rw\n30 23 0:26 / {self.root} rw,nosuid - cgroup2 cgroup2 rw\n"
        )
        (tmp_path / "own").write_text(f"0::{self.own}\n")
        return find_groups("x", mountinfo=tmp_path / "mountinfo", own=tmp_path / "own", is_root=is_root)


@pytest.fixture
def imitate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Tree]:
    """Make a `Tree`; the module makes its groups in it."""

    def make(own: str, **options: str) -> Tree:
        tree = Tree(tmp_path / "cgroup", own, **options)

        def write(path: Path, text: str) -> int:
            return tree.enable(path.parent, text) if path.name == "cgroup.subtree_control" else write_text(path, text)

        write_text = Path.write_text
        monkeypatch.setattr(module, "_mkdir", tree.mkdir)
        monkeypatch.setattr(Path, "write_text", write)
        monkeypatch.setattr(os, "rmdir", lambda path: None)  # one of these is never empty
        return tree

    return make


def test_root_makes_groups_at_the_top_so_that_a_services_own_group_stays_a_leaf(
    imitate: Callable[..., Tree], tmp_path: Path
) -> None:
    tree = imitate("/system.slice/stokerd.service")
    groups = tree.find(tmp_path, is_root=True)
    assert groups.folders("p") == [f"{tree.root}/stoker-x/p_p"]
    assert groups.message == "cgroup v2 (memory, cpu, pids, cgroup.kill)"
    assert tree.enabled(tree.root) == tree.enabled(tree.root / "stoker-x") == ["memory", "cpu", "pids"]
    assert tree.enabled(tree.root / "system.slice/stokerd.service") == []


def test_a_users_service_makes_groups_beside_its_own(imitate: Callable[..., Tree], tmp_path: Path) -> None:
    app = "/user.slice/user-1000.slice/user@1000.service/app.slice"
    tree = imitate(f"{app}/stokerd.service", owned="/user.slice/user-1000.slice/user@1000.service")
    groups = tree.find(tmp_path, is_root=False)
    assert groups.folders("p") == [f"{tree.root}{app}/stoker-x/p_p"]
    assert groups.message == "cgroup v2 (memory, cpu, pids, cgroup.kill)"
    assert tree.enabled(tree.root) == []


def test_a_delegated_service_of_another_user_makes_groups_beneath_its_own_and_gains_cgroup_kill(
    imitate: Callable[..., Tree], tmp_path: Path
) -> None:
    own = "/system.slice/stokerd.service"
    tree = imitate(own, owned=own)
    groups = tree.find(tmp_path, is_root=False)
    assert groups.folders("p") == [f"{tree.root}{own}/stoker-x/p_p"]
    assert groups.message == (
        "cgroup v2 (cgroup.kill): memory is bounded for each single process, the number of processes is not bounded, "
        "cpu_weight does nothing"
    )
    groups.make("p", Bounds(64 << 20, 10, 50))
    assert (tree.root / own.strip("/") / "stoker-x/p_p").is_dir()


def test_who_may_not_write_there_makes_none(imitate: Callable[..., Tree], tmp_path: Path) -> None:
    tree = imitate("/user.slice/user-1000.slice/session-3.scope", owned="/nowhere")
    groups = tree.find(tmp_path, is_root=False)
    assert groups.folders("p") == []
    assert groups.message == (
        f"rlimits and process groups only, for {tree.root} can't be written by this user: memory is bounded for each "
        "single process, the number of processes is not bounded, cpu_weight does nothing"
    )
    groups.make("p", Bounds(64 << 20, 10, 50))
    assert groups.processes() == set()
    assert groups.process_of(os.getpid()) is None


def test_a_host_without_some_controllers_says_which_bounds_do_nothing(
    imitate: Callable[..., Tree], tmp_path: Path
) -> None:
    tree = imitate("/a/b", controllers="cpuset io memory")
    groups = tree.find(tmp_path, is_root=True)
    assert groups.message == (
        "cgroup v2 (memory, cgroup.kill): the number of processes is not bounded, cpu_weight does nothing"
    )
    groups.make("p", Bounds(64 << 20, 10, 50))
    assert (tree.root / "stoker-x/p_p/memory.max").read_text() == str(64 << 20)
    assert not (tree.root / "stoker-x/p_p/pids.max").exists()


def test_the_bounds_of_v2_are_written_and_nothing_where_nothing_is_bounded(
    imitate: Callable[..., Tree], tmp_path: Path
) -> None:
    tree = imitate("/a/b")
    groups = tree.find(tmp_path, is_root=True)
    groups.make("p", Bounds(64 << 20, 10, 50))
    groups.make("q", Bounds())
    names = ("memory.max", "memory.swap.max", "memory.oom.group", "pids.max", "cpu.weight")
    p, q = ([(tree.root / f"stoker-x/p_{each}" / name).read_text() for name in names] for each in "pq")
    assert p == [str(64 << 20), "0", "1", "10", "50"]
    assert q == ["", "", "1", "", ""]
    assert groups.processes() == {"p", "q"}


def test_a_killed_member_of_v2_is_counted_also_when_it_was_in_a_group_beneath(tmp_path: Path) -> None:
    folder = tmp_path / "stoker-x/p_p"
    folder.mkdir(parents=True)
    (folder / "memory.events").write_text("low 0\nhigh 0\nmax 12\noom 1\noom_kill 3\noom_group_kill 1\n")
    assert Group([str(folder)]).oom_kills() == 3
    assert Group([str(tmp_path / "stoker-x/p_q")]).oom_kills() == 0


def test_paths_with_spaces_and_namespaces_are_found(imitate: Callable[..., Tree], tmp_path: Path) -> None:
    """In a cgroup namespace with a mount of the outside, neither path tells where we are: it's looked for."""
    tree = imitate("/outer/inner")
    (tmp_path / "cgroup").rename(tmp_path / "c group")
    tree.root = tmp_path / "c group"
    escaped = str(tree.root).replace(" ", r"\040")
    (tmp_path / "mountinfo").write_text(f"30 23 0:26 /../.. {escaped} rw shared:4 - cgroup2 cgroup2 rw\n")
    (tmp_path / "own").write_text("0::/\n")
    groups = find_groups("x", mountinfo=tmp_path / "mountinfo", own=tmp_path / "own", is_root=False)
    assert groups.folders("p") == [f"{tree.root}/outer/stoker-x/p_p"]


def test_this_host_is_told_of_in_a_sentence(grouped: GroupedBench) -> None:
    assert grouped.groups.message.startswith(("cgroup v2 (", "cgroup v1 ("))


def test_a_group_holds_kills_and_goes(grouped: GroupedBench) -> None:
    grouped.groups.make("p", Bounds())
    group = Group(grouped.groups.folders("p"))
    process = subprocess.Popen(["sh", "-c", "sleep 600 & echo $!; wait"], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    try:
        assert process.stdout
        inner = int(process.stdout.readline())
        assert group.enter(process.pid) == ""
        assert group.members() == {process.pid}  # who was started before stays where it was
        assert group.enter(inner) == ""
        assert grouped.groups.process_of(inner) == "p"
        assert not group.remove()
        assert group.end(30)
        assert process.wait() == -signal.SIGKILL
        assert not is_running(inner)
        assert grouped.folders() == []
        assert group.end(0)
    finally:
        process.kill()
        process.communicate()


def test_members_are_killed_one_by_one_where_there_is_no_cgroup_kill(grouped: GroupedBench) -> None:
    folders = [each for each in grouped.groups.folders("p") if "/unified/" not in each]
    if not folders or Path(folders[0]).parent.parent.joinpath("cgroup.controllers").exists():
        pytest.skip("this host has only cgroup v2")
    grouped.groups.make("p", Bounds())
    group = Group(folders)
    process = subprocess.Popen(["sleep", "600"])
    assert group.enter(process.pid) == ""
    assert group.end(30)
    assert process.wait() == -signal.SIGKILL
    assert Group(grouped.groups.folders("p")).remove()


def test_making_a_group_again_keeps_it_and_survives_the_folder_above_being_removed(grouped: GroupedBench) -> None:
    """A shim that ends removes the folder above when it was the last one in it."""
    for _ in range(3):
        grouped.groups.make("p", Bounds(memory_bytes=64 << 20))
        grouped.groups.make("p", Bounds(memory_bytes=64 << 20))
        assert len(grouped.folders()) == len(grouped.groups.folders("p"))
        assert Group(grouped.groups.folders("p")).remove()
        assert not any(Path(each).parent.exists() for each in grouped.groups.folders("p"))


@pytest.mark.parametrize(
    "path",
    [
        "/sys/fs/cgroup",
        "/sys/fs/cgroup/system.slice",
        "/sys/fs/cgroup/p_p",
        "/sys/fs/cgroup/stoker-x/p_q",
        "/sys/fs/cgroup/stoker-x",
        "/sys/fs/cgroup/stoker-x/../stoker-y/p_p",
        "stoker-x/p_p",
        "",
        "/p_p",
    ],
)
def test_a_record_that_names_another_group_is_not_believed(path: str) -> None:
    assert not is_of(path, "p")


def test_names_are_told_apart_from_the_kernels_files_and_back() -> None:
    assert is_of("/sys/fs/cgroup/system.slice/stoker-x/p_p", "p")
    assert process_of(folder_name("memory.max")) == "memory.max"
    assert process_of("memory.max") is None


def test_each_home_has_a_name_of_its_own(tmp_path: Path) -> None:
    names = set()
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        names.add(name_of(tmp_path / name))
        assert name_of(tmp_path / name / "../" / name) in names
    assert len(names) == 2


def test_the_groups_of_two_homes_are_apart(grouped: GroupedBench) -> None:
    other = find_groups(name_of(grouped.root / ".."))
    grouped.groups.make("p", Bounds())
    process = subprocess.Popen(["sleep", "600"])
    try:
        Group(grouped.groups.folders("p")).enter(process.pid)
        assert grouped.groups.process_of(process.pid) == "p"
        assert other.process_of(process.pid) is None
        assert other.processes() == set()
    finally:
        process.kill()
        process.wait()
        until(lambda: Group(grouped.groups.folders("p")).remove())
