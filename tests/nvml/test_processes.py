"""Who else is on a GPU, and whether its memory is back."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator

import pytest

from stoker.types.host import DeviceProcess
from stokerd.devices.placement import Request, place
from tests.nvml.asking import inventory
from tests.nvml.fleet import HANG, LOST, Fleet, Gpu, Process

NOT_SUPPORTED, NO_PERMISSION, UNKNOWN = 3, 4, 999
FIRST, SECOND = Fleet.uuid(0), Fleet.uuid(1)
COMPUTE = "nvmlDeviceGetComputeRunningProcesses_v3"


@pytest.fixture
def other() -> Iterator[subprocess.Popen[bytes]]:
    """A process that lives, and waits for its end."""
    with subprocess.Popen([sys.executable, "-c", "import sys; sys.stdin.read()"], stdin=subprocess.PIPE) as process:
        yield process
        process.kill()


@pytest.fixture
def dead() -> int:
    """The number of a process that has ended."""
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def test_a_foreign_process_is_seen_told_and_avoided_until_it_leaves(
    fake_nvml: Fleet, other: subprocess.Popen[bytes]
) -> None:
    fake_nvml.play(Gpu(), Gpu())
    with inventory(fake_nvml.env()) as program:
        program.ask(f"ours {os.getpid()}")
        program.until(lambda a: len(a.devices) == 2)
        fake_nvml.set(0, processes=(Process(other.pid, 4096), Process(os.getpid(), 512)))
        answer = program.until(lambda a: a.devices[0].foreign and a.events)
        name = answer.devices[0].foreign[0].name
        assert answer.devices[0].foreign == [DeviceProcess(pid=other.pid, name=name, memory=4096 << 20)]
        assert name.startswith("python")
        assert place(answer.devices, {}, Request(1)) == [SECOND]
        assert place(answer.devices, {}, Request(2)) is None
        (event,) = answer.events
        assert (event.reason, event.uuid, event.index) == ("DeviceForeign", FIRST, 0)
        assert event.message == f"GPU 0 is used by process {other.pid} ({name}), which is not of Stoker."
        assert event.data == {"pid": other.pid, "process": name}
        fake_nvml.set(0, processes=(Process(os.getpid(), 512),))
        answer = program.until(lambda a: len(a.events) == 2)
        assert answer.devices[0].foreign == []
        assert answer.events[1].reason == "DeviceForeignGone"
        assert answer.events[1].message == f"process {other.pid} uses GPU 0 no longer."


def test_a_foreign_process_that_dies_while_its_memory_stays_is_shown_without_a_name(
    fake_nvml: Fleet, other: subprocess.Popen[bytes]
) -> None:
    fake_nvml.set(0, processes=(Process(other.pid, 4096),))
    with inventory(fake_nvml.env()) as program:
        program.until(lambda a: a.events and a.devices[0].foreign[0].name)
        other.kill()
        # It is not waited for yet: it is nobody's process any more, though its number is still there.
        os.waitid(os.P_PID, other.pid, os.WEXITED | os.WNOWAIT)
        answer = program.until(lambda a: not a.devices[0].foreign[0].name)
        assert answer.devices[0].foreign == [DeviceProcess(pid=other.pid, name="", memory=4096 << 20)]
        assert place(answer.devices, {}, Request(1)) is None
        assert answer.reasons == [(0, "DeviceForeign")]
        fake_nvml.set(0, processes=())
        assert program.until(lambda a: len(a.events) == 2).reasons[1] == (0, "DeviceForeignGone")


def test_memory_is_back_when_the_driver_says_so_after_that_moment(fake_nvml: Fleet, dead: int) -> None:
    fake_nvml.play(Gpu(processes=(Process(dead),)), Gpu(processes=(Process(os.getpid()),)))
    with inventory(fake_nvml.env()) as program:
        program.ask(f"ours {os.getpid()}")
        program.until(lambda a: len(a.devices) == 2)
        program.ask("now")
        # An older reading doesn't count; a newer one comes at once, by no long wait for the next round.
        asked = len(fake_nvml.calls())
        assert program.ask(f"back {FIRST} {SECOND}").back
        held = program.until(lambda a: "being asked" not in a.back, asking=f"back {FIRST} {SECOND}")
        assert held.back == f"GPU 0 is used by process {dead}, which has ended, but its memory is not back."
        assert f"{COMPUTE} 1" in fake_nvml.calls()[asked:]
        assert program.until(lambda a: not a.back, asking=f"back {SECOND}").back == ""
        assert held.events == []  # what has ended is the rest of something, not a newcomer
        fake_nvml.set(0, processes=())
        program.until(lambda a: not a.back, asking=f"back {FIRST} {SECOND}")
        assert program.ask("back").back == ""


def test_memory_that_is_waited_for_is_asked_after_before_its_turn(fake_nvml: Fleet) -> None:
    """With rounds an hour apart, only the question itself can bring the answer."""
    with inventory(fake_nvml.env(), interval=3600) as program:
        program.until(lambda a: a.devices)
        program.ask("now")
        assert program.ask(f"back {FIRST}").back == "GPU 0 is being asked."
        program.until(lambda a: not a.back, asking=f"back {FIRST}")
    assert fake_nvml.calls().count(f"{COMPUTE} 0") == 2


def test_nobody_waits_for_the_memory_of_a_gpu_that_can_not_tell(fake_nvml: Fleet, dead: int) -> None:
    fake_nvml.play(
        Gpu(processes=(Process(dead),)),
        Gpu(processes=(Process(dead),)),
        Gpu(processes=(Process(dead),), fails=((COMPUTE, NOT_SUPPORTED),)),
        Gpu(processes=(Process(dead),), fails=((COMPUTE, NO_PERMISSION),)),
        Gpu(processes=(Process(dead),), fails=((COMPUTE, UNKNOWN),)),
    )
    with inventory(fake_nvml.env(), hang=0.3, close=0.2) as program:
        program.until(lambda a: len(a.devices) == 5)
        fake_nvml.set(0, state=LOST)
        fake_nvml.set(1, state=HANG)
        program.until(lambda a: a.devices[0].error and a.devices[1].error)
        program.ask("now")
        everyone = " ".join(Fleet.uuid(i) for i in range(5))
        answer = program.until(lambda a: not a.back, asking=f"back {everyone} GPU-of-another-host")
        assert [d.error is None for d in answer.devices] == [False, False, True, True, True]
        assert [d.foreign for d in answer.devices] == [[]] * 5


def test_memory_is_waited_for_while_the_gpus_are_still_looked_for(fake_nvml: Fleet) -> None:
    fake_nvml.play(Gpu(), init=HANG)
    with inventory(fake_nvml.env()) as program:
        assert program.ask(f"back {FIRST}").back == "the GPUs are being looked for."
        fake_nvml.play(Gpu())
        program.until(lambda a: not a.back, asking=f"back {FIRST}")


def test_a_display_server_is_no_rival_but_a_large_drawing_program_is(
    fake_nvml: Fleet, other: subprocess.Popen[bytes]
) -> None:
    fake_nvml.play(
        Gpu(processes=(Process(other.pid, 8, "graphics"),)),
        Gpu(processes=(Process(other.pid, 4096, "graphics"),)),
        Gpu(processes=(Process(other.pid, -1, "graphics"),)),
        Gpu(processes=(Process(other.pid, 8, "graphics"), Process(other.pid, 8))),
    )
    with inventory(fake_nvml.env()) as program:
        answer = program.until(lambda a: len(a.devices) == 4)
    assert [[p.memory for p in d.foreign] for d in answer.devices] == [[], [4096 << 20], [None], [8 << 20]]


def test_each_gpu_has_its_mode_and_the_peers_that_nvlink_joins_it_to(fake_nvml: Fleet) -> None:
    fake_nvml.play(Gpu(links=(1, 1)), Gpu(links=(0, 0)), Gpu(links=(3,)), Gpu())
    with inventory(fake_nvml.env()) as program:
        program.ask("mode 2 exclusive")
        answer = program.until(lambda a: len(a.devices) == 4)
    assert [d.mode for d in answer.devices] == ["shared", "shared", "exclusive", "shared"]
    uuids = [Fleet.uuid(i) for i in range(4)]
    assert [d.links for d in answer.devices] == [[uuids[1]], [uuids[0]], [uuids[3]], [uuids[2]]]
    assert place(answer.devices, {}, Request(2)) == uuids[:2]


def test_gpus_on_a_switch_are_all_joined(fake_nvml: Fleet) -> None:
    fake_nvml.play(*[Gpu(links=(-1, -1))] * 3, Gpu())
    with inventory(fake_nvml.env()) as program:
        answer = program.until(lambda a: len(a.devices) == 4)
    assert [len(d.links) for d in answer.devices] == [2, 2, 2, 0]


def test_processes_are_asked_for_each_fifth_round_and_ecc_errors_each_tenth(fake_nvml: Fleet) -> None:
    with inventory(fake_nvml.env(), interval=0.001) as program:
        program.until(lambda _: fake_nvml.calls().count("nvmlDeviceGetPowerUsage 0") >= 21)
    calls = fake_nvml.calls()
    rounds = calls.count("nvmlDeviceGetPowerUsage 0")
    assert calls.count(f"{COMPUTE} 0") == -(-rounds // 5)
    assert calls.count("nvmlDeviceGetTotalEccErrors 0") == -(-rounds // 10)
    assert calls.count("nvmlDeviceGetNvLinkState 0") == 36  # once
