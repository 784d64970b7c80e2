"""Any program that serves the OpenAI API on the socket or port that it is told."""

from __future__ import annotations

import re
import shutil
from collections.abc import Sequence

from stoker.types.serving import CommandEngine
from stokerd.processes.states import Command
from stokerd.serving.engines.base import Launch, Probe, probe_body

_PLACEHOLDER = re.compile(r"(?<!\$)\{([a-z]+)\}")
KNOWN = ("socket", "port", "model", "version", "name")


class CommandServer:
    """Adapter of the ``command`` engine."""

    def __init__(self, spec: CommandEngine) -> None:
        self._spec = spec

    @property
    def health_path(self) -> str:
        """As the spec names it."""
        return self._spec.health_path

    @property
    def metrics_path(self) -> str | None:
        """Nothing is known of its metrics."""
        return None

    @property
    def sleep_paths(self) -> None:
        """Nothing is known of its sleep."""
        return None

    def command(self, launch: Launch) -> Command:
        """Fill in the placeholders."""
        values = {
            "socket": str(launch.socket),
            "port": str(launch.port),
            "model": str(launch.model),
            "version": str(launch.version),
            "name": launch.deployment,
        }
        env = dict(launch.inherited)
        if launch.devices:
            env["CUDA_VISIBLE_DEVICES"] = ",".join(launch.devices)
        env |= self._spec.env
        argv = tuple(_PLACEHOLDER.sub(lambda m: values.get(m[1], m[0]), a) for a in self._spec.command)
        return Command(argv=argv, cwd=str(launch.log.parent), env=env, log=str(launch.log), bounds=launch.bounds)

    def probes(self, deployment: str) -> Sequence[Probe]:
        """An inference at the path that the spec names."""
        return [Probe(self._spec.ready_path, probe_body(self._spec.ready_path, deployment))]

    def needs_port(self) -> bool:
        """Only when the command speaks of a port."""
        return any("{port}" in a for a in self._spec.command)

    def problem(self) -> str:
        """Whether there is such a program."""
        program = self._spec.command[0]
        return "" if shutil.which(program) else f"there is no program {program}."

    def options(self) -> frozenset[str]:
        """Its options are the spec's."""
        return frozenset()

    def steps(self, metrics: str) -> float | None:
        """It counts none."""
        return None

    def progress(self, lines: Sequence[str]) -> str:
        """What it said last."""
        return next((line.strip() for line in reversed(lines) if line.strip()), "")


def unknown_placeholder(command: Sequence[str]) -> str | None:
    """The first placeholder that can't be filled in."""
    return next((n for a in command for n in _PLACEHOLDER.findall(a) if n not in KNOWN), None)
