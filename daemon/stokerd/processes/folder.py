"""The supervisor's side of a process's folder: reads the records and judges them, without touching any process."""

from __future__ import annotations

import fcntl
import json
import os
import struct
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from stoker.errors import Unavailable
from stokerd.processes import records
from stokerd.processes.child import mark_of
from stokerd.processes.group import Group, is_of
from stokerd.processes.identity import Identity
from stokerd.processes.kernel import boot_id
from stokerd.processes.states import Command, Exited

_FLOCK = struct.Struct("hhqqi4x")  # l_type, l_whence, l_start, l_len, l_pid of 64-bit Linux's struct flock
_TAIL_BYTES = 2000


class CorruptRecordError(Exception):
    """A record is there and says nothing that can be understood."""


@dataclass(frozen=True, slots=True)
class Child:
    """What child.json says. ``log_pipe_inode`` names the pipe that the child's stdout and stderr are.

    ``mark`` is what all of the tree have in their environment.
    """

    identity: Identity
    shim: Identity
    started_at: float
    log_pipe_inode: int
    mark: str


class Folder:
    """One process's folder. Every method raises Unavailable when the disk (or the table of open files) says no."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def lock_holder(self) -> int | None:
        """Return the pid of the living shim, as the kernel has it (0: in another pid namespace); None without one.

        Asks (F_GETLK) rather than tries: a trial would hold the lock for a moment, just when a shim may want it.
        """
        try:
            fd = os.open(self.path / records.LOCK, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise self._unavailable("ask who holds", records.LOCK, error) from error
        try:
            answer = fcntl.fcntl(fd, fcntl.F_GETLK, _FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0))
        except OSError as error:
            raise self._unavailable("ask who holds", records.LOCK, error) from error
        finally:
            os.close(fd)
        kind, _, _, _, pid = _FLOCK.unpack(answer)
        return None if kind == fcntl.F_UNLCK else max(pid, 0)

    def heartbeat_ticks(self) -> int:
        """When the shim last said that it lives, in ticks since boot; 0 when that can't be read."""
        try:
            return int((self.path / records.LOCK).read_bytes() or b"0")
        except (OSError, ValueError):
            return 0

    def child(self) -> Child | None:
        """Return child.json; None before it is written. Raises CorruptRecordError."""
        record = self._read(records.CHILD)
        if record is None:
            return None
        try:
            boot = str(record["boot_id"])
            identity = Identity.parse(boot, record["child"])
            return Child(
                identity=identity,
                shim=Identity.parse(boot, record["shim"]),
                started_at=float(record["started_at"]),
                log_pipe_inode=int(record["log_pipe_inode"]),
                mark=mark_of(os.fspath(self.path), identity.pid, identity.start_ticks),
            )
        except OSError as error:
            raise self._unavailable("look at", ".", error) from error
        except (KeyError, TypeError, ValueError) as error:
            raise CorruptRecordError(f"{records.CHILD} can't be understood: {error!r}") from error

    def exit(self) -> Exited | None:
        """Return exit.json; None before it is written. Raises CorruptRecordError."""
        record = self._read(records.EXIT)
        if record is None:
            return None
        try:
            code, signal = record["exit_code"], record["signal"]
            return Exited(
                exit_code=None if code is None else int(code),
                signal=None if signal is None else int(signal),
                started_at=float(record["started_at"]),
                ended_at=float(record["ended_at"]),
                message=str(record.get("message", "")),
                was_asked=bool(record.get("stop_asked", False)),
                out_of_memory=bool(record.get("out_of_memory", False)),
                memory_limit_bytes=None if (limit := record.get("memory_limit_bytes")) is None else int(limit),
            )
        except (KeyError, TypeError, ValueError) as error:
            raise CorruptRecordError(f"{records.EXIT} can't be understood: {error!r}") from error

    def stop_deadline(self) -> float | None:
        """When a stop that was asked for is to be enforced, in seconds on CLOCK_BOOTTIME."""
        try:
            record = self._read(records.STOP)
            return None if record is None else float(record["deadline"])
        except (CorruptRecordError, KeyError, TypeError, ValueError):
            return None

    def group(self) -> Group:
        """Return the group that its tree is in; an empty one when it has none, or had it in an earlier boot."""
        try:
            record = self._read(records.COMMAND) or {}
            folders = [str(each) for each in record.get("groups", ())]
            if record.get("boot_id") != boot_id():
                folders = []  # the same path may be made again for another life, and nobody of ours is left
        except (CorruptRecordError, TypeError):
            folders = []
        return Group([each for each in folders if is_of(each, self.path.name)])

    def complaint(self) -> str:
        """The last line that the shim itself wrote on stderr; empty when it did not complain."""
        try:
            with (self.path / records.SHIM_ERR).open("rb") as file:
                file.seek(max(os.fstat(file.fileno()).st_size - _TAIL_BYTES, 0))
                lines = file.read().decode(errors="replace").strip().splitlines()
        except OSError:
            return ""
        return lines[-1] if lines else ""

    def write_command(self, command: Command, log_bounds: dict[str, Any], groups: list[str]) -> None:
        """Make the folder and put the intent on the disk: *command*, the bounds of its log, its group's folders.

        Raises OSError.
        """
        self.path.mkdir(parents=True, exist_ok=True, mode=0o700)
        records.sync_file(os.fspath(self.path.parent))
        (self.path / records.STOP).unlink(missing_ok=True)  # of a life that never began
        record = asdict(command) | log_bounds | {"boot_id": boot_id(), "groups": groups}
        records.replace(os.fspath(self.path / records.COMMAND), json.dumps(record).encode(), durably=True)

    def write_stop(self, deadline: float) -> None:
        """Say when the stop is to be enforced. Raises OSError. Not durable: it means nothing after a reboot."""
        records.replace(os.fspath(self.path / records.STOP), json.dumps({"deadline": deadline}).encode())

    def _read(self, name: str) -> dict[str, Any] | None:
        try:
            record = json.loads((self.path / name).read_bytes())
        except FileNotFoundError:
            return None
        except OSError as error:
            raise self._unavailable("read", name, error) from error
        except ValueError as error:
            raise CorruptRecordError(f"{name} is not JSON: {error}") from error
        if not isinstance(record, dict):
            raise CorruptRecordError(f"{name} is not a JSON object")
        return record

    def _unavailable(self, verb: str, name: str, error: OSError) -> Unavailable:
        return Unavailable(
            f"Can't {verb} {self.path / name}: {error.strerror}.",
            "Nothing was concluded about the process; it is looked at again.",
            code="process-unreadable",
        )
