"""The one parent that a supervised process has: ``python -I -S shim.py [FOLDER]``, in a session of its own.

Without a folder it is a spare one, which is told its folder on stdin, or ends when that ends.

It outlives the daemon, holds the log pipe and the exit status, and talks to the supervisor through the files that
`stokerd.processes.records` names. A folder runs once: a shim that finds the lock held, or child.json there, leaves
without a word. When the shim itself is killed the kernel kills its child (PR_SET_PDEATHSIG); what the child left behind
is the supervisor's to find.

Stdlib only, and few modules of it: there is one of these for each process. This file is compiled anew at each start, as
scripts are, so what it does stands in `stokerd.processes.parent`.
"""

# ruff: noqa: PTH100, PTH110, PTH118, PTH119, PTH120, PTH123

from __future__ import annotations

import fcntl
import os
import select
import sys

if __name__ == "__main__":  # -I and -S left no path to the package
    sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__)))))

from stokerd.processes.kernel import PR_SET_CHILD_SUBREAPER, prctl
from stokerd.processes.parent import Parent
from stokerd.processes.records import CHILD, EXIT, LOCK, SHIM_ERR


def await_folder() -> bytes:
    """Wait until the supervisor says on stdin which folder is ours; nothing when it has ended."""
    if folder := os.read(0, select.PIPE_BUF):
        os.dup2(os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC), 0)
        os.dup2(os.open(os.path.join(folder, os.fsencode(SHIM_ERR)), os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC), 2)
    return folder


def main(folder: bytes) -> None:
    """Be the shim of *folder*, unless another is or was."""
    os.chdir(folder)
    with open("/proc/self/comm", "wb") as name:  # for ps: the arguments of one that was a spare can't say it
        name.write(os.path.basename(folder)[:15])
    lock = os.open(LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.lockf(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # a record lock: no fork has it, the kernel names its holder
    except BlockingIOError:
        return
    if os.path.exists(CHILD) or os.path.exists(EXIT):
        return
    prctl(PR_SET_CHILD_SUBREAPER, 1)
    Parent(lock).run()


if __name__ == "__main__":
    os.closerange(3, 1 << 16)  # nothing of the daemon's, a listening socket say, may live on in here
    if given := os.fsencode(sys.argv[1]) if len(sys.argv) > 1 else await_folder():
        main(given)
    os._exit(0)  # the interpreter's own farewell would cost 5 ms
