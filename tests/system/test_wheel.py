"""The wheel, as a user gets it: built from the checkout, installed in an empty environment, run outside of it."""

import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
CORE = ROOT / "configs" / "locks" / "core.txt"

pytestmark = pytest.mark.timeout(600)


def run(*command: str | Path, cwd: Path) -> str:
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, env={"PATH": "/usr/bin:/bin"}, check=False)
    assert done.returncode == 0, f"{command} ended with {done.returncode}:\n{done.stdout}{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"  # a copy: setuptools leaves build/ behind, and packs again what it finds there
    for part in ("shared", "daemon", "tui"):
        shutil.copytree(ROOT / part, source / part, ignore=shutil.ignore_patterns("__pycache__"))
    for part in ("pyproject.toml", "README.md"):
        shutil.copy(ROOT / part, source)
    build: list[str | Path] = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", folder, source]
    done = subprocess.run(build, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    (found,) = folder.glob("stoker-*.whl")
    return found


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """An environment with the wheel and what core.txt lists, and nothing else."""
    folder = tmp_path_factory.mktemp("installed")
    subprocess.run([sys.executable, "-m", "venv", folder / "env"], check=True)
    pip: list[str | Path] = [folder / "env" / "bin" / "python", "-m", "pip", "install", "--quiet", "--no-deps"]
    done = subprocess.run([*pip, "-r", CORE, wheel], cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    yield folder / "env" / "bin"


def test_the_wheel_holds_all_three_packages_and_their_data(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    for source in ("shared/stoker", "daemon/stokerd", "tui/stoker_tui"):
        root = ROOT / source
        for file in [
            *root.rglob("*.py"),
            *root.rglob("*.tcss"),
            *root.rglob("*.mako"),
            *root.rglob("*.in"),
            *root.rglob("py.typed"),
        ]:
            name = file.relative_to(root.parent).as_posix()
            assert name in names, f"the wheel lacks {name}"
    assert not [name for name in names if name.startswith("tests/")]


def test_both_commands_answer_outside_the_checkout(installed: Path, tmp_path: Path) -> None:
    for command in ("stoker", "stokerd"):
        assert command in run(installed / command, "--help", cwd=tmp_path)


def test_what_core_lists_is_all_that_the_package_needs(installed: Path, tmp_path: Path) -> None:
    assert "No broken requirements" in run(installed / "python", "-m", "pip", "check", cwd=tmp_path)


def test_every_module_imports_without_the_checkout(installed: Path, tmp_path: Path) -> None:
    script = """
import importlib, pkgutil
for root in ("stoker", "stokerd", "stoker_tui"):
    package = importlib.import_module(root)
    assert "site-packages" in package.__file__, package.__file__
    for module in pkgutil.walk_packages(package.__path__, root + "."):
        if not module.name.endswith("__main__") and ".migrations." not in module.name:
            importlib.import_module(module.name)
print("all there")
"""
    assert "all there" in run(installed / "python", "-W", "error::ImportWarning", "-c", script, cwd=tmp_path)
