from __future__ import annotations

import json
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from stoker.types.host import Device
from stokerd.devices.placement import place

# NVML's own numbers, but for HANG: see fake_nvml.c.
HANG, DRIVER_NOT_LOADED, LOST, VERSION_MISMATCH, UNKNOWN = -1, 9, 15, 18, 999

PROGRAM = Path(__file__).with_name("ask_inventory.py")


class Answer:
    def __init__(self, data: dict[str, Any]) -> None:
        self.seconds: float = data["seconds"]
        self.message: str = data["message"]
        self.devices = [Device(**d) for d in data["devices"]]


class Program:
    """ask_inventory.py, running."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process

    def ask(self, what: str = "") -> Answer:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(what + "\n")
        self._process.stdin.flush()
        return Answer(json.loads(self._process.stdout.readline()))

    def until(self, condition: Callable[[Answer], Any], seconds: float = 10) -> Answer:
        deadline = time.monotonic() + seconds
        while True:
            answer = self.ask()
            if condition(answer):
                return answer
            assert time.monotonic() < deadline, vars(answer)
            time.sleep(0.005)


@contextmanager
def inventory(
    env: Mapping[str, str], *, interval: float = 0.02, retry: float = 0.05, hang: float = 5
) -> Iterator[Program]:
    argv = [sys.executable, "-W", "error", str(PROGRAM), str(interval), str(retry), str(hang)]
    with subprocess.Popen(argv, env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        program = Program(process)
        try:
            assert program.ask("start").seconds < 0.5
            yield program
            assert program.ask("close").seconds < 4
            process.stdin.close()
            assert process.wait(10) == 0
        finally:
            process.kill()


def test_every_gpu_is_listed_with_its_figures(fake_nvml, gpu):
    fake_nvml.play(gpu(), gpu(total_mib=40960, used_mib=40000, utilisation_percent=99, temperature_celsius=81))
    with inventory(fake_nvml.env) as program:
        answer = program.until(lambda a: len(a.devices) == 2)
    assert answer.message == ""
    first, second = answer.devices
    assert first == Device(
        uuid="GPU-00000000-0000-4000-8000-000000000000",
        index=0,
        name="Simulated GPU",
        memory_total=81920 * 2**20,
        memory_used=1024 * 2**20,
        utilisation=10,
        power=300.5,
        temperature=40,
    )
    assert (second.index, second.memory_used, second.utilisation, second.temperature) == (1, 40000 * 2**20, 99, 81)


def test_a_figure_that_a_gpu_does_not_know_is_left_out(fake_nvml, gpu):
    fake_nvml.play(
        gpu(power_milliwatts=-1), gpu(utilisation_percent=-1), gpu(temperature_celsius=-1), gpu(total_mib=-1)
    )
    with inventory(fake_nvml.env) as program:
        no_power, no_use, no_heat, no_memory = program.until(lambda a: len(a.devices) == 4).devices
    assert (no_power.power, no_power.utilisation, no_power.error) == (None, 10, None)
    assert (no_use.utilisation, no_use.power, no_use.error) == (None, 300.5, None)
    assert (no_heat.temperature, no_heat.power, no_heat.error) == (None, 300.5, None)
    assert (no_memory.memory_total, no_memory.memory_used, no_memory.error) == (0, None, None)


def test_a_gpu_that_falls_off_the_bus_says_since_when_and_hurts_no_other(fake_nvml, gpu):
    fake_nvml.play(gpu(), gpu())
    with inventory(fake_nvml.env) as program:
        program.until(lambda a: len(a.devices) == 2)
        fake_nvml.play(gpu(utilisation_percent=77), gpu(state=LOST))
        answer = program.until(lambda a: a.devices[1].error and a.devices[0].utilisation == 77)
        well, lost = answer.devices
        assert re.fullmatch(
            r"GPU 1 can't be sampled, since \d{4}-\d\d-\d\d \d\d:\d\d:\d\d UTC: it fell off the bus; .* needed\.",
            lost.error or "",
        )
        assert lost.uuid == "GPU-00000001-0000-4000-8000-000000000000"
        assert (lost.utilisation, lost.memory_used, lost.power, lost.temperature) == (None, None, None, None)
        assert place(answer.devices, {}, 1) == [well.uuid]
        assert place(answer.devices, {}, 2) is None

        fake_nvml.play(gpu(), gpu(utilisation_percent=33))
        assert program.until(lambda a: a.devices[1].error is None).devices[1].utilisation == 33


def test_a_gpu_lost_before_the_start_is_listed_as_unknown(fake_nvml, gpu):
    fake_nvml.play(gpu(state=LOST), gpu())
    with inventory(fake_nvml.env) as program:
        answer = program.until(lambda a: len(a.devices) == 2)
    lost, well = answer.devices
    assert (lost.index, lost.uuid) == (0, "unknown-0")
    assert "fell off the bus" in (lost.error or "")
    assert well.error is None


def test_a_call_that_hangs_is_told_and_the_other_gpus_go_on(fake_nvml, gpu):
    fake_nvml.play(gpu(), gpu())
    with inventory(fake_nvml.env, hang=0.2) as program:
        program.until(lambda a: len(a.devices) == 2)
        fake_nvml.play(gpu(state=HANG), gpu(utilisation_percent=55))
        hung = program.until(lambda a: a.devices[0].error)
        assert re.search(
            r"^GPU 0 can't be sampled, it has not answered .* since \d{4}-.* UTC\.$", hung.devices[0].error or ""
        )
        assert hung.devices[0].utilisation is None
        assert place(hung.devices, {}, 2) is None
        program.until(lambda a: a.devices[1].utilisation == 55)
        fake_nvml.play(gpu(state=HANG), gpu(utilisation_percent=56))
        program.until(lambda a: a.devices[1].utilisation == 56)
        fake_nvml.play(gpu(utilisation_percent=57), gpu())
        program.until(lambda a: a.devices[0].utilisation == 57)


def test_closing_does_not_wait_for_a_hung_gpu(fake_nvml, gpu):
    with inventory(fake_nvml.env, hang=0.1) as program:
        program.until(lambda a: a.devices)
        fake_nvml.play(gpu(state=HANG))
        program.until(lambda a: a.devices[0].error)
    assert "nvmlShutdown -1" not in fake_nvml.calls()  # it could crash under a call that is on


def test_a_driver_that_hangs_at_the_start_is_told_and_waited_for(fake_nvml, gpu):
    fake_nvml.play(gpu(), init=HANG)
    with inventory(fake_nvml.env, hang=0.1) as program:
        answer = program.until(lambda a: "has not answered since" in a.message)
        assert answer.devices == []
        fake_nvml.play(gpu())
        assert program.until(lambda a: a.devices).message == ""


def test_a_host_without_a_driver_says_so(tmp_path, fake_nvml):
    (tmp_path / "libnvidia-ml.so.1").touch()  # found before any real one, and no library
    with inventory({**fake_nvml.env, "LD_LIBRARY_PATH": str(tmp_path)}) as program:
        answer = program.until(lambda a: "looked for" not in a.message)
    assert answer.message == ("no NVIDIA driver found (libnvidia-ml.so.1 is missing); runs and replicas use the CPU.")


def test_a_driver_that_is_out_of_order_says_so_and_is_asked_again(fake_nvml, gpu):
    fake_nvml.play()
    with inventory(fake_nvml.env) as program:
        for init, message in (
            (0, "the NVIDIA driver sees no GPU"),
            (DRIVER_NOT_LOADED, "the NVIDIA driver is installed but not loaded"),
            (VERSION_MISMATCH, "upgraded without a reboot"),
            (UNKNOWN, "the NVIDIA driver can't be used (Unknown Error)"),
        ):
            fake_nvml.play(init=init)
            answer = program.until(lambda a, message=message: message in a.message)
            assert answer.message.endswith("runs and replicas use the CPU.")
            assert answer.devices == []
        fake_nvml.play(gpu())
        assert program.until(lambda a: a.devices).message == ""


def test_handles_are_asked_for_once_and_temperature_each_fifth_round(fake_nvml):
    with inventory(fake_nvml.env, interval=0.001) as program:
        program.until(lambda _: fake_nvml.calls().count("nvmlDeviceGetPowerUsage 0") >= 21)
    calls = fake_nvml.calls()
    assert calls.count("nvmlDeviceGetHandleByIndex_v2 0") == 1
    rounds = calls.count("nvmlDeviceGetPowerUsage 0")
    assert calls.count("nvmlDeviceGetTemperature 0") == -(-rounds // 5)
    assert calls[-1] == "nvmlShutdown -1"
