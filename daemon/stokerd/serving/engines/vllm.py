"""vLLM's OpenAI server, over its own Unix socket."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Sequence

from stoker.types.serving import VllmEngine
from stokerd.processes.states import Command
from stokerd.serving.engines.base import Launch, Probe, probe_body

_OWN_OPTIONS = ("--model", "--served-model-name", "--uds", "--host", "--port")


class Vllm:
    """Adapter of the ``vllm`` engine. ``python`` is for specs that name no interpreter."""

    def __init__(self, spec: VllmEngine, python: str) -> None:
        self._spec = spec
        self._python = spec.python or python

    def command(self, launch: Launch) -> Command:
        """``python -m`` works for the vLLM of GPU hosts and for its CPU builds, whose `vllm` command does not."""
        env = dict(launch.inherited)
        # The weights are a local folder: nothing is to be looked up, or reported, elsewhere.
        env |= {"HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1", "PYTHONUNBUFFERED": "1"}
        if launch.devices:
            env["CUDA_VISIBLE_DEVICES"] = ",".join(launch.devices)
        env |= self._spec.env
        argv = [self._python, "-m", "vllm.entrypoints.openai.api_server", "--model", str(launch.model)]
        argv += ["--served-model-name", launch.deployment, "--uds", str(launch.socket)]
        if len(launch.devices) > 1:
            argv += ["--tensor-parallel-size", str(len(launch.devices))]
        return Command(argv=(*argv, *self._spec.args), cwd=str(launch.log.parent), env=env, log=str(launch.log))

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
        look = "import importlib.util as u, sys; sys.exit(0 if u.find_spec('vllm') else 3)"
        try:
            done = subprocess.run([self._python, "-I", "-c", look], capture_output=True, timeout=30, check=False)
        except (OSError, subprocess.TimeoutExpired) as error:
            return f"the interpreter {self._python} can't be used: {error}."
        if done.returncode == 0:
            return ""
        return f"vLLM is not installed for {self._python}; install it there, or name another with engine.python."


def own_option(args: Sequence[str]) -> str | None:
    """The first of *args* that Stoker sets by itself, and so refuses from people."""
    return next((a for a in args if a.split("=", 1)[0] in _OWN_OPTIONS), None)
