"""Logs: bounded on the disk, never in the program's way, and read by offset as one, however often they were moved."""

from __future__ import annotations

import asyncio
import os
import threading
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stokerd.processes.log_writer import LogWriter, rotated
from stokerd.processes.logs import follow, read_log, tail_lines
from tests.process_kit import Bench


def read_all(path: Path, offset: int = 0, limit: int = 1 << 20) -> bytes:
    pieces = []
    while True:
        data, offset = read_log(path, offset, limit_bytes=limit)
        if not data:
            return b"".join(pieces)
        pieces.append(data)


def write_all(path: Path, *pieces: bytes, segment_bytes: int = 100, kept: int = 3) -> LogWriter:
    writer = LogWriter(os.fspath(path), segment_bytes, kept)
    for piece in pieces:
        writer.write(piece)
    writer.close()
    return writer


@settings(max_examples=60, deadline=None)
@given(
    pieces=st.lists(st.binary(max_size=60).map(lambda b: b.replace(b"\x01", b"\n")), max_size=30),
    segment_bytes=st.integers(1, 80),
    kept=st.integers(1, 3),
    limit=st.integers(1, 50),
    data=st.data(),
)
def test_what_is_kept_is_one_end_of_what_was_written_and_offsets_count_from_its_beginning(
    tmp_path_factory: pytest.TempPathFactory,
    pieces: list[bytes],
    segment_bytes: int,
    kept: int,
    limit: int,
    data: st.DataObject,
) -> None:
    path = tmp_path_factory.mktemp("logs") / "p.log"
    write_all(path, *pieces, segment_bytes=segment_bytes, kept=kept)
    whole = b"".join(pieces)
    have = read_all(path, 0, limit)
    assert whole.endswith(have)
    first = len(whole) - len(have)
    assert len(rotated(os.fspath(path))) <= kept
    if len(whole) <= segment_bytes:
        assert first == 0
    assert sum(each.stat().st_size for each in path.parent.iterdir()) <= (kept + 1) * segment_bytes
    offset = data.draw(st.integers(0, len(whole)))
    assert read_all(path, offset, limit) == whole[max(offset, first) :]
    back = data.draw(st.integers(1, len(whole) + 1))
    assert read_all(path, -back, limit) == whole[max(len(whole) - back, first, 0) :]


def test_lines_are_not_cut_where_a_log_is_moved_aside(tmp_path: Path) -> None:
    path = tmp_path / "p.log"
    write_all(path, *(b"line %d\n" % n for n in range(100)), segment_bytes=100, kept=9)
    assert read_all(path) == b"".join(b"line %d\n" % n for n in range(100))
    for each in tmp_path.iterdir():
        assert each.read_bytes().startswith(b"line")


def test_a_log_grows_on_when_its_program_is_started_again(tmp_path: Path) -> None:
    path = tmp_path / "p.log"
    for life in range(30):
        write_all(path, b"life %d\n" % life, segment_bytes=70, kept=9)
    assert read_all(path) == b"".join(b"life %d\n" % life for life in range(30))


def test_reading_a_log_that_is_not_there_gives_nothing(tmp_path: Path) -> None:
    for path in (tmp_path / "no.log", tmp_path / "no folder" / "no.log"):
        for offset in (0, 5, -5):
            assert read_log(path, offset) == (b"", 0)
        assert tail_lines(path, 5) == []


def test_reading_beyond_the_end_goes_on_at_the_end(tmp_path: Path) -> None:
    path = tmp_path / "p.log"
    write_all(path, b"x" * 150 + b"\n")
    assert read_log(path, 1000) == (b"", 151)


def test_a_log_that_somebody_deleted_is_begun_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "p.log"
    writer = LogWriter(os.fspath(path), 100, 3)
    writer.write(b"before\n")
    path.unlink()
    monkeypatch.setattr("time.monotonic", lambda: 1e9)  # it looks once a second
    writer.write(b"after\n")
    writer.close()
    assert path.read_bytes() == b"after\n"


def test_a_full_disk_costs_lines_and_says_how_many(tmp_path: Path) -> None:
    path = tmp_path / "p.log"
    path.symlink_to("/dev/full")
    writer = LogWriter(os.fspath(path), 100, 3)
    writer.write(b"lost\n")
    writer.write(b"lost too\n")
    assert writer.dropped_bytes == 14
    writer.close()
    path.unlink()
    writer.write(b"kept\n")
    writer.close()
    assert path.read_text() == "\n[stoker: 14 bytes of log dropped: No space left on device]\nkept\n"


def test_a_program_whose_log_cant_be_written_runs_to_its_end(bench: Bench) -> None:
    for process, log in (("full", Path("/dev/full")), ("folder", bench.root)):
        command = bench.command("sh", "-c", "head -c 1000000 /dev/zero; exit 3", log=log)
        bench.supervisor.start(process, command)
        assert bench.exited(process).exit_code == 3
        assert bench.record("exit.json", process)["log_dropped_bytes"] == 1_000_000


def test_the_last_lines_are_found_in_a_large_log_and_progress_bars_show_their_last_state(tmp_path: Path) -> None:
    path = tmp_path / "p.log"
    with path.open("wb") as file:
        file.truncate(2 << 30)  # sparse
        file.seek(0, os.SEEK_END)
        file.write(b"\nError: \xff\n 1%\r 50%\r100%\r\nlast\n\n")
    assert tail_lines(path, 3) == ["Error: \ufffd", "100%", "last"]
    assert tail_lines(path, 0) == []


def test_the_last_lines_span_a_log_that_was_just_moved_aside(tmp_path: Path) -> None:
    path = tmp_path / "p.log"
    write_all(path, b"a" * 97 + b"\n", b"b\n", b"c\n", segment_bytes=100)
    assert len(rotated(os.fspath(path))) == 1
    assert tail_lines(path, 3) == ["a" * 97, "b", "c"]


async def collect(path: Path, offset: int, is_done: threading.Event) -> bytes:
    return b"".join([piece async for piece in follow(path, offset, is_done.is_set)])


def test_following_gives_each_byte_once_while_the_log_is_moved_aside_again_and_again(tmp_path: Path) -> None:
    path, done = tmp_path / "p.log", threading.Event()
    lines = [b"line %06d %s\n" % (n, b"x" * (n % 50)) for n in range(5000)]

    def write() -> None:
        writer = LogWriter(os.fspath(path), 3000, 500)
        for line in lines:
            writer.write(line)
        writer.close()
        done.set()

    async def both() -> tuple[bytes, bytes]:
        thread = threading.Thread(target=write)
        early = asyncio.create_task(collect(path, 0, done))
        await asyncio.sleep(0)
        thread.start()
        late = asyncio.create_task(collect(path, 50_000, done))
        try:
            return await early, await late
        finally:
            thread.join()

    early, late = asyncio.run(both())
    whole = b"".join(lines)
    assert early == whole
    assert whole.endswith(late)  # from 50,000, or from the end as it was then


def test_a_log_that_is_moved_aside_just_while_it_is_looked_at_gives_no_byte_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "p.log"
    write_all(path, b"a" * 89 + b"\n")

    def moved_meanwhile(name: str) -> list[int]:
        monkeypatch.undo()
        write_all(path, b"b" * 50)
        return rotated(name)

    monkeypatch.setattr("stokerd.processes.logs.rotated", moved_meanwhile)
    assert read_log(path, 90) == (b"b" * 50, 140)


def test_following_ends_when_done_and_misses_nothing_written_before(tmp_path: Path) -> None:
    path = tmp_path / "p.log"
    write_all(path, b"a\n" * 500)
    done = threading.Event()
    done.set()
    assert asyncio.run(collect(path, -6, done)) == b"a\na\na\n"


def test_a_fast_writer_stays_within_its_bounds(bench: Bench) -> None:
    supervisor = bench.again(log_segment_bytes=1 << 20, log_segments_kept=2)
    supervisor.start("p", bench.command("sh", "-c", "yes | head -c 20000000; echo the end"))
    assert bench.exited().exit_code == 0
    assert tail_lines(bench.log, 2) == ["y", "the end"]
    assert sum(each.stat().st_size for each in bench.log.parent.iterdir()) <= 3 << 20
    data, offset = read_log(bench.log, 19_999_998)
    assert (data, offset) == (b"y\nthe end\n", 20_000_008)
    assert bench.record("exit.json")["log_dropped_bytes"] == 0
