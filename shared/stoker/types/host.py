"""The host, its devices, and series of measurements."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from stoker.types.base import Strict, Time

NO_MEMORY_OF_TREES = "memory is bounded for each single process"
"""What `Host.limits` says where a tree of processes may take more memory than its bound."""


class Lease(Strict):
    """A durable claim on a device: whole, or so many bytes of its memory."""

    owner: str = Field(description="run/NAME, replica/NAME, or rollout/NAME: kept between the two versions of a swap")
    memory: int | None = Field(default=None, description="bytes; None: the whole device")


class DeviceProcess(Strict):
    """A process that uses a device, as the driver tells."""

    pid: int
    name: str = Field(default="", description="its command's name; empty when it has ended but its memory is not back")
    memory: int | None = Field(default=None, description="bytes, where the driver tells")


class Device(Strict):
    """One GPU as last sampled. Memory in bytes, power in watts, temperature in °C, utilisation in percent."""

    uuid: str
    index: int
    name: str
    memory_total: int
    memory_used: int | None = None
    utilisation: float | None = None
    power: float | None = None
    temperature: float | None = None
    mode: Literal["shared", "exclusive"] = Field(default="shared", description="whether leases may share it")
    owner: str | None = Field(default=None, description="the runs and replicas that hold it, with commas")
    leases: list[Lease] = []
    foreign: list[DeviceProcess] = Field(default=[], description="processes on it that are not of Stoker")
    links: list[str] = Field(default=[], description="UUIDs of the devices that NVLink joins it to")
    ecc_errors: int | None = Field(default=None, description="uncorrected, since the driver was loaded")
    xid: int | None = Field(default=None, description="the last critical error that the driver told of")
    error: str | None = Field(default=None, description="why it can't be sampled")


class Host(Strict):
    """The machine and its daemon. Memory and disk in bytes, shares in percent."""

    hostname: str
    version: str
    pid: int
    started_at: Time
    home: str
    gateway: str = Field(description="base URL for OpenAI clients, e.g. http://127.0.0.1:8700/v1")
    gateway_phase: str = Field(description="starting, ready (at least one worker serves), backing-off or failed")
    gateway_message: str = Field(default="", description="which workers don't serve and why, or what else is amiss")
    last_event_id: int = Field(default=0, description="newest event's id: list, then watch events after it")
    cpu_percent: float | None = None
    cpu_count: int = 0
    load_1m: float | None = None
    memory_total: int = 0
    memory_used: int = 0
    disk_total: int = 0
    disk_free: int = 0
    limits: str = Field(default="", description="how the limits of runs and replicas are enforced on this host")
    devices: list[Device] = []
    devices_message: str = Field(default="", description="why no GPU is listed, in one sentence")


class Series(Strict):
    """One measured series: ``points`` is a list of (unix time in seconds, value)."""

    name: str
    unit: str
    labels: dict[str, str] = {}
    points: list[tuple[float, float]] = []


class TrafficStats(Strict):
    """An arm's traffic over the last ``window_seconds``. Latencies in seconds."""

    deployment: str
    version: int
    arm: str
    window_seconds: float
    requests: int
    errors: int
    requests_per_second: float
    prompt_tokens: int
    completion_tokens: int
    ttft_p50: float | None = None
    ttft_p90: float | None = None
    inter_token_p50: float | None = None
    inter_token_p90: float | None = None
    total_p50: float | None = None
    total_p90: float | None = None
    ttft_p99: float | None = None
    inter_token_p99: float | None = None
    total_p99: float | None = None
    callers: int = Field(default=0, description="distinct ones; each anonymous request counts as one")
