"""The daemon's settings: ``stoker.yaml`` in its home, or the file that --config names. All have defaults."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Literal

from pydantic import Field, TypeAdapter

from stoker.errors import Unavailable
from stoker.specs import load_document
from stoker.types.base import Bytes, Seconds, Strict


class GatewayConfig(Strict):
    """Where OpenAI clients reach the gateway."""

    host: str = Field(default="127.0.0.1", description="address to listen on")
    port: int = Field(default=8700, ge=1, le=65535)
    workers: int = Field(default=2, ge=1, le=64, description="processes that share the port")
    keys: Literal["auto", "required", "optional"] = Field(
        default="auto", description="whether clients need an API key; auto: unless the address is loopback"
    )
    tls_certificate: Path | None = Field(default=None, description="PEM file; HTTPS is served then, and HTTP is not")
    tls_key: Path | None = Field(default=None, description="PEM file of the certificate's key")


class TrainingConfig(Strict):
    """How runs are executed."""

    python: str = Field(default=sys.executable, description="interpreter for {python} of jobs that name none")
    concurrent: int = Field(default=1, ge=1, le=1024, description="runs at the same time; the others wait")


class ServingConfig(Strict):
    """How replicas are executed."""

    python: str = Field(default=sys.executable, description="interpreter that has vllm")
    first_byte_timeout: Seconds = Field(default=600.0, description="an engine that takes longer to answer is stalled")


class DevicesConfig(Strict):
    """How GPUs are shared out."""

    mode: Literal["shared", "exclusive"] = Field(
        default="shared", description="shared: leases with a `device_memory` may lie side by side on one GPU"
    )
    modes: dict[str, Literal["shared", "exclusive"]] = Field(
        default={}, description="other modes of single GPUs, by index or UUID"
    )

    def mode_of(self, index: int, uuid: str) -> Literal["shared", "exclusive"]:
        """The mode of one GPU."""
        return self.modes.get(uuid, self.modes.get(str(index), self.mode))


class LogsConfig(Strict):
    """Bounds of the logs of runs, replicas and the gateway."""

    segment_bytes: Bytes = Field(default=64 << 20, ge=4096, description="a log is moved aside at this size")
    segments: int = Field(default=3, ge=1, le=1000, description="how many of those are kept of each log")
    max_age: Seconds = Field(default=30 * 86400.0, description="older ones are removed")


class MetricsConfig(Strict):
    """Bounds of metrics.db."""

    max_age: Seconds = Field(default=7 * 86400.0, description="older samples and request records are dropped")
    max_bytes: int = Field(default=1 << 30, ge=1 << 20, description="size over which the oldest are dropped")


class DaemonConfig(Strict):
    """Everything that can be set."""

    gateway: GatewayConfig = GatewayConfig()
    training: TrainingConfig = TrainingConfig()
    serving: ServingConfig = ServingConfig()
    devices: DevicesConfig = DevicesConfig()
    logs: LogsConfig = LogsConfig()
    metrics: MetricsConfig = MetricsConfig()


def load_config(path: Path, *, required: bool) -> DaemonConfig:
    """Read the settings at *path*; a file that is not *required* may be missing.

    Raises `InvalidSpec` naming line and field, or `Unavailable` for a file that can't be read.
    """
    try:
        text = path.read_text()
    except (FileNotFoundError, NotADirectoryError) as error:
        if not required:
            return DaemonConfig()
        raise Unavailable(f"there is no config file {path}.", "Name an existing one with --config.") from error
    except (OSError, UnicodeDecodeError) as error:
        raise Unavailable(f"the config file {path} can't be read: {error}.", "See its permissions.") from error
    return load_document(text, str(path), TypeAdapter(DaemonConfig)) if text.strip() else DaemonConfig()
