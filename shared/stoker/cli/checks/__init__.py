"""What `stoker doctor` looks at: one function for each subject, which looks and says what it found."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from stoker.cli.checks.capacity import limits, memory, shared_memory
from stoker.cli.checks.finding import Finding, Look
from stoker.cli.checks.gpu import driver, nvml
from stoker.cli.checks.linux import cgroups, clock, inotify, kernel
from stoker.cli.checks.pythons import serving_python, training_python
from stoker.cli.checks.service import daemon, gateway, systemd
from stoker.cli.checks.storage import home, leftovers, settings

CHECKS: tuple[Callable[[Look], Iterator[Finding]], ...] = (
    daemon,
    gateway,
    systemd,
    home,
    settings,
    leftovers,
    driver,
    nvml,
    serving_python,
    training_python,
    kernel,
    cgroups,
    limits,
    memory,
    shared_memory,
    inotify,
    clock,
)

__all__ = ["CHECKS", "Finding", "Look"]
