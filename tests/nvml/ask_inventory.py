"""A program with an `Inventory`: for each line on stdin it prints one line of JSON about it.

Times are shortened by argv: INTERVAL RETRY HANG, in seconds.
"""

from __future__ import annotations

import json
import sys
import time

from stokerd.devices import inventory, watcher

watcher.INTERVAL_SECONDS, watcher.RETRY_SECONDS, hang_seconds = map(float, sys.argv[1:4])
inventory.RETRY_SECONDS = watcher.RETRY_SECONDS

subject = inventory.Inventory(hang_seconds=hang_seconds)
for line in sys.stdin:
    began = time.monotonic()
    match line.strip():
        case "start":
            subject.start()
        case "close":
            subject.close()
    answer = {
        "seconds": time.monotonic() - began,
        "message": subject.message,
        "devices": [d.model_dump() for d in subject.devices()],
    }
    print(json.dumps(answer), flush=True)
