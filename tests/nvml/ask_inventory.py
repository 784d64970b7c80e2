"""A program with an `Inventory`: for each line on stdin it prints one line of JSON about it.

Times are set by argv: INTERVAL RETRY HANG CLOSE, in seconds. Lines: ``start``, ``close``, ``ours PID...``,
``mode INDEX MODE``, ``now`` (from which ``back`` counts), ``back UUID...``, or nothing.
"""

from __future__ import annotations

import dataclasses
import json
import sys
import time

from stokerd.devices import inventory, watcher, xids

watcher.INTERVAL_SECONDS, watcher.RETRY_SECONDS, hang_seconds, inventory._CLOSE_SECONDS = map(float, sys.argv[1:5])
inventory.RETRY_SECONDS = xids.RETRY_SECONDS = watcher.RETRY_SECONDS
inventory.TELL_SECONDS = watcher.PROCESSES_SOONEST = xids.WAIT_SECONDS = 0.02

ours: set[int] = set()
modes: dict[int, inventory.Mode] = {}
events: list[inventory.DeviceEvent] = []
since, back = 0.0, ""
subject = inventory.Inventory(
    hang_seconds=hang_seconds,
    modes=lambda index, uuid: modes.get(index, "shared"),
    is_ours=lambda pid: pid in ours,
    on_change=events.append,
)
for line in sys.stdin:
    match line.split():
        case ["start"]:
            subject.start()
        case ["close"]:
            subject.close()
        case ["ours", *pids]:
            ours.clear()
            ours.update(map(int, pids))
        case ["mode", index, ("shared" | "exclusive") as mode]:
            modes[int(index)] = mode
        case ["now"]:
            since = time.monotonic()
        case ["back", *uuids]:
            back = subject.memory_back(uuids, since)
    answer = {
        "message": subject.message,
        "devices": [d.model_dump() for d in subject.devices()],
        "events": [dataclasses.asdict(e) for e in events],
        "back": back,
    }
    print(json.dumps(answer), flush=True)
