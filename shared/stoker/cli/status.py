"""`stoker status`: one page of what matters now."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any

import typer

from stoker.cli import output
from stoker.cli.human import ago, count, latency, share, size, span
from stoker.cli.kinds import duration_of, message_of, state_phase
from stoker.cli.options import Home, Json, connect, examples, verb_app
from stoker.client import Client, read_list
from stoker.errors import StokerError
from stoker.types.base import now
from stoker.types.host import Device, Host, TrafficStats
from stoker.types.rollouts import FINAL_PHASES, Rollout
from stoker.types.serving import Deployment, Replica
from stoker.types.training import ACTIVE_PHASES, Run

app = verb_app()
_WINDOW_SECONDS = 60


@dataclass(frozen=True, slots=True)
class _Seen:
    """Everything that the page shows."""

    host: Host
    deployments: list[Deployment]
    replicas: list[Replica]
    runs: list[Run]
    rollouts: list[Rollout]
    traffic: list[TrafficStats]


@app.command(epilog=examples("stoker status", "stoker status --json | jq .host.gateway_phase"))
def status(context: typer.Context, home: Home = None, as_json: Json = False) -> None:
    """Show the host, the gateway, deployments, runs and rollouts on one page."""
    with connect(context, home) as client:
        seen = _look(client)
    if as_json:
        output.print_json(_as_json(seen))
        return
    _print_host(seen.host)
    _print_deployments(seen)
    _print_runs(seen.runs)
    _print_rollouts(seen.rollouts)


def _look(client: Client) -> _Seen:
    host = client.host()
    try:
        traffic = read_list(TrafficStats, client.request("GET", "/v1/traffic", params={"window": _WINDOW_SECONDS}))
    except StokerError:  # metrics are expendable; without them the page still says what runs
        traffic = []
    return _Seen(
        host=host,
        deployments=client.list(Deployment),
        replicas=client.list(Replica),
        runs=client.list(Run),
        rollouts=[r for r in client.list(Rollout) if r.phase not in FINAL_PHASES],
        traffic=traffic,
    )


def _as_json(seen: _Seen) -> dict[str, Any]:
    return {
        "host": seen.host,
        "deployments": seen.deployments,
        "replicas": seen.replicas,
        "runs": Counter(r.phase for r in seen.runs),
        "active_runs": [r for r in seen.runs if r.phase in ACTIVE_PHASES],
        "rollouts": seen.rollouts,
        "traffic": seen.traffic,
    }


def _print_host(host: Host) -> None:
    up = span((now() - host.started_at).total_seconds())
    output.line(f"{host.hostname}: stokerd {host.version}, up {up} (pid {host.pid}, home {host.home})")
    cpu = "-" if host.cpu_percent is None else f"{host.cpu_percent:.0f} %"
    load = "-" if host.load_1m is None else f"{host.load_1m:.2f}"
    output.line(
        f"cpu {cpu} of {count(host.cpu_count, 'core')}, load {load}"
        f"   memory {size(host.memory_used)} of {size(host.memory_total)}"
        f" ({share(host.memory_used, host.memory_total)})"
        f"   disk {size(host.disk_free)} free of {size(host.disk_total)}"
    )
    output.line("gateway", host.gateway, output.phase(host.gateway_phase), host.gateway_message)
    if not host.devices:
        output.line("devices none:", host.devices_message or "no GPU was found")
        return
    output.heading(count(len(host.devices), "device"))
    rows: list[list[output.Cell]] = [
        [
            str(d.index),
            d.name,
            "-" if d.utilisation is None else f"{d.utilisation:.0f} %",
            f"{'-' if d.memory_used is None else size(d.memory_used)} / {size(d.memory_total)}",
            "-" if d.power is None else f"{d.power:.0f} W",
            "-" if d.temperature is None else f"{d.temperature:.0f} °C",
            d.owner or "-",
            d.error or foreign(d),
        ]
        for d in host.devices
    ]
    output.table(["GPU", "NAME", "BUSY", "MEMORY", "POWER", "TEMP", "OWNER", "NOTE"], rows)


def foreign(device: Device) -> str:
    """Who else uses *device*, in a few words; empty when nobody does."""
    others = ", ".join(f"{p.name or 'ended'} ({p.pid})" for p in device.foreign)
    return f"also used by {others}" if others else ""


def _print_deployments(seen: _Seen) -> None:
    output.heading(count(len(seen.deployments), "deployment"))
    rows: list[list[output.Cell]] = []
    for d in seen.deployments:
        mine = [r for r in seen.replicas if r.deployment == d.name and r.wanted]
        arms = [t for t in seen.traffic if t.deployment == d.name and t.arm != "shadow"]
        stable = next((t for t in arms if t.arm == "stable"), None)
        requests = sum(t.requests for t in arms)
        rows.append(
            [
                d.name,
                output.phase(d.phase),
                f"{d.spec.model}@{d.version}",
                f"{sum(r.phase == 'ready' for r in mine)}/{len(mine)}",
                f"{requests / _WINDOW_SECONDS:.1f}/s",
                share(sum(t.errors for t in arms), requests),
                latency(stable.ttft_p90 if stable else None),
                d.message,
            ]
        )
    if rows:
        output.table(["NAME", "PHASE", "SERVES", "READY", "TRAFFIC", "ERRORS", "TTFT P90", "MESSAGE"], rows)


def _print_runs(runs: list[Run]) -> None:
    phases = Counter(r.phase for r in runs)
    summary = ", ".join(f"{phases[p]} {p}" for p in sorted(phases))
    output.heading(f"{count(len(runs), 'run')}{': ' if summary else ''}{summary}")
    active = [r for r in runs if r.phase in ACTIVE_PHASES]
    if active:
        rows: list[list[output.Cell]] = [[r.name, state_phase(r), duration_of(r), message_of(r)] for r in active]
        output.table(["NAME", "PHASE", "TOOK", "MESSAGE"], rows)


def _print_rollouts(rollouts: list[Rollout]) -> None:
    if not rollouts:
        return
    output.heading(f"{count(len(rollouts), 'rollout')} going on")
    rows: list[list[output.Cell]] = []
    for r in rollouts:
        versions = f"@{r.from_version} -> @{r.to_version}"
        rows.append([r.name, r.deployment, versions, state_phase(r), ago(r.created_at, now()), message_of(r)])
    output.table(["NAME", "DEPLOYMENT", "VERSIONS", "PHASE", "BEGAN", "MESSAGE"], rows)
