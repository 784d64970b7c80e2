from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

from stoker.errors import InvalidSpec
from stoker.types.serving import DeploymentSpec
from stoker.types.supervision import Limits, Restart
from stokerd.processes.states import Bounds
from stokerd.serving.engines import check_engine, engine_of, launch_digest
from stokerd.serving.engines.base import Launch
from stokerd.serving.engines.vllm import SHUTDOWN_TIMEOUT


def spec(**engine: Any) -> DeploymentSpec:
    return DeploymentSpec.model_validate(
        {"kind": "deployment", "name": "d", "model": "m", "version": 1, "engine": engine}
    )


def launch(**fields: Any) -> Launch:
    values: dict[str, Any] = {
        "deployment": "d", "version": 3, "model": Path("/weights"), "socket": Path("/s.sock"), "port": 1234,
        "devices": (), "log": Path("/logs/log"), "inherited": {"PATH": "/bin"},
    }  # fmt: skip
    return Launch(**values | fields)


def test_vllm_serves_the_deployments_name_over_its_own_socket_on_the_devices_it_was_given() -> None:
    engine = engine_of(spec(type="vllm", args=["--max-model-len", "9"], env={"A": "1"}), "/py")
    made = engine.command(launch(devices=("GPU-a", "GPU-b")))
    assert made.argv[:3] == ("/py", "-m", "vllm.entrypoints.openai.api_server")
    text = " ".join(made.argv)
    assert "--model /weights --served-model-name d --uds /s.sock --tensor-parallel-size 2 --max-model-len 9" in text
    assert made.env["CUDA_VISIBLE_DEVICES"] == "GPU-a,GPU-b"
    assert made.env["HF_HUB_OFFLINE"] == made.env["A"] == "1"


def test_any_program_can_serve_when_it_is_told_where_to_listen() -> None:
    engine = engine_of(spec(type="command", command=["serve", "--at={port}", "{model}", "{name}@{version}"]), "/py")
    assert engine.needs_port()
    assert engine.command(launch()).argv == ("serve", "--at=1234", "/weights", "d@3")
    assert [p.path for p in engine.probes("d")] == ["/v1/completions"]


@pytest.mark.parametrize(
    ("engine", "message"),
    [
        ({"type": "vllm", "args": ["--port", "1"]}, "Stoker sets --port itself"),
        ({"type": "vllm", "args": ["--uds=/x"]}, "Stoker sets --uds=/x itself"),
        ({"type": "command", "command": ["serve"]}, "isn't told where to listen"),
        ({"type": "command", "command": ["serve", "{sockets}"]}, "{sockets} can't be filled in"),
    ],
)
def test_what_cannot_work_is_refused_before_anything_starts(engine: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidSpec) as refused:
        check_engine(spec(**engine))
    assert message in str(refused.value)


def test_an_engine_that_is_missing_is_a_sentence() -> None:
    assert (
        "there is no program no-such" in engine_of(spec(type="command", command=["no-such", "{socket}"]), "").problem()
    )
    assert "vLLM is not installed" in engine_of(spec(type="vllm"), sys.executable).problem()
    assert "no interpreter /no/python" in engine_of(spec(type="vllm"), "/no/python").problem()


def test_only_what_servers_are_started_with_makes_them_start_anew() -> None:
    base = spec(type="vllm")
    assert launch_digest(base) == launch_digest(base.model_copy(update={"replicas": 5}))
    restart = Restart(policy="always")
    assert launch_digest(base) == launch_digest(base.model_copy(update={"restart": restart, "stall_timeout": 5.0}))
    command = spec(type="command", command=["a", "{socket}"])
    other = spec(type="command", command=["a", "{socket}"], health_path="/ping")
    assert launch_digest(command) == launch_digest(other)
    assert launch_digest(base) != launch_digest(spec(type="vllm", args=["--x"]))
    assert launch_digest(base) != launch_digest(base.model_copy(update={"device_memory": 1 << 30}))
    assert launch_digest(base) != launch_digest(base.model_copy(update={"limits": Limits(memory=1 << 30)}))


def test_a_share_of_memory_is_told_to_vllm_rounded_down_unless_the_spec_tells_another() -> None:
    def argv(share: float | None, *args: str) -> str:
        engine = engine_of(spec(type="vllm", args=list(args)), "/py")
        return " ".join(engine.command(launch(devices=("GPU-a",), memory_share=share)).argv)

    assert "--gpu-memory-utilization 0.3333" in argv(1 / 3)
    assert "--gpu-memory-utilization 0.1999" in argv(0.19999)
    assert "utilization" not in argv(None)
    assert argv(0.5, "--gpu-memory-utilization", "0.7").count("utilization") == 1
    assert argv(0.5, "--gpu_memory_utilization=0.7").count("utilization") == 1


def test_vllm_drains_by_itself_for_a_moment_where_the_installed_one_can() -> None:
    def argv(*args: str, options: frozenset[str] = frozenset({SHUTDOWN_TIMEOUT})) -> str:
        return " ".join(engine_of(spec(type="vllm", args=list(args)), "/py").command(launch(options=options)).argv)

    assert "--shutdown-timeout 5" in argv()
    assert "--shutdown-timeout" not in argv(options=frozenset())
    assert argv("--shutdown-timeout", "60").count("--shutdown-timeout") == 1


def test_vllms_paths_for_sleep_are_opened_only_where_the_spec_has_sleep_mode() -> None:
    able = engine_of(spec(type="vllm", args=["--enable-sleep-mode"]), "/py")
    assert able.command(launch()).env["VLLM_SERVER_DEV_MODE"] == "1"
    assert able.sleep_paths is not None
    for other in (spec(type="vllm"), spec(type="command", command=["serve", "{socket}"])):
        engine = engine_of(other, "/py")
        assert "VLLM_SERVER_DEV_MODE" not in engine.command(launch()).env
        assert engine.sleep_paths is None


def fake_vllm(folder: Path, source: str) -> str:
    """An interpreter that has a vLLM with that source."""
    package = folder / "lib" / "vllm"
    (package / "engine").mkdir(parents=True)
    (package / "__init__.py").write_text("raise RuntimeError('it must not be imported: that takes seconds')\n")
    (package / "engine" / "arg_utils.py").write_text(source)
    python = folder / "python"
    code = f"import sys; sys.path.insert(0, {str(package.parent)!r})"
    python.write_text(f'#!/bin/sh\nshift 2\ncode="$1"; shift\nexec {sys.executable} -c "{code}\n$code" "$@"\n')
    python.chmod(0o755)
    return str(python)


@pytest.mark.parametrize(
    ("source", "options"),
    [
        ('parser.add_argument(\n    "--shutdown-timeout",\n)', {SHUTDOWN_TIMEOUT}),
        ("parser.add_argument('--shutdown-timeout')", {SHUTDOWN_TIMEOUT}),
        ('parser.add_argument("--other")  # unlike --shutdown-timeout', set()),
        ("", set()),
    ],
)
def test_what_the_installed_vllm_takes_is_seen_without_importing_it(
    tmp_path: Path, source: str, options: set[str]
) -> None:
    engine = engine_of(spec(type="vllm"), fake_vllm(tmp_path, source))
    assert engine.problem() == ""
    assert engine.options() == options


def test_an_interpreter_that_cannot_be_asked_has_no_options() -> None:
    assert engine_of(spec(type="vllm"), "/no/python").options() == frozenset()
    assert engine_of(spec(type="vllm"), sys.executable).options() == frozenset()


METRICS = """\
# HELP vllm:iteration_tokens_total Histogram of number of tokens per engine_step.
# TYPE vllm:iteration_tokens_total histogram
vllm:iteration_tokens_total_bucket{engine="0",le="1.0",model_name="a b"} 3.0
vllm:iteration_tokens_total_count{engine="0",model_name="a b"} 17.0
vllm:iteration_tokens_total_count{engine="1",model_name="a } b"} 4.0
vllm:iteration_tokens_total_sum{engine="0",model_name="a b"} 99.0
vllm:iteration_tokens_total_created{engine="0",model_name="a b"} 1.7e+09
"""


@pytest.mark.parametrize(
    ("metrics", "steps"),
    [
        (METRICS, 21.0),
        ("HTTP/1.0 200 OK\r\ncontent-type: text/plain\r\n\r\n" + METRICS, 21.0),
        ("vllm:iteration_tokens_total_count 5", 5.0),
        (METRICS.replace("17.0", "nonsense"), None),
        (METRICS.replace("iteration_tokens", "step_tokens"), None),
        ("", None),
    ],
)
def test_vllms_steps_are_read_from_its_metrics(metrics: str, steps: float | None) -> None:
    assert engine_of(spec(type="vllm"), "/py").steps(metrics) == steps
    assert engine_of(spec(type="command", command=["a", "{socket}"]), "/py").steps(metrics) is None


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        (
            ["INFO 11-25 02:34:42 [gpu_model_runner.py:5039] Loading model"],
            "Loading model",
        ),
        (
            ["(EngineCore pid=7) INFO 11-25 02:34:42 [core.py:133] Initializing a V1 LLM engine"],
            "Initializing a V1 LLM engine",
        ),
        (["(EngineCore_DP0 pid=7) (Worker_TP1 pid=8) WARNING 11-25 02:34:42 [a.py:1] Slow"], "Slow"),
        (
            ["Loading safetensors checkpoint shards:  50% Completed | 1/2 [00:00<00:00,  3.21it/s]"],
            "Loading safetensors checkpoint shards: 50%",
        ),
        (
            ["(Worker pid=3) Capturing CUDA graphs (mixed prefill-decode, PIECEWISE):  20%|##   | 13/67 [00:01<00:05]"],
            "Capturing CUDA graphs (mixed prefill-decode, PIECEWISE): 20%",
        ),
        (
            [
                "INFO 11-25 02:34:42 [a.py:1] Compiling",
                "/x.py:3: UserWarning: 5% slower",
                "  warnings.warn(",
            ],
            "Compiling",
        ),
        (["ModuleNotFoundError: No module named 'x'", ""], "ModuleNotFoundError: No module named 'x'"),
        ([], ""),
    ],
)
def test_vllms_progress_is_its_last_word_without_what_is_the_same_in_all_lines(lines: list[str], said: str) -> None:
    assert engine_of(spec(type="vllm"), "/py").progress(lines) == said


def test_any_programs_progress_is_its_last_line() -> None:
    engine = engine_of(spec(type="command", command=["a", "{socket}"]), "/py")
    assert engine.progress(["loading", " half way ", "", " "]) == "half way"
    assert engine.progress([]) == ""


def test_what_a_replica_may_take_goes_with_its_command() -> None:
    bounds = Bounds(memory_bytes=1 << 30, processes=50, cpu_weight=20, oom_score_adj=400)
    for engine in (spec(type="vllm"), spec(type="command", command=["a", "{socket}"])):
        assert engine_of(engine, "/py").command(launch(bounds=bounds)).bounds == bounds
