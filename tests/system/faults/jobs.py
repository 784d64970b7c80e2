"""Jobs that are one line of shell."""

from __future__ import annotations

import json
from typing import Any

from tests.system.faults.scene import Scene


def job(script: str, name: str, **fields: Any) -> str:
    """The spec of a job that runs *script*."""
    extra = "\n".join(f"{k}: {json.dumps(v)}" for k, v in fields.items())
    return f"kind: job\nname: {name}\ncommand: [/bin/sh, -c, {json.dumps(script)}]\n{extra}\n"


def start_run(scene: Scene, name: str) -> str:
    """Queue a run of that job; returns the run's name."""
    return str(scene.client.request("POST", f"/v1/jobs/{name}/runs", json={"params": {}})["name"])
