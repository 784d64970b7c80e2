"""The command as a whole: help, errors, exit codes, pipes, interruptions, what is loaded."""

from __future__ import annotations

import importlib
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from stoker.cli.main import VERBS
from tests.harness import DEADLINE
from tests.unit.cli import samples
from tests.unit.cli.conftest import Stoker
from tests.unit.cli.stand_in import StandIn

COMMAND = [sys.executable, "-m", "stoker.cli.main"]


def test_help_names_every_verb_and_every_exit_code(stoker: Stoker) -> None:
    page = stoker("--help")
    assert page.code == 0
    assert all(f"  {verb} " in page.out for verb in VERBS)
    assert all(f"\n    {code}" in page.out for code in (0, 1, 2, 4, 5, 6, 7, 130, 141))


@pytest.mark.parametrize("verb", VERBS)
def test_each_verb_has_help_with_examples(stoker: Stoker, verb: str) -> None:
    inner = {
        "rollout": ("start", "status", "approve", "abort", "rollback", "back", "explain"),
        "deployment": ("history",),
        "key": ("create", "list", "delete"),
    }.get(verb)
    for arguments in ([verb, x, "-h"] for x in inner) if inner else ([verb, "--help"],):
        page = stoker(*arguments)
        assert page.code == 0
        assert f"Examples:\n    stoker {verb}" in page.out
    if not inner:
        name = verb.replace("-", "_")
        said = getattr(importlib.import_module(f"stoker.cli.{name}"), name).__doc__
        assert said.splitlines()[0] == VERBS[verb][1]


def test_without_a_terminal_the_bare_command_prints_help_and_fails(stoker: Stoker) -> None:
    bare = stoker()
    assert (bare.code, "Usage: stoker" in bare.out) == (2, True)


def test_version(stoker: Stoker) -> None:
    assert stoker("--version").out.startswith("stoker 0.")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["statsu"], "Did you mean 'status'?"),
        (["get"], "Missing argument 'KIND'"),
        (["get", "things"], "there is no kind 'things'"),
        (["status", "--jsn"], "No such option"),
        (["logs", "x", "--tail", "many"], "valid int"),
        (["rollout"], "Usage: stoker rollout"),
        (["rollout", "abrt", "x"], "abort"),
    ],
)
def test_wrong_usage_is_one_sentence_and_exit_2(stoker: Stoker, arguments: list[str], words: str) -> None:
    refused = stoker(*arguments)
    assert (refused.code, refused.out) == (2, "")
    assert words in refused.err


def test_errors_are_json_with_json(stoker: Stoker, tmp_path: Path) -> None:
    usage = json.loads(stoker("get", "--json").err)
    assert (usage["code"], sorted(usage)) == ("usage", ["code", "details", "hint", "message"])
    away = stoker("status", "--json", "--home", str(tmp_path))
    assert (away.code, json.loads(away.err)["code"]) == (6, "daemon-unreachable")


def test_a_daemon_that_is_away_is_one_sentence(stoker: Stoker, tmp_path: Path) -> None:
    for arguments in (["--home", str(tmp_path), "status"], ["status", "--home", str(tmp_path)]):
        away = stoker(*arguments)
        assert away.code == 6
        assert away.err.startswith(f"error: no daemon answers on {tmp_path}/stoker.sock (No such file or directory).\n")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may use every socket")
def test_a_socket_of_others_is_told_from_none(daemon: StandIn, stoker: Stoker) -> None:
    daemon.path.chmod(0)
    try:
        assert "You may not use that socket" in stoker("status").err
    finally:
        daemon.path.chmod(0o600)


def test_a_daemon_of_another_version_is_not_a_traceback(daemon: StandIn, stoker: Stoker) -> None:
    daemon.answers["GET /v1/runs"] = [{"name": "x", "new_field": 1}]
    odd = stoker("get", "runs")
    assert (odd.code, "different versions" in odd.err) == (1, True)
    daemon.answers["GET /v1/runs"] = {}
    assert stoker("status").code == 1


def test_a_reader_that_goes_away_ends_the_program_quietly(daemon: StandIn) -> None:
    daemon.keep(samples.job(), event="JobCreated")
    with subprocess.Popen([*COMMAND, "events", "-f"], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert b"job/tune" in process.stdout.readline()
        process.stdout.close()
        daemon.keep(samples.job(), event="JobChanged")
        daemon.keep(samples.job(), event="JobChanged")
        assert process.wait(DEADLINE) == 141
        assert process.stderr.read() == b""


def test_ctrl_c_while_waiting_detaches_from_the_run(daemon: StandIn) -> None:
    daemon.answers["POST /v1/jobs/tune/runs"] = samples.run(1)
    daemon.keep(samples.run(1))
    with subprocess.Popen(
        [*COMMAND, "run", "tune", "--wait"], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        daemon.wait_for("GET /v1/events")
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=DEADLINE)
    assert (process.returncode, out) == (130, b"run/tune-1 queued\n")
    assert b"detached; run tune-1 goes on" in err
    assert b"Traceback" not in err


def _loaded(*arguments: str) -> set[str]:
    code = (
        "import sys\nfrom stoker.cli.main import main\n"
        "try: main(sys.argv[1:])\nexcept SystemExit as e: assert e.code in (0, 6), e.code\n"
        "print('\\n'.join(sys.modules), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=True)
    return {line.partition(".")[0] for line in done.stderr.splitlines()}


def test_help_loads_nothing_heavy() -> None:
    assert not _loaded("--help") & {"pydantic", "httpx", "rich", "ruamel", "textual", "fastapi", "sqlmodel"}


def test_a_verb_loads_neither_server_nor_terminal_ui(home: Path) -> None:
    loaded = _loaded("status")
    assert "httpx" in loaded
    assert not loaded & {"ruamel", "textual", "fastapi", "uvicorn", "sqlmodel", "stokerd", "stoker_tui", "torch"}


def test_output_is_plain_for_pipes_and_json_is_ascii_where_the_encoding_is(daemon: StandIn) -> None:
    daemon.keep(samples.deployment().model_copy(update={"message": "größer → 模"}))
    environment = os.environ | {"PYTHONIOENCODING": "ascii"}
    done = subprocess.run([*COMMAND, "get", "deployments", "--json"], capture_output=True, check=True, env=environment)
    assert json.loads(done.stdout.decode("ascii"))[0]["message"] == "größer → 模"
    done = subprocess.run([*COMMAND, "get", "deployments"], capture_output=True, check=True, env=environment)
    assert b"\x1b" not in done.stdout
