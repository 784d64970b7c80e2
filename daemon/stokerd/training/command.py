"""From a run to the command that executes it. Pure, so that a run starts the same after any restart."""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from stoker.errors import InvalidSpec
from stoker.types.training import JobSpec, Run
from stokerd.processes.states import Bounds, Command

OOM_SCORE_ADJ = 800  # when memory runs out, training goes first: it can be done again
_PLACEHOLDER = re.compile(r"(?<!\$)\{([a-z][a-z_]*(?:\.[A-Za-z0-9_-]+)?)\}")


@dataclass(frozen=True, slots=True)
class Places:
    """The folders of a run. ``dataset`` and ``base`` are None when the job names none."""

    folder: Path
    python: str
    dataset: Path | None
    base: Path | None
    library: Path

    @property
    def code(self) -> Path:
        """The run's own writable copy of the code; its working directory."""
        return self.folder / "code"

    @property
    def output(self) -> Path:
        """Where the program leaves its results."""
        return self.folder / "output"

    @property
    def log(self) -> Path:
        """Stdout and stderr."""
        return self.folder / "log"


def check_command(spec: JobSpec) -> None:
    """Refuse a command with a placeholder that can't be filled in, or checkpoints elsewhere. Raises `InvalidSpec`."""
    if spec.checkpoint is not None and (spec.checkpoint.startswith("/") or ".." in Path(spec.checkpoint).parts):
        raise InvalidSpec(
            f"job {spec.name}: checkpoint: {spec.checkpoint} leaves the run's output folder.",
            "Give a path or pattern within it, such as checkpoint-*.pt, and write there ($STOKER_OUTPUT).",
        )
    known = {"python", "code", "output"} | {f"params.{p}" for p in spec.params}
    known |= {"dataset"} if spec.dataset else set()
    known |= {"base"} if spec.base else set()
    known |= {"checkpoint"} if spec.checkpoint else set()
    for argument in spec.command:
        for name in _PLACEHOLDER.findall(argument):
            if name not in known:
                listed = ", ".join(f"{{{k}}}" for k in sorted(known))
                raise InvalidSpec(
                    f"job {spec.name}: command: {{{name}}} can't be filled in.", f"Known in this job: {listed}."
                )


def command_of(run: Run, places: Places, inherited: Mapping[str, str]) -> Command:
    """What executes *run*. ``{python}``, ``{dataset}``, ``{params.NAME}``, … are filled in; params are in env too."""
    values = {"python": places.python, "code": str(places.code), "output": str(places.output)}
    values |= {f"params.{k}": _text(v) for k, v in run.params.items()}
    env = dict(inherited)
    env |= {
        "STOKER_RUN": run.name,
        "STOKER_RUN_DIR": str(places.folder),
        "STOKER_OUTPUT": str(places.output),
        "STOKER_PARAMS": json.dumps(run.params),
        "STOKER_ATTEMPT": str(run.attempt),
        "PYTHONPATH": str(places.library),
        "PYTHONUNBUFFERED": "1",
    }
    for name, path in (("dataset", places.dataset), ("base", places.base)):
        if path is not None:
            values[name] = str(path)
            env[f"STOKER_{name.upper()}"] = str(path)
    if run.spec.checkpoint is not None:
        values["checkpoint"] = run.checkpoint or ""
        if run.checkpoint is not None:
            env["STOKER_CHECKPOINT"] = run.checkpoint
    if run.devices:
        env["CUDA_VISIBLE_DEVICES"] = ",".join(run.devices)
    env |= run.spec.env
    argv = tuple(_PLACEHOLDER.sub(lambda m: values.get(m[1], m[0]), a) for a in run.spec.command)
    limits = run.spec.limits
    bounds = Bounds(limits.memory, limits.processes, limits.cpu_weight, OOM_SCORE_ADJ)
    return Command(argv=argv, cwd=str(places.code), env=env, log=str(places.log), bounds=bounds)


def newest_checkpoint(folder: Path, pattern: str) -> Path | None:
    """The file or folder in *folder* that fits *pattern* and was changed last; None when there is none."""
    found: list[tuple[float, Path]] = []
    for path in folder.glob(pattern):
        with contextlib.suppress(OSError):  # the program may have rotated it away meanwhile
            found.append((path.stat().st_mtime, path))
    return max(found)[1] if found else None


def _text(value: str | int | float | bool) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
