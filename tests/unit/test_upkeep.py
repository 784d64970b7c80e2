from __future__ import annotations

import asyncio
import os
import time
from pathlib import Path

from stoker.paths import Home
from stokerd.config import LogsConfig
from stokerd.processes.log_writer import rotated, segment
from stokerd.processes.logs import read_log
from stokerd.upkeep import Upkeep


def test_old_parts_of_the_logs_of_what_has_ended_go_and_what_is_left_keeps_its_place(tmp_path: Path) -> None:
    home = Home(tmp_path, tmp_path)
    old = time.time() - 3600
    logs = [home.runs / "tune-1" / "log", home.replicas / "chat-v1-0" / "log"]
    for log in logs:
        log.parent.mkdir(parents=True)
        for start, text, moment in ((0, "first\n", old), (6, "second\n", time.time())):
            path = Path(segment(str(log), start))
            path.write_text(text)
            os.utime(path, (moment, moment))
        log.write_text("third\n")
    asyncio.run(Upkeep(home, LogsConfig(segments=3, max_age=60)).step())
    for log in logs:
        assert rotated(str(log)) == [6]
        assert read_log(log, 0) == (b"second\nthird\n", 19)


def test_a_home_without_runs_has_no_logs_to_look_at(tmp_path: Path) -> None:
    asyncio.run(Upkeep(Home(tmp_path, tmp_path), LogsConfig()).step())
