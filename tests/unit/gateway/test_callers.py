from __future__ import annotations

import asyncio
import multiprocessing
import os
import tempfile
import time
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from stokerd.gateway.callers import Callers
from stokerd.gateway.gateway import Gateway
from stokerd.gateway.limits import Limits
from stokerd.gateway.wire import RouteTable


@given(st.lists(st.tuples(st.integers(0, 1), st.integers(0, 12)), max_size=60), st.integers(0, 8))
def test_never_more_callers_than_the_cap_over_all_workers(asked: list[tuple[int, int]], cap: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        workers = [Callers(Path(folder)), Callers(Path(folder))]
        exposed: set[int] = set()
        for worker, caller in asked:
            if workers[worker].admit(b"r", b"%d" % caller, cap):
                exposed.add(caller)
            else:
                assert caller not in exposed, "who was exposed stays exposed"
        assert len(exposed) == min(cap, len({caller for _, caller in asked}))
        again = Callers(Path(folder))
        assert all(again.admit(b"r", b"%d" % caller, cap) for caller in exposed)
        for callers in (*workers, again):
            callers.close()


def _ask(folder: Path, offset: int, found: multiprocessing.Queue[set[int]]) -> None:
    callers = Callers(folder)
    asked = [(offset + n) % 400 for n in range(400)]
    found.put({caller for caller in asked if callers.admit(b"r", b"%d" % caller, 100)})


def test_workers_that_note_callers_at_the_same_time_agree_on_who_is_let_in(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    found = context.Queue()
    workers = [context.Process(target=_ask, args=(tmp_path, 130 * n, found)) for n in range(3)]
    for worker in workers:
        worker.start()
    exposed = set().union(*(found.get(timeout=60) for _ in workers))
    for worker in workers:
        worker.join()
    callers = Callers(tmp_path)
    assert exposed == {caller for caller in range(400) if callers.admit(b"r", b"%d" % caller, 100)}
    assert len(exposed) == 100
    callers.close()


def test_each_rollout_counts_its_own_and_is_forgotten_some_time_after_it_is_over(tmp_path: Path) -> None:
    callers = Callers(tmp_path)
    assert callers.admit(b"r1", b"me", 1)
    assert not callers.admit(b"r1", b"you", 1)
    assert callers.admit(b"r2", b"you", 1)
    assert len(list(tmp_path.iterdir())) == 2
    callers.keep_only({b"r2"})
    assert len(list(tmp_path.iterdir())) == 2, "a worker with an older table must not forget what a newer one counts"
    for path in tmp_path.iterdir():
        os.utime(path, (time.time() - 7200, time.time() - 7200))
    callers.keep_only({b"r2"})
    assert len(list(tmp_path.iterdir())) == 1
    assert callers.admit(b"r1", b"you", 1)
    assert not callers.admit(b"r2", b"me", 1)
    callers.close()


def test_a_cap_that_grows_lets_more_in_and_one_that_shrinks_keeps_the_first(tmp_path: Path) -> None:
    callers = Callers(tmp_path)
    assert callers.admit(b"r", b"a", 1)
    assert not callers.admit(b"r", b"b", 1)
    assert callers.admit(b"r", b"b", 2)
    assert callers.admit(b"r", b"a", 1)
    assert not callers.admit(b"r", b"b", 1)
    callers.close()


def test_a_file_that_was_torn_still_counts_callers(tmp_path: Path) -> None:
    first = Callers(tmp_path)
    assert first.admit(b"r", b"a", 3)
    (file,) = tmp_path.iterdir()
    with file.open("ab") as torn:
        torn.write(b"123")
    again = Callers(tmp_path)
    assert again.admit(b"r", b"b", 3)
    assert again.admit(b"r", b"a", 3)
    assert not again.admit(b"r", b"c", 3), "what was torn counts as one"
    first.close()
    again.close()


def test_when_it_cannot_be_noted_nobody_new_is_exposed(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    callers = Callers(tmp_path / "file" / "folder")
    assert not callers.admit(b"r", b"a", 3)
    assert "new ones stay with stable" in callers.problem
    assert Callers(None).admit(b"r", b"a", 3)


async def _begin(folder: Path, version: int) -> None:
    await Gateway("e", RouteTable(version), Limits(), folder).close()


def test_callers_are_not_forgotten_for_want_of_a_table(tmp_path: Path) -> None:
    callers = Callers(tmp_path)
    assert callers.admit(b"r", b"ada", 1)
    callers.close()
    (noted,) = tmp_path.glob("callers-*")
    os.utime(noted, (0, 0))
    asyncio.run(_begin(tmp_path, 0))
    assert noted.exists(), "a worker that could not read its table waits for the daemon's"
    asyncio.run(_begin(tmp_path, 1))
    assert not noted.exists(), "a table that doesn't name the rollout does end it"
