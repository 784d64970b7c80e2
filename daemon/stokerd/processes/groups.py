"""Which cgroups this daemon can make, and making them: one for each process, so that bounds hold for its whole tree.

Where they are made:

- v2, as root: in ``stoker-NAME`` at the top of the mount, as containerd's cgroupfs driver does, and not beneath the
  daemon's own group: with a systemd before 254, a service whose group has controllers enabled for groups beneath it
  can't be started again (EBUSY, for the kernel allows no process beside such groups).
- v2, as another user: beside the daemon's own group, where that user may write there (a service of ``systemd --user``),
  else beneath it (a service with ``Delegate=yes``), where no controller can be enabled and only cgroup.kill is gained.
- v1: beneath the daemon's own group in each hierarchy, so that limits set above it hold for what it starts, too.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from stoker.types.host import NO_MEMORY_OF_TREES
from stokerd.processes.group import PREFIX, Group, folder_name, process_of
from stokerd.processes.states import Bounds

log = logging.getLogger(__name__)

CONTROLLERS = ("memory", "cpu", "pids")
_MAKE_ATTEMPTS = 5  # a shim that removed the last group may remove the folder above, just while we make one in it


@dataclass(frozen=True, slots=True)
class Hierarchy:
    """A tree of cgroups in which groups can be made.

    Args:
        parent: the folder of the group beneath which all of ours are.
        base: the folder in it that has a group for each process.
        version: of cgroups.
        controllers: which of `CONTROLLERS` bound the groups.
        has_kill: whether the groups have cgroup.kill (v2, since Linux 5.14).
    """

    parent: str
    base: str
    version: Literal[1, 2]
    controllers: frozenset[str] = frozenset()
    has_kill: bool = False

    def lay(self) -> frozenset[str]:
        """Make the base, unless it is there, and return the controllers that its groups have. Raises OSError."""
        with contextlib.suppress(FileExistsError):
            _mkdir(self.base)
        if self.version == 1:
            return self.controllers
        _enable(self.parent)
        _enable(self.base)
        return frozenset(_words(f"{self.base}/cgroup.subtree_control")) & frozenset(CONTROLLERS)


class Groups:
    """Makes the groups of one home's processes. Its methods may be called from any thread.

    Args:
        name: of the home; see `name_of`.
        hierarchies: where groups can be made; none where they can't.
        why_none: half a sentence on that, for people.
    """

    def __init__(self, name: str, hierarchies: tuple[Hierarchy, ...] = (), why_none: str = "") -> None:
        self._hierarchies = hierarchies
        self._place = re.compile(rf"/{re.escape(PREFIX + name)}/([^/\s]+)")
        self.message = _describe(hierarchies, why_none)

    def folders(self, process: str) -> list[str]:
        """Where the group of *process* is, made or not."""
        return [f"{each.base}/{folder_name(process)}" for each in self._hierarchies]

    def make(self, process: str, bounds: Bounds) -> None:
        """Make the group of *process* and set its bounds. What can't be made is left out, and logged."""
        for hierarchy, folder in zip(self._hierarchies, self.folders(process), strict=True):
            try:
                _make(hierarchy, folder)
                for name, value in _settings(hierarchy, bounds):
                    _set(f"{folder}/{name}", value)
            except OSError as error:
                log.warning("no cgroup for %s: %s: %s", process, error.filename or folder, error.strerror)
                Group([folder]).remove()  # without its bounds it would only pretend to enforce them

    def process_of(self, pid: int) -> str | None:
        """The process of this home in whose group *pid* is; None when it's in none."""
        try:
            place = self._place.search(Path(f"/proc/{pid}/cgroup").read_text())
        except OSError:
            return None
        return process_of(place[1]) if place else None

    def processes(self) -> set[str]:
        """The processes that have a group now."""
        found: set[str] = set()
        for hierarchy in self._hierarchies:
            with contextlib.suppress(OSError), os.scandir(hierarchy.base) as entries:
                found.update(name for each in entries if each.is_dir() and (name := process_of(each.name)))
        return found


def name_of(home: Path) -> str:
    """Name *home* so that no other one on this machine, nor a later one in its place, has the same name."""
    stat = home.stat()
    return hashlib.sha256(f"{home.resolve()}\0{stat.st_dev}\0{stat.st_ino}".encode()).hexdigest()[:12]


def find_groups(
    name: str,
    *,
    mountinfo: Path = Path("/proc/self/mountinfo"),
    own: Path = Path("/proc/self/cgroup"),
    is_root: bool | None = None,
) -> Groups:
    """Find out, by trial, which groups can be made here for the home that is called *name*.

    Args:
        name: see `name_of`.
        mountinfo: as proc(5) has it: where hierarchies are mounted.
        own: as cgroups(7) has it: which groups this process is in.
        is_root: whether this process may do as it likes; None: as its uid says.
    """
    base = f"{PREFIX}{name}"
    mounts = _mounts(mountinfo.read_text())
    paths = _own_paths(own.read_text())
    root = os.geteuid() == 0 if is_root is None else is_root
    found: list[Hierarchy] = []
    for mount in mounts:
        missing = mount.controllers - {each for h in found for each in h.controllers}
        if mount.version == 1 and missing:
            parents, controllers = [_own_folder(mount, paths.get(next(iter(mount.controllers)), ""))], missing
        elif mount.version == 2 and not any(h.version == 2 for h in found):
            own_folder = _own_folder(mount, paths.get("", ""))
            beside = os.path.dirname(own_folder) if own_folder not in (None, mount.point) else None  # noqa: PTH120
            parents, controllers = [mount.point if root else None, beside, own_folder], frozenset()
        else:
            continue
        for parent in dict.fromkeys(each for each in parents if each is not None):
            laid = _try(Hierarchy(parent, f"{parent}/{base}", mount.version, controllers))
            if laid is not None:
                found.append(laid)
                break
    why = "no cgroups are mounted" if not mounts else f"{mounts[0].point} can't be written by this user"
    return Groups(name, tuple(sorted(found, key=lambda each: -each.version)), why)


@dataclass(frozen=True, slots=True)
class _Mount:
    """A mounted hierarchy; ``root`` is the group, as /proc/PID/cgroup names it, that is seen at ``point``."""

    point: str
    root: str
    version: Literal[1, 2]
    controllers: frozenset[str]


def _mounts(mountinfo: str) -> list[_Mount]:
    mounts = []
    for line in mountinfo.splitlines():
        before, _, after = line.partition(" - ")
        place, kind = before.split(), after.split()
        if len(place) < 5 or len(kind) < 3 or kind[0] not in ("cgroup", "cgroup2"):
            continue
        root, point = (re.sub(r"\\(\d{3})", lambda m: chr(int(m[1], 8)), each) for each in place[3:5])
        if kind[0] == "cgroup2":
            mounts.append(_Mount(point, root, 2, frozenset()))
        elif ours := frozenset(kind[2].split(",")) & frozenset(CONTROLLERS):
            mounts.append(_Mount(point, root, 1, ours))
    return mounts


def _own_paths(text: str) -> dict[str, str]:
    """The group of each controller of v1, and under "" that of v2."""
    paths = {}
    for line in text.splitlines():
        number, controllers, path = line.split(":", 2)
        for each in controllers.split(","):
            if each or number == "0":
                paths[each] = path
    return paths


def _own_folder(mount: _Mount, path: str) -> str | None:
    """The folder of the group that this process is in.

    In a cgroup namespace with mounts of the outside, neither path says where we are: then look for it.
    """
    root = mount.root.rstrip("/")
    if f"{path}/".startswith(f"{root}/"):
        folder = f"{mount.point}{path[len(root) :]}".rstrip("/")
        if _has_us(folder):
            return folder
    return next((folder for folder, _, _ in os.walk(mount.point) if _has_us(folder)), None)


def _has_us(folder: str) -> bool:
    return str(os.getpid()) in _words(f"{folder}/cgroup.procs")


def _try(hierarchy: Hierarchy) -> Hierarchy | None:
    """Return *hierarchy* with the controllers that it really has; None when no group can be made or entered there."""
    try:
        controllers = hierarchy.lay()
    except OSError:
        return None
    # Who moves a process must be allowed to write to the group that is above both its old and its new place.
    can_enter = os.access(f"{hierarchy.parent}/cgroup.procs", os.W_OK)
    has_kill = os.path.exists(f"{hierarchy.base}/cgroup.kill")  # noqa: PTH110
    with contextlib.suppress(OSError):
        os.rmdir(hierarchy.base)  # noqa: PTH106 (made again with the first group)
    if not can_enter:
        return None
    return replace(hierarchy, controllers=controllers, has_kill=has_kill)


def _make(hierarchy: Hierarchy, folder: str) -> None:
    for _ in range(_MAKE_ATTEMPTS):
        try:
            _mkdir(folder)
            return
        except FileExistsError:  # by a daemon that was killed before it started the shim
            return
        except FileNotFoundError:
            hierarchy.lay()
    _mkdir(folder)


def _settings(hierarchy: Hierarchy, bounds: Bounds) -> list[tuple[str, int]]:
    """The files of a group to write, and what: nothing where nothing is bounded."""
    is_v2, settings = hierarchy.version == 2, []
    if "memory" in hierarchy.controllers:
        if is_v2:
            settings.append(("memory.oom.group", 1))  # half a program is worth nothing, and holds its GPU memory
        if bounds.memory_bytes is not None:  # without swap, which would only delay the end and keep the disk busy
            settings.append(("memory.max" if is_v2 else "memory.limit_in_bytes", bounds.memory_bytes))
            settings.append(("memory.swap.max", 0) if is_v2 else ("memory.memsw.limit_in_bytes", bounds.memory_bytes))
    if "pids" in hierarchy.controllers and bounds.processes is not None:
        settings.append(("pids.max", bounds.processes))
    if "cpu" in hierarchy.controllers and (weight := bounds.cpu_weight) is not None:
        settings.append(("cpu.weight", weight) if is_v2 else ("cpu.shares", max(weight * 1024 // 100, 2)))
    return settings


_MAY_BE_ABSENT = ("memory.swap.max", "memory.memsw.limit_in_bytes", "memory.oom.group")  # no swap; before Linux 4.19


def _set(path: str, value: int) -> None:
    """Raises OSError."""
    try:
        Path(path).write_text(str(value))
    except FileNotFoundError:
        if not path.endswith(_MAY_BE_ABSENT):
            raise


def _enable(folder: str) -> None:
    """Have the groups beneath *folder* bounded by all that they can be."""
    enabled = _words(f"{folder}/cgroup.subtree_control")
    for each in CONTROLLERS:
        if each in _words(f"{folder}/cgroup.controllers") and each not in enabled:
            try:  # each by itself: one that can't be enabled would keep out the others
                Path(folder, "cgroup.subtree_control").write_text(f"+{each}")
            except OSError as error:
                log.info("%s can't be enabled in %s: %s", each, folder, error.strerror)


def _mkdir(folder: str) -> None:
    os.mkdir(folder, 0o755)  # noqa: PTH102


def _words(path: str) -> list[str]:
    try:
        return Path(path).read_text().split()
    except OSError:
        return []


def _describe(hierarchies: tuple[Hierarchy, ...], why_none: str) -> str:
    """One sentence, for people, on how bounds are enforced."""
    have = {each for h in hierarchies for each in h.controllers}
    lacks = []
    if "memory" not in have:
        lacks.append(NO_MEMORY_OF_TREES)
    if "pids" not in have:
        lacks.append("the number of processes is not bounded")
    if "cpu" not in have:
        lacks.append("cpu_weight does nothing")
    parts = []
    if v1 := [each for each in CONTROLLERS if any(h.version == 1 and each in h.controllers for h in hierarchies)]:
        parts.append(f"cgroup v1 ({', '.join(v1)})")
    for each in hierarchies:
        if each.version == 2:
            kill = ["cgroup.kill"] if each.has_kill else []
            words = [name for name in CONTROLLERS if name in each.controllers] + kill
            parts.append(f"{' and '.join(words) or 'membership'} of v2" if v1 else f"cgroup v2 ({', '.join(words)})")
    how = " and ".join(parts) or f"rlimits and process groups only, for {why_none or 'no cgroups are used'}"
    return f"{how}: {', '.join(lacks)}" if lacks else how
