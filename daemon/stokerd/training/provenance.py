"""What a run's results depend on beside data and parameters: the code's commit, the interpreter and its packages."""

from __future__ import annotations

import asyncio
import json
import os
from pathlib import Path
from typing import Any

from stoker.errors import Unavailable

_TIMEOUT_SECONDS = 60.0
_PROBE = """
import hashlib, importlib.metadata as m, json, platform, sys
packages = {f"{d.metadata['Name']}=={d.version}" for d in m.distributions() if d.metadata['Name']}
packages = sorted(packages, key=str.lower)
print(json.dumps({"python": platform.python_version(), "platform": platform.platform(), "packages": packages,
                  "packages_digest": hashlib.sha256("\\n".join(packages).encode()).hexdigest()}))
"""


class Provenance:
    """Asks interpreters and git. An interpreter is asked anew when its environment's folders have changed."""

    def __init__(self) -> None:
        self._known: dict[str, tuple[object, dict[str, Any]]] = {}

    async def environment(self, python: str) -> dict[str, Any]:
        """Version, platform, packages and their hash of the interpreter *python*. Raises `Unavailable`."""
        stamp = await asyncio.to_thread(_stamp, python)
        known = self._known.get(python)
        if known is None or known[0] != stamp:
            code, out, err = await _run(python, "-I", "-c", _PROBE)
            try:
                if code != 0:
                    raise ValueError(err.strip().rpartition("\n")[2])
                known = (stamp, json.loads(out))
            except ValueError as error:
                raise Unavailable(
                    f"the interpreter {python} can't be used: {error}.",
                    "Name one that works: `python` in the job, or training.python in stoker.yaml.",
                    code="python-unusable",
                ) from error
            self._known[python] = known
        return known[1]

    async def commit(self, folder: Path) -> str | None:
        """The git commit of *folder*, with ``+dirty`` when files there differ from it; None outside of git."""
        code, out, _ = await _run("git", "-C", str(folder), "rev-parse", "HEAD")
        if code != 0:
            return None
        _, changes, _ = await _run("git", "-C", str(folder), "status", "--porcelain", "--", ".")
        return out.strip() + ("+dirty" if changes.strip() else "")


def _stamp(python: str) -> object:
    """Changes when packages are installed there: the interpreter, its pyvenv.cfg and site-packages folders."""
    prefix = Path(python).parent.parent
    seen = [Path(python), prefix / "pyvenv.cfg", *sorted(prefix.glob("lib/python*/site-packages"))]
    return tuple((str(p), p.stat().st_mtime_ns) for p in seen if p.exists())


async def _run(*argv: str) -> tuple[int, str, str]:
    try:
        process = await asyncio.create_subprocess_exec(
            *argv,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            env={**os.environ, "GIT_OPTIONAL_LOCKS": "0"},
        )
    except OSError as error:
        return 127, "", f"{argv[0]}: {error.strerror}"
    try:
        out, err = await asyncio.wait_for(process.communicate(), _TIMEOUT_SECONDS)
    except TimeoutError:
        return 124, "", f"{argv[0]} did not answer within {_TIMEOUT_SECONDS:g} s"
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    return process.returncode or 0, out.decode(errors="replace"), err.decode(errors="replace")
