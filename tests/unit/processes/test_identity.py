"""A recorded pid that now belongs to another program is never signalled."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from dataclasses import replace
from typing import Any

import pytest

from stokerd.processes.group import Group
from stokerd.processes.identity import Identity, has_ended, send
from stokerd.processes.kernel import boot_id
from stokerd.processes.states import Bounds, Lost
from tests.harness import DEADLINE
from tests.process_kit import Bench, is_running, until
from tests.unit.processes.grouped import GroupedBench


def lay(
    bench: Bench, child: Identity, log_pipe_inode: int = 0, heartbeat: int = 0, shim: Identity | None = None
) -> None:
    """A folder as a killed shim leaves it."""
    folder = bench.folder / "p"
    folder.mkdir(parents=True)
    (folder / "lock").write_text(f"{heartbeat}\n")
    record: dict[str, Any] = {"pid": child.pid, "start_ticks": child.start_ticks}
    (folder / "child.json").write_text(
        json.dumps(
            {
                "boot_id": child.boot_id,
                "shim": {"pid": shim.pid, "start_ticks": shim.start_ticks}
                if shim
                else {"pid": 2**22 - 1, "start_ticks": 1},
                "child": record,
                "started_at": 1.0,
                "log_pipe_inode": log_pipe_inode,
            }
        )
    )


def test_a_pid_that_was_given_anew_is_somebody_else(bystander: int) -> None:
    me = Identity.of(bystander)
    assert me is not None
    for stranger in (replace(me, start_ticks=me.start_ticks - 1), replace(me, boot_id="another")):
        assert stranger.open() is None
        assert not stranger.signal(signal.SIGKILL)
    assert is_running(bystander)


def test_the_very_process_is_signalled_and_its_end_is_seen() -> None:
    process = subprocess.Popen(["sleep", "600"])
    me = Identity.of(process.pid)
    assert me is not None
    pidfd = me.open()
    assert pidfd is not None
    assert not has_ended(pidfd)
    assert me.signal(signal.SIGTERM)
    assert has_ended(pidfd, DEADLINE)
    process.wait()
    assert not send(pidfd, signal.SIGTERM)
    assert me.open() is None
    assert Identity.of(process.pid) is None
    os.close(pidfd)


@pytest.mark.parametrize("change", [{"start_ticks": -1}, {"boot_id": "another boot"}])
def test_a_strangers_process_with_the_childs_old_pid_lives_on(
    bench: Bench, bystander: int, change: dict[str, Any]
) -> None:
    """The stranger even leads a session of that number, started while nobody knew the shim to be alive."""
    me = Identity.of(bystander)
    assert me is not None
    if "start_ticks" in change:
        change = {"start_ticks": me.start_ticks - 1000}
    lay(bench, replace(me, **change), heartbeat=me.start_ticks - 500)
    assert isinstance(bench.end(), Lost)
    bench.supervisor.stop("p", 0)
    assert is_running(bystander)


def test_the_session_of_a_stranger_whose_leader_is_gone_lives_on(bench: Bench) -> None:
    """What every daemon does: fork, setsid, fork, exit. Its session bears a number that once was our child's."""
    script = (
        "import os, time\n"
        "os.setsid()\n"
        "if pid := os.fork(): print(os.getpid(), pid, flush=True); os._exit(0)\n"
        "os.closerange(0, 3); time.sleep(600)"
    )
    leader = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    session, daemon = map(int, leader.stdout.split())
    me = Identity.of(daemon)
    assert me is not None
    try:
        assert os.getsid(daemon) == session
        lay(bench, Identity(me.boot_id, session, me.start_ticks - 2000), heartbeat=me.start_ticks - 1000)
        assert isinstance(bench.end(), Lost)
        assert is_running(daemon)
        bench.supervisor.forget("p")
        lay(bench, Identity(me.boot_id, session, me.start_ticks - 2000), heartbeat=me.start_ticks + 1)
        assert isinstance(bench.end(), Lost)
        until(lambda: not is_running(daemon))  # the same, but surely ours: it started while the shim lived
    finally:
        me.signal(signal.SIGKILL)


def test_the_child_itself_is_killed_when_the_kernel_did_not(bench: Bench, bystander: int) -> None:
    me = Identity.of(bystander)
    assert me is not None
    lay(bench, me)
    assert isinstance(bench.end(), Lost)
    assert not is_running(bystander)


def test_a_strangers_process_with_the_shims_old_pid_lives_on(bench: Bench, bystander: int) -> None:
    """Whether the shim lives is asked of its lock, which ends with it; its number is only told to people."""
    me = Identity.of(bystander)
    assert me is not None
    lay(bench, replace(me, pid=2**22 - 1), shim=me, heartbeat=me.start_ticks + 1)
    bench.supervisor.adopt()
    bench.supervisor.stop("p", 0)
    assert isinstance(bench.end(), Lost)
    bench.supervisor.forget("p")
    assert is_running(bystander)


def test_strangers_in_a_group_that_was_recorded_before_the_machine_went_down_live_on(
    grouped: GroupedBench, bystander: int
) -> None:
    grouped.groups.make("p", Bounds())
    folders = grouped.groups.folders("p")
    assert Group(folders).enter(bystander) == ""
    me = Identity.of(bystander)
    assert me is not None
    lay(grouped, replace(me, boot_id="another boot"))
    (grouped.folder / "p/command.json").write_text(json.dumps({"boot_id": "another boot", "groups": folders}))
    assert grouped.supervisor.observe("p") == Lost(
        "Its shim is gone and left no exit status: the machine went down.", by_reboot=True
    )
    grouped.supervisor.forget("p")
    assert is_running(bystander)
    assert Group(folders).members() == {bystander}
    assert Group(folders).end(DEADLINE)


def test_strangers_in_a_group_that_is_not_the_processs_own_live_on(grouped: GroupedBench, bystander: int) -> None:
    """A record says what it likes; only a group with the name of its own process is believed to be that."""
    grouped.groups.make("q", Bounds())
    folders = grouped.groups.folders("q")
    assert Group(folders).enter(bystander) == ""
    above = [each.rpartition("/")[0] for each in folders]
    me = Identity.of(bystander)
    assert me is not None
    for wrong in (folders, above, [f"{each}/../p_q" for each in folders]):
        lay(grouped, replace(me, pid=2**22 - 1))
        (grouped.folder / "p/command.json").write_text(json.dumps({"boot_id": boot_id(), "groups": wrong}))
        assert isinstance(grouped.again().observe("p"), Lost)
        grouped.again().forget("p")
        assert is_running(bystander)
    assert Group(folders).end(DEADLINE)
