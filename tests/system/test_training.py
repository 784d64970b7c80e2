"""Runs are real processes: queued, supervised, retried, cancelled, and the same after the daemon was killed."""

from __future__ import annotations

import json
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from datetime import timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest

from stoker.errors import Invalid, NotFound
from stoker.types.base import now
from stoker.types.registry import Model, Version
from stoker.types.training import DatasetVersion, Failed, Run, Schedule
from tests.harness import DEADLINE, STOKERD, Stokerd, state_of, wait_for

TRAIN = """
import json, os, pathlib, sys, time
import stoker
params = json.loads(os.environ["STOKER_PARAMS"])
stoker.log_params({"seen": len(list(pathlib.Path(sys.argv[1]).iterdir()))})
for step in range(params["steps"]):
    stoker.log_metric("loss", 1 / (step + 1), step=step)
    print(f"step {step}", flush=True)
stoker.log_artifact("train.py", "program.py")
out = pathlib.Path(os.environ["STOKER_OUTPUT"]) / "model"
out.mkdir(exist_ok=True)
(out / "weights").write_text(json.dumps([params["steps"], os.environ.get("SALT", "")]))
"""


@pytest.fixture
def daemon() -> Iterator[Stokerd]:
    with Stokerd() as running:
        yield running


def shell(script: str, name: str = "j", **fields: object) -> str:
    extra = "\n".join(f"{k}: {json.dumps(v)}" for k, v in fields.items())
    return f"kind: job\nname: {name}\ncommand: [/bin/sh, -c, {json.dumps(script)}]\n{extra}\n"


def start(daemon: Stokerd, job: str = "j", **params: Any) -> Run:
    return Run.model_validate(daemon.client.request("POST", f"/v1/jobs/{job}/runs", json={"params": params}))


def log_of(daemon: Stokerd, run: str) -> str:
    return b"".join(daemon.client.log("run", run)).decode()


def prepare(daemon: Stokerd) -> None:
    """A dataset, a model, and a job that makes a version of it."""
    code, data = daemon.root / "project", daemon.root / "data"
    code.mkdir()
    data.mkdir()
    (code / "train.py").write_text(TRAIN)
    (data / "a.jsonl").write_text("{}")
    daemon.client.request("POST", "/v1/datasets/d/versions", json={"path": str(data)})
    daemon.apply(
        """
kind: model
name: m
---
kind: job
name: train
code: project
command: ["{python}", train.py, "{dataset}"]
dataset: d
params: {steps: 3}
registers: {model: m, aliases: [newest]}
"""
    )


def test_a_run_makes_a_version_whose_lineage_says_all_it_came_from(daemon: Stokerd) -> None:
    prepare(daemon)
    run = start(daemon, "train", steps=5)
    done = daemon.wait_phase(Run, run.name, "succeeded", "failed")
    assert done.phase == "succeeded", log_of(daemon, run.name)
    version = daemon.client.get(Version, "m@1")
    data = daemon.client.get(DatasetVersion, "d@1")
    lineage = version.lineage
    assert (lineage.run, lineage.dataset_version, lineage.dataset_digest) == (run.name, "d@1", data.digest)
    assert lineage.code_digest == run.code_digest is not None
    assert lineage.params == {"steps": 5, "seen": 1}
    assert lineage.metrics == {"loss": 0.2}
    assert lineage.environment["executable"] == sys.executable
    assert len(lineage.environment["packages_digest"]) == 64
    assert daemon.client.get(Model, "m").aliases == {"newest": 1}
    assert json.loads((Path(version.folder) / "weights").read_text()) == [5, ""]
    answer = daemon.client.request("GET", f"/v1/runs/{run.name}/metrics", params={"after": 3})
    assert [p["step"] for p in answer["points"]] == [3, 4]
    assert daemon.client.request("GET", f"/v1/runs/{run.name}/artifacts")[0]["path"] == "program.py"
    assert log_of(daemon, run.name).splitlines() == [f"step {i}" for i in range(5)]


def test_the_same_again_is_the_same_version_and_other_data_is_another(daemon: Stokerd) -> None:
    prepare(daemon)
    for _ in range(2):
        daemon.wait_phase(Run, start(daemon, "train").name, "succeeded")
    assert [v.name for v in daemon.client.list(Version)] == ["m@1"]
    (daemon.root / "project" / "train.py").write_text("raise SystemExit('the code of a queued run is frozen')")
    (daemon.root / "data" / "a.jsonl").write_text("changed")
    for number in (2, 2):
        answer = daemon.client.request("POST", "/v1/datasets/d/versions", json={"path": str(daemon.root / "data")})
        assert answer["number"] == number


def test_a_failing_run_is_tried_again_with_growing_waits_and_then_says_why(daemon: Stokerd) -> None:
    daemon.apply(shell('echo "attempt $STOKER_ATTEMPT"; exit 3', retries=2, backoff=0.1))
    run = start(daemon)
    failed = daemon.wait_phase(Run, run.name, "failed")
    assert state_of(failed, Failed).exit_code == 3
    assert "attempt 3 of 3" in state_of(failed, Failed).message
    assert log_of(daemon, run.name).splitlines() == ["attempt 1", "attempt 2", "attempt 3"]
    told = [e for e in daemon.events() if e.name == run.name and e.reason == "RunFailed"]
    assert told[0].data["log"][-1] == "attempt 3"


def test_a_run_over_its_time_is_stopped_with_all_that_it_started(daemon: Stokerd) -> None:
    daemon.apply(shell("sleep 1000 & echo $! > ../child; wait", timeout=5))  # by then it has surely started something
    run = start(daemon)
    failed = daemon.wait_phase(Run, run.name, "failed")
    assert "timeout of 5 s" in state_of(failed, Failed).message
    child = int((Path(run.folder) / "child").read_text())
    wait_for(lambda: not Path(f"/proc/{child}").exists(), "its child process is gone")


def test_cancel_stops_what_runs_and_drops_what_waits(daemon: Stokerd) -> None:
    daemon.apply(shell("sleep 1000"))
    runs = [start(daemon) for _ in range(3)]
    for run in runs[:2]:
        daemon.wait_phase(Run, run.name, "running")
    waiting = daemon.wait_event("RunWaiting", runs[2].name)
    assert "the limit is 2" in waiting.message
    for run in reversed(runs):
        daemon.client.request("POST", f"/v1/runs/{run.name}/cancel")
    for run in runs:
        daemon.wait_phase(Run, run.name, "cancelled")
    assert not [e for e in daemon.events() if e.name == runs[2].name and e.reason == "RunStarted"]


def test_a_run_goes_on_while_the_daemon_is_dead_and_its_end_is_known_afterwards(daemon: Stokerd) -> None:
    daemon.apply(shell("while ! test -e ../go; do sleep 0.05; done; echo done", "j"))
    first, second = start(daemon), start(daemon)
    for run in (first, second):
        daemon.wait_phase(Run, run.name, "running")
    daemon.kill()
    (Path(first.folder) / "go").touch()
    log = Path(first.folder) / "log"
    wait_for(lambda: log.exists() and log.read_text() == "done\n", "the first run ends on its own")
    daemon.start()
    daemon.wait_phase(Run, first.name, "succeeded")
    assert daemon.client.get(Run, second.name).phase == "running"
    (Path(second.folder) / "go").touch()
    daemon.wait_phase(Run, second.name, "succeeded")
    started = [e.name for e in daemon.events() if e.reason == "RunStarted"]
    assert sorted(started) == [first.name, second.name]


@pytest.mark.parametrize("retries", [0, 1])
def test_a_run_that_was_ended_from_outside_is_lost_and_tried_again_though_it_exited_with_0(
    daemon: Stokerd, retries: int
) -> None:
    """It saved what it had when it was told to end, as trainers do: no version is made of that."""
    first = "trap 'exit 0' TERM; touch ../up; while :; do sleep 0.05; done"
    script = f'echo $STOKER_ATTEMPT > $STOKER_OUTPUT/weights; test "$STOKER_ATTEMPT" = 2 && exit 0; {first}'
    fields: dict[str, Any] = {
        "registers": {"model": "m", "path": "weights"},
        "checkpoint": "weights",
        "retries": retries,
    }
    daemon.apply(f"kind: model\nname: m\n---\n{shell(script, backoff=0.1, **fields)}")
    run = start(daemon)
    wait_for((Path(run.folder) / "up").exists, "it runs and can be told to end")
    daemon.terminate()
    subprocess.run([STOKERD, "--home", daemon.root, "--end"], check=True, timeout=DEADLINE)
    daemon.start()
    told = daemon.wait_event("RunLost", run.name)
    assert "exited with code 0" in told.message
    if retries:
        assert "from weights" in told.message
        assert daemon.wait_phase(Run, run.name, "succeeded", "failed", "lost").attempt == 2
        (version,) = daemon.client.list(Version)
        assert (Path(version.folder) / "weights").read_text() == "2\n"
    else:
        assert daemon.client.get(Run, run.name).phase == "lost"
        assert daemon.client.list(Version) == []
    assert not [e for e in daemon.events() if e.name == run.name and e.reason in ("RunFailed", "RunRetrying")]


def test_a_program_that_is_not_there_is_named(daemon: Stokerd) -> None:
    daemon.apply("{kind: job, name: j, command: [no-such-program]}")
    failed = daemon.wait_phase(Run, start(daemon).name, "failed")
    assert "no-such-program" in state_of(failed, Failed).message


def test_what_a_run_needs_and_is_not_there_is_refused_before_it_is_queued(daemon: Stokerd) -> None:
    daemon.apply(shell("true", dataset="nope"))
    with pytest.raises(NotFound, match="no dataset named 'nope'"):
        start(daemon)
    daemon.apply(shell("true", name="k"))
    with pytest.raises(Invalid, match="no param 'lr'"):
        start(daemon, "k", lr=1)
    assert daemon.client.list(Run) == []


def test_an_exit_code_of_0_without_the_weights_that_were_promised_is_a_failure(daemon: Stokerd) -> None:
    daemon.apply("{kind: model, name: m}\n---\n" + shell("true", registers={"model": "m"}))
    failed = daemon.wait_phase(Run, start(daemon).name, "failed")
    assert "left no" in state_of(failed, Failed).message


def test_a_gpu_that_this_host_has_not_is_waited_for_with_the_reason(daemon: Stokerd) -> None:
    daemon.apply(shell("true", devices=64))
    run = start(daemon)
    told = daemon.wait_event("RunWaiting", run.name)
    assert "64 GPU" in told.message


def test_one_run_that_reports_nonsense_keeps_nobody_else_from_running(daemon: Stokerd) -> None:
    prepare(daemon)
    (daemon.root / "project" / "train.py").write_text(
        "import os, pathlib, stoker\n"
        "stoker.log_params({'layers': [1, 2], 'lr': None, 'good': 1, 'bad': float('inf')})\n"
        "pathlib.Path(os.environ['STOKER_OUTPUT'], 'model').mkdir()\n"
        "pathlib.Path(os.environ['STOKER_OUTPUT'], 'model', 'a\\u2028b').write_text('x')\n"
    )
    daemon.apply(shell("true"))
    run = start(daemon, "train")
    daemon.wait_phase(Run, start(daemon).name, "succeeded")
    daemon.wait_phase(Run, run.name, "succeeded")
    version = daemon.client.get(Version, "m@1")
    assert version.lineage.params == {"steps": 3, "good": 1}
    assert [p.name for p in Path(version.folder).iterdir()] == ["a\u2028b"]


def test_a_job_that_is_made_again_does_not_write_over_its_earlier_runs(daemon: Stokerd) -> None:
    daemon.apply(shell("true"))
    daemon.wait_phase(Run, start(daemon).name, "succeeded")
    daemon.client.request("DELETE", "/v1/jobs/j")
    daemon.apply(shell("true"))
    assert start(daemon).name == "j-2"


def test_params_that_are_no_numbers_are_refused_and_poison_nothing(daemon: Stokerd) -> None:
    daemon.apply(shell("true", params={"lr": 1}))
    transport = httpx.HTTPTransport(uds=str(daemon.home.socket))
    with httpx.Client(transport=transport, base_url="http://stoker", timeout=DEADLINE) as raw:
        refused = raw.post("/v1/jobs/j/runs", content=b'{"params": {"lr": 1e999}}')
    assert refused.status_code == 422
    assert daemon.client.list(Run) == []


def test_schedules_fire_and_make_up_for_what_was_missed_by_their_policy(daemon: Stokerd) -> None:
    daemon.apply(shell("true"))
    soon = (now() + timedelta(seconds=5)).isoformat()
    daemon.apply(
        f"""
{{kind: schedule, name: each, job: j, interval: 1}}
---
{{kind: schedule, name: at, job: j, date: "{soon}"}}
---
{{kind: schedule, name: once, job: j, interval: 1, misfire: once, paused: false}}
"""
    )
    daemon.wait_event("ScheduleFired", "each")
    daemon.wait_event("ScheduleFired", "at")
    daemon.wait_event("ScheduleFired", "once")
    daemon.kill()
    away = now()
    wait_for(lambda: now() > away + timedelta(seconds=3.5), "some firings are missed")
    last = newest_event(daemon)
    daemon.start()
    missed = daemon.wait_event("ScheduleMisfired", "once", after=last)
    assert "1 made up for" in missed.message
    assert missed.data["skipped"] >= 1
    schedule = daemon.client.get(Schedule, "at")
    assert schedule.next_fire_at is None
    assert [e.name for e in daemon.events() if e.reason == "ScheduleFired"].count("at") == 1
    keys = [r.trigger for r in daemon.client.list(Run)]
    assert len(keys) == len(set(keys)), "no firing made two runs"


def newest_event(daemon: Stokerd) -> int:
    """Read from the file: there is no daemon to ask."""
    with closing(sqlite3.connect(daemon.home.state_db)) as db:
        return int(db.execute("SELECT max(id) FROM event").fetchone()[0])
