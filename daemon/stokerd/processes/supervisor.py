"""Start, watch and stop processes that outlive the daemon, each behind a shim (see `stokerd.processes.shim`)."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import re
import shutil
import signal
import time
from collections.abc import Callable, Collection
from pathlib import Path

from stoker.errors import Conflict, Invalid, Unavailable
from stokerd.processes import records, remains
from stokerd.processes.folder import Child, CorruptRecordError, Folder
from stokerd.processes.group import Group
from stokerd.processes.groups import Groups
from stokerd.processes.identity import send
from stokerd.processes.kernel import boot_id, boot_seconds, stat_fields
from stokerd.processes.spares import Spares
from stokerd.processes.states import Absent, Alive, Command, Exited, Lost, Observed
from stokerd.processes.watch import UNSTARTED, Watch

log = logging.getLogger(__name__)

SHIM_PATIENCE_SECONDS = 15.0  # after a stop's deadline a shim that still lives hangs, and is killed
REMAINS_WAIT_SECONDS = 0.2  # how long one look may hold the loop for the remains of a killed shim
REMAINS_PATIENCE_SECONDS = 10.0  # after that they are left behind, and Lost is said all the same
_ID = re.compile(r"[A-Za-z0-9_@+][A-Za-z0-9_@+.:=-]{0,199}")
_FORGOTTEN = ".forgotten-"


class Supervisor:
    """All supervised processes of one home.

    Its methods are meant for the event loop's thread (`start` and `forget` may be called from another one, one thread
    for each id at a time). Without a running loop it works too, but nobody is told of changes. Where the disk or the
    table of open files fails, Unavailable is raised and nothing is concluded: ask again.

    Args:
        folder: holds one folder for each process id; made when it's needed.
        on_change: called with the id, in the loop's thread, soon after a process started, ended, or its shim vanished.
        log_segment_bytes: a log is moved aside when it would grow beyond this.
        log_segments_kept: how many of those are kept of each log, at least 1, beside the one that is written.
        log_max_age_seconds: those last written to before so long are removed; None: none for its age.
        groups: makes a cgroup for each process; without it bounds are enforced as well as rlimits can.
    """

    def __init__(
        self,
        folder: Path,
        *,
        on_change: Callable[[str], None] | None = None,
        log_segment_bytes: int = 64 << 20,
        log_segments_kept: int = 3,
        log_max_age_seconds: float | None = None,
        groups: Groups | None = None,
    ) -> None:
        self._folder = folder
        self._on_change = on_change
        self._groups = groups or Groups("none")
        self._log_bounds = {
            "log_segment_bytes": max(log_segment_bytes, 1),
            "log_segments_kept": max(log_segments_kept, 1),
            "log_max_age_seconds": log_max_age_seconds,
        }
        self._loop: asyncio.AbstractEventLoop | None = None
        self._spares = Spares()
        self._watches: dict[str, Watch] = {}
        self._ended: dict[str, Exited | Lost] = {}  # said once, never looked at again
        self._spawned: set[str] = set()  # by this supervisor: if no trace is left of such a one, its shim failed
        self._alive_ticks: dict[str, int] = {}  # of shims that ended: when we last saw them live
        self._dying_since: dict[str, float] = {}  # shims that vanished, whose remains are not gone yet

    def start(self, process: str, command: Command) -> None:
        """See to it that *command* was started under this id, once: nothing happens when it lives or has ended.

        Takes about 10 ms (the intent is brought to the disk first). That the program could not be started shows in
        `observe`. Raises Invalid when *command* can't be passed to the kernel, Unavailable when no process or file
        can be made.
        """
        folder = self._folder_of(process)
        _check(command)
        self._note_loop()
        if not isinstance(self.observe(process), Absent):
            return
        try:
            folder.write_command(command, self._log_bounds, self._groups.folders(process))
            self._groups.make(process, command.bounds)
            watch = self._spares.use(folder.path)
        except OSError as error:
            raise Unavailable(
                f"Can't start {process}: {error.strerror} ({folder.path}).",
                "Free disk space, memory or process slots; it is tried again.",
                code="process-not-started",
            ) from error
        self._spawned.add(process)
        self._keep(process, watch)
        if self._loop is not None:
            self._loop.call_soon_threadsafe(self._spares.refill_in, self._loop)

    def observe(self, process: str) -> Observed:
        """Say what is true of *process* now. Raises Unavailable when that can't be seen."""
        ended = self._ended.get(process)
        if ended is not None:
            return ended
        folder = self._folder_of(process)
        watch = self._watches.get(process)
        if watch is not None:
            if not watch.has_ended():
                return self._alive(folder, watch)
            self._drop(process)
        self._note_loop()
        if self._find_shim(process, folder):
            return UNSTARTED if process not in self._watches else self._alive(folder, self._watches[process])
        return self._conclude(process, folder)

    def stop(self, process: str, grace_seconds: float) -> None:
        """Have *process* ended: SIGTERM to its group now, SIGKILL to its whole tree after *grace_seconds*.

        Returns at once. Asking again does not prolong; with a shorter grace it shortens.
        """
        if not isinstance(self.observe(process), Alive) or (watch := self._watches.get(process)) is None:
            return
        folder = self._folder_of(process)
        now = boot_seconds()
        before, deadline = folder.stop_deadline(), now + max(grace_seconds, 0.0)
        if before is not None and now > before + SHIM_PATIENCE_SECONDS:
            log.error("the shim %d of %s does not stop it: killing both", watch.pid, process)
            send(watch.pidfd, signal.SIGKILL)
            return
        if before is None or deadline < before:
            try:
                folder.write_stop(deadline)
            except OSError as error:  # then the shim takes its own grace
                log.warning("can't write the deadline of %s's stop: %s", process, error)
        send(watch.pidfd, signal.SIGTERM)
        send(watch.pidfd, signal.SIGCONT)

    def forget(self, process: str) -> None:
        """Remove what is kept of *process* (its log, where that lies elsewhere, stays). Raises Conflict when alive."""
        if isinstance(self.observe(process), Alive):
            raise Conflict(f"The process {process} is alive.", "Stop it and wait for its end.", code="process-alive")
        folder = self._folder / process
        Folder(folder).group().end(REMAINS_WAIT_SECONDS)
        gone = self._folder / f"{_FORGOTTEN}{process}-{time.monotonic_ns()}"
        try:
            if folder.exists():
                folder.rename(gone)  # at one stroke: half a folder would tell half a story
                shutil.rmtree(gone)
        except OSError as error:
            raise Unavailable(
                f"Can't remove {folder}: {error.strerror}.",
                "See that its disk is well and that this user may write there; it is tried again.",
                code="process-not-forgotten",
            ) from error
        finally:
            if not folder.exists():
                self._ended.pop(process, None)
                self._spawned.discard(process)
                self._alive_ticks.pop(process, None)

    def sweep(self, prefix: str, kept: Collection[str], grace_seconds: float) -> bool:
        """End, and then forget, processes whose id has *prefix* and that are not *kept*. Says whether any was there.

        Call it again and again: each call does what can be done now. Raises as `observe`, `stop` and `forget` do.
        """
        others = [p for p in self.ids() if p.startswith(prefix) and p not in kept]
        for process in others:
            if isinstance(self.observe(process), Alive):
                self.stop(process, grace_seconds)
            else:
                self.forget(process)
        return bool(others)

    def ids(self) -> list[str]:
        """Name all processes that were started and not forgotten, sorted."""
        try:
            return sorted(each.name for each in self._folder.iterdir() if _ID.fullmatch(each.name) and each.is_dir())
        except FileNotFoundError:
            return []
        except OSError as error:
            raise Unavailable(
                f"Can't list {self._folder}: {error.strerror}.",
                "See that its disk is well and that this user may read there; it is tried again.",
                code="process-unreadable",
            ) from error

    def adopt(self) -> None:
        """At the daemon's start: look at each process once, watch those that live, kill what dead shims left."""
        self._note_loop()
        if self._loop is not None:
            self._spares.refill_in(self._loop)
        if not self._folder.is_dir():
            return
        for half_removed in self._folder.glob(f"{_FORGOTTEN}*"):
            shutil.rmtree(half_removed, ignore_errors=True)
        for record in (records.COMMAND, records.STOP):  # which nobody but a daemon writes, and there is one
            for half_written in self._folder.glob(f"*/{record}.*.tmp"):
                with contextlib.suppress(OSError):
                    half_written.unlink()
        for process in self.ids():
            try:
                self.observe(process)
            except Unavailable as error:
                log.warning("can't look at %s yet: %s", process, error)
        for process in self._groups.processes().difference(self.ids()):
            log.warning("removing the cgroup of %s, of which nothing else is known", process)
            if not Group(self._groups.folders(process)).end(REMAINS_WAIT_SECONDS):
                log.error("processes in the cgroup of %s do not die of SIGKILL", process)

    def tree_of(self, pid: int) -> str | None:
        """Name the process to whose tree *pid* belongs; None when it isn't ours. May be called from any thread."""
        if (process := self._groups.process_of(pid)) is not None:
            return process
        shims = {watch.pid: process for process, watch in list(self._watches.items())}
        seen: set[int] = set()
        while pid > 1 and pid not in seen:  # a number that passes to another while we climb might lead in circles
            if (process := shims.get(pid)) is not None:
                return process if self._folder_of(process).lock_holder() == pid else None
            seen.add(pid)
            try:
                pid = int(stat_fields(pid)[1])
            except OSError:
                return None
        return None

    def close(self) -> None:
        """Stop watching. The processes go on."""
        self._spares.close()
        while self._watches:
            self._watches.popitem()[1].close()

    def _folder_of(self, process: str) -> Folder:
        if not _ID.fullmatch(process):
            raise Invalid(f"'{process}' can't be the id of a process.", "Use letters, digits and _@+.:=- only.")
        return Folder(self._folder / process)

    def _note_loop(self) -> None:
        if self._loop is None:
            try:
                self._loop = asyncio.get_running_loop()
            except RuntimeError:
                return

    def _keep(self, process: str, watch: Watch) -> None:
        self._watches[process] = watch
        if self._loop is not None:
            self._loop.call_soon_threadsafe(
                watch.attach, self._loop, lambda: self._tell(process), lambda: self._on_ended(process, watch)
            )

    def _drop(self, process: str) -> None:
        """Forget a shim that ended; the loop's own call about it is off, so tell of it from here."""
        watch = self._watches.pop(process, None)
        if watch is None:
            return
        self._alive_ticks[process] = watch.alive_ticks
        watch.close()
        if self._loop is not None and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._tell, process)

    def _on_ended(self, process: str, watch: Watch) -> None:
        if self._watches.get(process) is not watch:
            return
        try:
            self.observe(process)  # drops the watch, which tells of it
        except Unavailable as error:
            log.warning("%s ended, but how can't be seen yet: %s", process, error)

    def _tell(self, process: str) -> None:
        if self._on_change is not None:
            self._on_change(process)

    def _find_shim(self, process: str, folder: Folder) -> bool:
        """Watch the shim that holds *folder*'s lock; False when none lives."""
        holder = folder.lock_holder()
        if not holder:
            return holder == 0  # 0: it lives, in another pid namespace, where we can't reach it
        try:
            pidfd = os.pidfd_open(holder)
        except ProcessLookupError:
            return self._find_shim(process, folder)  # it has ended since: then the lock is free now
        except OSError as error:
            raise Unavailable(
                f"Can't watch {process}: {error.strerror}.",
                "Raise the daemon's limit of open files (`ulimit -n`, LimitNOFILE= of its unit); it is tried again.",
                code="process-unreadable",
            ) from error
        try:
            is_same = folder.lock_holder() == holder  # asked with the pid held fast: it is no one else's
        except Unavailable:
            os.close(pidfd)
            raise
        if not is_same:
            os.close(pidfd)
            return self._find_shim(process, folder)
        self._keep(process, Watch(holder, pidfd))
        if folder.stop_deadline() is not None:  # asked for by a daemon that died, or of a shim that left to this one
            send(pidfd, signal.SIGTERM)
        return True

    def _alive(self, folder: Folder, watch: Watch) -> Alive:
        if watch.state is UNSTARTED:
            try:
                child = folder.child()
            except CorruptRecordError as error:
                log.warning("%s: %s", folder.path.name, error)
                child = None
            if child is not None:
                watch.state = Alive(child.identity.pid, child.started_at)
        return watch.state

    def _conclude(self, process: str, folder: Folder) -> Observed:
        """No shim lives: say how it ended, or that it never was, and kill what a killed shim left behind."""
        child: Child | None = None
        try:
            exited = folder.exit()
            if exited is not None:
                folder.group().end(0)  # gone already, unless the shim was killed at the very end
                self._ended[process] = exited
                return exited
            child = folder.child()
        except CorruptRecordError as error:
            self._ended[process] = Lost(f"How it ended can't be read: {error}.")
            return self._ended[process]
        if child is None:
            if process not in self._spawned:
                return Absent()
            folder.group().end(REMAINS_WAIT_SECONDS)
            reason = folder.complaint() or "it was killed"
            self._ended[process] = Lost(f"Its shim ended before it could start the program: {reason}.")
            return self._ended[process]
        alive_until = max(folder.heartbeat_ticks(), self._alive_ticks.get(process, 0))
        since = self._dying_since.setdefault(process, time.monotonic())
        if not remains.kill(child, folder.group(), alive_until, REMAINS_WAIT_SECONDS):
            if time.monotonic() - since < REMAINS_PATIENCE_SECONDS:
                if self._loop is not None and not self._loop.is_closed():
                    self._loop.call_soon_threadsafe(self._loop.call_later, REMAINS_WAIT_SECONDS, self._tell, process)
                return Alive(child.identity.pid, child.started_at)
            log.error("processes of %s do not die of SIGKILL", process)
        self._dying_since.pop(process, None)
        by_reboot = child.identity.boot_id != boot_id()
        reason = "the machine went down" if by_reboot else folder.complaint() or "it was killed"
        self._ended[process] = Lost(f"Its shim is gone and left no exit status: {reason}.", by_reboot=by_reboot)
        return self._ended[process]


def _check(command: Command) -> None:
    if not command.argv or not command.argv[0]:
        raise Invalid("A command needs at least the name of a program.", "Say which program to start.")
    for path in (command.cwd, command.log):
        if not Path(path).is_absolute():
            raise Invalid(
                f"'{path}' is not an absolute path.", "Write it from the root on, with a slash at its beginning."
            )
    for text in (*command.argv, command.cwd, command.log, *command.env, *command.env.values()):
        try:
            os.fsencode(text)
        except UnicodeEncodeError as error:
            raise Invalid(
                f"A command can't contain {text!r}: {error.reason}.",
                "Remove that character; any other of Unicode may be used.",
            ) from error
        if "\0" in text:
            raise Invalid(f"A command can't contain a NUL byte: {text!r}.", "Remove it, or pass the text in a file.")
    for name in command.env:
        if not name or "=" in name:
            raise Invalid(
                f"'{name}' can't be the name of an environment variable.", "Name it, and without an equals sign."
            )
