"""The units that `stoker install-service` writes, and what it refuses. tests/system/test_systemd.py installs them."""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path

import pytest

from stoker.cli.unit_files import Service, unit_word
from stoker.paths import find_home
from tests.unit.cli.conftest import Stoker

EXAMPLES = Path(__file__).parents[3] / "configs" / "systemd"


@pytest.mark.parametrize("is_user", [False, True], ids=["system", "user"])
def test_the_examples_are_what_it_writes(is_user: bool) -> None:
    """Write them anew, after a change of a template, with `stoker install-service --dry-run`."""
    folder = EXAMPLES / ("user" if is_user else "system")
    stokerd = Path("/opt/stoker/bin/stokerd")
    texts = Service(stokerd, is_user=is_user, has_socket=True).texts() | Service(stokerd, is_user=is_user).texts()
    assert texts == {path.name: path.read_text() for path in folder.iterdir()}


def test_what_the_promises_rest_on_is_in_both_units() -> None:
    for is_user in (False, True):
        text = Service(Path("/x/stokerd"), is_user=is_user).texts()["stokerd.service"]
        for line in (
            *("Type=notify", "WatchdogSec=30", "KillMode=process", "Delegate=yes", "Restart=on-failure"),
            *("OOMPolicy=continue", "RuntimeDirectoryPreserve=yes", "StandardOutput=journal", "ExecStart=/x/stokerd"),
        ):
            assert f"\n{line}\n" in text, line
        assert not re.search(r"@[A-Z]+@", text)
        set_here = {line.partition("=")[0] for line in text.splitlines() if "=" in line and line[0] != "#"}
        breaks = {"PrivateTmp", "PrivateDevices", "ProtectHome", "ProtectClock", "DeviceAllow", "PrivateUsers"}
        assert not set_here & breaks


def test_a_named_home_is_passed_on_and_makes_no_default_folders() -> None:
    service = Service(Path("/x/stokerd"), home=find_home("/data/my home"), has_socket=True)
    text = service.texts()["stokerd.service"]
    assert '\nExecStart=/x/stokerd --home "/data/my home"\n' in text
    assert '\nRequiresMountsFor="/data/my home"\nRequires=stokerd.socket\n' in text
    assert "StateDirectory" not in text
    assert "RuntimeDirectory" not in text
    assert "\nListenStream=/data/my home/stoker.sock\n" in service.texts()["stokerd.socket"]


@pytest.mark.parametrize(
    ("word", "written"),
    [("/a/b-c", "/a/b-c"), ("/a b", '"/a b"'), ("/50%", "/50%%"), ("/$x", "/$$x"), ('/"', '"/\\""'), ("/\\", "/\\\\")],
)
def test_odd_paths_lose_their_meaning(word: str, written: str) -> None:
    assert unit_word(word, is_command=True) == written


def test_a_dry_run_prints_the_unit_of_this_installation(stoker: Stoker, home: Path) -> None:
    printed = stoker("install-service", "--dry-run")
    stokerd = Path(sys.executable).with_name("stokerd")
    assert (printed.code, printed.err) == (0, "")
    assert f"\nExecStart={stokerd} --home {home}\n" in printed.out
    both = stoker("install-service", "--dry-run", "--socket", "--json").json["units"]
    assert list(both) == ["/etc/systemd/system/stokerd.service", "/etc/systemd/system/stokerd.socket"]


def test_who_may_not_is_told_what_to_do(stoker: Stoker, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    refused = stoker("install-service")
    assert refused.code == 2
    assert "only root may write /etc/systemd/system/stokerd.service" in refused.err
    assert "--user" in refused.err
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    refused = stoker("install-service", "--user")
    assert refused.code == 2
    assert "as root" in refused.err


def test_a_machine_without_systemd_is_told_what_to_do(
    stoker: Stoker, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setattr("stoker.cli.install_service._BOOTED", tmp_path / "none")
    refused = stoker("install-service", "--json")
    assert refused.code == 6
    assert '"code": "no-systemd"' in refused.err
    assert "foreground" in refused.err
