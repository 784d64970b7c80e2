from __future__ import annotations

import fcntl
import multiprocessing
import os
import time
from pathlib import Path

import pytest

from stokerd.gateway.ledger import Ledger

ONE, TWO = (bytes([n]) * 16 for n in (1, 2))


def test_two_workers_see_the_same_levels_and_so_does_the_one_after_a_restart(tmp_path: Path) -> None:
    first, second = Ledger(tmp_path), Ledger(tmp_path)
    (here,), (other, there) = first.slots([ONE]), second.slots([TWO, ONE])
    assert here == there != other
    first.set_level(here, 7.5)
    first.set_level(here + 1, 8.5)
    assert (second.level(there), second.level(there + 1), second.level(other)) == (7.5, 8.5, 0.0)
    first.close()
    second.close()
    again = Ledger(tmp_path)
    assert [again.level(slot) for slot in again.slots([ONE, TWO])] == [7.5, 0.0]
    again.close()


def test_levels_stay_where_they_are_when_more_are_needed_than_fit(tmp_path: Path) -> None:
    ids = [n.to_bytes(16, "big") for n in range(1, 1001)]
    for ledger in (Ledger(tmp_path), Ledger(None)):
        (first,) = ledger.slots(ids[:1])
        ledger.set_level(first, 7.5)
        slots = ledger.slots(ids)
        assert (slots[0], len(set(slots)), ledger.level(first)) == (first, 1000, 7.5)
        ledger.set_level(slots[-1] + 1, 1.0)
        assert (ledger.problem, ledger.level(slots[-1] + 1)) == ("", 1.0)
        ledger.close()


def _spend(folder: Path, times: int) -> None:
    ledger = Ledger(folder)
    (slot,) = ledger.slots([ONE])
    for _ in range(times):
        with ledger:
            ledger.set_level(slot, ledger.level(slot) + 1.0)


def test_nothing_is_lost_between_processes(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    workers = [context.Process(target=_spend, args=(tmp_path, 2000)) for _ in range(2)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    ledger = Ledger(tmp_path)
    assert ledger.level(ledger.slots([ONE])[0]) == 4000.0
    ledger.close()


def test_a_worker_that_is_stopped_while_it_holds_the_lock_does_not_stop_the_others(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path)
    (slot,) = ledger.slots([ONE])
    (file,) = tmp_path.iterdir()
    stopped = os.open(file, os.O_RDWR)
    fcntl.flock(stopped, fcntl.LOCK_EX)
    begun = time.monotonic()
    for _ in range(1000):
        with ledger:
            ledger.set_level(slot, ledger.level(slot) + 1.0)
    assert time.monotonic() - begun < 1.0
    assert ledger.level(slot) == 1000.0
    os.close(stopped)
    ledger.close()


def test_what_an_earlier_boot_left_is_forgotten(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its moments are of a clock that has begun anew."""
    before = Ledger(tmp_path)
    before.set_level(before.slots([ONE])[0], 7.5)
    before.close()
    boot_id = tmp_path / "boot_id"
    boot_id.write_text("another\n")
    monkeypatch.setattr("stokerd.gateway.ledger.BOOT_ID", boot_id)
    after = Ledger(tmp_path)
    assert after.level(after.slots([ONE])[0]) == 0.0
    assert [p.name for p in tmp_path.glob("*.ledger")] == ["keys-another.ledger"]
    after.close()


def test_where_the_file_cannot_be_used_levels_are_those_of_the_worker_alone_and_it_says_so(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    ledger = Ledger(tmp_path / "file" / "folder")
    (slot,) = ledger.slots([ONE])
    with ledger:
        ledger.set_level(slot, 7.5)
    assert ledger.level(slot) == 7.5
    assert "hold for each worker alone" in ledger.problem
    ledger.close()
