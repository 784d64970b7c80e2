from __future__ import annotations

import re
from functools import partial
from pathlib import Path

from stoker.types.host import Device
from stokerd.devices.placement import Request, place
from tests.nvml.asking import Answer, inventory
from tests.nvml.fleet import HANG, LOST, Fleet, Gpu

# NVML's own numbers.
DRIVER_NOT_LOADED, VERSION_MISMATCH, UNKNOWN = 9, 18, 999


def test_every_gpu_is_listed_with_its_figures(fake_nvml: Fleet) -> None:
    fake_nvml.play(Gpu(), Gpu(total_mib=40960, used_mib=40000, utilisation_percent=99, temperature_celsius=81))
    with inventory(fake_nvml.env()) as program:
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


def test_a_figure_that_a_gpu_does_not_know_is_left_out(fake_nvml: Fleet) -> None:
    fake_nvml.play(
        Gpu(power_milliwatts=-1), Gpu(utilisation_percent=-1), Gpu(temperature_celsius=-1), Gpu(total_mib=-1)
    )
    with inventory(fake_nvml.env()) as program:
        no_power, no_use, no_heat, no_memory = program.until(lambda a: len(a.devices) == 4).devices
    assert (no_power.power, no_power.utilisation, no_power.error) == (None, 10, None)
    assert (no_use.utilisation, no_use.power, no_use.error) == (None, 300.5, None)
    assert (no_heat.temperature, no_heat.power, no_heat.error) == (None, 300.5, None)
    assert (no_memory.memory_total, no_memory.memory_used, no_memory.error) == (0, None, None)


def test_a_gpu_that_falls_off_the_bus_says_since_when_and_hurts_no_other(fake_nvml: Fleet) -> None:
    fake_nvml.play(Gpu(), Gpu())
    with inventory(fake_nvml.env()) as program:
        program.until(lambda a: len(a.devices) == 2)
        fake_nvml.play(Gpu(utilisation_percent=77), Gpu(state=LOST))
        answer = program.until(lambda a: a.devices[1].error and a.devices[0].utilisation == 77)
        well, lost = answer.devices
        assert re.fullmatch(
            r"GPU 1 can't be sampled, since \d{4}-\d\d-\d\d \d\d:\d\d:\d\d UTC: it fell off the bus; .* needed\.",
            lost.error or "",
        )
        assert lost.uuid == "GPU-00000001-0000-4000-8000-000000000000"
        assert (lost.utilisation, lost.memory_used, lost.power, lost.temperature) == (None, None, None, None)
        assert place(answer.devices, {}, Request(1)) == [well.uuid]
        assert place(answer.devices, {}, Request(2)) is None

        fake_nvml.play(Gpu(), Gpu(utilisation_percent=33))
        assert program.until(lambda a: a.devices[1].error is None).devices[1].utilisation == 33


def test_a_gpu_lost_before_the_start_is_listed_as_unknown(fake_nvml: Fleet) -> None:
    fake_nvml.play(Gpu(state=LOST), Gpu())
    with inventory(fake_nvml.env()) as program:
        answer = program.until(lambda a: len(a.devices) == 2)
    lost, well = answer.devices
    assert (lost.index, lost.uuid) == (0, "unknown-0")
    assert "fell off the bus" in (lost.error or "")
    assert well.error is None


def test_a_call_that_hangs_is_told_and_the_other_gpus_go_on(fake_nvml: Fleet) -> None:
    fake_nvml.play(Gpu(), Gpu())
    with inventory(fake_nvml.env(), hang=0.2) as program:
        program.until(lambda a: len(a.devices) == 2)
        fake_nvml.play(Gpu(state=HANG), Gpu(utilisation_percent=55))
        hung = program.until(lambda a: a.devices[0].error)
        assert re.search(
            r"^GPU 0 can't be sampled, it has not answered .* since \d{4}-.* UTC\.$", hung.devices[0].error or ""
        )
        assert hung.devices[0].utilisation is None
        assert place(hung.devices, {}, Request(2)) is None
        program.until(lambda a: a.devices[1].utilisation == 55)
        fake_nvml.play(Gpu(state=HANG), Gpu(utilisation_percent=56))
        program.until(lambda a: a.devices[1].utilisation == 56)
        fake_nvml.play(Gpu(utilisation_percent=57), Gpu())
        program.until(lambda a: a.devices[0].utilisation == 57)


def test_closing_does_not_wait_for_a_hung_gpu(fake_nvml: Fleet) -> None:
    with inventory(fake_nvml.env(), hang=0.1, close=0.2) as program:
        program.until(lambda a: a.devices)
        fake_nvml.play(Gpu(state=HANG))
        program.until(lambda a: a.devices[0].error)
    assert "nvmlShutdown -1" not in fake_nvml.calls()  # it could crash under a call that is on


def test_a_driver_that_hangs_at_the_start_is_told_and_waited_for(fake_nvml: Fleet) -> None:
    fake_nvml.play(Gpu(), init=HANG)
    with inventory(fake_nvml.env(), hang=0.1) as program:
        answer = program.until(lambda a: "has not answered since" in a.message)
        assert answer.devices == []
        fake_nvml.play(Gpu())
        assert program.until(lambda a: a.devices).message == ""


def test_a_host_without_a_driver_says_so(tmp_path: Path, fake_nvml: Fleet) -> None:
    (tmp_path / "libnvidia-ml.so.1").touch()  # found before any real one, and no library
    with inventory({**fake_nvml.env(), "LD_LIBRARY_PATH": str(tmp_path)}) as program:
        answer = program.until(lambda a: "looked for" not in a.message)
    assert answer.message == ("no NVIDIA driver found (libnvidia-ml.so.1 is missing); runs and replicas use the CPU.")


def test_a_driver_that_is_out_of_order_says_so_and_is_asked_again(fake_nvml: Fleet) -> None:
    def says(message: str, answer: Answer) -> bool:
        return message in answer.message

    fake_nvml.play()
    with inventory(fake_nvml.env()) as program:
        for init, message in (
            (0, "the NVIDIA driver sees no GPU"),
            (DRIVER_NOT_LOADED, "the NVIDIA driver is installed but not loaded"),
            (VERSION_MISMATCH, "upgraded without a reboot"),
            (UNKNOWN, "the NVIDIA driver can't be used (Unknown Error)"),
        ):
            fake_nvml.play(init=init)
            answer = program.until(partial(says, message))
            assert answer.message.endswith("runs and replicas use the CPU.")
            assert answer.devices == []
        fake_nvml.play(Gpu())
        assert program.until(lambda a: a.devices).message == ""


def test_handles_are_asked_for_once_and_temperature_each_fifth_round(fake_nvml: Fleet) -> None:
    with inventory(fake_nvml.env(), interval=0.001) as program:
        program.until(lambda _: fake_nvml.calls().count("nvmlDeviceGetPowerUsage 0") >= 21)
    calls = fake_nvml.calls()
    assert calls.count("nvmlDeviceGetHandleByIndex_v2 0") == 1
    rounds = calls.count("nvmlDeviceGetPowerUsage 0")
    assert calls.count("nvmlDeviceGetTemperature 0") == -(-rounds // 5)
    assert calls[-1] == "nvmlShutdown -1"
