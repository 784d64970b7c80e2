"""The one parent that a supervised process has: starts it, keeps its log and its exit status, ends its tree.

Light: each shim loads it.
"""

# ruff: noqa: PTH104, PTH109, PTH119, PTH123

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import select
import signal
import time

from stokerd.processes.child import CANNOT_EXECUTE, GO, GO_UNBOUNDED, StartError, become, read_command
from stokerd.processes.group import Group, is_of
from stokerd.processes.kernel import all_pids, boot_id, boot_seconds, boot_ticks, stat_fields
from stokerd.processes.log_writer import LogWriter
from stokerd.processes.records import CHILD, EXIT, RESERVE, RESERVE_BYTES, STOP, replace, sync_file, write_all

TYPE_CHECKING = False
if TYPE_CHECKING:  # the real one lives in a module that would cost each shim a megabyte
    from typing import Any

DEFAULT_GRACE_SECONDS = 10.0  # of a SIGTERM that came without a readable stop.json
SWEEP_SECONDS = 10.0  # how long the tree's remains may take to die of SIGKILL before they are left and named
HEARTBEAT_SECONDS = 60.0
READ_BYTES = 1 << 16  # below malloc's mmap threshold: each read would else map and fault in fresh pages
PIPE_BYTES = 1 << 18  # 64 pipes of 1 MiB would reach the kernel's limit for one user


class Parent:
    """One life: start, watch, end. Everything happens in one thread, around one poll."""

    def __init__(self, lock: int) -> None:
        self._lock = lock
        self._poll = select.poll()
        self._stop_asked = False
        self._stop_sent = False
        self._deadline: float | None = None
        self._child = 0
        self._started_at = 0.0
        self._log: LogWriter | None = None
        self._group = Group([])
        self._group_failure = ""
        self._memory_bytes: int | None = None
        self._log_pipe = self._failure_pipe = -1
        self._failure = b""
        self._next_beat = 0.0
        self._beat_interval = 1.0
        self._wake_pipe = self._take_signals()

    def _take_signals(self) -> int:
        wake_pipe, wake = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        signal.set_wakeup_fd(wake, warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.signal(signal.SIGTERM, self._on_term)
        for number in (signal.SIGHUP, signal.SIGINT, signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2):
            signal.signal(number, signal.SIG_IGN)
        signal.pthread_sigmask(signal.SIG_SETMASK, [])  # the supervisor had all blocked, so that none came too early
        self._poll.register(wake_pipe, select.POLLIN)
        return wake_pipe

    def _on_term(self, *_: object) -> None:
        self._stop_asked = True

    def run(self) -> None:
        """Start what command.json says, wait for its end, leave exit.json."""
        self._beat()
        reserve = os.open(RESERVE, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        write_all(reserve, b" " * RESERVE_BYTES)
        self._started_at = time.time()
        result: dict[str, Any]
        try:
            if self._stop_asked:
                result = {"signal": signal.SIGTERM, "message": "", "stop_asked": True}
            else:
                self._start(read_command())
                self._wait()
                result = self._reap()
        except StartError as error:
            result = {"exit_code": error.exit_code, "message": error.message}
        result.setdefault("ended_at", time.time())
        result["remains"] = self._sweep()
        if self._group.oom_kills():
            result["out_of_memory"], result["memory_limit_bytes"] = True, self._memory_bytes
        self._group.remove()
        result["group_failure"] = self._group_failure
        self._drain()
        result["log_dropped_bytes"] = self._log.dropped_bytes if self._log else 0
        self._record_exit(reserve, {"exit_code": None, "signal": None, "started_at": self._started_at, **result})

    def _start(self, command: dict[str, Any]) -> None:
        self._log = LogWriter(
            command["log"], command["log_segment_bytes"], command["log_segments_kept"], command["log_max_age_seconds"]
        )
        self._memory_bytes = command["memory_bytes"]
        process = os.path.basename(os.getcwd())
        self._group = Group([folder for folder in command["groups"] if is_of(folder, process)])
        self._log_pipe, out = os.pipe2(os.O_CLOEXEC)
        os.set_blocking(self._log_pipe, False)
        with contextlib.suppress(OSError):  # the user's pipes have reached the kernel's soft limit: 64 KiB will do
            fcntl.fcntl(out, fcntl.F_SETPIPE_SZ, PIPE_BYTES)
        go, start = os.pipe2(os.O_CLOEXEC)
        self._failure_pipe, failed = os.pipe2(os.O_CLOEXEC)
        shim = os.getpid()
        # What is sent to the child before it is the program waits until it is: our handlers there would swallow it.
        signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
        try:
            self._child = os.fork()
        except OSError as error:
            signal.pthread_sigmask(signal.SIG_SETMASK, [])
            raise StartError(f"No process can be made: {error.strerror}.") from error
        if self._child == 0:
            try:
                os.write(
                    failed, become(command, shim, (go, start, out)).encode("utf-8", "backslashreplace")[:RESERVE_BYTES]
                )
            finally:
                os._exit(CANNOT_EXECUTE)
        signal.pthread_sigmask(signal.SIG_SETMASK, [])
        for fd in (out, go, failed):
            os.close(fd)
        self._poll.register(self._log_pipe, select.POLLIN)
        self._poll.register(self._failure_pipe, select.POLLIN)
        self._group_failure = self._group.enter(self._child)  # not we: what kills all of the group must leave us
        self._record_child(os.fstat(self._log_pipe).st_ino)
        with contextlib.suppress(BrokenPipeError):  # somebody killed it already
            os.write(start, GO_UNBOUNDED if self._group.memory_limit() is None else GO)
        os.close(start)
        with contextlib.suppress(OSError):  # to the disk, while the program starts: a crash of the machine ends both
            sync_file(CHILD)
            sync_file(".")

    def _record_child(self, log_pipe_inode: int) -> None:
        me = os.getpid()
        record = {
            "boot_id": boot_id(),
            "shim": {"pid": me, "start_ticks": int(stat_fields(me)[19])},
            "child": {"pid": self._child, "start_ticks": int(stat_fields(self._child)[19])},
            "started_at": self._started_at,
            "log_pipe_inode": log_pipe_inode,
        }
        try:
            replace(CHILD, json.dumps(record).encode())
        except OSError as error:
            os.kill(self._child, signal.SIGKILL)
            raise StartError(f"The start can't be recorded in {os.getcwd()}: {error.strerror}.") from error

    def _wait(self) -> None:
        """Until the child is dead (and not reaped: its number stays its own as long as signals may be sent to it)."""
        while True:
            now = boot_seconds()
            if self._stop_asked:
                self._take_stop(now)
            if self._deadline is not None:
                if not self._stop_sent and self._failure_pipe < 0:  # before it is a program SIGTERM would be lost
                    self._send_stop()
                if now >= self._deadline:
                    self._signal_group(signal.SIGKILL)
            if now >= self._next_beat:
                self._beat()
            # After SIGKILL was sent the deadline lies behind us: then look again every 100 ms, not at once.
            wait = self._next_beat - now
            self._pump(wait if self._deadline is None else min(wait, max(self._deadline - now, 0.1)))
            if self._reap_orphans():
                return

    def _take_stop(self, now: float) -> None:
        self._stop_asked = False  # before the file is read: who asks after that is heard again
        try:
            with open(STOP, "rb") as file:
                deadline = float(json.load(file)["deadline"])
        except (OSError, ValueError, KeyError, TypeError):
            deadline = now + DEFAULT_GRACE_SECONDS
        self._deadline = deadline if self._deadline is None else min(self._deadline, deadline)

    def _send_stop(self) -> None:
        self._stop_sent = True
        self._signal_group(signal.SIGTERM)
        self._signal_group(signal.SIGCONT)  # a stopped program takes no SIGTERM

    def _signal_group(self, number: signal.Signals) -> None:
        """The child's group; by SIGKILL surely the child, which may have left it."""
        with contextlib.suppress(ProcessLookupError, PermissionError):  # no group any more, or another user's program
            os.killpg(self._child, number)
        if number == signal.SIGKILL:
            with contextlib.suppress(PermissionError):
                os.kill(self._child, number)

    def _beat(self) -> None:
        """Leave word that we live, so that what starts before the next time is known for ours; often at first."""
        self._next_beat = boot_seconds() + self._beat_interval
        self._beat_interval = min(self._beat_interval * 2, HEARTBEAT_SECONDS)
        with contextlib.suppress(OSError):
            os.pwrite(self._lock, b"%d\n" % boot_ticks(), 0)
        if self._log is not None:
            self._log.tend()

    def _pump(self, wait_seconds: float) -> None:
        """Wait for something to happen, at most so long, and take what is readable."""
        for fd, _ in self._poll.poll(max(wait_seconds, 0) * 1000):
            if fd == self._wake_pipe:
                os.read(fd, READ_BYTES)
            elif fd == self._log_pipe:
                self._take_log()
            elif data := os.read(fd, RESERVE_BYTES):
                self._failure += data
            else:
                self._announce()

    def _take_log(self) -> bool:
        """Move one piece from the pipe to the file; False when nothing more is there now."""
        if self._log_pipe < 0 or self._log is None:
            return False
        try:
            data = os.read(self._log_pipe, READ_BYTES)
        except BlockingIOError:
            return False
        if data:
            self._log.write(data)
            return True
        self._poll.unregister(self._log_pipe)  # all writers closed it; the child may live on
        os.close(self._log_pipe)
        self._log_pipe = -1
        return False

    def _announce(self) -> None:
        """The program runs, or could not: tell the supervisor, if it is still there, by closing stdout."""
        self._poll.unregister(self._failure_pipe)
        os.close(self._failure_pipe)
        self._failure_pipe = -1
        os.dup2(os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC), 1)

    def _reap_orphans(self) -> bool:
        """Bury the dead of the tree; True when the child itself is among them, which is left for `_reap`."""
        while True:
            try:
                dead = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
            except ChildProcessError:
                return False
            if dead is None or dead.si_pid == self._child:
                return dead is not None
            os.waitpid(dead.si_pid, 0)

    def _reap(self) -> dict[str, Any]:
        ended_at = time.time()
        self._signal_group(signal.SIGKILL)  # the rest of its group, while the number is surely its own
        _, status, usage = os.wait4(self._child, 0)
        while self._failure_pipe >= 0:
            self._pump(1.0)
        if self._failure:
            failed_with, _, message = self._failure.decode().partition(" ")
            raise StartError(message, int(failed_with))
        code = os.waitstatus_to_exitcode(status)
        return {
            "exit_code": code if code >= 0 else None,
            "signal": -code if code < 0 else None,
            "ended_at": ended_at,
            "message": "",
            "stop_asked": self._stop_asked or self._deadline is not None,  # sent or not: others may have sent theirs
            "rusage": {
                "user_seconds": usage.ru_utime,
                "system_seconds": usage.ru_stime,
                "max_rss_bytes": usage.ru_maxrss * 1024,
            },
        }

    def _sweep(self) -> list[int]:
        """Kill what is left of the tree, all at once by its group or generation by generation; return who did not die.

        Where there is no group, only own children that were not reaped are signalled, so their numbers can't have
        passed to others; theirs become ours when they die, since we are the subreaper.
        """
        me, deadline = os.getpid(), boot_seconds() + SWEEP_SECONDS
        while True:
            members = self._group.members()
            if members:
                self._group.kill()
            try:
                while os.waitpid(-1, os.WNOHANG)[0]:
                    pass
                left = [pid for pid in all_pids() if _parent(pid) == me]
            except ChildProcessError:
                left = []
            if not left and not members:
                return []
            if boot_seconds() > deadline:
                return sorted(members.union(left))
            for pid in left:
                with contextlib.suppress(PermissionError):  # another user's, through a setuid program
                    os.kill(pid, signal.SIGKILL)
            self._pump(0.02)

    def _drain(self) -> None:
        """Take what the pipe still holds. It may have writers (a process that SIGKILL did not end): never wait."""
        deadline = boot_seconds() + 1.0
        while boot_seconds() < deadline and self._take_log():
            pass

    def _record_exit(self, reserve: int, record: dict[str, Any]) -> None:
        data = json.dumps(record).encode()
        if len(data) > RESERVE_BYTES:
            # 12 bytes for each character at the most
            record |= {"message": str(record["message"])[:200], "group_failure": "", "remains": []}
            data = json.dumps(record).encode()
        os.pwrite(reserve, data, 0)
        os.ftruncate(reserve, len(data))
        os.fsync(reserve)
        os.rename(RESERVE, EXIT)
        sync_file(".")


def _parent(pid: int) -> int:
    try:
        return int(stat_fields(pid)[1])
    except OSError:
        return 0
