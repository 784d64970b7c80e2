"""The machine goes down and comes up: every process is dead at once, and the kernel has another boot id.

That id is a file of ours, mounted over the kernel's in namespaces of the daemon's own, which its children inherit.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from stoker.types.serving import Deployment, Replica
from stoker.types.training import Run, RunLost
from tests.harness import state_of, wait_for
from tests.nvml.fleet import Fleet
from tests.system.faults import census
from tests.system.faults.callers import ask
from tests.system.faults.jobs import start_run
from tests.system.faults.scene import Scene
from tests.system.loop import add_version, deployment

BOOT_ID = "/proc/sys/kernel/random/boot_id"
TRAIN = """
import os, pathlib, time
output = pathlib.Path(os.environ["STOKER_OUTPUT"])
if "STOKER_CHECKPOINT" in os.environ:
    (output / "began").write_text(os.environ["STOKER_CHECKPOINT"])
else:
    for step in (1, 2):
        (output / f"step-{step}").write_text("weights")
        os.utime(output / f"step-{step}", (step, step))
    (output / "ready").touch()
    time.sleep(1000)
"""


class Machine:
    """Boots of a machine that is not there; ``before`` are the words before a program that believes in it."""

    def __init__(self, folder: Path) -> None:
        self._file = folder / "boot_id"
        mount = f'mount --bind "{self._file}" {BOOT_ID} && exec "$@"'
        self.before = ("unshare", "--mount", "--propagation", "private", "sh", "-c", mount, "sh")
        self.boot()

    def boot(self) -> None:
        self._file.unlink(missing_ok=True)  # what the dead saw stays as it was
        self._file.write_text(f"{uuid.uuid4()}\n")


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    made = Machine(tmp_path)
    if os.geteuid() != 0:
        pytest.skip("only root can mount another boot id")
    seen = subprocess.run([*made.before, "cat", BOOT_ID], capture_output=True, text=True, check=False)
    if seen.returncode:
        pytest.skip(f"no boot id can be mounted here: {seen.stderr.strip()}")
    return made


@pytest.fixture
def scene(machine: Machine, tmp_path: Path) -> Iterator[Scene]:
    """A host with four GPUs."""
    fleet = Fleet(tmp_path, 4)
    with Scene(env=fleet.env(), before=machine.before) as running:
        add_version(running, "one")
        yield running
        running.check()


def crash(scene: Scene, machine: Machine) -> None:
    """Everything is dead, cgroups are gone as all else that the kernel has, and the files are still there."""
    scene.kill()
    for found in census.look(scene.root):
        scene.kill_pid(found.pid)
    wait_for(lambda: not census.mentions(scene.root), "all are dead")
    wait_for(lambda: lose_cgroups(scene.root), "their cgroups can be removed")
    machine.boot()


def lose_cgroups(home: Path) -> bool:
    for folder in census.cgroups(home):
        with contextlib.suppress(OSError):  # the kernel hasn't done with the dead yet
            folder.rmdir()
    return not census.cgroups(home)


def test_what_should_run_runs_again_and_what_was_cut_off_is_told(scene: Scene, machine: Machine) -> None:
    scene.apply(deployment(2, "devices: 1"))
    scene.wait_phase(Deployment, "chat", "ready")
    (scene.root / "train.py").write_text(TRAIN)
    command = f'command: ["{{python}}", {scene.root}/train.py], devices: 1'
    scene.apply(f"{{kind: job, name: resumes, {command}, retries: 1, backoff: 0.1, checkpoint: step-*}}")
    scene.apply(f"{{kind: job, name: gives-up, {command}}}")
    runs = [start_run(scene, name) for name in ("resumes", "gives-up")]
    outputs = [Path(scene.wait_phase(Run, run, "running").folder) / "output" for run in runs]
    wait_for(lambda: all((o / "ready").exists() for o in outputs), "both have written checkpoints")
    assert {lease.owner for d in scene.client.host().devices for lease in d.leases} == {
        *(f"run/{run}" for run in runs), "replica/chat-v1-0", "replica/chat-v1-1"
    }  # fmt: skip
    before = scene.client.host().last_event_id

    crash(scene, machine)
    scene.start()
    resumed = scene.wait_phase(Run, runs[0], "succeeded")
    lost = scene.wait_phase(Run, runs[1], "lost")
    wait_for(lambda: {r.phase for r in scene.client.list(Replica)} == {"ready"}, "both servers serve again")
    assert (outputs[0] / "began").read_text() == str(outputs[0] / "step-2")
    assert resumed.attempt == 2
    assert "machine went down" in state_of(lost, RunLost).message
    told = [(e.reason, e.name) for e in scene.events(before)]
    assert {("RunLost", run) for run in runs} <= set(told)
    assert {r.failures for r in scene.client.list(Replica)} == {0}, "a reboot is nobody's failure"
    assert not [r for r, _ in told if r in ("ReplicaBackingOff", "ReplicaFailed")]
    wait_for(lambda: scene.client.host().gateway_phase == "ready", "the gateway serves again")
    with scene.openai() as client:
        assert ask(client) == "I am one"
    assert {lease.owner for d in scene.client.host().devices for lease in d.leases} == {
        "replica/chat-v1-0", "replica/chat-v1-1"
    }  # fmt: skip
