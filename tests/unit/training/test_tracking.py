from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest

import stoker
from stoker.errors import NotFound
from stokerd.tracking.reader import Tracking, artifact, artifacts


def test_what_a_script_logs_is_read_in_order_and_from_where_the_reader_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def work() -> None:
        tracking = Tracking()
        assert await tracking.points(tmp_path) == ([], 0)
        monkeypatch.setenv("STOKER_RUN_DIR", str(tmp_path))
        for step in range(3):
            stoker.log_metric("loss", 1 / (step + 1), step=step)
        points, following = await tracking.points(tmp_path)
        assert [(p.key, p.step) for p in points] == [("loss", 0), ("loss", 1), ("loss", 2)]
        stoker.log_metric("accuracy", 0.5)
        stoker.log_params({"lr": 0.1})
        points, following = await tracking.points(tmp_path, after=following)
        assert [p.key for p in points] == ["accuracy"]
        assert await tracking.summary(tmp_path) == ({"lr": 0.1}, {"loss": 1 / 3, "accuracy": 0.5})
        assert await Tracking().points(tmp_path, key="loss") == ((await tracking.points(tmp_path, key="loss"))[0], 4)

    asyncio.run(work())


def test_half_a_line_is_read_when_it_is_whole_and_nonsense_is_left_out(tmp_path: Path) -> None:
    line = json.dumps({"type": "metric", "key": "k", "value": 1.0, "step": 1, "time": 0.0}).encode() + b"\n"

    async def work() -> None:
        tracking = Tracking()
        file = tmp_path / "tracking.jsonl"
        file.write_bytes(b"nonsense\n" + b'{"type": "metric"}\n' + line + line[:10])
        assert len((await tracking.points(tmp_path))[0]) == 1
        with file.open("ab") as rest:
            rest.write(line[10:])
        assert len((await tracking.points(tmp_path))[0]) == 2

    asyncio.run(work())


def test_outside_of_stoker_logging_does_nothing_but_bad_values_are_refused_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("STOKER_RUN_DIR", raising=False)
    monkeypatch.chdir(tmp_path)
    stoker.log_metric("loss", 1.0)
    stoker.log_params({"a": 1})
    assert not stoker.is_active()
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(ValueError, match="nan"):
        stoker.log_metric("loss", float("nan"))
    with pytest.raises(FileNotFoundError):
        stoker.log_artifact("missing.png")


def test_artifacts_are_kept_and_paths_out_of_their_folder_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STOKER_RUN_DIR", str(tmp_path))
    (tmp_path / "plot.png").write_bytes(b"123")
    stoker.log_artifact(tmp_path / "plot.png")
    (tmp_path / "secret").write_text("x")
    assert list(artifacts(tmp_path)) == [("plot.png", 3)]
    assert artifact(tmp_path, "plot.png").read_bytes() == b"123"
    for path in ("../secret", "/etc/passwd", "nope"):
        with pytest.raises(NotFound):
            artifact(tmp_path, path)
