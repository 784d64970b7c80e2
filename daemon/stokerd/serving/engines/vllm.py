"""vLLM's OpenAI server, over its own Unix socket."""

from __future__ import annotations

import math
import re
import shutil
import subprocess
from collections.abc import Sequence

from stoker.types.serving import VllmEngine
from stokerd.processes.states import Command
from stokerd.serving.engines.base import ENGINE_DRAIN_SECONDS, Launch, Probe, SleepPaths, probe_body

SHUTDOWN_TIMEOUT = "--shutdown-timeout"
ENABLE_LORA = "--enable-lora"
ENABLE_SLEEP = "--enable-sleep-mode"
SLEEP_PATHS = SleepPaths(sleep="/sleep?level=1", wake="/wake_up", is_sleeping="/is_sleeping")
"""Level 1 keeps the weights in the host's memory. Level 2 drops them: to wake up, they would have to be read again by
a call of arbitrary code (``/collective_rpc``), for about the time of a start. What is in flight is aborted."""
_MEMORY_SHARE = "--gpu-memory-utilization"
_OWN_OPTIONS = ("--model", "--served-model-name", "--uds", "--host", "--port")
_FIND_SECONDS = 30.0
# Both without importing vLLM, which takes ten seconds and more: `--help` would be no cheaper.
_HAS_VLLM = "import importlib.util as u, sys; sys.exit(0 if u.find_spec('vllm') else 3)"
_KNOWS_OPTION = """
import importlib.util as u, pathlib, sys
option = sys.argv[1]
for root in u.find_spec('vllm').submodule_search_locations:
    for folder in ('engine', 'entrypoints', 'config'):
        for file in pathlib.Path(root, folder).rglob('*.py'):
            text = file.read_text(errors='replace')
            if f'"{option}"' in text or f"'{option}'" in text:
                sys.exit(0)
sys.exit(3)
"""
_STEPS = re.compile(r"^vllm:iteration_tokens_total_count(?:\{.*\})? (\S+)", re.MULTILINE)
_PROCESS = re.compile(r"^(?:\([^()]* pid=\d+\) ?)+")
_LOGGED = re.compile(r"^(?:DEBUG|INFO|WARNING|ERROR|CRITICAL) \d\d-\d\d \d\d:\d\d:\d\d \[[^\]]*\] (.+)")
_BAR = re.compile(r"^([^|%]*?[^|%\s:]):?\s+(\d{1,3})%(?: Completed )?\|")  # tqdm's


class Vllm:
    """Adapter of the ``vllm`` engine. ``python`` is for specs that name no interpreter."""

    health_path = "/health"
    metrics_path: str | None = "/metrics"

    def __init__(self, spec: VllmEngine, python: str) -> None:
        self._spec = spec
        self._python = spec.python or python

    @property
    def sleep_paths(self) -> SleepPaths | None:
        """Where the spec has ``--enable-sleep-mode``."""
        return SLEEP_PATHS if takes_sleep(self._spec.args) else None

    def command(self, launch: Launch) -> Command:
        """``python -m`` works for the vLLM of GPU hosts and for its CPU builds, whose `vllm` command does not."""
        env = dict(launch.inherited)
        # The weights are a local folder: nothing is to be looked up, or reported, elsewhere.
        env |= {"HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1", "PYTHONUNBUFFERED": "1"}
        if launch.devices:
            env["CUDA_VISIBLE_DEVICES"] = ",".join(launch.devices)
        if self._says(ENABLE_LORA):  # adapters come and go at run time; only the daemon reaches the path for that
            env["VLLM_ALLOW_RUNTIME_LORA_UPDATING"] = "1"
        if takes_sleep(self._spec.args):
            # It opens calls of arbitrary code, too: for the daemon alone, as the server listens on its own socket in
            # a folder of the daemon's user, and the gateway passes on no path but those of `surface`.
            env["VLLM_SERVER_DEV_MODE"] = "1"
        env |= self._spec.env
        argv = [self._python, "-m", "vllm.entrypoints.openai.api_server", "--model", str(launch.model)]
        argv += ["--served-model-name", launch.deployment, "--uds", str(launch.socket)]
        if len(launch.devices) > 1:
            argv += ["--tensor-parallel-size", str(len(launch.devices))]
        if launch.memory_share is not None and not self._says(_MEMORY_SHARE):
            argv += [_MEMORY_SHARE, f"{math.floor(launch.memory_share * 1e4) / 1e4:.4f}"]  # rounded down: others share
        if SHUTDOWN_TIMEOUT in launch.options and not self._says(SHUTDOWN_TIMEOUT):
            argv += [SHUTDOWN_TIMEOUT, str(ENGINE_DRAIN_SECONDS)]
        argv += self._spec.args
        folder = str(launch.log.parent)
        return Command(argv=tuple(argv), cwd=folder, env=env, log=str(launch.log), bounds=launch.bounds)

    def _says(self, option: str) -> bool:
        """Whether the spec gives *option* itself."""
        return _has(self._spec.args, option)

    def probes(self, deployment: str) -> Sequence[Probe]:
        """A one-token completion, or for embedding models an embedding."""
        return [Probe(p, probe_body(p, deployment)) for p in ("/v1/completions", "/v1/embeddings")]

    def needs_port(self) -> bool:
        """It listens on a socket."""
        return False

    def problem(self) -> str:
        """Ask the interpreter whether it has vllm, without importing it."""
        if shutil.which(self._python) is None:
            return f"there is no interpreter {self._python}; set engine.python, or serving.python in stoker.yaml."
        try:
            has_vllm = self._asks(_HAS_VLLM)
        except (OSError, subprocess.TimeoutExpired) as error:
            return f"the interpreter {self._python} can't be used: {error}."
        if has_vllm:
            return ""
        return f"vLLM is not installed for {self._python}; install it there, or name another with engine.python."

    def options(self) -> frozenset[str]:
        """Look for ``--shutdown-timeout`` in the source of the installed vLLM: 0.18 brought it."""
        try:
            return frozenset({SHUTDOWN_TIMEOUT} if self._asks(_KNOWS_OPTION, SHUTDOWN_TIMEOUT) else ())
        except (OSError, subprocess.TimeoutExpired):
            return frozenset()

    def _asks(self, code: str, *arguments: str) -> bool:
        command = [self._python, "-I", "-c", code, *arguments]
        return not subprocess.run(command, capture_output=True, timeout=_FIND_SECONDS, check=False).returncode

    def steps(self, metrics: str) -> float | None:
        """Steps of all its engines together; it keeps a count of each step's tokens."""
        counts = _STEPS.findall(metrics)
        try:
            return sum(float(count) for count in counts) if counts else None
        except ValueError:
            return None

    def progress(self, lines: Sequence[str]) -> str:
        """The last thing that it logged, or how full its last progress bar is, without what is the same in all lines.

        Its libraries' own warnings, tracebacks and banners pass by while it says nothing itself.
        """
        plain = [_PROCESS.sub("", line).strip() for line in lines]
        for line in reversed(plain):
            if bar := _BAR.match(line):
                return f"{bar[1]}: {bar[2]}%"
            if logged := _LOGGED.match(line):
                return logged[1]
        return next((line for line in reversed(plain) if line), "")


def takes_sleep(args: Sequence[str]) -> bool:
    """Whether a server with these *args* can be put to sleep."""
    return _has(args, ENABLE_SLEEP)


def takes_adapters(args: Sequence[str]) -> bool:
    """Whether a server with these *args* can load LoRA adapters."""
    return ENABLE_LORA in args


def _has(args: Sequence[str], option: str) -> bool:
    """vLLM takes ``_`` for ``-`` in options."""
    return any(a.split("=", 1)[0].replace("_", "-") == option for a in args)


def own_option(args: Sequence[str]) -> str | None:
    """The first of *args* that Stoker sets by itself, and so refuses from people."""
    return next((a for a in args if a.split("=", 1)[0] in _OWN_OPTIONS), None)
