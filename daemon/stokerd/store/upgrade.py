"""Have Alembic upgrade a database: ``python -m stokerd.store.upgrade PATH PARENT``. See `stokerd.store.migrate`.

A process of its own, for what Alembic loads takes 10 MB, and the daemon that needs it once would hold it for all its
life. It ends with its parent, so that no later one finds it still at work. What SQLite says against it, it prints.
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

from alembic import command
from alembic.config import Config
from sqlalchemy.exc import OperationalError

from stokerd.processes.kernel import PR_SET_PDEATHSIG, prctl
from stokerd.store.migrate import REFUSED
from stokerd.store.store import open_engine


def main(path: Path, parent: int) -> int:
    """Upgrade the database at *path*, or make it, unless *parent* has died. Returns the exit code."""
    prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        return 1
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).with_name("migrations")))
    engine = open_engine(path, synchronous="FULL")
    try:
        with engine.connect() as connection:
            config.attributes["connection"] = connection
            command.upgrade(config, "head")
    except OperationalError as error:
        print(error.orig, end="")
        return REFUSED
    finally:
        engine.dispose()
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), int(sys.argv[2])))
