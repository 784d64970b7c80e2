"""The table's file, which all workers share."""

from __future__ import annotations

import fcntl
import json
import threading
from pathlib import Path

import pytest

from stokerd.gateway import tablefile
from stokerd.gateway.wire import Arm, Route, RouteTable


def table(version: int, weight: float = 100) -> RouteTable:
    return RouteTable(version, (Route("m", "s", (Arm("stable", 1, weight, ("unix:/a",)),)),))


def version(path: Path) -> int:
    return int(json.loads(path.read_bytes())["version"])


def test_it_is_read_as_it_was_saved(tmp_path: Path) -> None:
    path = tmp_path / "t"
    assert tablefile.load(path) is None
    tablefile.save(path, table(3))
    assert tablefile.load(path) == table(3)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["t", "t.lock"]


def test_an_older_one_never_takes_the_place_of_a_newer_one_unless_the_daemon_went_back(tmp_path: Path) -> None:
    path = tmp_path / "t"
    tablefile.save(path, table(5))
    tablefile.save(path, table(4))
    assert version(path) == 5
    tablefile.save(path, table(5, weight=50))  # another one of the same number is what was told last
    assert tablefile.load(path) == table(5, weight=50)
    tablefile.save(path, table(2), is_return=True)
    assert version(path) == 2


def test_what_is_there_already_is_not_written_again(tmp_path: Path) -> None:
    path = tmp_path / "t"
    tablefile.save(path, table(5))
    before = path.stat().st_ino
    tablefile.save(path, table(5))
    assert path.stat().st_ino == before


@pytest.mark.parametrize("text", ["", "[]", '{"version": "x"}', "\x00"])
def test_a_damaged_one_is_replaced(tmp_path: Path, text: str) -> None:
    path = tmp_path / "t"
    path.write_text(text)
    tablefile.save(path, table(1))
    assert tablefile.load(path) == table(1)


def test_what_a_killed_worker_left_is_removed(tmp_path: Path) -> None:
    (tmp_path / ".t.123-0.new").write_text("half")
    tablefile.save(tmp_path / "t", table(1))
    assert not list(tmp_path.glob(".t.*"))


def test_a_lock_that_is_never_given_back_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tablefile, "LOCK_SECONDS", 0.05)
    with (tmp_path / "t.lock").open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        with pytest.raises(OSError, match="another worker"):
            tablefile.save(tmp_path / "t", table(1))


def test_of_many_that_are_saved_at_once_the_newest_stays(tmp_path: Path) -> None:
    path = tmp_path / "t"
    threads = [threading.Thread(target=tablefile.save, args=(path, table(n))) for n in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert version(path) == 19
