"""Where a Stoker home lies, and what lies in it. Stdlib only: everyone imports this, the shim's parent included."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

MAX_SOCKET_PATH = 107  # bytes; sun_path in Linux's sockaddr_un, less the closing NUL


@dataclass(frozen=True)
class Home:
    """The folders and files of one daemon. ``runtime`` holds sockets and locks and may be on another filesystem."""

    root: Path
    runtime: Path

    @property
    def socket(self) -> Path:
        """The control socket."""
        return self.runtime / "stoker.sock"

    @property
    def lock(self) -> Path:
        """Held (flock) by the one daemon of this home."""
        return self.root / "stokerd.lock"

    @property
    def state_db(self) -> Path:
        """Small and precious."""
        return self.root / "state.db"

    @property
    def metrics_db(self) -> Path:
        """Large and expendable."""
        return self.root / "metrics.db"

    @property
    def backups(self) -> Path:
        """Copies of state.db, made before each migration."""
        return self.root / "backups"

    @property
    def processes(self) -> Path:
        """A folder for each supervised process."""
        return self.root / "processes"

    @property
    def runs(self) -> Path:
        """A folder for each run."""
        return self.root / "runs"

    @property
    def replicas(self) -> Path:
        """A folder for each replica, with its log."""
        return self.root / "replicas"

    @property
    def content(self) -> Path:
        """Content-addressed files of datasets, code and model versions."""
        return self.root / "content"

    @property
    def gateway(self) -> Path:
        """The gateway's last route table."""
        return self.root / "gateway"

    @property
    def sockets(self) -> Path:
        """Sockets of replicas and of the gateway's control side; short names, see MAX_SOCKET_PATH."""
        return self.runtime / "s"

    @property
    def config(self) -> Path:
        """The daemon's settings, if the user wrote any."""
        return self.root / "stoker.yaml"


def find_home(given: str | os.PathLike[str] | None = None) -> Home:
    """Say where home is: *given*, else ``STOKER_HOME``, else /var/lib/stoker, /run/stoker for root, else XDG folders.

    A home that was named holds everything, its socket included. Creates nothing.
    """
    named = os.fspath(given) if given else os.environ.get("STOKER_HOME")
    if named:
        root = Path(named).expanduser().absolute()
        return Home(root, root)
    if os.geteuid() == 0:
        return Home(Path("/var/lib/stoker"), Path("/run/stoker"))
    data = Path(os.environ.get("XDG_DATA_HOME") or Path.home() / ".local/share") / "stoker"
    runtime = os.environ.get("XDG_RUNTIME_DIR")
    return Home(data, Path(runtime) / "stoker" if runtime else data)
