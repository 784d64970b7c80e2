"""status, get, logs, events, metrics: what a person sees."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from stoker.types.base import now
from stoker.types.host import Device, TrafficStats
from stoker.types.training import MetricPoint
from tests.unit.cli import samples
from tests.unit.cli.conftest import Stoker
from tests.unit.cli.stand_in import StandIn


@pytest.fixture
def busy(daemon: StandIn) -> StandIn:
    """A host with something of everything."""
    daemon.keep(samples.job(), event="JobCreated")
    daemon.keep(samples.run(1, "succeeded"), samples.run(2, "failed"), samples.run(3, "running"), event="RunChanged")
    daemon.keep(samples.model(), samples.version(1), samples.version(2))
    daemon.keep(samples.deployment(rollout="chat-1"), samples.replica(), samples.rollout())
    daemon.answers["GET /v1/traffic"] = [
        TrafficStats(
            deployment="chat", version=1, arm="stable", window_seconds=60, requests=120, errors=6,
            requests_per_second=2, prompt_tokens=1, completion_tokens=1, ttft_p90=0.0234,
        )
    ]  # fmt: skip
    daemon.logs = {"run/tune-3": b"one\ntwo\nthree\n", "replica/chat-v1-0": b"ready\n", "gateway/gateway": b"hello\n"}
    return daemon


def test_status_shows_everything_on_one_page(busy: StandIn, stoker: Stoker) -> None:
    gpu = Device(uuid="GPU-1", index=0, name="H100", memory_total=80 << 30, memory_used=8 << 30, owner="run/tune-3")
    busy.host = busy.host.model_copy(update={"devices": [gpu]})
    page = stoker("status")
    assert page.code == 0
    for text in ("gateway http://127.0.0.1:1/v1 ready", "1 device", "8.0 GiB / 80.0 GiB", "run/tune-3"):
        assert text in page.out
    for text in ("chat  ready  smol@1  1/1", "2.0/s", "5 %", "23 ms"):
        assert text in page.out
    assert "3 runs: 1 failed, 1 running, 1 succeeded" in page.out
    assert "stepping 2/2" in page.out
    assert "\x1b" not in page.out
    assert not any(line.endswith(" ") for line in page.out.splitlines())


def test_status_says_why_there_is_no_device(busy: StandIn, stoker: Stoker) -> None:
    assert "devices none: there is no NVIDIA driver." in stoker("status").out


def test_status_as_json_is_one_value(busy: StandIn, stoker: Stoker) -> None:
    page = stoker("status", "--json").json
    assert page["host"]["hostname"] == "box"
    assert page["runs"] == {"succeeded": 1, "failed": 1, "running": 1}
    assert [r["name"] for r in page["active_runs"]] == ["tune-3"]


def test_status_works_while_metrics_are_away(busy: StandIn, stoker: Stoker) -> None:
    del busy.answers["GET /v1/traffic"]
    assert stoker("status").code == 0


@pytest.mark.parametrize("word", ["run", "runs", "r", "RUNS"])
def test_a_kind_may_be_singular_plural_or_short(busy: StandIn, stoker: Stoker, word: str) -> None:
    table = stoker("get", word).out.splitlines()
    assert table[0].split() == ["NAME", "PHASE", "TOOK", "ATTEMPT", "TRIGGER", "AGE", "MESSAGE"]
    assert table[1].split()[:3] == ["tune-1", "succeeded", "3m"]
    assert "it ended with exit code 3." in table[2]


@pytest.mark.parametrize("kind", ["jobs", "models", "versions", "deployments", "replicas", "rollouts"])
def test_every_kind_has_a_table_and_a_page(busy: StandIn, stoker: Stoker, kind: str) -> None:
    first = stoker("get", kind).out.splitlines()[1].split()[0]
    page = stoker("get", kind, first)
    assert page.code == 0
    assert f"name: {first}" in page.out


def test_a_list_can_be_narrowed(busy: StandIn, stoker: Stoker) -> None:
    busy.keep(samples.run(1, "queued", "other"))
    assert [r["name"] for r in stoker("get", "runs", "--job", "other", "--json").json] == ["other-1"]
    refused = stoker("get", "jobs", "--model", "smol")
    assert (refused.code, "jobs can't be narrowed by --model" in refused.err) == (2, True)


def test_an_empty_list_leaves_standard_output_to_scripts(daemon: StandIn, stoker: Stoker) -> None:
    nothing = stoker("get", "runs")
    assert (nothing.code, nothing.out, nothing.err) == (0, "", "no runs\n")
    assert stoker("get", "runs", "--json").json == []


def test_one_resource_is_shown_whole_with_its_events(busy: StandIn, stoker: Stoker) -> None:
    page = stoker("get", "version", "smol@2").out
    assert "bytes: 267 MiB (280000000)" in page
    assert "    loss: 0.5" in page
    page = stoker("get", "run", "tune-1").out
    assert "RunChanged" in page
    assert "(just now)" in page or "ago)" in page


def test_json_is_what_the_daemon_said(busy: StandIn, stoker: Stoker) -> None:
    assert stoker("get", "model", "smol", "--json").json["aliases"] == {"champion": 1}
    assert stoker("get", "host", "--json").json["pid"] == 1
    assert "pid: 1" in stoker("get", "host").out


def test_what_others_wrote_cannot_move_the_cursor(busy: StandIn, stoker: Stoker) -> None:
    evil = samples.deployment().model_copy(update={"message": "\x1b[2Jgone\n\rforged [red]line[/red]"})
    busy.keep(evil)
    table = stoker("get", "deployments").out
    assert len(table.splitlines()) == 2
    assert "\\x1b[2Jgone\\n\\rforged [red]line[/red]" in table


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("tune-3", "one\ntwo\nthree\n"),
        ("run/tune-3", "one\ntwo\nthree\n"),
        ("tune", "one\ntwo\nthree\n"),
        ("job/tune", "one\ntwo\nthree\n"),
        ("chat-v1-0", "ready\n"),
        ("chat", "ready\n"),
        ("gateway", "hello\n"),
    ],
)
def test_a_log_is_found_by_any_name_that_means_it(busy: StandIn, stoker: Stoker, name: str, text: str) -> None:
    assert stoker("logs", name).out == text


def test_the_log_of_a_replica_that_is_gone_is_still_found(busy: StandIn, stoker: Stoker) -> None:
    busy.logs["replica/chat-v0-0"] = b"bye\n"
    assert stoker("logs", "chat-v0-0").out == "bye\n"


def test_the_last_lines_of_a_log(busy: StandIn, stoker: Stoker) -> None:
    assert stoker("logs", "tune-3", "--tail", "2").out == "two\nthree\n"
    assert stoker("logs", "tune-3", "--tail", "0").out == ""
    assert stoker("logs", "tune-3", "--tail", "9").out == "one\ntwo\nthree\n"
    assert stoker("logs", "tune-3", "-n", "1", "--json").lines == [{"line": "three"}]
    busy.logs["run/tune-3"] = b"x" * 100_000 + b"\n" + b"y" * 100_000
    assert stoker("logs", "tune-3", "--tail", "1").out == "y" * 100_000
    busy.tells_offsets = False
    assert stoker("logs", "tune-3", "--tail", "1").out == "y" * 100_000


def test_what_has_no_log_says_so(busy: StandIn, stoker: Stoker) -> None:
    assert (stoker("logs", "nobody").code, stoker("logs", "model/smol").code) == (4, 2)
    busy.keep(samples.job("fresh"))
    fresh = stoker("logs", "fresh")
    assert (fresh.code, "has had no run yet" in fresh.err) == (5, True)
    busy.keep(samples.replica(1))
    several = stoker("logs", "chat")
    assert (several.code, "chat-v1-0, chat-v1-1" in several.err) == (5, True)


def _once_followed(daemon: StandIn, step: Callable[[], None]) -> threading.Thread:
    """Do *step* in a thread as soon as somebody follows the log of tune-3."""

    def wait() -> None:
        daemon.wait_for("GET /v1/logs/run/tune-3", follow="true")
        step()

    thread = threading.Thread(target=wait)
    thread.start()
    return thread


def test_a_followed_log_ends_with_its_run(busy: StandIn, stoker: Stoker) -> None:
    busy.open_logs.add("run/tune-3")

    def end() -> None:
        busy.logs["run/tune-3"] += b"four\n"
        busy.keep(samples.run(3, "succeeded"))
        busy.open_logs.clear()

    thread = _once_followed(busy, end)
    followed = stoker("logs", "-f", "--tail", "1", "tune-3")
    thread.join()
    assert (followed.code, followed.out) == (0, "three\nfour\n")


def test_following_survives_a_restart_of_the_daemon(busy: StandIn, stoker: Stoker) -> None:
    busy.open_logs.add("run/tune-3")

    def restart() -> None:
        busy.stop()
        busy.logs["run/tune-3"] += b"four\n"
        busy.keep(samples.run(3, "succeeded"))
        busy.open_logs.clear()
        busy.start()

    thread = _once_followed(busy, restart)
    followed = stoker("logs", "-f", "tune-3")
    thread.join()
    assert (followed.code, followed.out) == (0, "one\ntwo\nthree\nfour\n")


def test_followed_events_go_on_where_the_past_ended_over_pings_and_restarts(busy: StandIn, home: Path) -> None:
    command = [sys.executable, "-m", "stoker.cli.main", "events", "-f", "--last", "1", "--json"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        seen = [json.loads(process.stdout.readline())["id"]]
        busy.wait_for("GET /v1/events", follow="true", after="4")
        busy.record("run", "tune-3", "RunChanged")
        seen.append(json.loads(process.stdout.readline())["id"])
        busy.stop()
        busy.record("run", "tune-3", "RunChanged")
        busy.start()
        seen.append(json.loads(process.stdout.readline())["id"])
        process.terminate()
        assert b"Traceback" not in process.communicate()[1]
    assert seen == [4, 5, 6]


def test_events_are_shown_in_order_and_can_be_narrowed(busy: StandIn, stoker: Stoker) -> None:
    assert [e["id"] for e in stoker("events", "--json").lines] == [1, 2, 3, 4]
    assert [e["id"] for e in stoker("events", "--last", "2", "--json").lines] == [3, 4]
    assert [e["id"] for e in stoker("events", "--after", "1", "--json").lines] == [2, 3, 4]
    assert [e["id"] for e in stoker("events", "--kind", "runs", "--name", "tune-2", "--json").lines] == [3]
    assert "run/tune-2" in stoker("events").out


def test_metrics_are_grouped_by_step(busy: StandIn, stoker: Stoker) -> None:
    points = [MetricPoint(key=k, step=s, value=s / 3, time=now()) for s in (1, 2) for k in ("loss", "lr")]
    busy.answers["GET /v1/runs/tune-1/metrics"] = {"points": points, "next": 4}
    assert stoker("metrics", "tune-1").out.split() == [
        "step", "1", "loss", "0.333333", "lr", "0.333333", "step", "2", "loss", "0.666667", "lr", "0.666667",
    ]  # fmt: skip
    assert len(stoker("metrics", "tune-1", "--json").json) == 4


def test_followed_metrics_end_with_the_run(busy: StandIn, stoker: Stoker) -> None:
    batches = [
        [MetricPoint(key="loss", step=1, value=1, time=now())],
        [MetricPoint(key="loss", step=2, value=0.5, time=now())],
    ]
    given = iter([*batches, []])
    busy.answers["GET /v1/runs/tune-1/metrics"] = lambda _: {"points": next(given), "next": 1}
    assert [p["value"] for p in stoker("metrics", "tune-1", "-f", "--json").lines] == [1, 0.5]
