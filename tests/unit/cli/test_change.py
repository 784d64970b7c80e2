"""apply, delete, snapshot, register, alias, cancel, run: what a person changes."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest

from stoker.errors import InvalidSpec
from stoker.types.apply import Applied
from stoker.types.keys import ApiKey, NewKey
from stoker.types.training import DatasetVersion, Run
from tests.unit.cli import samples
from tests.unit.cli.conftest import Stoker
from tests.unit.cli.stand_in import StandIn

JOB = "kind: job\nname: tune\ncommand: [python, train.py]\ncode: code\n"


def _applied(action: Any = "created", **changes: tuple[Any, Any]) -> list[Applied]:
    return [Applied(kind="job", name="tune", action=action, changes=changes)]


def test_apply_sends_specs_with_absolute_paths(daemon: StandIn, stoker: Stoker, tmp_path: Path) -> None:
    daemon.answers["POST /v1/apply"] = _applied(command=(None, ["python"]))
    (tmp_path / "jobs.yaml").write_text(JOB)
    done = stoker("apply", "-f", str(tmp_path / "jobs.yaml"))
    assert (done.code, done.out) == (0, "job/tune created\n")
    body = daemon.calls[-1][2]
    assert body["dry_run"] is False
    assert body["specs"][0]["code"] == str(tmp_path / "code")


def test_a_dry_run_shows_each_field_that_would_change(daemon: StandIn, stoker: Stoker, tmp_path: Path) -> None:
    daemon.answers["POST /v1/apply"] = _applied("changed", timeout=(30, 60), retries=(None, 3))
    (tmp_path / "jobs.yaml").write_text(JOB)
    shown = stoker("apply", "-f", str(tmp_path / "jobs.yaml"), "--dry-run")
    assert shown.out == "job/tune changed (dry run)\n  retries: (none) -> 3\n  timeout: 30 -> 60\n"
    assert daemon.calls[-1][2]["dry_run"] is True
    again = stoker("apply", "-f", str(tmp_path / "jobs.yaml"), "--json").json
    assert again[0]["changes"]["timeout"] == [30, 60]


def test_standard_input_is_a_spec_file_in_the_current_folder(
    daemon: StandIn, stoker: Stoker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    daemon.answers["POST /v1/apply"] = _applied()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(JOB.encode())))
    assert stoker("apply", "-f", "-").code == 0
    assert daemon.calls[-1][2]["specs"][0]["code"] == str(tmp_path / "code")


def test_all_problems_of_all_files_are_told_and_nothing_is_sent(
    daemon: StandIn, stoker: Stoker, tmp_path: Path
) -> None:
    for name in "ab":
        (tmp_path / name).write_text("kind: job\nname: tune\ncommand: [x]\ntimeout: soon\n")
    (tmp_path / "c").write_bytes(b"\xff\xfe")
    (tmp_path / "d").write_text(JOB)
    files = [x for name in "abcdd" for x in ("-f", str(tmp_path / name))]
    refused = stoker("apply", *files)
    assert refused.code == 2
    assert refused.err.count("job.timeout: expected a duration such as 30s") == 2
    assert "c:1: not UTF-8" in refused.err
    assert "job tune is given twice" in refused.err
    assert daemon.calls == []
    problems = json.loads(stoker("apply", *files, "--json").err)["details"]["problems"]
    assert {p["line"] for p in problems} == {1, 2, 4}


@pytest.mark.parametrize("name", ["nothing.yaml", "."])
def test_a_file_that_cannot_be_read_is_named(daemon: StandIn, stoker: Stoker, tmp_path: Path, name: str) -> None:
    refused = stoker("apply", "-f", str(tmp_path / name))
    assert refused.code in (2, 4)
    assert str(tmp_path) in refused.err


def test_what_the_daemon_refuses_gets_its_line(daemon: StandIn, stoker: Stoker, tmp_path: Path) -> None:
    said = "job tune: code: there is no folder /x."
    daemon.answers["POST /v1/apply"] = InvalidSpec(said, "Make it.", kind="job", name="tune")
    path = tmp_path / "jobs.yaml"
    path.write_text("---\n" + JOB)
    refused = stoker("apply", "-f", str(path))
    assert (refused.code, refused.err) == (2, f"error: {path}:5: {said}\nMake it.\n")


def test_a_key_is_told_once(daemon: StandIn, stoker: Stoker) -> None:
    key = ApiKey(name="app", digest="0" * 64, models=["chat"], requests_per_minute=60)
    daemon.answers["POST /v1/keys"] = NewKey(key=key, text="sk-stoker-AbCdEf")
    made = stoker("key", "create", "app", "--model", "chat", "--requests-per-minute", "60")
    assert made.out == "sk-stoker-AbCdEf\n"
    assert "can't be shown again" in made.err
    assert daemon.calls[-1][2] == {
        "name": "app", "models": ["chat"], "requests_per_minute": 60, "tokens_per_minute": 0, "in_flight": 0,
    }  # fmt: skip
    daemon.answers["GET /v1/keys"] = [key]
    assert "app   000000000000  chat    60" in stoker("key", "list").out
    daemon.answers["DELETE /v1/keys/app"] = None
    assert stoker("key", "delete", "app").out == "key/app deleted\n"


def test_delete(daemon: StandIn, stoker: Stoker) -> None:
    daemon.keep(samples.deployment(), samples.job())
    assert stoker("delete", "deployment", "chat", "--wait").out == "deployment/chat deleted\n"
    assert stoker("delete", "job", "tune", "--json").json == {"kind": "job", "name": "tune", "deleted": True}
    assert stoker("delete", "job", "tune").code == 4
    history = stoker("delete", "run", "tune-1")
    assert (history.code, "never deleted" in history.err) == (2, True)


def test_snapshot(daemon: StandIn, stoker: Stoker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    daemon.answers["POST /v1/datasets/chats/versions"] = DatasetVersion(
        name="chats@3", dataset="chats", number=3, digest="ab" * 32, files=1, bytes=2048, source="/x"
    )
    monkeypatch.chdir(tmp_path)
    assert stoker("snapshot", "chats", "data").out == f"chats@3 1 file, 2.0 KiB, sha256:{'ab' * 32}\n"
    assert daemon.calls[-1][2] == {"path": str(tmp_path / "data")}


def test_register_and_alias(daemon: StandIn, stoker: Stoker, tmp_path: Path) -> None:
    daemon.answers["POST /v1/models/smol/versions"] = samples.version(2)
    daemon.answers["PUT /v1/models/smol/aliases/champion"] = samples.model()
    made = stoker("register", "smol", str(tmp_path), "--alias", "champion", "--alias", "new")
    assert made.out.splitlines()[1:] == ["  smol@champion -> smol@2", "  smol@new -> smol@2"]
    assert daemon.calls[-1][2] == {"path": str(tmp_path), "aliases": ["champion", "new"]}
    for number in ("1", "@1", "smol@1"):
        assert stoker("alias", "smol", "champion", number).out == "smol@champion -> smol@1\n"
        assert daemon.calls[-1][2] == {"version": 1}
    assert stoker("alias", "smol", "champion", "first").code == 2
    assert stoker("alias", "smol", "champion").code == 2


def test_names_are_quoted_in_paths(daemon: StandIn, stoker: Stoker) -> None:
    daemon.answers["POST /v1/runs/a/b?c#d%/cancel"] = samples.run(1, "failed")
    stoker("cancel", "a/b?c#d%")
    assert daemon.calls[-1][0] == "POST /v1/runs/a%2Fb%3Fc%23d%25/cancel"
    assert stoker("cancel", "..").code == 4
    assert stoker("get", "run", "").code == 4


def test_a_run_is_queued_with_typed_params(daemon: StandIn, stoker: Stoker) -> None:
    daemon.answers["POST /v1/jobs/tune/runs"] = samples.run(1)
    params = ["lr=1e-4", "n=3", "on=true", 'tag="007"', "text=a=b", "no=NaN", "list=[1]", "empty="]
    made = stoker("run", "tune", *(x for p in params for x in ("-p", p)))
    assert (made.code, made.out) == (0, "run/tune-1 queued\n")
    assert daemon.calls[-1][2]["params"] == {
        "lr": 1e-4, "n": 3, "on": True, "tag": "007", "text": "a=b", "no": "NaN", "list": "[1]", "empty": "",
    }  # fmt: skip
    assert stoker("run", "tune", "-p", "lr").code == 2


def _plays(daemon: StandIn, *phases: str) -> None:
    """Let run tune-1 go through *phases*, the next one whenever somebody looks at it."""
    left = iter([samples.run(1, p) for p in phases])
    last: list[Run] = []

    def look(_: Any) -> Run:
        if step := next(left, None):
            last[:] = [step]
            daemon.record("run", "tune-1", "RunChanged")
        return last[0]

    daemon.answers["POST /v1/jobs/tune/runs"] = samples.run(1)
    daemon.answers["GET /v1/runs/tune-1"] = look


@pytest.mark.parametrize(("end", "code"), [("succeeded", 0), ("failed", 7)])
def test_waiting_for_a_run_gives_its_end_as_exit_code(daemon: StandIn, stoker: Stoker, end: str, code: int) -> None:
    _plays(daemon, "queued", "running", end)
    waited = stoker("run", "tune", "--wait")
    assert waited.code == code
    assert [line.split()[1] for line in waited.out.splitlines()] == ["queued", "running", end]
    _plays(daemon, "running", end)
    as_json = stoker("run", "tune", "--wait", "--json")
    assert (as_json.code, as_json.json["state"]["phase"]) == (code, end)


def test_following_a_run_prints_its_log(daemon: StandIn, stoker: Stoker) -> None:
    daemon.logs["run/tune-1"] = b"epoch 1\nepoch 2"
    _plays(daemon, "queued", "running", "running", "succeeded")
    followed = stoker("run", "tune", "--follow")
    assert followed.code == 0
    assert "epoch 1\nepoch 2" in followed.out
    assert "registered smol@2" in followed.out
    _plays(daemon, "running", "running", "succeeded")
    lines = stoker("run", "tune", "--follow", "--json").lines
    assert [x.get("line", x.get("name")) for x in lines] == ["epoch 1", "epoch 2", "tune-1"]


def test_cancel_waits_until_the_run_has_ended(daemon: StandIn, stoker: Stoker) -> None:
    daemon.answers["POST /v1/runs/tune-1/cancel"] = samples.run(1, "running")
    _plays(daemon, "running", "failed")
    assert stoker("cancel", "tune-1", "--wait").out.split()[:2] == ["run/tune-1", "failed"]
