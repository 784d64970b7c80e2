"""A daemon under observation, from its first second to after its end."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from stoker.errors import StokerError
from stoker.types.rollouts import FINAL_PHASES, Rollout
from stoker.types.serving import BackingOff, Deployment, Pending, Ready, Replica, ReplicaFailed
from stoker.types.training import ACTIVE_PHASES, Run
from stokerd.gateway.handover import path_beside
from stokerd.serving.gateway_worker import PROCESS_PREFIX, WorkerName
from tests.harness import STOKERD, Stokerd, state_of, wait_for
from tests.system.faults import census, invariants
from tests.system.faults.witness import Witness

SETTLE_SECONDS = 90.0


class Scene(Stokerd):
    """A `Stokerd` with a watcher of its events and one of its processes; `check` asserts every invariant.

    Args:
        env: of the daemon, beside this program's own.
        before: words before the daemon's command line (``unshare …``); they must become it by exec.
        waits_for: seconds within which everything must have come to rest when `check` is called.
    """

    def __init__(
        self,
        *,
        python: str = sys.executable,
        settings: str = "",
        home: Path | None = None,
        env: Mapping[str, str] | None = None,
        before: Sequence[str] = (),
        waits_for: float = SETTLE_SECONDS,
    ) -> None:
        super().__init__(python=python, settings=settings, home=home)
        self.env = dict(env or {})
        self.before = tuple(before)
        self.start_seconds = 1.0  # what the last start took
        self.workers = 2  # of the gateway, as it is set
        self._waits_for = waits_for
        self.census = census.Census(self.root)
        self.witness = Witness(self.home.socket)
        self.census.start()
        self.witness.start()

    def __enter__(self) -> Scene:
        try:
            self.start()
        except BaseException:
            self.close()
            raise
        return self

    def spawn(self) -> None:
        """Start the daemon and wait for nothing."""
        with (self.root / "stokerd.log").open("ab") as log:
            self.process = subprocess.Popen(
                [*self.before, STOKERD, "--home", self.root],
                stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True, env=os.environ | self.env,
            )  # fmt: skip

    def start(self) -> None:
        """Start it and wait until it answers."""
        begin = time.monotonic()
        self.spawn()
        self.wait_up()
        self.start_seconds = time.monotonic() - begin

    def wait_up(self) -> None:
        """Wait until the daemon that was spawned answers."""
        wait_for(self.is_up, "the daemon answers")

    def is_up(self) -> bool:
        """Whether it answers. Fails when it has ended."""
        try:
            return super().is_up()
        except StokerError:
            return False

    def close(self) -> None:
        """End everything, and see that nothing is left of it."""
        groups = census.cgroups(self.root)
        try:
            super().close()
        finally:
            self.witness.close()
            self.census.close()
        wait_for(lambda: not [g for g in groups if g.exists()], "no cgroup is left")
        wait_for(lambda: not census.mentions(self.root), f"nothing is left of {self.root}")

    # Faults.

    @contextlib.contextmanager
    def killed_at(self, reason: str, name: str) -> Iterator[None]:
        """Kill the daemon as soon as that event is told; after the block it is started again."""
        process = self.process
        assert process is not None
        self.witness.on(reason, name, process.kill)
        with contextlib.suppress(StokerError):  # killed before it had answered: the change was kept, and its event told
            yield
        wait_for(lambda: process.poll() is not None, f"{reason} of {name}, at which the daemon is killed")
        self.start()

    def pid_of(self, process: str) -> int:
        """The pid of the program that is supervised under this id, once it was started."""

        def look() -> int | None:
            with contextlib.suppress(FileNotFoundError):
                return int(json.loads((self.home.processes / process / "child.json").read_bytes())["child"]["pid"])
            return None

        return wait_for(look, f"{process} was started")

    def server_of(self, replica: str) -> int:
        """The pid of a replica's server."""
        return self.pid_of(self.process_of(replica))

    def process_of(self, replica: str) -> str:
        """The id under which a replica's server is supervised."""
        state = self.client.get(Replica, replica).state
        assert not isinstance(state, Pending | BackingOff | ReplicaFailed), state
        return state.process

    def shim_of(self, process: str) -> int:
        """The pid of the shim of the process with this id."""

        def look() -> int | None:
            return next((f.pid for f in self.living("shim") if f.key == process), None)

        return wait_for(look, f"{process} has a shim")

    def living(self, role: census.Role) -> list[census.Found]:
        """What lives now in that role."""
        return [f for f in census.look(self.root) if f.role == role]

    def gateway_processes(self) -> list[str]:
        """The ids under which the gateway's workers are supervised, the first one's first."""
        return sorted(f.key for f in self.living("shim") if f.key.startswith(PROCESS_PREFIX))

    def kill_pid(self, pid: int, number: signal.Signals = signal.SIGKILL) -> None:
        """Send a signal; the process may be gone already."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)

    # Invariants.

    def told(self) -> str:
        """All events so far, for people."""
        return "\n".join(f"{e.id} {e.reason} {e.name}: {e.message}" for e in self.witness.events)

    def settle(self) -> None:
        """Wait until nothing moves: runs have ended, replicas serve or were given up, rollouts are over."""
        unrest: list[str] = []

        def look() -> bool:
            unrest[:] = self._unrest()
            return not unrest

        try:
            wait_for(look, "everything comes to rest", seconds=self._waits_for)
        except AssertionError as error:
            raise AssertionError(f"{self.told()}\n{self.log[-3000:]}\n{error}: {unrest}") from None

    def _unrest(self) -> list[str]:
        try:
            if not self.is_up():
                return ["the daemon doesn't answer"]
            host, replicas = self.client.host(), self.client.list(Replica)
            moving: list[Any] = [r for r in self.client.list(Run) if r.phase in ACTIVE_PHASES]
            moving += [r for r in replicas if r.phase not in ("ready", "asleep", "failed") or not r.wanted]
            moving += [r for r in self.client.list(Rollout) if r.phase not in (*FINAL_PHASES, "paused")]
            moving += [d for d in self.client.list(Deployment) if d.phase in ("starting", "deleting")]
            unrest = [f"{m.name} is {m.phase}" for m in moving]
            if host.gateway_phase != "ready" or host.gateway_message:
                unrest.append(f"the gateway is {host.gateway_phase}: {host.gateway_message}")
            if len(self.gateway_processes()) != self.workers:
                unrest.append(f"workers of the gateway: {self.gateway_processes()}")
            unrest += self._wrong_processes(replicas)
            if not self.witness.events or self.witness.events[-1].id < host.last_event_id:
                unrest.append("the watcher hasn't heard everything yet")
        except StokerError as error:
            return [str(error)]
        return unrest

    def _wrong_processes(self, replicas: list[Replica]) -> list[str]:
        wanted = {state_of(r, Ready).process: self._socket_of(r) for r in replicas if r.phase == "ready"}
        workers = [name for process in self.gateway_processes() if (name := WorkerName.parse(process)) is not None]
        wanted |= {name.process: name.control(self.home.sockets).stem for name in workers}
        folders = {f.name for f in self.home.processes.iterdir()}
        owned = {Path(self._socket_of(r)) for r in replicas}
        for name in workers:
            control = name.control(self.home.sockets)
            owned |= {control, path_beside(control)}
        left = {s for s in self.home.sockets.iterdir() if s not in owned}
        return invariants.of_processes(census.look(self.root), folders, wanted, left)

    def _socket_of(self, replica: Replica) -> str:
        return f"{self.home.sockets}/{hashlib.sha256(replica.name.encode()).hexdigest()[:12]}.sock"

    def check(self) -> None:
        """Assert every invariant."""
        self.settle()
        events, runs, replicas = self.events(), self.client.list(Run), self.client.list(Replica)
        wrong = [*self.census.take_duplicates(), *self.witness.problems]
        wrong += invariants.of_ids(events, self.witness.events[: len(events)])
        wrong += invariants.of_runs(events, runs)
        wrong += invariants.of_replicas(events, replicas)
        wrong += invariants.of_leases(runs, replicas, self.client.host().devices)
        wrong += [f"half a file was left: {p}" for p in self.root.rglob("*") if p.suffix in (".partial", ".tmp")]
        assert not wrong, "\n".join([self.told(), self.log[-3000:], *wrong])
