"""The environment that supervised programs get: what a program needs to run on this host, and no secrets by chance."""

from __future__ import annotations

from collections.abc import Mapping

_NAMES = frozenset(
    {"PATH", "HOME", "USER", "LOGNAME", "SHELL", "LANG", "LANGUAGE", "TZ", "TMPDIR", "LD_LIBRARY_PATH", "LD_PRELOAD"}
)
_PREFIXES = ("LC_", "CUDA_", "NVIDIA_", "NCCL_", "VLLM_", "HF_", "TORCH", "OMP_", "MKL_", "OPENBLAS_", "XDG_", "SSL_")
_PROXIES = frozenset({"http_proxy", "https_proxy", "no_proxy", "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY"})


def inherited(environ: Mapping[str, str]) -> dict[str, str]:
    """The part of the daemon's environment that its children get."""
    return {k: v for k, v in environ.items() if k in _NAMES or k in _PROXIES or k.startswith(_PREFIXES)}
