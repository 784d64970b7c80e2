"""Draw the picture of the README: ``python -m tests.tui.screenshot docs/overview.svg``.

It is the program itself, on the afternoon of `tests.tui.world`, so that the picture can't promise what isn't there.
"""

from __future__ import annotations

import asyncio
import os
import re
import sys
import tempfile
from pathlib import Path

from stoker.paths import Home
from stoker_tui.app import StokerApp
from tests.tui import world
from tests.tui.pilots import settled

SIZE = (132, 40)
FONTS = "Fira Code, DejaVu Sans Mono, Menlo, Consolas, monospace"


async def picture(folder: Path) -> str:
    """The overview as SVG, without fonts from elsewhere."""
    clock = world.StillClock()
    daemon = world.daemon_at(folder, world.gpu_host(4), clock)
    world.fill(daemon)
    daemon.start()
    try:
        app = StokerApp(Home(folder, folder), clock)
        async with app.run_test(size=SIZE) as pilot:
            await settled(pilot)
            svg = app.export_screenshot(title="stoker")
    finally:
        daemon.stop()
    svg = re.sub(r"@font-face \{.*?\}\s*", "", svg, flags=re.DOTALL)
    svg = re.sub(r"terminal-\d+-", "terminal-", svg)
    return re.sub(r"font-family: Fira Code, *monospace", f"font-family: {FONTS}", svg)


def main() -> int:
    """Write the picture to the path that was given."""
    if len(sys.argv) != 2:
        print(__doc__, file=sys.stderr)
        return 2
    os.environ.update(COLORTERM="truecolor", TERM="xterm-256color")
    with tempfile.TemporaryDirectory(prefix="tui") as folder:
        svg = asyncio.run(picture(Path(folder)))
    target = Path(sys.argv[1])
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(svg)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
