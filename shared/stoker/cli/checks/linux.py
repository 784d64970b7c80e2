"""The kernel: what Stoker asks of it, how it bounds processes, what time it has."""

from __future__ import annotations

import ctypes
import os
import re
import time
from collections.abc import Iterator

from stoker.cli.checks.finding import Finding, Look
from stoker.types.host import NO_MEMORY_OF_TREES

_OLDEST = (5, 4)  # pidfds that can be waited for
_MIN_WATCHES, _MIN_INSTANCES = 8192, 128
_STA_UNSYNC, _TIME_ERROR = 0x40, 5
_BUILT = 1_767_225_600.0  # 2026-01-01: an earlier time is surely wrong


def kernel(look: Look) -> Iterator[Finding]:
    """Its version, and what is needed of it."""
    release = os.uname().release
    numbers = re.match(r"(\d+)\.(\d+)", release)
    version = (int(numbers[1]), int(numbers[2])) if numbers else (0, 0)
    try:
        os.close(os.pidfd_open(os.getpid()))
    except OSError as error:
        yield Finding(
            "kernel",
            "fail",
            f"Linux {release} gives no pidfds here ({error.strerror}).",
            "Use Linux 5.4 or newer; in a container, a seccomp profile that allows pidfd_open and pidfd_send_signal.",
        )
        return
    if version < _OLDEST:
        yield Finding("kernel", "fail", f"Linux {release} is too old.", "Use Linux 5.4 or newer.")
    else:
        yield Finding("kernel", "ok", f"Linux {release} has all that is needed.")


def cgroups(look: Look) -> Iterator[Finding]:
    """How limits are enforced: as the daemon says, else as it looks from here."""
    hint = "Let systemd run the daemon (`stoker install-service`): it gives it cgroups of its own."
    if look.host is not None and look.host.limits:
        message = f"limits of runs and servers are enforced by {look.host.limits}."
        if NO_MEMORY_OF_TREES in look.host.limits:
            yield Finding("cgroups", "warn", message, hint)
        else:
            yield Finding("cgroups", "ok", message)
        return
    top = look.path("/sys/fs/cgroup")
    if (top / "cgroup.controllers").exists():
        kind, folder = "v2", top
    elif (top / "memory").is_dir():
        kind, folder = "v1", top / "memory"
    else:
        yield Finding("cgroups", "warn", "no cgroups are mounted: limits hold for single processes only.", hint)
        return
    if os.access(folder, os.W_OK):
        yield Finding("cgroups", "ok", f"cgroup {kind}, and this user may make groups.")
    else:
        message = f"cgroup {kind}, where this user may make no groups: limits would hold for single processes only."
        yield Finding("cgroups", "warn", message, hint)


def inotify(look: Look) -> Iterator[Finding]:
    """What following what runs report takes."""
    for name, least in (("max_user_watches", _MIN_WATCHES), ("max_user_instances", _MIN_INSTANCES)):
        told = look.text(f"/proc/sys/fs/inotify/{name}")
        if told.isdigit() and int(told) < least:
            yield Finding(
                "inotify",
                "warn",
                f"fs.inotify.{name} is {told}: many runs at once may find no more of them.",
                f"sysctl -w fs.inotify.{name}={least}, and in /etc/sysctl.d to keep it.",
            )
            return
    yield Finding("inotify", "ok", "its limits are high enough.")


class _Timex(ctypes.Structure):
    """struct timex of adjtimex(2), as far as ``status``; the rest is room."""

    _fields_ = (
        ("modes", ctypes.c_uint),
        ("offset", ctypes.c_long),
        ("freq", ctypes.c_long),
        ("maxerror", ctypes.c_long),
        ("esterror", ctypes.c_long),
        ("status", ctypes.c_int),
        ("rest", ctypes.c_char * 256),
    )


def clock(look: Look) -> Iterator[Finding]:
    """Whether it is right, kept so, and never went back over what is stored."""
    try:
        newest = max(p.stat().st_mtime for p in (look.home.state_db, look.home.metrics_db) if p.exists())
    except (OSError, ValueError):
        newest = 0.0
    now = time.time()
    if now < _BUILT:
        message = f"the clock says {time.strftime('%Y-%m-%d', time.gmtime(now))}, which can't be."
        yield Finding("clock", "fail", message, "Set it, and let NTP keep it: timedatectl set-ntp true.")
    elif newest > now + 60:
        message = f"the clock is {newest - now:.0f} s behind what was stored last: it was set back."
        yield Finding("clock", "warn", message, "Schedules and times of events look wrong until it has caught up.")
    elif not _is_synchronised():
        message = "the clock is not synchronised: schedules fire, and events are dated, as it drifts."
        yield Finding("clock", "warn", message, "timedatectl set-ntp true, or run chrony.")
    else:
        yield Finding("clock", "ok", "the clock is synchronised.")


def _is_synchronised() -> bool:
    timex = _Timex()
    state = ctypes.CDLL(None, use_errno=True).adjtimex(ctypes.byref(timex))
    return state not in (-1, _TIME_ERROR) and not timex.status & _STA_UNSYNC
