"""Spec files: what is read from them, and what is said of everything that can be wrong with one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import Field, TypeAdapter

from stoker.documents import MAX_BYTES
from stoker.errors import Invalid, InvalidSpec, NotFound
from stoker.specs import decode, load_document, load_specs, read_file
from stoker.types.apply import SPEC_TYPES
from stoker.types.base import Seconds, Strict
from stoker.types.serving import CommandEngine, DeploymentSpec, VllmEngine
from stoker.types.training import JobSpec, ScheduleSpec

JOB = "kind: job\nname: tune\ncommand: [python, train.py]\n"
DEPLOYMENT = "kind: deployment\nname: chat\nmodel: smol\nversion: 1\n"


def problems(text: str) -> list[str]:
    """What is wrong with *text*, a line each, without the file's name."""
    with pytest.raises(InvalidSpec) as refused:
        load_specs(text, "f.yaml", None)
    told = refused.value.details["problems"]
    assert refused.value.message.splitlines() == [
        f"f.yaml:{p['line']}: {p['field'] + ': ' if p['field'] else ''}{p['message']}" for p in told
    ]
    return [x.removeprefix("f.yaml:") for x in refused.value.message.splitlines()]


def test_several_documents_in_one_file_are_read_in_order() -> None:
    text = f"# jobs\n---\n{JOB}timeout: 1.5h\nparams: {{lr: 1e-4, on: true, n: 3, day: 2026-01-31}}\n---\n---\n"
    text += f"{DEPLOYMENT}engine: {{type: vllm, args: [--enforce-eager]}}\n...\n"
    job, deployment = load_specs(text, "f.yaml", None)
    assert isinstance(job, JobSpec)
    assert job.timeout == 5400
    assert job.params == {"lr": 1e-4, "on": True, "n": 3, "day": "2026-01-31"}
    assert isinstance(deployment, DeploymentSpec)
    assert deployment.engine == VllmEngine(type="vllm", args=["--enforce-eager"])


def test_anchors_and_merge_keys_work() -> None:
    text = (
        f"kind: job\nname: a\ncommand: &c [x]\nenv: &e {{A: '1', B: '2'}}\n---\n{JOB}env: {{<<: &b {{A: '1'}}, B: '2'}}"
    )
    assert [s.env for s in load_specs(text, "f", None) if isinstance(s, JobSpec)] == [{"A": "1", "B": "2"}] * 2


def test_dates_of_schedules_are_read() -> None:
    (spec,) = load_specs("kind: schedule\nname: s\njob: j\ndate: 2026-01-31T08:00:00+02:00\n", "f", None)
    assert isinstance(spec, ScheduleSpec)
    assert spec.date is not None
    assert spec.date.isoformat() == "2026-01-31T06:00:00+00:00"


# fmt: off
MISTAKES = [
    (JOB + "timeout: soon\n", "4: job.timeout: expected a duration such as 30s, 5m, 1.5h or 2d (got 'soon')"),
    (JOB + "timeout: -1\n", "4: job.timeout: expected at least 0 (got -1)"),
    (JOB + "retrys: 3\n", "4: job.retrys: unknown field; did you mean 'retries'?"),
    (JOB + "retries: three\n", "4: job.retries: expected a whole number (got 'three')"),
    (JOB + "env: {A: 1}\n", "4: job.env.A: expected text (got 1): put it in quotes"),
    (JOB + "env:\n  A: 'x'\n  B: [1]\n", "6: job.env.B: expected text (got a list)"),
    (JOB + "params: {a: [1]}\n", "4: job.params.a: expected text, a number or true/false (got a list)"),
    (JOB + "params: [1]\n", "4: job.params: expected a mapping (`key: value` lines) (got a list)"),
    (JOB + "registers: {path: x}\n", "4: job.registers.model: missing: it must be given (lower-case letters, "),
    ("kind: job\nname: Tune\ncommand: [x]\n", "2: job.name: expected a name (lower-case letters, digits, '.', "),
    ("kind: job\nname: t\ncommand:\n  - x\n  - 3\n", "5: job.command[1]: expected text (got 3): put it in quotes"),
    ("kind: job\nname: t\ncommand: []\n", "3: job.command: expected at least 1 item (got an empty list)"),
    ("kind: job\nname: t\ncommand:\n", "3: job.command: expected a list (got nothing)"),
    ("\n\nkind: job\nname: t\n", "3: job.command: missing: it must be given (argv; {python}, {dataset}, "),
    (DEPLOYMENT, "1: deployment.engine: missing: it must be given"),
    (DEPLOYMENT + "engine: {}\n", "5: deployment.engine.type: missing: expected one of vllm, command, adapter"),
    (
        DEPLOYMENT + "engine:\n  type: vlm\n",
        "6: deployment.engine.type: expected one of vllm, command, adapter (got 'vlm'; did you mean 'vllm'?)",
    ),
    (DEPLOYMENT + "engine: vllm\n", "5: deployment.engine: expected a mapping (`key: value` lines) (got 'vllm')"),
    (
        DEPLOYMENT + "engine:\n  type: vllm\n  arg: []\n",
        "7: deployment.engine.arg: unknown field; did you mean 'args'?",
    ),
    (
        DEPLOYMENT.replace("version: 1", "version: [1]") + "engine: {type: vllm}\n",
        "4: deployment.version: expected a whole number or text (got a list)",
    ),
    (
        "kind: rollout\nname: r\ndeployment: d\nto: 2\nsteps:\n- type: canary\n  percent: 500\n",
        "7: rollout.steps[0].percent: expected at most 100 (got 500)",
    ),
    (
        "kind: rollout\nname: r\ndeployment: d\nto: 2\nsteps:\n- {type: shadow, percent: 5, max_callers: 3}\n",
        "6: rollout.steps[0].max_callers: unknown field; did you mean 'min_callers'?",
    ),
    (
        "kind: rollout\nname: r\ndeployment: d\nto: 2\ntargets:\n- {header: x-team, key: alice}\n",
        "6: rollout.targets[0]: a target names either a header or a key",
    ),
    (
        "kind: schedule\nname: s\njob: j\ncron: '* * * * *'\ninterval: 5m\n",
        "1: schedule: expected exactly one of cron, interval, date",
    ),
    (
        "kind: schedule\nname: s\njob: j\ndate: soon\n",
        "4: schedule.date: expected a date and time such as 2026-01-31T08:00:00Z (got 'soon')",
    ),
    (
        "kind: schedule\nname: s\njob: j\ninterval: 5m\nmisfire: onc\n",
        "5: schedule.misfire: expected one of skip, once, all (got 'onc'; did you mean 'once'?)",
    ),
    ("kind: jbo\n", "1: kind: expected one of job, schedule, model, deployment, rollout (got 'jbo'; did you mean"),
    ("kind: [job]\n", "1: kind: expected one of job, schedule, model, deployment, rollout (got a list)"),
    ("name: x\n", "1: kind: missing: expected one of job, schedule, model, deployment, rollout"),
    ("- kind: job\n", "1: expected a mapping with kind: job, schedule, model, deployment, rollout (got a list)"),
    ("", "1: no spec in it: expected a document with kind: job, schedule, "),
    ("# nothing\n---\n---\n", "1: no spec in it"),
    (JOB + "name: other\n", "4: job.name: given twice (first on line 2)"),
    (JOB + "env:\n  A: x\n  'A': y\n", "6: job.env.A: given twice (first on line 5)"),
    (JOB + "---\n" + JOB, "6: job.name: job tune is given twice (first in f.yaml:1)"),
    (JOB + "timeout: .inf\n", "4: job.timeout: expected a finite number (got .inf)"),
    (JOB + "params: {n: 0x" + "f" * 40 + "}\n", "4: job.params.n: '0xffffffffffff"),
    (JOB + "params: {n: " + "9" * 5000 + "}\n", "4: job.params.n: '999999999"),
    (JOB + "code: !python/object x\n", "4: job.code: the tag !python/object is not supported"),
    (JOB + "env: !!set {a}\n", "4: job.env: the tag !!set is not supported"),
    (JOB + "env: &e {a: *e}\n", "4: job.env.a: anchor &e contains itself"),
    (JOB + "env: {[a]: b}\n", "4: job.env: a key must be text"),
    (JOB + "env: {<<: [1]}\n", "4: job.env: `<<` takes a mapping or a list of mappings"),
    (JOB + "env: {a: b: c}\n", "4: not valid YAML: "),
    (JOB + "env: *nowhere\n", "4: not valid YAML: found undefined alias 'nowhere' (column 6)"),
    (JOB + "env:\n\tA: x\n", "5: not valid YAML: while scanning for the next token found character '\\t' that "),
    (JOB + "env: {A: '\x07'}\n", "4: not valid YAML: the character U+0007 is not allowed (column 11)"),
    (JOB + "env: {A: \"\\ud800\"}\n", "4: job.env.A: '\\ud800' is no text: it has half of a surrogate pair"),
    (JOB + "env: {\"\\ud800\": x}\n", "4: job.env: the key '\\ud800' is no text: it has half of a surrogate pair"),
    ("[" * 100, "1: not valid YAML: nested deeper than 64 levels"),
    ("x" * (MAX_BYTES + 1), "1: the file is larger than 1 MiB: split it"),
]
# fmt: on


@pytest.mark.parametrize(("text", "said"), MISTAKES, ids=[said[:50] for _, said in MISTAKES])
def test_each_mistake_is_told_with_line_field_and_what_was_expected(text: str, said: str) -> None:
    (told,) = problems(text)
    assert told.startswith(said)


def test_all_problems_of_all_documents_are_told_at_once_in_order_of_lines() -> None:
    text = "kind: job\nname: A\ncommand: 3\nretrys: 1\n---\nkind: x\n---\n"
    text += f"{DEPLOYMENT}engine: {{type: vllm, env: 3}}\n---\na: b: c\n"
    assert [t.split(": ")[0:2] for t in problems(text)] == [
        ["2", "job.name"],
        ["3", "job.command"],
        ["4", "job.retrys"],
        ["6", "kind"],
        ["12", "deployment.engine.env"],
        ["14", "not valid YAML"],
    ]


def test_anchors_that_explode_are_refused_quickly() -> None:
    rows = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    rows += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]" for i in range(1, 12)]
    assert problems("\n".join(rows)) == [
        "1: more than 100,000 values, anchors expanded: split the file, or use fewer anchors"
    ]


def test_relative_paths_start_from_the_files_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    text = f"{JOB}code: ../src\npython: .venv/bin/python\n---\n"
    text += "kind: job\nname: b\ncommand: [x]\ncode: ~/src\npython: python3\n---\n"
    text += f"{DEPLOYMENT}engine: {{type: vllm, python: ./env/bin/python}}\n---\n"
    text += DEPLOYMENT.replace("chat", "cmd") + "engine: {type: command, command: [./serve.sh, '{socket}']}\n"
    first, second, vllm, command = load_specs(text, "f.yaml", Path("/specs/a"))
    assert isinstance(first, JobSpec)
    assert isinstance(second, JobSpec)
    assert (first.code, first.python) == ("/specs/src", "/specs/a/.venv/bin/python")
    assert (second.code, second.python) == ("/home/me/src", "python3")
    assert isinstance(vllm, DeploymentSpec)
    assert isinstance(vllm.engine, VllmEngine)
    assert vllm.engine.python == "/specs/a/env/bin/python"
    assert isinstance(command, DeploymentSpec)
    assert isinstance(command.engine, CommandEngine)
    assert command.engine.command == ["/specs/a/serve.sh", "{socket}"]


def test_without_a_folder_paths_start_from_the_current_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (spec,) = load_specs(JOB + "code: src\n", "<stdin>", None)
    assert isinstance(spec, JobSpec)
    assert spec.code == str(tmp_path / "src")


def test_files_are_read_with_their_folder(tmp_path: Path) -> None:
    path = tmp_path / "f.yaml"
    path.write_bytes(b"\xef\xbb\xbfkind: job\n")
    assert read_file(path) == ("kind: job\n", tmp_path)
    with pytest.raises(NotFound):
        read_file(tmp_path / "none")
    with pytest.raises(Invalid, match=r"is a folder"):
        read_file(tmp_path)
    with pytest.raises(InvalidSpec, match=r"larger than 1 MiB"):
        read_file(Path("/dev/zero"))


def test_bytes_that_are_no_text_are_told_with_their_line() -> None:
    with pytest.raises(InvalidSpec, match=r"^f:2: not UTF-8: byte 0xe9 can't be read as text$"):
        decode("kind: job\nname: é".encode("latin-1"), "f")


class Door(Strict):
    width: int = 1


class House(Strict):
    doors: list[Door] = Field(default=[])
    patience: Seconds = 1.0


def test_another_document_is_read_and_refused_in_the_same_words() -> None:
    adapter = TypeAdapter(House)
    assert load_document("", "s.yaml", adapter) == House()
    assert load_document("patience: 5m\ndoors: [{width: 2}]\n", "s.yaml", adapter).patience == 300
    with pytest.raises(InvalidSpec) as refused:
        load_document("doors:\n- widht: 2\n- width: wide\npatienc: 3\n", "s.yaml", adapter)
    assert refused.value.message.splitlines() == [
        "s.yaml:2: doors[0].widht: unknown field; did you mean 'width'?",
        "s.yaml:3: doors[1].width: expected a whole number (got 'wide')",
        "s.yaml:4: patienc: unknown field; did you mean 'patience'?",
    ]
    with pytest.raises(InvalidSpec, match=r"s.yaml:1: expected a mapping"):
        load_document("[1]", "s.yaml", adapter)
    with pytest.raises(InvalidSpec, match=r"s.yaml:2: expected one document"):
        load_document("patience: 1\n--- {}\n", "s.yaml", adapter)


def _refused_or_read(text: str) -> None:
    """Whatever *text* is: specs that can be sent, or `InvalidSpec` with lines that exist."""
    try:
        specs = load_specs(text, "f", Path("/"))
    except InvalidSpec as refused:
        json.dumps(refused.as_dict())
        assert refused.details["problems"]
        for problem in refused.details["problems"]:
            assert 1 <= problem["line"] <= len(text.splitlines()) + 2
            assert "\n" not in problem["message"]
    else:
        for spec in specs:
            json.dumps(spec.model_dump(mode="json"), allow_nan=False).encode()


_WORDS = ["kind", "job", "deployment", "name", "command", "engine", "type", "vllm", "steps", "a", "timeout", "5m", "~"]
_MARKS = [
    ": ",
    "- ",
    "\n",
    "\n  ",
    "---\n",
    "...\n",
    "{",
    "}",
    "[",
    "]",
    ", ",
    "&a ",
    "*a",
    "<<",
    "!!",
    "!x ",
    "|\n",
    ">-\n",
]
_MARKS += [
    "'",
    '"',
    "#",
    "%YAML 1.1\n",
    "%TAG ! x\n",
    "? ",
    "\t",
    "@",
    "`",
    "\\",
    "0x",
    ".inf",
    "1e9",
    "-1",
    "\0",
    "\ud800",
]
_WRITTEN = st.lists(st.sampled_from(_WORDS + _MARKS), max_size=40).map("".join)
_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.sampled_from(_WORDS),
    lambda x: st.lists(x, max_size=4) | st.dictionaries(st.sampled_from(_WORDS) | st.text(), x, max_size=4),
    max_leaves=20,
)


@settings(max_examples=200, deadline=None)
@given(_WRITTEN | st.text())
def test_no_text_is_met_with_anything_but_a_clear_refusal(text: str) -> None:
    _refused_or_read(text)


def _spec_like(kind: str) -> st.SearchStrategy[dict[str, Any]]:
    fields = st.dictionaries(st.sampled_from([*SPEC_TYPES[kind].model_fields]), _JSON, max_size=6)
    return st.builds(lambda a, b: {**a, **b, "kind": kind}, st.dictionaries(st.text(), _JSON, max_size=2), fields)


@settings(max_examples=100, deadline=None)
@given(st.one_of([_spec_like(kind) for kind in SPEC_TYPES]))
def test_no_spec_is_met_with_anything_but_a_clear_refusal(document: dict[str, Any]) -> None:
    _refused_or_read(json.dumps(document))
