"""The daemon, its gateway, and systemd, which is to run it."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
from collections.abc import Iterator

import stoker
from stoker.cli.checks.finding import Finding, Look
from stoker.cli.unit_files import SERVICE, lingers, units_folder
from stoker.client import Client
from stoker.errors import StokerError

_SYSTEMCTL_SECONDS = 20.0
_GATEWAY = ("127.0.0.1", 8700)  # the defaults of the daemon's settings


def daemon(look: Look) -> Iterator[Finding]:
    """Whether it answers, is of our version, and its events can be read."""
    if look.host is None:
        hint = "Start it: `stoker install-service --now`, or `stokerd` in a shell. Or name its home with --home."
        yield Finding("daemon", "warn", f"it does not answer: {look.away}", hint)
        return
    if look.host.version != stoker.__version__:
        message = f"it is of version {look.host.version}, this command of {stoker.__version__}."
        yield Finding("daemon", "warn", message, "Restart it after an upgrade: what it started goes on meanwhile.")
        return
    try:
        with Client(look.home.socket) as client:
            for _ in client.events(max(look.host.last_event_id - 1, 0), follow=False):
                pass
    except StokerError as error:
        yield Finding("daemon", "fail", f"it answers, but its events can't be read: {error}", "See its log.")
        return
    yield Finding("daemon", "ok", f"stokerd {look.host.version} answers (pid {look.host.pid}), and its events flow.")


def gateway(look: Look) -> Iterator[Finding]:
    """The door for OpenAI clients, or whether its port is free."""
    if look.host is not None:
        if look.host.gateway_phase == "ready" and not look.host.gateway_message:
            yield Finding("gateway", "ok", f"{look.host.gateway} takes requests.")
        else:
            message = (
                f"{look.host.gateway} is {look.host.gateway_phase}: {look.host.gateway_message or 'no reason told'}"
            )
            yield Finding(
                "gateway", "warn", message, "See `stoker logs gateway`; gateway.port in stoker.yaml sets another."
            )
        return
    address, port = look.setting("gateway", "host") or _GATEWAY[0], look.setting("gateway", "port") or _GATEWAY[1]
    try:
        with socket.create_server((str(address), int(port))):
            pass
    except (OSError, ValueError, OverflowError, TypeError) as error:
        why = getattr(error, "strerror", None) or str(error)
        message = f"{address}:{port} can't be listened on: {why}. (A gateway of an earlier daemon may have it.)"
        hint = f"See who has it with `ss -ltnp 'sport = :{port}'`, or set gateway.port in stoker.yaml."
        yield Finding("gateway", "warn", message, hint)
    else:
        yield Finding("gateway", "ok", f"{address}:{port} is free.")


def systemd(look: Look) -> Iterator[Finding]:
    """Whether a service is installed, for the machine or for this user, and what state it is in."""
    if not look.path("/run/systemd/system").is_dir() or shutil.which("systemctl") is None:
        message = "this machine was not booted with systemd: nothing starts the daemon at boot, or again."
        yield Finding("systemd", "warn", message, "Let its init, or the container's entry point, run `stokerd`.")
        return
    for is_user in (False, True):
        unit = units_folder(is_user=is_user) / SERVICE
        if look.path(str(unit)).exists():
            yield _service(look, is_user)
            return
    message = "no service is installed: nothing starts the daemon at boot, or again when it ends."
    yield Finding("systemd", "warn", message, "`stoker install-service --now`, as root, or with --user for yourself.")


def _service(look: Look, is_user: bool) -> Finding:
    systemctl = ["systemctl", *(["--user"] if is_user else [])]
    command = [*systemctl, "show", "-p", "ActiveState,UnitFileState,NeedDaemonReload,NRestarts", SERVICE]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_SYSTEMCTL_SECONDS, check=True)
    except (OSError, subprocess.SubprocessError):
        return Finding("systemd", "warn", f"`{' '.join(systemctl)}` does not answer.", "Log in by ssh, not with su.")
    told = dict(line.split("=", 1) for line in done.stdout.splitlines() if "=" in line)
    whose, call = ("this user's" if is_user else "the machine's"), " ".join(systemctl)
    if told.get("ActiveState") == "failed":
        hint = f"journalctl {'--user ' if is_user else ''}-u stokerd says why."
        return Finding("systemd", "fail", f"{whose} stokerd.service has failed.", hint)
    if told.get("NeedDaemonReload") == "yes":
        return Finding("systemd", "warn", "stokerd.service was changed on disk.", f"{call} daemon-reload")
    if told.get("ActiveState") not in ("active", "activating", "reloading"):
        return Finding("systemd", "warn", f"{whose} stokerd.service does not run.", f"{call} enable --now stokerd")
    if told.get("UnitFileState") == "disabled":
        return Finding("systemd", "warn", "stokerd.service is not started at boot.", f"{call} enable stokerd")
    if is_user and not lingers() and os.geteuid() != 0:
        return Finding("systemd", "warn", "your services end when you log out.", "loginctl enable-linger")
    restarts = told.get("NRestarts", "0")
    return Finding("systemd", "ok", f"{whose} stokerd.service runs; restarted by systemd: {restarts} times.")
