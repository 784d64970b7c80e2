"""Memory, and the limits of processes."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator

from stoker.cli.checks.finding import Finding, Look
from stoker.cli.human import size

_MIN_FILES, _MIN_PROCESSES = 4096, 4096
_MIN_PINNED = 64 << 20
_MIN_SHARED = 1 << 30
_MIN_MEMORY = 4 << 30
_UNLIMITED = float("inf")


def limits(look: Look) -> Iterator[Finding]:
    """Of the daemon, which runs and servers inherit; of this shell where it doesn't run or isn't ours to see."""
    text = look.text(f"/proc/{look.host.pid}/limits") if look.host else ""
    whose = "the daemon's" if text else "this shell's"
    text = text or look.text(f"/proc/{os.getpid()}/limits")
    problems = []
    for label, least, words, remedy in (
        ("Max open files", _MIN_FILES, "open files", "LimitNOFILE=1048576"),
        ("Max processes", _MIN_PROCESSES, "processes", "LimitNPROC=infinity"),
        ("Max locked memory", _MIN_PINNED if look.has_driver else 0, "bytes of locked memory", "LimitMEMLOCK=infinity"),
    ):
        found = re.search(rf"^{label} +(\S+)", text, re.MULTILINE)
        limit = _UNLIMITED if found is None or found[1] == "unlimited" else int(found[1])
        if limit < least:
            problems.append((f"{limit:.0f} {words}", remedy))
    if problems:
        few, remedies = zip(*problems, strict=True)
        yield Finding(
            "limits",
            "warn",
            f"{whose} limits are low: {', '.join(few)}.",
            f"The unit of `stoker install-service` raises them ({' '.join(remedies)}); in a shell, ulimit does.",
        )
    else:
        yield Finding("limits", "ok", f"{whose} limits of files, processes and locked memory are high enough.")


def memory(look: Look) -> Iterator[Finding]:
    """How much there is, and whether it may be promised."""
    told = dict(re.findall(r"^(\w+): +(\d+)", look.text("/proc/meminfo"), re.MULTILINE))
    total, swap = (int(told.get(name, 0)) << 10 for name in ("MemTotal", "SwapTotal"))
    if look.text("/proc/sys/vm/overcommit_memory") == "2":
        yield Finding(
            "memory",
            "warn",
            "vm.overcommit_memory is 2: CUDA and torch reserve far more than they use, and fail.",
            "sysctl -w vm.overcommit_memory=0, and in /etc/sysctl.d to keep it.",
        )
    elif total and total < _MIN_MEMORY:
        message = f"{size(total)} of memory is little for training or serving anything."
        yield Finding("memory", "warn", message, "Use a larger machine, or the smallest of models.")
    else:
        yield Finding("memory", "ok", f"{size(total)}, and {size(swap) if swap else 'no'} swap.")


def shared_memory(look: Look) -> Iterator[Finding]:
    """/dev/shm, through which the workers of one server or run talk."""
    try:
        total = shutil.disk_usage(look.path("/dev/shm")).total
    except OSError as error:
        yield Finding("/dev/shm", "fail", f"it can't be used: {error.strerror}.", "mount -t tmpfs tmpfs /dev/shm")
        return
    if total < _MIN_SHARED:
        yield Finding(
            "/dev/shm",
            "warn",
            f"it has {size(total)}: tensor parallel servers and data loaders with workers may crash with a bus error.",
            "mount -o remount,size=8G /dev/shm; in a container, --shm-size=8g or --ipc=host.",
        )
    else:
        yield Finding("/dev/shm", "ok", f"{size(total)}.")
