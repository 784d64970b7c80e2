"""What the kernel tells of processes, and how a series of measurements is summed up."""

from __future__ import annotations

import math
import os
import platform
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median


@dataclass(frozen=True, slots=True)
class Memory:
    """Bytes. ``pss`` counts pages that are shared with others by share, so that it may be added up."""

    rss: int
    pss: int


def cpu_seconds(pid: int) -> float:
    """CPU time that *pid* has used in all its threads, ended ones too; to the nanosecond, where stat has 10 ms."""
    return time.clock_gettime(~pid << 3 | 2)  # the id of its CPU clock: MAKE_PROCESS_CPUCLOCK in the kernel


def cpu_of(pids: Iterable[int]) -> float:
    """The sum of `cpu_seconds`."""
    return sum(cpu_seconds(pid) for pid in pids)


def memory(pid: int) -> Memory:
    """What *pid* has in memory now."""
    fields = dict(line.split()[:2] for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:])
    return Memory(int(fields["Rss:"]) * 1024, int(fields["Pss:"]) * 1024)


def memory_of(pids: Iterable[int]) -> Memory:
    """The sums of `memory`."""
    all_of_them = [memory(pid) for pid in pids]
    return Memory(sum(m.rss for m in all_of_them), sum(m.pss for m in all_of_them))


@dataclass(frozen=True, slots=True)
class Summary:
    """Of a series, in its own unit. With few values ``p99`` is the largest."""

    count: int
    p50: float
    p99: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Summary:
        """Sum *values* up; there must be one."""
        return cls(len(values), median(values), sorted(values)[math.ceil(0.99 * len(values)) - 1])


def machine() -> dict[str, object]:
    """On what this was measured, and how busy that was with other things."""
    return {
        "cores": len(os.sched_getaffinity(0)),
        "cpu": platform.machine(),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "load_1m": round(os.getloadavg()[0], 2),
    }
