"""What a check gets and what it gives."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from stoker.paths import Home
from stoker.types.host import Host

Level = Literal["ok", "warn", "fail"]


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at: ``message`` says in a sentence what is so, ``hint`` what to do about it.

    *warn*: works, but not all or not for long; *fail*: something will not work.
    """

    name: str
    level: Level
    message: str
    hint: str = ""


@dataclass(frozen=True, slots=True)
class Look:
    """The host that is looked at.

    Args:
        home: of the daemon.
        host: what the daemon says of itself; None when it doesn't answer.
        away: why it doesn't.
        settings: what stoker.yaml says, as far as it can be read.
        unreadable: why it can't be.
        root: where /proc, /sys, /dev, /etc and /run are (tests lay others).
    """

    home: Home
    host: Host | None = None
    away: str = ""
    settings: Mapping[str, Any] = field(default_factory=dict)
    unreadable: str = ""
    root: Path = Path("/")

    def path(self, path: str) -> Path:
        """A path of the host, such as /proc/meminfo."""
        return self.root / path.lstrip("/")

    def text(self, path: str) -> str:
        """What a file of the host says, stripped; empty when it can't be read."""
        try:
            return self.path(path).read_text().strip()
        except (OSError, UnicodeDecodeError):
            return ""

    def setting(self, section: str, name: str) -> Any:
        """One setting, or None."""
        inner = self.settings.get(section)
        return inner.get(name) if isinstance(inner, Mapping) else None

    @property
    def has_driver(self) -> bool:
        """Whether NVIDIA's kernel driver is loaded."""
        return bool(self.text("/proc/driver/nvidia/version"))
