"""What holds after every fault, whatever it was. Each function names what is wrong, and nothing when all is well.

- no duplicate process: never two living servers of a replica, two processes of an attempt, two gateways
- no lost exit status: of each start there is exactly one event that says how it ended, or it lives
- no lost or doubled event: ids without a gap, and a watcher over all lives of the daemon saw each of them once
- what was leased is given back: nothing that ended holds a device, a socket, or a folder of a process
- (what the gateway answers is judged by `callers.Callers`, and what is left after the end by `Scene.close`)
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from stoker.types.events import Event
from stoker.types.host import Device
from stoker.types.serving import Replica
from stoker.types.training import ACTIVE_PHASES, Run
from tests.system.faults.census import Found

HOW = re.compile(
    r"exited with code|killed by signal|was lost|not ready within|could not be started|timeout of|its process is gone"
    r"|out of memory|nothing has come from it|has stood still|left no|missing"
)
RUN_STARTS = "RunStarted"
RUN_ENDS = frozenset({"RunSucceeded", "RunFailed", "RunRetrying", "RunCancelled", "RunLost"})
REPLICA_STARTS = "ReplicaStarting"
REPLICA_ENDS = frozenset({"ReplicaBackingOff", "ReplicaFailed", "ReplicaRestarting", "ReplicaStopped"})
REPLICA_ONCE = frozenset({"ReplicaReady", "ReplicaDraining", "ReplicaStopping", "ReplicaRetired"})


def of_ids(events: Sequence[Event], witnessed: Sequence[Event]) -> list[str]:
    """Numbered from 1 without a gap, and told to the watcher once each, in order, just as they are kept."""
    wrong = []
    ids = [e.id for e in events]
    if ids != list(range(1, len(ids) + 1)):
        wrong.append(f"the events' ids are not 1 to {len(ids)}: {ids}")
    if list(witnessed) != list(events):
        seen = [e.id for e in witnessed]
        lost = sorted(set(ids) - set(seen))
        doubled = sorted({i for i in seen if seen.count(i) > 1})
        wrong.append(f"the watcher saw something else: lost {lost}, doubled {doubled}, last {seen[-1:]} of {ids[-1:]}")
    return wrong


def of_runs(events: Sequence[Event], runs: Sequence[Run]) -> list[str]:
    """Each attempt was started once and its end told once, with how; one that has no end yet is the run's present."""
    wrong = []
    by_name = _by_name(events, "run")
    for run in runs:
        told = by_name.pop(run.name, [])
        wrong += _paired(run.name, told, RUN_STARTS, RUN_ENDS, is_open=run.phase in ("running", "cancelling"))
        started = [e.data.get("attempt") for e in told if e.reason == RUN_STARTS]
        if started != list(range(1, len(started) + 1)):
            wrong.append(f"{run.name}: attempts {started} were started")
        if [e.reason for e in told].count("RunQueued") != 1:
            wrong.append(f"{run.name}: it was queued more than once, or never")
    return wrong + [f"there are events of a run that is not there: {name}" for name in by_name]


def of_replicas(events: Sequence[Event], replicas: Sequence[Replica]) -> list[str]:
    """The same for servers, from each creation of a replica to its stop."""
    wrong = []
    present = {r.name: r for r in replicas}
    by_name = _by_name(events, "replica")
    for name, told in by_name.items():
        lives = _split(told, "ReplicaCreated")
        for number, life in enumerate(lives):
            replica = present.pop(name, None) if number == len(lives) - 1 else None
            if replica is None and life[-1].reason != "ReplicaStopped":
                wrong.append(f"{name} is gone without an event; the last was {life[-1].reason}")
            holds = {"starting", "ready", "stalled", "unreachable", "draining", "stopping", "asleep", "waking"}
            is_open = replica is not None and replica.phase in holds
            wrong += _paired(name, life, REPLICA_STARTS, REPLICA_ENDS, is_open=is_open)
            wrong += _said_once(name, life)
    return wrong + [f"there is no event of replica {name}" for name in present]


def of_leases(runs: Sequence[Run], replicas: Sequence[Replica], devices: Sequence[Device]) -> list[str]:
    """Devices are held by what is active, and by nothing else."""
    active = {f"run/{r.name}" for r in runs if r.phase in ACTIVE_PHASES}
    serving = {"starting", "ready", "stalled", "unreachable", "draining", "stopping", "waking"}
    active |= {f"replica/{r.name}" for r in replicas if r.phase in serving}
    wrong = [
        f"run {r.name} has ended and holds {r.devices}" for r in runs if r.devices and r.phase not in ACTIVE_PHASES
    ]
    wrong += [f"replica {r.name} is {r.phase} and holds {r.devices}" for r in replicas
              if r.devices and r.phase not in serving]  # fmt: skip
    for device in devices:
        owners = [lease.owner for lease in device.leases] or (device.owner.split(", ") if device.owner else [])
        wrong += [f"{device.uuid} is held by {o}, which is not active" for o in owners if o not in active]
        if len(owners) != len(set(owners)):
            wrong.append(f"{device.uuid} is held twice: {owners}")
    return wrong


def of_processes(found: Sequence[Found], folders: set[str], wanted: dict[str, str], sockets: set[Path]) -> list[str]:
    """What lives is what is wanted, each with its shim and its folder, and no socket is left of what is gone.

    Args:
        found: what /proc shows.
        folders: the supervised processes that the home knows.
        wanted: the processes that should live, each with the key of its `Found` in *found*.
        sockets: files in the sockets' folder that belong to nobody who is there.
    """
    wrong = []
    if folders != set(wanted):
        wrong.append(f"processes that nobody speaks of: {folders - set(wanted)}, or lost: {set(wanted) - folders}")
    shims = sorted(f.key for f in found if f.role == "shim")
    if shims != sorted(wanted):
        wrong.append(f"shims: {shims}; wanted: {sorted(wanted)}")
    keys = sorted(f.key for f in found if f.role != "shim")
    if keys != sorted(wanted.values()):
        wrong.append(f"living: {keys}; wanted: {sorted(wanted.values())}")
    return wrong + [f"a socket was left behind: {s}" for s in sorted(sockets)]


def _by_name(events: Sequence[Event], kind: str) -> dict[str, list[Event]]:
    by_name: dict[str, list[Event]] = defaultdict(list)
    for event in events:
        if event.kind == kind:
            by_name[event.name].append(event)
    return by_name


def _split(told: Sequence[Event], reason: str) -> list[list[Event]]:
    """Parts of *told* that each begin with *reason*."""
    parts: list[list[Event]] = []
    for event in told:
        if event.reason == reason or not parts:
            parts.append([])
        parts[-1].append(event)
    return parts


def _paired(name: str, told: Sequence[Event], start: str, ends: frozenset[str], *, is_open: bool) -> list[str]:
    """Between one start and the next there is one end that says how; after the last, unless it *is_open*, too."""
    wrong = []
    attempts = _split([e for e in told if e.reason == start or e.reason in ends], start)
    for number, attempt in enumerate(attempts):
        is_last = number == len(attempts) - 1
        if attempt[0].reason != start:
            continue  # it never started: cancelled in the queue, retired while it waited
        count = len(attempt[1:]) - _is_put_away(attempt)
        if count != (0 if is_last and is_open else 1):
            story = [f"{e.id} {e.reason}" for e in told]
            wrong.append(f"{name}: start {number + 1} has {count} ends told: {story}")
        wrong += [
            f"{name}: event {e.id} {e.reason} doesn't say how it ended: {e.message}"
            for e in attempt[1:]
            if e.reason in ("RunFailed", "RunRetrying", "ReplicaBackingOff", "ReplicaFailed") and not _says_how(e)
        ]
    return wrong


def _is_put_away(attempt: Sequence[Event]) -> bool:
    """Whether the last of these tells of no end of a process, but that what had ended already waits no longer."""
    match [e.reason for e in attempt[1:]]:
        case [*_, "RunRetrying" | "RunLost", "RunCancelled"]:
            return True
        case [*_, before, "ReplicaStopped"]:
            return before != "ReplicaStopped"
    return False


def _said_once(name: str, life: Sequence[Event]) -> list[str]:
    wrong = []
    for start in _split([e for e in life if e.reason == REPLICA_STARTS or e.reason in REPLICA_ONCE], REPLICA_STARTS):
        reasons: list[Any] = [e.reason for e in start]
        back = sum(e.reason in ("ReplicaStalled", "ReplicaUnreachable") for e in life)  # ready again after those
        wrong += [
            f"{name}: {reason} is told {reasons.count(reason)} times of one start"
            for reason in REPLICA_ONCE
            if reasons.count(reason) > 1 + (back if reason == "ReplicaReady" else 0)
        ]
    return wrong


def _says_how(event: Event) -> bool:
    return HOW.search(event.message) is not None
