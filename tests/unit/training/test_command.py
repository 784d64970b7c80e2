from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from stoker.errors import InvalidSpec
from stoker.types.training import JobSpec, Run
from stokerd.training.command import Places, check_command, command_of


def job(*command: str, **fields: Any) -> JobSpec:
    return JobSpec(kind="job", name="j", command=list(command), **fields)


PLACES = Places(Path("/r"), "/py", Path("/data"), Path("/base"), Path("/lib"))


def command(spec: JobSpec, **params: Any) -> Any:
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
