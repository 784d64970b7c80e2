from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from stoker.errors import InvalidSpec
from stoker.types.training import JobSpec, Run
from stokerd.processes.states import Bounds, Command
from stokerd.training.command import OOM_SCORE_ADJ, Places, check_command, command_of, newest_checkpoint


def job(*command: str, **fields: Any) -> JobSpec:
    return JobSpec(kind="job", name="j", command=list(command), **fields)


PLACES = Places(Path("/r"), "/py", Path("/data"), Path("/base"), Path("/lib"))


def command(spec: JobSpec, **params: Any) -> Command:
    run = Run(name="j-1", job="j", number=1, spec=spec, params=spec.params | params, devices=["GPU-1"])
    return command_of(run, PLACES, {"PATH": "/bin"})


def test_placeholders_are_filled_in_and_nothing_else_is_touched() -> None:
    spec = job("{python}", "t.py", "--lr={params.lr}", "{dataset}", "{base}", "sh -c 'echo ${HOME} {}'",
               dataset="d", base="m@1", params={"lr": 0.1, "flag": True})  # fmt: skip
    made = command(spec, lr=0.5)
    assert made.argv == ("/py", "t.py", "--lr=0.5", "/data", "/base", "sh -c 'echo ${HOME} {}'")
    assert made.cwd == "/r/code"
    assert made.log == "/r/log"


def test_the_program_is_told_its_run_its_devices_and_its_params_and_no_more_of_our_environment() -> None:
    made = command(job("x", env={"A": "1"}, params={"lr": 0.1}))
    assert made.env["STOKER_RUN"] == "j-1"
    assert made.env["STOKER_PARAMS"] == '{"lr": 0.1}'
    assert made.env["CUDA_VISIBLE_DEVICES"] == "GPU-1"
    assert made.env["A"] == "1"
    assert {k for k in made.env if not k.startswith("STOKER_")} == {
        "PATH", "PYTHONPATH", "PYTHONUNBUFFERED", "CUDA_VISIBLE_DEVICES", "A",
    }  # fmt: skip


@pytest.mark.parametrize("argument", ["{datset}", "{dataset}", "{params.lr2}", "{base}"])
def test_a_placeholder_that_cannot_be_filled_in_is_refused_before_anything_runs(argument: str) -> None:
    with pytest.raises(InvalidSpec, match="can't be filled in"):
        check_command(job("x", argument, params={"lr": 1}))


def test_a_retry_goes_on_from_the_checkpoint_and_a_first_attempt_from_nothing() -> None:
    spec = job("x", "--resume={checkpoint}", checkpoint="step-*")
    check_command(spec)
    first = command(spec)
    assert first.argv == ("x", "--resume=")
    assert "STOKER_CHECKPOINT" not in first.env
    run = Run(name="j-1", job="j", number=1, spec=spec, attempt=2, checkpoint="/r/output/step-2")
    again = command_of(run, PLACES, {})
    assert again.argv == ("x", "--resume=/r/output/step-2")
    assert again.env["STOKER_CHECKPOINT"] == "/r/output/step-2"


@pytest.mark.parametrize("pattern", ["/tmp/x", "../x", "a/../../x"])
def test_a_checkpoint_outside_the_output_is_refused(pattern: str) -> None:
    with pytest.raises(InvalidSpec, match="checkpoint"):
        check_command(job("x", checkpoint=pattern))


def test_the_newest_checkpoint_is_the_one_that_was_changed_last(tmp_path: Path) -> None:
    assert newest_checkpoint(tmp_path, "step-*") is None
    for number, time in ((9, 100), (10, 300), (11, 200)):
        (tmp_path / f"step-{number}").touch()
        os.utime(tmp_path / f"step-{number}", (time, time))
    assert newest_checkpoint(tmp_path, "step-*") == tmp_path / "step-10"
    assert newest_checkpoint(tmp_path, "other-*") is None


def test_limits_become_bounds_and_training_is_the_first_to_go_when_memory_runs_out() -> None:
    assert command(job("x", limits={"memory": "1GiB", "processes": 50})).bounds == Bounds(
        1 << 30, 50, None, OOM_SCORE_ADJ
    )
