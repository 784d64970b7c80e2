"""Ways to serve: one small adapter each, chosen by the spec's ``engine.type``."""

from __future__ import annotations

import hashlib
import json

from stoker.errors import InvalidSpec
from stoker.types.serving import AdapterEngine, CommandEngine, DeploymentSpec, VllmEngine
from stoker.types.supervision import Limits
from stokerd.serving.engines.base import Engine
from stokerd.serving.engines.command import KNOWN, CommandServer, unknown_placeholder
from stokerd.serving.engines.vllm import Vllm, own_option, takes_sleep


def engine_of(spec: DeploymentSpec, python: str) -> Engine:
    """The adapter for a deployment; *python* is the configured interpreter that has vllm."""
    match spec.engine:
        case VllmEngine():
            return Vllm(spec.engine, python)
        case CommandEngine():
            return CommandServer(spec.engine)
        case AdapterEngine():
            raise AssertionError(f"{spec.name} is an adapter: it has no server of its own")


def check_engine(spec: DeploymentSpec) -> None:
    """Refuse what can be seen to be wrong before anything is started. Raises `InvalidSpec`."""
    match spec.engine:
        case VllmEngine(args=args):
            option = own_option(args)
            if option:
                raise InvalidSpec(f"deployment {spec.name}: engine.args: Stoker sets {option} itself.", "Leave it out.")
        case CommandEngine(command=command):
            name = unknown_placeholder(command)
            if name:
                raise InvalidSpec(
                    f"deployment {spec.name}: engine.command: {{{name}}} can't be filled in.",
                    f"Known: {', '.join(f'{{{k}}}' for k in KNOWN)}.",
                )
            if not any("{socket}" in a or "{port}" in a for a in command):
                raise InvalidSpec(
                    f"deployment {spec.name}: engine.command: it isn't told where to listen.",
                    "Use {socket} or {port} in it.",
                )
        case AdapterEngine():
            for field, default in (("replicas", 1), ("devices", 0), ("device_memory", None)):
                if getattr(spec, field) != default:
                    raise InvalidSpec(
                        f"deployment {spec.name}: {field}: an adapter has no servers of its own.",
                        f"Leave it out: it is on each server of {spec.engine.base}.",
                    )


def can_sleep(spec: DeploymentSpec) -> bool:
    """Whether its servers can give the memory of their devices back and stay, so that they serve again in seconds."""
    return isinstance(spec.engine, VllmEngine) and takes_sleep(spec.engine.args)


def launch_digest(spec: DeploymentSpec) -> str:
    """Changes when replicas must be started anew for *spec*.

    What a later Stoker adds to specs counts only where it is used: an upgrade restarts nobody.
    """
    relevant: dict[str, object] = {
        "engine": spec.engine.model_dump(mode="json", exclude={"health_path"}),  # where it's asked, not how it runs
        "devices": spec.devices,
    }
    if spec.device_memory is not None:
        relevant["device_memory"] = spec.device_memory
    if spec.limits != Limits():
        relevant["limits"] = spec.limits.model_dump(mode="json", exclude_defaults=True)
    return hashlib.sha256(json.dumps(relevant, sort_keys=True).encode()).hexdigest()[:12]
