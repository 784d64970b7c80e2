"""`stoker doctor`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import Any

import typer
from rich.text import Text

from stoker.cli import output
from stoker.cli.checks import CHECKS, Finding, Look
from stoker.cli.options import Home, Json, examples, verb_app
from stoker.client import Client
from stoker.documents import read_documents
from stoker.errors import StokerError, Unavailable
from stoker.paths import Home as HomeFolders
from stoker.paths import find_home

app = verb_app()
_STYLES = {"ok": "green", "warn": "yellow", "fail": "bold red"}


@app.command(
    epilog=examples("stoker doctor", "stoker doctor --json | jq '.[] | select(.level != \"ok\")'")
    + "\n\b\nEnds with 6 when something failed, else with 0. Loads torch in another process: some seconds.\n"
)
def doctor(context: typer.Context, home: Home = None, as_json: Json = False) -> None:
    """Look whether this host has what Stoker needs, and say what to do where it has not."""
    look = look_at(find_home(home or context.find_root().params.get("home")))
    findings: list[Finding] = []
    with ThreadPoolExecutor(len(CHECKS)) as threads:  # some wait for programs
        for found in threads.map(lambda check: _examine(check, look), CHECKS):
            findings += found
            if not as_json:
                for finding in found:
                    _print(finding)
    if as_json:
        output.print_json([asdict(f) for f in findings])
    else:
        levels = Counter(f.level for f in findings)
        output.line(f"{levels['ok']} ok, {levels['warn']} to think of, {levels['fail']} to mend")
    if any(f.level == "fail" for f in findings):
        raise typer.Exit(Unavailable.exit_code)


def look_at(home: HomeFolders) -> Look:
    """Ask the daemon, and read its settings."""
    values, unreadable = _settings(home.config)
    try:
        with Client(home.socket) as client:
            return Look(home, host=client.host(), settings=values, unreadable=unreadable)
    except StokerError as error:
        return Look(home, away=error.message, settings=values, unreadable=unreadable)


def _settings(path: Path) -> tuple[Mapping[str, Any], str]:
    """What stoker.yaml says, without judging it: that is the daemon's part. And why it can't be read."""
    try:
        documents, problems = read_documents(path.read_text(), str(path))
    except FileNotFoundError:
        return {}, ""
    except (OSError, UnicodeDecodeError) as error:
        return {}, f"{path} can't be read: {error}."
    value = documents[0].value if documents else None
    if problems or not isinstance(value, Mapping | None):
        return {}, str(problems[0]) if problems else f"{path} is no mapping of settings."
    return value or {}, ""


def _examine(check: Callable[[Look], Iterator[Finding]], look: Look) -> list[Finding]:
    """One check; one that stumbles over an odd host is a finding of its own, and keeps none of the others back."""
    name = check.__name__.replace("_", " ")
    try:
        return list(check(look))
    except Exception as error:
        message = f"this could not be looked at: {type(error).__name__}: {error}."
        return [Finding(name, "warn", message, "Please report it.")]


def _print(finding: Finding) -> None:
    output.line(Text(f"{finding.level:<4}", style=_STYLES[finding.level]), f"{finding.name:<10}", finding.message)
    if finding.hint:
        output.line(Text(" " * 16 + output.clean(finding.hint), style="dim"))
