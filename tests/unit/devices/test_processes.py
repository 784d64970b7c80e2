from __future__ import annotations

import os
import subprocess
import sys

from stokerd.devices.nvml import Process
from stokerd.devices.watcher import foreign, name_of


def test_a_process_is_known_by_its_name_until_it_has_ended() -> None:
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        assert name_of(process.pid)
        assert [p.name for p in foreign([Process(process.pid, 5, False)], lambda pid: False)] == [name_of(process.pid)]
        assert foreign([Process(process.pid, 5, False)], lambda pid: pid == process.pid) == ()
        process.kill()
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)  # its number is still there
        assert name_of(process.pid) == ""
    assert name_of(process.pid) == ""
    # Whosever it was, its memory is not back.
    assert [p.name for p in foreign([Process(process.pid, 5, False)], lambda pid: True)] == [""]


def test_a_name_may_hold_spaces_and_brackets() -> None:
    rename = "import ctypes; ctypes.CDLL(None).prctl(15, b'a) Z (b', 0, 0, 0); print(flush=True); input()"
    with subprocess.Popen([sys.executable, "-c", rename], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        assert name_of(process.pid) == "a) Z (b"
        process.kill()
