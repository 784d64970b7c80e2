"""The systemd units that `stoker install-service` writes, and where they lie. Templates: ``stoker/units``."""

from __future__ import annotations

import os
import pwd
import re
import shlex
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

from stoker.paths import Home

SYSTEM_UNITS = Path("/etc/systemd/system")
SERVICE, SOCKET = "stokerd.service", "stokerd.socket"
_SYSTEM_FOLDERS = """\
# Its home, /var/lib/stoker, and the folder of its sockets, which must outlive it: its children listen there.
StateDirectory=stoker
StateDirectoryMode=0750
RuntimeDirectory=stoker
RuntimeDirectoryMode=0750
RuntimeDirectoryPreserve=yes
"""
_USER_FOLDERS = """\
# The folder of its sockets, which must outlive it: its children listen there.
RuntimeDirectory=stoker
RuntimeDirectoryMode=0750
RuntimeDirectoryPreserve=yes
"""


@dataclass(frozen=True, slots=True)
class Service:
    """What is to be installed. ``home`` is None for the default one; ``is_user``: for a user's own systemd."""

    stokerd: Path
    home: Home | None = None
    is_user: bool = False
    has_socket: bool = False

    def texts(self) -> dict[str, str]:
        """The units' texts, by file name."""
        command = [str(self.stokerd)] + (["--home", str(self.home.root)] if self.home else [])
        mounts = f"RequiresMountsFor={unit_word(str(self.home.root))}\n" if self.home else ""
        values = {
            "STOKERD": " ".join(unit_word(word, is_command=True) for word in command),
            "END": shlex.join([*command, "--end"]),
            "UNIT": mounts + (f"Requires={SOCKET}\n" if self.has_socket else ""),
            "FOLDERS": "" if self.home else _USER_FOLDERS if self.is_user else _SYSTEM_FOLDERS,
            "SOCKET": str(self.home.socket).replace("%", "%%") if self.home else "%t/stoker/stoker.sock",
        }
        texts = {SERVICE: _filled("stokerd.user.service.in" if self.is_user else "stokerd.service.in", values)}
        if self.has_socket:
            texts[SOCKET] = _filled("stokerd.socket.in", values)
        return texts


def unit_word(text: str, *, is_command: bool = False) -> str:
    """*text* as one word of a unit file: specifiers, variables (in commands) and spaces lose their meaning."""
    text = text.replace("\\", "\\\\").replace('"', '\\"').replace("%", "%%")
    if is_command:
        text = text.replace("$", "$$")
    return f'"{text}"' if re.search(r"[\s;'\"]", text) else text


def _filled(template: str, values: dict[str, str]) -> str:
    text = files("stoker").joinpath("units", template).read_text()
    return re.sub(r"@([A-Z]+)@", lambda found: values[found[1]], text)


def units_folder(*, is_user: bool) -> Path:
    """Where an administrator's units lie, or a user's."""
    if not is_user:
        return SYSTEM_UNITS
    return Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config") / "systemd" / "user"


def lingers() -> bool:
    """Whether this user's systemd runs without a login."""
    try:
        name = pwd.getpwuid(os.geteuid()).pw_name
    except KeyError:
        return False
    return Path("/var/lib/systemd/linger", name).exists()
