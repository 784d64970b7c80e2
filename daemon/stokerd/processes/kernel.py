"""What the kernel says of time and processes. Light: each shim loads it."""

# ruff: noqa: PTH123, PTH208

from __future__ import annotations

import ctypes
import os
import time

PR_SET_PDEATHSIG, PR_SET_CHILD_SUBREAPER = 1, 36


def boot_seconds() -> float:
    """Seconds since boot, suspension included: moved by no one, and the same for every process."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def boot_ticks() -> int:
    """`boot_seconds` in the unit of /proc/PID/stat's start times."""
    return int(boot_seconds() * os.sysconf("SC_CLK_TCK"))


def boot_id() -> str:
    """Name this boot of the machine."""
    with open("/proc/sys/kernel/random/boot_id") as file:
        return file.read().strip()


def stat_fields(pid: int) -> list[str]:
    """Return /proc/PID/stat from the state on: [0] state, [1] ppid, [2] pgrp, [3] session, [19] start in boot ticks.

    Raises OSError when there is no such process.
    """
    with open(f"/proc/{pid}/stat", "rb") as file:
        return file.read().rpartition(b")")[2].decode().split()


def age_seconds(pid: int) -> float:
    """How long *pid* has lived, to 10 ms; setting the clock changes nothing. Raises OSError when there is none."""
    return max(boot_ticks() - int(stat_fields(pid)[19]), 0) / os.sysconf("SC_CLK_TCK")


def all_pids() -> list[int]:
    """Every process that this one may see."""
    return [int(name) for name in os.listdir("/proc") if name.isdigit()]


def prctl(option: int, value: int) -> None:
    """Set one of this process's switches; see prctl(2). Raises OSError."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(option, ctypes.c_ulong(value), ctypes.c_ulong(0), ctypes.c_ulong(0), ctypes.c_ulong(0)) != 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), f"prctl {option}")
