"""The `stokerd` command: the daemon in the foreground."""

from __future__ import annotations

import argparse
import asyncio
import faulthandler
import logging
import os
import signal
import sys
from pathlib import Path

import stoker
from stoker.errors import StokerError
from stoker.paths import Home, find_home
from stokerd import lean, notify
from stokerd.app import Daemon, end_all, hold
from stokerd.config import DaemonConfig, load_config
from stokerd.loop import WatchedLoop
from stokerd.processes.groups import find_groups, name_of
from stokerd.processes.supervisor import Supervisor

_EPILOG = """\
exit codes: 0 ended as asked, 2 bad arguments or settings, 3 another stokerd serves this home, 5 a newer stokerd made
its database, 6 something needed can't be had (disk, socket), 1 a bug.

examples:
  stokerd                          serve the default home
  stokerd --home /srv/stoker       serve another one; then `stoker --home /srv/stoker status`
  stokerd --home /tmp/try --ephemeral   everything it started ends with it
  stokerd --end                    end what an earlier daemon left running
  stoker install-service           let systemd run it
"""


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "stokerd",
        description="The Stoker daemon: schedules training, supervises servers, rolls out versions.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--home", type=Path, help="folder for everything it keeps (default: STOKER_HOME, else XDG)")
    parser.add_argument("--config", type=Path, help="settings (default: stoker.yaml in the home)")
    parser.add_argument("--ephemeral", action="store_true", help="end all runs and servers when the daemon ends")
    parser.add_argument(
        "--end",
        action="store_true",
        help="serve nothing: end all runs and servers that a stopped daemon left, and exit",
    )
    parser.add_argument("--log-level", default="info", choices=["debug", "info", "warning", "error"])
    parser.add_argument("--version", action="version", version=f"stokerd {stoker.__version__}")
    return parser


async def _serve(home: Home, config: DaemonConfig, service: notify.Service, *, ephemeral: bool) -> None:
    daemon = Daemon(home, config, service, ephemeral=ephemeral)
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, daemon.end)
    await daemon.run()


async def _end(home: Home) -> None:
    """End what goes on without a daemon. What is wanted is not changed: the next daemon starts it again."""
    with hold(home):
        supervisor = Supervisor(home.processes, groups=find_groups(name_of(home.root)))
        supervisor.adopt()
        await end_all(supervisor)
        supervisor.close()


def main() -> None:
    """Entry point."""
    arguments = _parser().parse_args()
    lean.share_memory_of_threads()
    faulthandler.enable()  # systemd's watchdog sends SIGABRT: then the log has what a daemon that hangs did
    notify.log_to_stderr(arguments.log_level, os.environ)
    logging.getLogger("httpx").setLevel(logging.WARNING)
    logging.getLogger("apscheduler").setLevel(logging.WARNING)
    logging.getLogger("uvicorn").setLevel(logging.WARNING)
    try:
        service = notify.take(os.environ)
        home = find_home(arguments.home)
        if arguments.end:
            asyncio.run(_end(home))
            return
        config = load_config(arguments.config or home.config, required=arguments.config is not None)
        with asyncio.Runner(loop_factory=WatchedLoop) as runner:
            runner.run(_serve(home, config, service, ephemeral=arguments.ephemeral))
    except StokerError as error:
        mark = notify.prefix(logging.ERROR) if notify.is_journal(os.environ, sys.stderr.fileno()) else ""
        print(f"{mark}stokerd: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
