"""`stoker install-service`."""

from __future__ import annotations

import difflib
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Annotated

import typer

from stoker.cli import output
from stoker.cli.options import Home, Json, examples, verb_app
from stoker.cli.unit_files import SERVICE, SOCKET, SYSTEM_UNITS, Service, lingers, units_folder
from stoker.errors import Invalid, Unavailable
from stoker.paths import find_home

app = verb_app()
_BOOTED = Path("/run/systemd/system")  # there when systemd is PID 1: see sd_booted(3)
_PATIENCE_SECONDS = 120.0


@app.command(
    epilog=examples(
        "stoker install-service --dry-run | less",
        "sudo $(which stoker) install-service --now",
        "stoker install-service --user --now",
        "sudo $(which stoker) install-service --socket --now     # no caller is refused while it restarts",
    )
    + "\n\b\nTo remove it: `systemctl disable --now stokerd`, then delete the file; what it started goes on.\n"
)
def install_service(
    context: typer.Context,
    user: Annotated[bool, typer.Option("--user", help="For your own systemd instead of the machine's.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the unit; change nothing.")] = False,
    now: Annotated[bool, typer.Option("--now", help="Enable and start it too.")] = False,
    socket: Annotated[bool, typer.Option("--socket", help="Let systemd listen on the control socket.")] = False,
    home: Home = None,
    as_json: Json = False,
) -> None:
    """Let systemd run the daemon: write its unit, hardened, with a watchdog; again to bring it up to date."""
    given = home or context.find_root().params.get("home")
    service = Service(find_stokerd(), find_home(given) if given else None, is_user=user, has_socket=socket)
    texts, folder = service.texts(), units_folder(is_user=user)
    if dry_run:
        _print_texts({str(folder / name): text for name, text in texts.items()}, as_json)
        return
    _check(is_user=user)
    changed = [name for name, text in texts.items() if _write(folder / name, text, is_quiet=as_json)]
    _systemctl(user, "daemon-reload")
    units = [SOCKET, SERVICE] if socket else [SERVICE]  # both: schedules and deployments don't wait for a caller
    if now:
        if socket and not _is_active(user, SOCKET):
            _systemctl(user, "stop", SERVICE)  # systemd listens for none that listens itself; what it started goes on
        _systemctl(user, "enable", "--now", *units)
    if as_json:
        output.print_json({"units": [str(folder / name) for name in texts], "changed": changed, "started": now})
    else:
        _say_what_next(folder, units, is_user=user, is_started=now, is_changed=bool(changed))


def find_stokerd() -> Path:
    """The `stokerd` beside this `stoker`. Raises `Unavailable`."""
    beside = Path(sys.executable).with_name("stokerd")  # not resolved: a virtual environment's Python is a link
    found = beside if beside.is_file() else shutil.which("stokerd")
    if not found:
        raise Unavailable(f"there is no stokerd beside {sys.executable}.", "Install Stoker there: pip install stoker.")
    return Path(found).absolute()


def _check(*, is_user: bool) -> None:
    """Raise what stands in the way, before anything is changed."""
    if is_user and os.geteuid() == 0:
        raise Invalid(
            "--user as root would make a service of root's own systemd, which is hardly ever there.",
            "Call it as the user whom the daemon is to serve; or without --user, for the machine.",
        )
    if not is_user and os.geteuid() != 0:
        raise Invalid(
            f"only root may write {SYSTEM_UNITS / SERVICE}.",
            f"Call it with sudo ({' '.join(['sudo', sys.argv[0], 'install-service'])}), or with --user for yourself.",
        )
    if not _BOOTED.is_dir() or shutil.which("systemctl") is None:
        raise Unavailable(
            "this machine was not booted with systemd.",
            "Let its own init, or the container's entry point, run `stokerd` in the foreground and restart it when it "
            "ends; kill that process alone, since what it started is to live on. --dry-run prints the unit.",
            code="no-systemd",
        )
    if is_user and not os.environ.get("XDG_RUNTIME_DIR"):
        raise Unavailable(
            "your own systemd can't be reached: XDG_RUNTIME_DIR is not set.",
            "Log in by ssh or on a console, not with su; or use `machinectl shell USER@`.",
            code="no-systemd",
        )


def _write(path: Path, text: str, *, is_quiet: bool) -> bool:
    """Bring *path* to *text* and show what that changes. Says whether it did. Raises `Unavailable`."""
    try:
        before = path.read_text() if path.exists() else None
        if before == text:
            return False
        path.parent.mkdir(parents=True, exist_ok=True)
        fresh = path.with_name(f".{path.name}.new")
        fresh.write_text(text)
        fresh.chmod(0o644)
        fresh.rename(path)
    except OSError as error:
        raise Unavailable(
            f"{path} can't be written: {error.strerror}.", "--dry-run prints what it would be."
        ) from error
    if is_quiet:
        return True
    if before is None:
        output.line(f"{path} written")
        return True
    output.line(f"{path} changed:")
    for line in difflib.unified_diff(before.splitlines(), text.splitlines(), "before", "now", lineterm="", n=0):
        output.line(f"  {line}")
    return True


def _is_active(is_user: bool, unit: str) -> bool:
    command = ["systemctl", *(["--user"] if is_user else []), "is-active", "--quiet", unit]
    return subprocess.run(command, capture_output=True, timeout=_PATIENCE_SECONDS, check=False).returncode == 0


def _systemctl(is_user: bool, *arguments: str) -> None:
    command = ["systemctl", *(["--user"] if is_user else []), *arguments]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_PATIENCE_SECONDS, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise Unavailable(f"`{' '.join(command)}` did not work: {error}.") from error
    if done.returncode != 0:
        lines = [x for x in done.stderr.splitlines() if x.strip() and not x.startswith("Created symlink")]
        said = lines[0] if lines else f"exit code {done.returncode}"
        raise Unavailable(
            f"`{' '.join(command)}` failed: {said}",
            f"The unit is written; see `journalctl {'--user ' if is_user else ''}-u stokerd`.",
            code="systemctl-failed",
        )


def _print_texts(texts: dict[str, str], as_json: bool) -> None:
    if as_json:
        output.print_json({"units": texts})
        return
    for path, text in texts.items():
        output.write(f"# {path}\n{text}" if len(texts) > 1 else text)


def _say_what_next(folder: Path, units: list[str], *, is_user: bool, is_started: bool, is_changed: bool) -> None:
    systemctl = "systemctl --user" if is_user else "systemctl"
    if not is_changed:
        output.line("the unit is as it should be")
    if not is_started:
        output.line(f"start it, now and at each boot:  {systemctl} enable --now {' '.join(units)}")
    if is_changed:
        output.line(f"a daemon that runs takes it up with:  {systemctl} restart stokerd   (what it started goes on)")
    if SOCKET not in units and (folder / SOCKET).exists():
        output.line(f"{folder / SOCKET} is of an earlier --socket:  {systemctl} disable --now {SOCKET}")
    if is_user and not lingers():
        output.line("so that it starts at boot and stays when you log out:  loginctl enable-linger")
    output.line("whether this host has all that it needs:  stoker doctor")
