"""What must be done now and then so that nothing grows for ever."""

from __future__ import annotations

import asyncio
import logging
import os
from pathlib import Path

from stoker.paths import Home
from stokerd.config import LogsConfig
from stokerd.processes.log_writer import drop

log = logging.getLogger(__name__)
UPKEEP_SECONDS = 3600.0


class Upkeep:
    """Ages the logs of what has ended: a log that is written to is aged by its shim."""

    def __init__(self, home: Home, logs: LogsConfig) -> None:
        self._folders = (home.runs, home.replicas)
        self._logs = logs

    async def step(self) -> None:
        """Look at every log once."""
        await asyncio.to_thread(self._age_logs)

    def _age_logs(self) -> None:
        for folder in self._folders:
            for path in folder.glob("*/log") if folder.is_dir() else ():
                self._age(path)

    def _age(self, path: Path) -> None:
        try:
            drop(os.fspath(path), self._logs.segments, self._logs.max_age)
        except OSError as error:
            log.warning("old parts of the log %s can't be removed: %s", path, error.strerror)
