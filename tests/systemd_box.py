"""A real systemd as PID 1 of private namespaces, to see how a unit behaves under it. Root on Linux.

Inside, the file system is the host's, but what a booting systemd writes and cleans is private and empty: /tmp, /run,
/var/tmp, /var/log, /var/lib, /etc/systemd, /root (without that, its tmpfiles would empty the host's /tmp). The box's
own folder, the checkout and the Python in use are seen under their own paths, also when those lie below such a place.
Its cgroups lie below one of ours. It knows few units (basic.target, the journal), so that none sets the host's sysctls
or mounts. Everything in it dies with its PID 1, and that one with this process.

This file is also the program of the box's first process: ``systemd_box.py enter GROUP... -- INIT-ARGUMENTS``.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import os
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

CHECKOUT = Path(__file__).parents[1]
PRIVATE = ("/tmp", "/run", "/var/tmp", "/var/log", "/var/lib", "/etc/systemd", "/root")
CGROUPS = Path("/sys/fs/cgroup")
PROGRAMS = ("unshare", "nsenter", "mount", "systemctl", "journalctl")
BOOT_SECONDS = 30.0
_UNITS = {
    "sysinit.target": (
        "[Unit]\nDefaultDependencies=no\nWants=systemd-journald.service\nAfter=systemd-journald.service\n"
    ),
    "basic.target": "[Unit]\nRequires=sysinit.target\nWants=sockets.target\nAfter=sysinit.target sockets.target\n",
    **{f"{name}.target": "[Unit]\nDefaultDependencies=no\n" for name in ("sockets", "multi-user", "shutdown")},
    **{f"{name}.target": "[Unit]\n" for name in ("network-online", "umount", "local-fs", "timers")},
    "systemd-journald.socket": (
        "[Unit]\nDefaultDependencies=no\nBefore=sockets.target\n[Socket]\n"
        "ListenDatagram=/run/systemd/journal/socket\nListenStream=/run/systemd/journal/stdout\nPassCredentials=yes\n"
    ),
    "systemd-journald.service": (
        "[Unit]\nDefaultDependencies=no\nRequires=systemd-journald.socket\nAfter=systemd-journald.socket\n"
        "[Service]\nType=notify\nExecStart={systemd}/systemd-journald\nStandardOutput=null\n"
        "RuntimeDirectory=systemd/journal\nRuntimeDirectoryPreserve=yes\n"
    ),
}


class SystemdBox:
    """One booted systemd. Use it as a context manager; ``folder`` is seen inside and outside under the same path."""

    def __init__(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="sbx-", dir="/tmp"))  # short: sockets have 107 bytes
        self.pid = 0
        self._pidfd = -1
        self._groups: list[Path] = []
        self._outer: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> SystemdBox:
        try:
            self._boot()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def run(self, *argv: str | Path, check: bool = True, **env: str) -> subprocess.CompletedProcess[str]:
        """Run a program inside, with *env* in its environment, to its end."""
        command = ["nsenter", "-t", str(self.pid), "-m", "-p", "-u", "-i", "-C", "--wd=/", *argv]
        environ = {"PATH": os.defpath + ":/usr/sbin:/sbin", "LANG": "C.UTF-8", "SYSTEMD_PAGER": "", "HOME": "/root"}
        done = subprocess.run(
            command,
            env=environ | env,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=90,
            check=False,
        )
        assert not check or done.returncode == 0, (
            f"{argv}: {done.returncode}\n{done.stdout}{done.stderr}{self.journal()}"
        )
        return done

    def systemctl(self, *arguments: str) -> str:
        """`systemctl`, which must succeed."""
        return self.run("systemctl", *arguments).stdout

    def shows(self, unit: str, property_name: str) -> str:
        """One property of a unit."""
        return self.systemctl("show", "--value", "-p", property_name, unit).strip()

    def journal(self, *arguments: str) -> str:
        """`journalctl`; all there is, by default."""
        return self.run("journalctl", "--no-pager", *arguments, check=False).stdout

    def path(self, path: str | Path) -> Path:
        """How a path of the inside is named outside."""
        return Path(f"/proc/{self.pid}/root{path}")

    def start_ticks(self, pid: int) -> int:
        """When the process that the inside calls *pid* was started; 0 when there is none, or a zombie."""
        try:
            fields = self.path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()
        except (FileNotFoundError, ProcessLookupError):
            return 0
        return 0 if fields[0] in (b"Z", b"X") else int(fields[19])

    def close(self) -> None:
        """End all that runs inside, remove its cgroups and the folder."""
        if self._outer is not None:
            if self._pidfd >= 0:
                with contextlib.suppress(ProcessLookupError):
                    signal.pidfd_send_signal(self._pidfd, signal.SIGKILL)
                os.close(self._pidfd)
            else:
                self._outer.kill()
            self._outer.wait(30)  # returns when the kernel has ended the whole namespace
        for group in self._groups:
            _remove_groups(group)
        shutil.rmtree(self.folder, ignore_errors=True)

    def _boot(self) -> None:
        self._groups = _make_groups(f"stoker-box-{os.getpid()}-{self.folder.name}")
        kept = [self.folder, CHECKOUT, Path(sys.prefix), Path(sys.base_prefix)]
        command = [sys.executable, "-I", __file__, "enter", *map(str, self._groups), "--", *map(str, kept)]
        with (self.folder / "boot.log").open("wb") as log:
            self._outer = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
            )
        children = Path(f"/proc/{self._outer.pid}/task/{self._outer.pid}/children")
        deadline = time.monotonic() + BOOT_SECONDS
        while time.monotonic() < deadline and self._outer.poll() is None:
            time.sleep(0.05)
            with contextlib.suppress(OSError):
                self.pid = int((children.read_text().split() or ["0"])[0])
            if self.pid and Path(f"/proc/{self.pid}/comm").read_text() == "systemd\n":
                state = self.run("systemctl", "is-system-running", check=False).stdout.strip()
                if state in ("running", "degraded"):
                    self._pidfd = os.pidfd_open(self.pid)
                    return
        raise BoxError((self.folder / "boot.log").read_text()[-500:].strip() or "systemd did not come up in time")


class BoxError(Exception):
    """systemd could not be booted; says why."""


@functools.cache
def reason_against() -> str:
    """Why this host can't have such a box; empty when it can. Tries it."""
    if os.geteuid() != 0:
        return "only root can make the namespaces of a systemd"
    missing = [name for name in PROGRAMS if shutil.which(name) is None]
    if missing or _systemd_folder() is None:
        return f"this host lacks {', '.join(missing) or 'systemd'}"
    try:
        with SystemdBox():
            return ""
    except (BoxError, OSError) as error:
        return f"this host lets no systemd boot in namespaces: {error}"


def _systemd_folder() -> Path | None:
    return next((p for p in map(Path, ("/usr/lib/systemd", "/lib/systemd")) if (p / "systemd").exists()), None)


def _make_groups(name: str) -> list[Path]:
    """A cgroup in each hierarchy, below the one that we are in. Raises OSError."""
    made = []
    for line in Path("/proc/self/cgroup").read_text().splitlines():
        root = _mount_of(line.split(":")[1])
        if root is not None:
            group = root / line.split(":", 2)[2].strip("/") / name
            group.mkdir()
            made.append(group)
            if (group / "cpuset.cpus").exists():  # v1: nothing can enter it before these are set
                for file in ("cpuset.cpus", "cpuset.mems"):
                    (group / file).write_text((group.parent / file).read_text())
    return made


def _mount_of(controllers: str) -> Path | None:
    """Where the hierarchy of *controllers*, as /proc/self/cgroup names it, is mounted; None where it is not."""
    if not controllers:
        found = [p for p in (CGROUPS, CGROUPS / "unified") if (p / "cgroup.controllers").exists()]
        return found[0] if found else None
    folder = CGROUPS / controllers.removeprefix("name=")
    return folder if folder.is_mount() else None


def _remove_groups(group: Path) -> None:
    """Remove a tree of cgroups as soon as they are empty: the dead leave them a moment after they were reaped."""
    deadline = time.monotonic() + 10
    while group.exists() and time.monotonic() < deadline:
        for folder, _, _ in os.walk(group, topdown=False):
            with contextlib.suppress(OSError):
                Path(folder).rmdir()
        select.select([], [], [], 0.02)


# What follows runs as the box's first processes.


def _enter(groups: list[str], kept: list[str]) -> None:
    """Join the cgroups, tie our life to the parent's, and become ``unshare``, whose child is PID 1."""
    for group in groups:
        Path(group, "cgroup.procs").write_text(str(os.getpid()))
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
    options = ["--pid", "--fork", "--kill-child", "--mount-proc", "--mount", "--cgroup", "--uts", "--ipc"]
    me = [sys.executable, "-I", __file__, "init", *kept]
    os.execvp("unshare", ["unshare", *options, "--propagation=private", *me])


def _init(kept: list[str]) -> None:
    """Lay the private places, and become systemd."""
    open_kept = {path: os.open(path, os.O_PATH) for path in kept if Path(path).is_dir()}
    for place in PRIVATE:
        Path(place).mkdir(exist_ok=True)
        _mount("tmpfs", "-t", "tmpfs", "-o", "mode=1777" if place.endswith("tmp") else "mode=755", "tmpfs", place)
    for path, fd in open_kept.items():
        if any(Path(path).is_relative_to(place) for place in PRIVATE):
            Path(path).mkdir(parents=True, exist_ok=True)
            _mount(path, "--no-canonicalize", "--bind", f"/proc/self/fd/{fd}", path, pass_fds=[fd])
    _mount_cgroups()
    folder = _systemd_folder()
    units = Path("/run/systemd/box")
    units.mkdir(parents=True)
    for name, text in _UNITS.items():
        (units / name).write_text(text.replace("{systemd}", str(folder)))
    for path in ("/etc/systemd/system", "/run/systemd/system"):
        Path(path).mkdir(parents=True)
    Path("/etc/systemd/journald.conf").write_text("[Journal]\nReadKMsg=no\nAudit=no\n")
    # "container": it leaves the kernel's settings alone, which are the host's.
    env = {"container": "stoker", "SYSTEMD_UNIT_PATH": f"/etc/systemd/system:/run/systemd/system:{units}"}
    arguments = ["--system", "--unit=basic.target", "--log-target=journal", "--show-status=no"]
    os.execve(f"{folder}/systemd", ["systemd", *arguments], {"PATH": os.defpath, **env})


def _mount_cgroups() -> None:
    """The same hierarchies, seen from our own cgroup, which is their root here."""
    hierarchies = [line.split(":")[1] for line in Path("/proc/self/cgroup").read_text().splitlines()]
    mounted = [(name, place) for name in hierarchies if (place := _mount_of(name)) is not None]
    if (CGROUPS / "cgroup.controllers").exists():  # v2 alone
        _mount("cgroup2", "-t", "cgroup2", "cgroup2", str(CGROUPS))
        return
    _mount("tmpfs", "-t", "tmpfs", "-o", "mode=755", "tmpfs", str(CGROUPS))
    for name, place in mounted:
        place.mkdir()
        options = ["-t", "cgroup", "-o", name or "none"] if name else ["-t", "cgroup2"]
        _mount(str(place), *options, "cgroup", str(place))


def _mount(what: str, *arguments: str, pass_fds: list[int] | None = None) -> None:
    done = subprocess.run(["mount", *arguments], capture_output=True, text=True, pass_fds=pass_fds or [], check=False)
    if done.returncode != 0:
        sys.exit(f"mount of {what}: {done.stderr.strip()}")


if __name__ == "__main__":
    if sys.argv[1] == "enter":
        split = sys.argv.index("--")
        _enter(sys.argv[2:split], sys.argv[split + 1 :])
    else:
        _init(sys.argv[2:])
