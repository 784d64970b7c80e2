"""apply, delete, snapshot, register, alias, cancel, run, rollout: what a person changes."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest

from stoker.errors import Conflict, InvalidSpec, NotFound
from stoker.types.apply import Applied
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


def _starts(daemon: StandIn) -> None:
    """Let the daemon take a rollout."""

    def take(body: Any) -> list[Applied]:
        name = body["specs"][0]["name"]
        daemon.keep(samples.rollout(name))
        return [Applied(kind="rollout", name=name, action="created")]

    daemon.answers["POST /v1/apply"] = take
    daemon.keep(samples.deployment())


def test_a_rollout_is_started_from_flags(daemon: StandIn, stoker: Stoker) -> None:
    _starts(daemon)
    daemon.keep(samples.rollout("chat-1", "promoted"))
    steps = ["--step", "shadow:10", "--step", "canary:25%:50:5m", "--guard", "ttft=1.5"]
    started = stoker("rollout", "start", "chat", "--to", "smol@2", *steps)
    assert (started.code, started.out) == (0, "rollout/chat-2 stepping 2/2 chat@1 -> @2\n")
    spec = next(c[2] for c in daemon.calls if c[0] == "POST /v1/apply")["specs"][0]
    assert (spec["to"], spec["deployment"]) == (2, "chat")
    assert [(s["type"], s["percent"], s["min_requests"], s["min_duration"]) for s in spec["steps"]] == [
        ("shadow", 10, 20, 0),
        ("canary", 25, 50, 300),
    ]
    assert [(g["metric"], g["limit"]) for g in spec["guards"]] == [("ttft", 1.5)]


@pytest.mark.parametrize(
    "flags",
    [
        ["--step", "canary"],
        ["--step", "canry:10"],
        ["--step", "canary:200"],
        ["--guard", "ttft"],
        ["--guard", "speed=1"],
        ["--name", "Bad Name"],
    ],
)
def test_wrong_flags_of_a_rollout_are_explained(daemon: StandIn, stoker: Stoker, flags: list[str]) -> None:
    _starts(daemon)
    refused = stoker("rollout", "start", "chat", "--to", "2", *flags)
    assert refused.code == 2
    assert "POST /v1/apply" not in [c[0] for c in daemon.calls]


def test_a_rollout_name_that_is_taken_is_refused(daemon: StandIn, stoker: Stoker) -> None:
    _starts(daemon)
    daemon.keep(samples.rollout())
    assert stoker("rollout", "start", "chat", "--to", "2", "--name", "chat-1").code == 5


@pytest.mark.parametrize(("end", "code"), [("promoted", 0), ("rolled-back", 7)])
def test_waiting_for_a_rollout(daemon: StandIn, stoker: Stoker, end: str, code: int) -> None:
    _starts(daemon)
    looks = iter([samples.rollout("x"), samples.rollout("x"), samples.rollout("x", end)])

    def look(_: Any) -> Any:
        daemon.record("rollout", "x", "RolloutChanged")
        return next(looks, samples.rollout("x", end))

    daemon.answers["GET /v1/rollouts/x"] = NotFound("there is none.")
    taken = daemon.answers["POST /v1/apply"]

    def take(body: Any) -> Any:
        daemon.answers["GET /v1/rollouts/x"] = look
        return taken(body)

    daemon.answers["POST /v1/apply"] = take
    waited = stoker("rollout", "start", "chat", "--to", "2", "--name", "x", "--wait")
    assert waited.code == code
    assert f"{end} after" in waited.out


@pytest.mark.parametrize("name", ["chat", "chat-1"])
@pytest.mark.parametrize("verb", ["pause", "resume", "promote", "abort"])
def test_a_rollout_is_steered_by_its_own_or_its_deployments_name(
    daemon: StandIn, stoker: Stoker, verb: str, name: str
) -> None:
    daemon.keep(samples.deployment(rollout="chat-1"), samples.rollout())
    daemon.answers[f"POST /v1/rollouts/chat-1/{verb}"] = samples.rollout()
    assert stoker("rollout", verb, name).code == 0


def test_without_a_rollout_there_is_nothing_to_steer(daemon: StandIn, stoker: Stoker) -> None:
    daemon.keep(samples.deployment(), samples.rollout("chat-1", "promoted"))
    refused = stoker("rollout", "abort", "chat")
    assert (refused.code, "is in no rollout now" in refused.err) == (5, True)
    assert stoker("rollout", "status", "chat").code == 0
    assert stoker("rollout", "status", "nobody").code == 4


def test_the_daemons_refusal_of_a_verb_is_told(daemon: StandIn, stoker: Stoker) -> None:
    daemon.keep(samples.rollout("chat-1", "promoted"))
    daemon.answers["POST /v1/rollouts/chat-1/abort"] = Conflict("it has ended.", "Start another.", code="ended")
    refused = stoker("rollout", "abort", "chat-1", "--json")
    assert refused.code == 5
    assert '"code": "ended"' in refused.err


def test_the_status_of_a_rollout_has_arms_side_by_side(daemon: StandIn, stoker: Stoker) -> None:
    daemon.keep(samples.rollout())
    page = stoker("rollout", "status", "chat-1").out
    assert "> 2. canary 25 %, at least 20 requests and 5m" in page
    assert [line.split() for line in page.splitlines() if "STABLE" in line] == [["STABLE", "CANDIDATE"]]
    assert "errors at most 2 points over stable  pass     0 points over stable." in page
    assert "ttft p90 at most 2 x stable          starved  4 of 8 requests." in page


def test_a_watched_rollout_tells_how_it_ended(daemon: StandIn, stoker: Stoker) -> None:
    daemon.keep(samples.rollout("chat-1", "rolled-back"))
    watched = stoker("rollout", "watch", "chat-1")
    assert watched.code == 7
    assert "Clients saw 9 failed answers. Stable had all traffic 40 ms after the verdict" in watched.out
    assert stoker("rollout", "watch", "chat-1", "--json").lines[-1]["state"]["phase"] == "rolled-back"


def test_cancel_waits_until_the_run_has_ended(daemon: StandIn, stoker: Stoker) -> None:
    daemon.answers["POST /v1/runs/tune-1/cancel"] = samples.run(1, "running")
    _plays(daemon, "running", "failed")
    assert stoker("cancel", "tune-1", "--wait").out.split()[:2] == ["run/tune-1", "failed"]
