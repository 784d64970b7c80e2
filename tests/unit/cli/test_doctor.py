"""What `stoker doctor` finds, on this host and on hosts that are laid out in a folder."""

from __future__ import annotations

import contextlib
import os
import socket
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from stoker.cli import doctor
from stoker.cli.checks import CHECKS, Finding, Look, capacity, gpu, linux, pythons, service, storage
from stoker.cli.doctor import look_at
from stoker.paths import find_home
from stokerd.processes.groups import Groups, Hierarchy
from tests.nvml.fleet import LOST, Fleet, Gpu, build
from tests.unit.cli.conftest import Stoker
from tests.unit.cli.stand_in import StandIn

PCI = "sys/bus/pci/devices/0000:01:00.0"
MODULE = "NVRM version: NVIDIA UNIX x86_64 Kernel Module  580.65.06  Sun Jul 27 07:22:00 UTC 2025"


class Machine:
    """A host in a folder."""

    def __init__(self, folder: Path) -> None:
        self.root = folder / "root"
        self.look = Look(find_home(folder / "home"), root=self.root)

    def lay(self, path: str, text: str = "") -> None:
        (self.root / path).parent.mkdir(parents=True, exist_ok=True)
        (self.root / path).write_text(text)

    def with_gpu(self, *nodes: str) -> Look:
        self.lay(f"{PCI}/vendor", "0x10de\n")
        self.lay(f"{PCI}/class", "0x030200\n")
        if nodes:
            self.lay("proc/driver/nvidia/version", MODULE)
        for node in nodes:
            self.lay(f"dev/{node}")
        return self.look


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


def only(found: object) -> Finding:
    (finding,) = list(found)  # type: ignore[call-overload]
    assert isinstance(finding, Finding)
    assert finding.level == "ok" or finding.hint, "says what to do"
    return finding


def test_a_host_is_looked_at_from_all_sides(stoker: Stoker, daemon: StandIn) -> None:
    daemon.host = daemon.host.model_copy(update={"limits": "cgroup v2 (memory, cpu, pids)"})
    seen = stoker("doctor", "--json")
    levels = {f["name"]: f["level"] for f in seen.json}
    assert seen.code == (6 if "fail" in levels.values() else 0)
    assert {"daemon", "gateway", "systemd", "home", "settings", "driver", "nvml", "vllm", "training"} <= set(levels)
    assert {"kernel", "cgroups", "limits", "memory", "/dev/shm", "inotify", "clock"} <= set(levels)
    assert [levels[name] for name in ("daemon", "gateway", "cgroups", "settings", "kernel")] == ["ok"] * 5
    assert all(f["hint"] or f["level"] == "ok" for f in seen.json)
    text = stoker("doctor").out
    assert text.count("\n") >= len(seen.json)
    assert text.splitlines()[-1].endswith(" to mend")


def test_a_failure_gives_an_exit_code_and_a_check_that_stumbles_keeps_no_other_back(
    stoker: Stoker, daemon: StandIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stumbles(look: Look) -> object:
        raise ValueError("odd")

    def fails(look: Look) -> object:
        yield Finding("x", "fail", "broken.", "Mend it.")

    monkeypatch.setattr(doctor, "CHECKS", (stumbles, fails))
    seen = stoker("doctor")
    assert seen.code == 6
    assert "warn stumbles   this could not be looked at: ValueError: odd." in seen.out
    assert "fail x          broken.\n                Mend it.\n" in seen.out


def test_a_daemon_that_is_away_or_of_another_version_is_told(stoker: Stoker, daemon: StandIn, tmp_path: Path) -> None:
    away = only(service.daemon(look_at(find_home(tmp_path))))
    assert (away.level, "does not answer" in away.message) == ("warn", True)
    daemon.host = daemon.host.model_copy(update={"version": "9.0.0", "gateway_phase": "backing-off"})
    look = look_at(find_home(daemon.path.parent))
    assert "version 9.0.0" in only(service.daemon(look)).message
    assert "backing-off" in only(service.gateway(look)).message
    partly = {"gateway_phase": "ready", "gateway_message": "1 of 2 workers serve"}
    look = replace(look, host=daemon.host.model_copy(update=partly))
    assert [(f.level, f.message[-20:]) for f in service.gateway(look)] == [("warn", "1 of 2 workers serve")]


def test_a_taken_port_is_found(machine: Machine) -> None:
    with socket.create_server(("127.0.0.1", 0)) as squatter:
        port = squatter.getsockname()[1]
        look = replace(machine.look, settings={"gateway": {"port": port}})
        assert f"127.0.0.1:{port} can't be listened on" in only(service.gateway(look)).message
    assert only(service.gateway(look)).level == "ok"


def test_without_systemd_it_says_what_to_run(machine: Machine) -> None:
    assert "was not booted with systemd" in only(service.systemd(machine.look)).message


def test_a_missing_driver_is_told_from_a_missing_gpu(machine: Machine) -> None:
    assert only(gpu.driver(machine.look)).level == "ok"
    machine.with_gpu()
    assert "driver is not loaded" in only(gpu.driver(machine.look)).message
    machine.with_gpu("nvidiactl")
    assert "/dev/nvidia-uvm is missing" in only(gpu.driver(machine.look)).message
    machine.with_gpu("nvidiactl", "nvidia-uvm")
    assert only(gpu.driver(machine.look)) == Finding("driver", "ok", "NVIDIA 580.65.06, with its device files.")


def test_nvml_is_asked_in_a_process_of_its_own(
    machine: Machine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    look = machine.with_gpu("nvidiactl", "nvidia-uvm")
    fleet = Fleet(tmp_path, 2, library=build(tmp_path))
    for name, value in fleet.env().items():
        monkeypatch.setenv(name, value)
    assert only(gpu.nvml(look)) == Finding("nvml", "ok", "2 GPUs: all answer.")
    fleet.play(Gpu(), Gpu(state=LOST))
    assert "of 2 GPUs, some don't answer: GPU 1: " in only(gpu.nvml(look)).message
    fleet.play()
    assert "shows no GPU" in only(gpu.nvml(look)).message
    monkeypatch.setattr(gpu, "_NVML_SECONDS", 2.0)
    fleet.play(Gpu())
    fleet.hang(0, 30)
    assert "did not answer for 2 s" in only(gpu.nvml(look)).message


def test_an_interpreter_that_is_none_or_lacks_vllm_is_named(machine: Machine) -> None:
    for section, check in (("serving", pythons.serving_python), ("training", pythons.training_python)):
        look = replace(machine.look, settings={section: {"python": "/no/python"}})
        assert only(check(look)) == Finding(
            "vllm" if section == "serving" else "training",
            "fail",
            "there is no interpreter /no/python.",
            only(check(look)).hint,
        )
        odd = replace(machine.look, settings={section: {"python": "/bin/true"}})
        assert "does not work as a Python" in only(check(odd)).message
    assert "has no vllm" in only(pythons.serving_python(machine.look)).message


@pytest.mark.parametrize(
    ("modules", "level", "words"),
    [
        ({"vllm": "", "torch": "raise OSError('libnuma')"}, "fail", "torch does not load: OSError: libnuma"),
        ({"vllm": "", "torch": "CUDA = '13.0'"}, "fail", "built for CUDA 13.0 and sees no GPU"),
        ({"vllm": "", "torch": "CUDA = None"}, "fail", "built for the CPU and sees no GPU"),
    ],
)
def test_a_torch_that_sees_no_gpu_is_a_failure_where_there_is_one(
    machine: Machine, monkeypatch: pytest.MonkeyPatch, modules: dict[str, str], level: str, words: str
) -> None:
    tail = "\n__version__ = '2.13.0'\nclass cuda:\n    is_available = lambda: False\nclass version:\n    cuda = CUDA\n"
    for name, text in modules.items():
        machine.lay(f"lib/{name}.py", text + tail if name == "torch" else text)
    monkeypatch.setenv("PYTHONPATH", str(machine.root / "lib"))
    found = only(pythons.serving_python(machine.with_gpu("nvidiactl")))
    assert (found.level, words in found.message) == (level, True), found


def test_the_disk_of_the_home_is_judged(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    line = "36 35 98:0 / {place} rw,noatime - {kind} /dev/x rw\n"
    top = line.format(place="/", kind="ext4")
    for kind, level in (("nfs4", "fail"), ("overlay", "warn"), ("xfs", "ok")):
        machine.lay("proc/self/mountinfo", top + line.format(place=machine.look.home.root.parent, kind=kind))
        found = only(storage.home(machine.look))
        if found.level != "ok" or level != "ok":  # the tests' own disk may be nearly full
            assert (found.level, kind in found.message) == (level, True), found
    long = Look(find_home(Path("/tmp") / ("x" * 100)))
    assert "too long a path for sockets" in only(storage.home(long)).message


def test_settings_that_cannot_be_read_are_told(tmp_path: Path) -> None:
    (tmp_path / "stoker.yaml").write_text("gateway: [\n")
    assert "stoker.yaml:" in only(storage.settings(look_at(find_home(tmp_path)))).message
    (tmp_path / "stoker.yaml").write_text("gateway: {port: 9}\n")
    look = look_at(find_home(tmp_path))
    assert (look.setting("gateway", "port"), only(storage.settings(look)).level) == (9, "ok")


def test_what_a_killed_daemon_left_is_told(tmp_path: Path) -> None:
    look = Look(find_home(tmp_path))
    assert list(storage.leftovers(look)) == []
    with socket.socket(socket.AF_UNIX) as dead, contextlib.chdir(tmp_path):
        dead.bind(look.home.socket.name)  # the whole path may be too long
    assert only(storage.leftovers(look)).level == "ok"
    folder = look.home.processes / "replica-x"
    folder.mkdir(parents=True)
    ticks = int(Path("/proc/self/stat").read_bytes().rpartition(b")")[2].split()[19])
    (folder / "child.json").write_text(f'{{"shim": {{"pid": {os.getpid()}, "start_ticks": {ticks}}}}}')
    assert "1 process of an earlier daemon" in only(storage.leftovers(look)).message


def test_low_limits_are_named_with_what_raises_them(machine: Machine) -> None:
    head = "Limit                     Soft Limit           Hard Limit           Units     \n"
    rows = ("Max open files            1024                 524288               files     \n",)
    machine.lay(f"proc/{os.getpid()}/limits", head + rows[0])
    found = only(capacity.limits(machine.look))
    assert "this shell's limits are low: 1024 open files." in found.message
    assert "LimitNOFILE" in found.hint


def test_memory_and_kernel_settings_that_break_gpu_programs_are_found(machine: Machine) -> None:
    machine.lay("proc/meminfo", "MemTotal:       65536000 kB\nSwapTotal:              0 kB\n")
    assert only(capacity.memory(machine.look)).message == "62.5 GiB, and no swap."
    machine.lay("proc/sys/vm/overcommit_memory", "2\n")
    assert "overcommit" in only(capacity.memory(machine.look)).message
    machine.lay("proc/sys/fs/inotify/max_user_instances", "16\n")
    assert "max_user_instances is 16" in only(linux.inotify(machine.look)).message


def test_a_clock_that_was_set_back_is_found(machine: Machine) -> None:
    home = machine.look.home
    home.root.mkdir()
    home.state_db.touch()
    ahead = time.time() + 7200
    os.utime(home.state_db, (ahead, ahead))
    assert "set back" in only(linux.clock(machine.look)).message


def test_cgroups_are_told_as_the_daemon_sees_them(machine: Machine, daemon: StandIn) -> None:
    assert "no cgroups" in only(linux.cgroups(machine.look)).message
    machine.lay("sys/fs/cgroup/cgroup.controllers", "memory")
    assert "cgroup v2" in only(linux.cgroups(machine.look)).message
    alone = frozenset({"memory"})
    for hierarchies, level in (
        ((Hierarchy("/", "/b", 2, alone),), "ok"),
        ((Hierarchy("/", "/b", 2, has_kill=True), Hierarchy("/", "/b", 1, alone)), "ok"),
        ((Hierarchy("/", "/b", 2, has_kill=True),), "warn"),  # what kills a whole tree bounds none
        ((Hierarchy("/", "/b", 2, frozenset({"cpu", "pids"})),), "warn"),
        ((), "warn"),
    ):
        limits = Groups("n", hierarchies).message
        look = replace(machine.look, host=daemon.host.model_copy(update={"limits": limits}))
        assert only(linux.cgroups(look)).level == level, limits


def test_every_check_has_a_name_and_torch_is_never_loaded_here() -> None:
    assert len({check.__name__ for check in CHECKS}) == len(CHECKS)
    assert "torch" not in sys.modules
