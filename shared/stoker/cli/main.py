"""The entry point: finds the verb, and gives every error its words and its exit code.

A verb's module is loaded when it is asked for, so that `stoker --help` and each verb start fast.
"""

from __future__ import annotations

import difflib
import importlib
import io
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer
from typer.core import TyperGroup

from stoker.errors import Internal, StokerError

EXIT_INTERRUPTED = 130

# verb: (group in the help, first sentence of its own help); the module has the verb's name, with _ for -
VERBS = {
    "status": ("See", "Show the host, the gateway, deployments, runs and rollouts on one page."),
    "get": ("See", "List resources of a kind, or show one with its recent events."),
    "logs": ("See", "Print the log of a run, a replica or the gateway."),
    "events": ("See", "Print what happened, in order."),
    "metrics": ("See", "Print what a run reported: loss and the like, step by step."),
    "requests": ("See", "Print the last requests of a deployment, each with what the gateway measured."),
    "apply": ("Change", "Create or change what spec files say: jobs, schedules, models, deployments, rollouts."),
    "delete": ("Change", "Delete a job, a schedule, a deployment or an API key."),
    "snapshot": ("Train", "Keep a file or folder as a dataset's next version."),
    "run": ("Train", "Queue a run of a job; wait for its end if asked to."),
    "cancel": ("Train", "Stop a run with all its processes, or take it out of the queue."),
    "register": ("Serve", "Keep a folder of weights as a model's next version."),
    "alias": ("Serve", "Let an alias of a model point to a version, or remove it."),
    "evaluate": ("Serve", "Keep what was found of a version: a score, whether it passed, or both."),
    "rollout": ("Serve", "Bring a deployment to another version, step by step."),
    "deployment": ("Serve", "Say which version a deployment served, to whom, when and by whose decision."),
    "key": ("Serve", "Make, list and delete API keys of the gateway."),
    "chat": ("Serve", "Talk to a deployment through the gateway."),
    "doctor": ("Host", "Look whether this host has what Stoker needs, and say what to do where it has not."),
    "install-service": (
        "Host",
        "Let systemd run the daemon: write its unit, hardened, with a watchdog; again to bring it up to date.",
    ),
}

EPILOG = """\b
Exit codes:
  0    done
  1    a bug in Stoker
  2    wrong usage, or a spec that does not fit
  4    no such resource
  5    right in itself, but not in the present state
  6    something needed is away: the daemon, a disk, an engine
  7    what was waited for ended badly: a run failed, a rollout was rolled back
  130  interrupted with Ctrl-C
  141  the reader of the output went away
\b
`stoker` alone, on a terminal, opens the terminal UI. Errors are sentences on standard error; with --json they are one
JSON object {"code", "message", "hint", "details"}. Home: --home, else STOKER_HOME, else /var/lib/stoker for root, else
the XDG folders.
\b
Examples:
  stoker status
  stoker apply -f jobs.yaml --dry-run
  stoker run tune -p lr=1e-4 --follow
  stoker rollout start chat --to 2 --dry-run
  stoker rollout start chat --to 2 --wait
  stoker get runs --json | jq '.[].name'"""


class _Verbs(TyperGroup):
    """Commands that are loaded by name."""

    def list_commands(self, ctx: Any) -> list[str]:
        return list(VERBS)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        if cmd_name not in VERBS:
            return None
        command = typer.main.get_command(importlib.import_module(f"stoker.cli.{cmd_name.replace('-', '_')}").app)
        command.name = cmd_name
        return command

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        if args[0] not in VERBS and not args[0].startswith("-"):
            close = difflib.get_close_matches(args[0], VERBS, n=1)
            ctx.fail(f"No such command {args[0]!r}." + (f" Did you mean {close[0]!r}?" if close else ""))
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        for group in dict.fromkeys(g for g, _ in VERBS.values()):
            with formatter.section(group):
                formatter.write_dl([(verb, text) for verb, (g, text) in VERBS.items() if g == group])


app = typer.Typer(
    cls=_Verbs,
    name="stoker",
    invoke_without_command=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog=EPILOG,
)


def _print_version(wanted: bool) -> None:
    if wanted:
        from stoker import __version__

        print(f"stoker {__version__}")
        raise typer.Exit


@app.callback()
def stoker(
    context: typer.Context,
    home: Annotated[
        Path | None,
        typer.Option(
            "--home", envvar="STOKER_HOME", metavar="DIR", help="The daemon's home folder.", show_default=False
        ),
    ] = None,
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Train, register, deploy, serve, observe and roll back models on your own hosts."""
    if context.invoked_subcommand is not None:
        return
    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        print(context.get_help())
        raise typer.Exit(2)
    from stoker.paths import find_home
    from stoker_tui.app import main as open_tui

    raise typer.Exit(open_tui(find_home(home)))


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run the command line and exit; *arguments* default to the process's own."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a name that the terminal's encoding lacks is no reason to stop
            stream.reconfigure(errors="backslashreplace")
    code = _run(given, is_json="--json" in (given[: given.index("--")] if "--" in given else given))
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        from stoker.cli.output import EXIT_PIPE, quiet_stdout

        quiet_stdout()
        code = EXIT_PIPE
    sys.exit(code)


def _run(arguments: list[str], *, is_json: bool) -> int:
    try:
        result = typer.main.get_command(app).main(arguments, prog_name="stoker", standalone_mode=False)
        return result if isinstance(result, int) else 0
    except StokerError as error:
        return _tell(error, is_json)
    except (KeyboardInterrupt, typer.Abort):
        sys.stderr.write("\n" if sys.stderr.isatty() else "")
        return EXIT_INTERRUPTED
    except Exception as error:
        # Typer's usage errors: their class moved between modules over its releases, their methods did not.
        if hasattr(error, "format_message") and hasattr(error, "exit_code"):
            return _tell_usage(error, is_json)
        if os.environ.get("STOKER_DEBUG"):
            raise
        told = Internal(
            f"stoker met a bug of its own: {type(error).__name__}: {error}.",
            "Please report it; STOKER_DEBUG=1 in the environment shows where it happened.",
        )
        return _tell(told, is_json)


def _tell(error: StokerError, is_json: bool) -> int:
    if is_json:
        print(json.dumps(error.as_dict(), default=str), file=sys.stderr)
    else:
        from stoker.cli.output import clean

        lines = [clean(x) for x in str(error.message).splitlines()] or [error.code]
        hint = [clean(error.hint)] if error.hint else []
        print("\n".join([f"error: {lines[0]}" if len(lines) == 1 else "\n".join(lines), *hint]), file=sys.stderr)
    return error.exit_code


def _tell_usage(error: Any, is_json: bool) -> int:
    context = getattr(error, "ctx", None)
    where = context.command_path if context is not None else "stoker"
    message = error.format_message()
    if message.startswith("Usage:"):  # `stoker rollout` alone: the help is the message
        print(message, file=sys.stderr)
    elif is_json:
        body = {"code": "usage", "message": message, "hint": f"See `{where} --help`.", "details": {}}
        print(json.dumps(body), file=sys.stderr)
    else:
        print(f"error: {message}\nSee `{where} --help`.", file=sys.stderr)
    return int(error.exit_code)


if __name__ == "__main__":
    main()
