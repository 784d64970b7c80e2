"""Logs: bounded on the disk, never in the program's way, and read by offset as one, however often they were moved."""

from __future__ import annotations

import asyncio
import itertools
import operator
import os
import threading
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stokerd.processes import log_writer, logs
from stokerd.processes.log_writer import LogWriter, rotated, segment
from stokerd.processes.logs import follow, log_end, read_log, tail_lines
from tests.process_kit import Bench, until


def read_all(path: Path, offset: int = 0, limit: int = 1 << 20) -> bytes:
    pieces: list[bytes] = []
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


@settings(max_examples=150)
@given(
    steps=st.lists(
        st.binary(min_size=1, max_size=60) | st.sampled_from(["cut", "delete", "replace", "age", "forget"]), max_size=30
    ),
    kept=st.integers(1, 3),
)
def test_whatever_others_do_to_a_log_no_byte_is_ever_given_at_another_ones_offset(
    tmp_path_factory: pytest.TempPathFactory, steps: list[bytes | str], kept: int
) -> None:
    """So that who reads on from an offset gets nothing twice. What was taken away counts as dropped."""
    path = tmp_path_factory.mktemp("logs") / "p.log"
    name, whole = os.fspath(path), b""
    writer = LogWriter(name, 100, kept, 1000.0)
    for step in steps:
        match step:
            case bytes():
                writer.write(step)
                whole += step
            case "cut" if path.exists():
                os.truncate(path, 0)
            case "delete":
                path.unlink(missing_ok=True)
            case "replace" if path.exists():
                path.unlink()
                path.touch()
            case "age":
                for start in rotated(name):
                    os.utime(segment(name, start), (0, 0))
            case "forget":
                for start in rotated(name):
                    Path(segment(name, start)).unlink()
        writer._checked_at = float("-inf")  # else it looks once a second
        writer.tend()
        offset = 0
        while True:
            data, end = read_log(path, offset)
            assert data == whole[end - len(data) : end]
            if not data:
                break
            offset = end
        assert end == len(whole)
    writer.close()


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
    monkeypatch.setattr(log_writer, "_CHECK_SECONDS", 0.0)
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


def test_old_segments_are_dropped_and_offsets_count_on(tmp_path: Path) -> None:
    path = tmp_path / "p.log"
    name = os.fspath(path)
    writer = LogWriter(name, 10, 9, 1000.0)
    for n in range(4):
        writer.write(b"line %d..\n" % n)
    assert rotated(name) == [0, 9, 18]
    for start, age in ((0, 2000), (9, 1500), (18, 500)):
        then = path.stat().st_mtime - age
        os.utime(segment(name, start), (then, then))
    writer.tend()
    assert rotated(name) == [18]
    os.utime(segment(name, 18), (0, 0))
    writer.write(b"line 4..\n")  # moves the file aside
    assert rotated(name) == [27]
    os.utime(segment(name, 27), (0, 0))
    writer.tend()
    assert read_log(path, 0) == (b"line 4..\n", 45)
    writer.write(b"line 5..\n")
    assert read_log(path, 0) == (b"line 4..\nline 5..\n", 54)
    writer.close()


def test_the_shim_of_a_silent_program_drops_old_segments_too(bench: Bench) -> None:
    supervisor = bench.again(log_segment_bytes=1000, log_max_age_seconds=3600.0)
    supervisor.start("p", bench.command("sh", "-c", "yes | head -c 3000; echo up; exec sleep 600"))
    bench.says("up")
    name = os.fspath(bench.log)
    for start in rotated(name):
        os.utime(segment(name, start), (0, 0))
    until(lambda: [Path(segment(name, start)).stat().st_size for start in rotated(name)] == [0])
    assert tail_lines(bench.log, 1) == ["up"]
    assert read_log(bench.log, 3000) == (b"up\n", 3003)


def test_a_log_that_is_no_file_is_never_moved(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    reader = os.open(tmp_path / "fifo", os.O_RDONLY | os.O_NONBLOCK)
    writer = LogWriter(os.fspath(tmp_path / "fifo"), 10, 1, 0.0)
    for _ in range(5):
        writer.write(b"x" * 25)
        writer.tend()
    writer.close()
    assert os.read(reader, 1000) == b"x" * 125
    os.close(reader)
    assert [each.name for each in tmp_path.iterdir()] == ["fifo"]


@pytest.mark.parametrize("how", ["cut", "delete"])
def test_following_goes_on_when_somebody_cuts_or_deletes_the_log(tmp_path: Path, how: str) -> None:
    path, done = tmp_path / "p.log", threading.Event()
    writer = LogWriter(os.fspath(path), 1 << 20, 3)
    before, after = ([b"%s %d\n" % (word, n) for n in range(100)] for word in (b"before", b"after"))

    async def live() -> bytes:
        got = b""
        async for piece in follow(path, 0, done.is_set):
            got += piece
            if got == b"".join(before):
                path.unlink() if how == "delete" else os.truncate(path, 0)
                writer._checked_at = float("-inf")  # else it looks once a second
                for line in after:
                    writer.write(line)
                done.set()
        return got

    for line in before:
        writer.write(line)
    assert asyncio.run(live()) == b"".join(before + after)
    writer.close()


def test_who_follows_too_slowly_sees_where_lines_are_missing_and_gets_none_twice(tmp_path: Path) -> None:
    """The stream ends at the hole; asking again tells the offset at which the log goes on."""
    path, done = tmp_path / "p.log", threading.Event()
    lines = [b"line %05d\n" % n for n in range(20_000)]  # of 11 bytes
    writer = LogWriter(os.fspath(path), 5000, 3)
    unwritten = iter(lines)

    def write(count: int) -> None:
        for line in itertools.islice(unwritten, count):
            writer.write(line)
        if operator.length_hint(unwritten) == 0:
            done.set()

    async def live() -> list[tuple[int, bytes]]:
        """Each stretch without a hole, and where it begins."""
        stretches: list[tuple[int, bytes]] = []
        offset = 0
        while True:
            data, end = read_log(path, offset)
            offset, stretch = end - len(data), b""
            async for piece in follow(path, offset, done.is_set):
                stretch += piece
                write(500 if len(stretch) < 20_000 else 3000)
            if not stretch:
                return stretches
            stretches.append((offset, stretch))
            offset += len(stretch)

    write(10)
    stretches = asyncio.run(live())
    assert len(stretches) > 3
    after = 0
    for offset, stretch in stretches:
        assert stretch == b"".join(lines)[offset : offset + len(stretch)]
        assert offset > after or not after
        after = offset + len(stretch)
    assert after == 11 * len(lines)
    writer.close()


def test_a_hole_that_opens_between_two_looks_is_never_bridged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "p.log"
    write_all(path, *(b"%d" % n * 9 + b"\n" for n in range(4)), segment_bytes=10, kept=9)
    read_file = logs._read_file

    def drop_meanwhile(name: str, offset: int, limit_bytes: int) -> tuple[bytes, int]:
        if offset == 10:
            monkeypatch.undo()
            Path(segment(name, 10)).unlink()
        return read_file(name, offset, limit_bytes)

    monkeypatch.setattr(logs, "_read_file", drop_meanwhile)
    assert read_log(path, 0) == (b"0" * 9 + b"\n", 10)
    assert read_log(path, 10) == (b"2" * 9 + b"\n" + b"3" * 9 + b"\n", 40)


def test_the_last_lines_of_one_process_are_not_those_of_the_one_before_it(tmp_path: Path) -> None:
    path = tmp_path / "log"
    assert log_end(path) == 0
    path.write_text("the old one says goodbye\n")
    begin = log_end(path)
    assert tail_lines(path, 5, since=begin) == []
    with path.open("a") as file:
        file.write("loading\n50 %\n")
    assert tail_lines(path, 5, since=begin) == ["loading", "50 %"]
    assert tail_lines(path, 1, since=begin) == ["50 %"]
