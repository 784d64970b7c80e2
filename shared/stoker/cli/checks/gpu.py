"""GPUs: the driver, its device files, and NVML, through which the daemon sees them."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

from stoker.cli.checks.finding import Finding, Look
from stoker.cli.human import count

_NVML_SECONDS = 30.0
_NEEDED_NODES = ("nvidiactl", "nvidia-uvm")
# In a process of its own: a sick GPU can hold a call for ever.
_ASK_NVML = """
import json, pynvml
told = {"errors": []}
try:
    pynvml.nvmlInit()
    told["count"] = pynvml.nvmlDeviceGetCount()
except pynvml.NVMLError as error:
    told |= {"code": error.value, "failed": str(error)}
for index in range(told.get("count", 0)):
    try:
        pynvml.nvmlDeviceGetMemoryInfo(pynvml.nvmlDeviceGetHandleByIndex(index))
    except pynvml.NVMLError as error:
        told["errors"].append(f"GPU {index}: {error}")
print(json.dumps(told))
"""
_LIBRARY_NOT_FOUND, _NO_PERMISSION, _VERSIONS_DIFFER = 12, 4, 18  # of nvml.h


def has_card(look: Look) -> bool:
    """Whether an NVIDIA GPU is on the PCI bus."""
    for device in look.path("/sys/bus/pci/devices").glob("*"):
        where = f"/sys/bus/pci/devices/{device.name}"
        if look.text(f"{where}/vendor") == "0x10de" and look.text(f"{where}/class").startswith("0x03"):
            return True
    return False


def driver(look: Look) -> Iterator[Finding]:
    """NVIDIA's kernel driver and the files under /dev."""
    if not look.has_driver:
        if has_card(look):
            message = "there is an NVIDIA GPU, but its driver is not loaded."
            hint = (
                "Install the driver, or see `dmesg | grep -i nvidia` for why it did not load; then `modprobe nvidia`."
            )
            yield Finding("driver", "fail", message, hint)
        else:
            yield Finding("driver", "ok", "no NVIDIA GPU and no driver: runs and servers use the CPU.")
        return
    found = re.search(r"\s(\d+\.\d+(?:\.\d+)?)\s", look.text("/proc/driver/nvidia/version") + "\n")
    version = found[1] if found else "of an unknown version"
    nodes = [look.path(f"/dev/{name}") for name in _NEEDED_NODES]
    missing = [f"/dev/{p.name}" for p in nodes if not p.exists()]
    if missing:
        message = (
            f"driver {version} is loaded, but {' and '.join(missing)} {'is' if len(missing) == 1 else 'are'} missing."
        )
        hint = "nvidia-modprobe -c 0 -u makes them; nvidia-persistenced keeps them. In a container: --gpus all."
        yield Finding("driver", "fail", message, hint)
        return
    closed = [f"/dev/{p.name}" for p in nodes if not os.access(p, os.R_OK | os.W_OK)]
    if closed:
        message = f"this user may not use {' and '.join(closed)}."
        yield Finding("driver", "fail", message, "Become a member of the group that owns it: see ls -l /dev/nvidia*.")
        return
    yield Finding("driver", "ok", f"NVIDIA {version}, with its device files.")


def nvml(look: Look) -> Iterator[Finding]:
    """The library that the daemon sees GPUs through, and whether each GPU answers."""
    told = _ask(look)
    if isinstance(told, Finding):
        yield told
        return
    code = told.get("code")
    if code is None:
        gpus = count(told["count"], "GPU")
        if told["errors"]:
            message = f"of {gpus}, some don't answer: {'; '.join(told['errors'])}."
            yield Finding("nvml", "fail", message, "See `dmesg | grep Xid`; a GPU that is lost needs a reboot.")
        elif told["count"] == 0:
            yield Finding("nvml", "warn", "the driver is there, but shows no GPU.", "In a container: --gpus all.")
        else:
            yield Finding("nvml", "ok", f"{gpus}: all answer.")
    elif not look.has_driver and not has_card(look):
        yield Finding("nvml", "ok", "not needed without a GPU.")
    elif code == _LIBRARY_NOT_FOUND:
        message = "libnvidia-ml.so.1 is not installed: the daemon sees no GPU."
        hint = "Install the driver's user libraries, of its very version (Debian: libnvidia-ml1, nvidia-utils)."
        yield Finding("nvml", "fail", message, hint)
    elif code == _VERSIONS_DIFFER:
        message = "the driver's library and its kernel module are of different versions, as after an upgrade."
        yield Finding("nvml", "fail", message, "Reboot, or unload and load the nvidia modules while no GPU is in use.")
    elif code == _NO_PERMISSION:
        yield Finding("nvml", "fail", "this user may not ask it.", "See the permissions of /dev/nvidiactl.")
    else:
        yield Finding("nvml", "fail", f"it fails: {told['failed']}.", "nvidia-smi may say more; see dmesg.")


def _ask(look: Look) -> dict[str, Any] | Finding:
    try:
        done = subprocess.run(
            [sys.executable, "-c", _ASK_NVML], capture_output=True, text=True, timeout=_NVML_SECONDS, check=False
        )
        answer: dict[str, Any] = json.loads(done.stdout)
    except subprocess.TimeoutExpired:
        message = f"it did not answer for {_NVML_SECONDS:.0f} s: a GPU, or the driver, hangs."
        return Finding("nvml", "fail", message, "See `dmesg | grep Xid`; mostly a reboot is all that helps.")
    except (OSError, ValueError):
        message = "the binding nvidia-ml-py does not work here."
        return Finding("nvml", "fail", message, f"{sys.executable} -m pip install --force-reinstall nvidia-ml-py")
    return answer
