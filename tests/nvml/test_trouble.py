"""GPUs that fail in each of the ways that the driver knows, and what is told of it."""

from __future__ import annotations

from functools import partial

from stokerd.devices.placement import Request, place
from tests.nvml.asking import Answer, inventory
from tests.nvml.fleet import HANG, LOST, Fleet, Gpu

NOT_SUPPORTED = 3


def test_an_xid_is_told_at_once_of_the_right_gpu_and_shown(fake_nvml: Fleet) -> None:
    fake_nvml.play(Gpu(), Gpu())
    fake_nvml.xid(1, 13)  # from before the daemon: the driver doesn't tell it again
    with inventory(fake_nvml.env()) as program:
        program.until(lambda a: len(a.devices) == 2 and {"registered 0", "registered 1"} <= set(fake_nvml.calls()))
        fake_nvml.xid(1, 79)
        answer = program.until(lambda a: a.events and a.devices[1].xid)
        (event,) = answer.events
        assert (event.reason, event.uuid, event.index) == ("DeviceXid", Fleet.uuid(1), 1)
        assert event.message == "GPU 1 had the critical error XID 79, which is mostly the GPU's."
        assert event.data == {"xid": 79, "untold": 0}
        assert [d.xid for d in answer.devices] == [None, 79]
        assert place(answer.devices, {}, Request(2)) is not None  # by itself it says not that the GPU is unfit
        fake_nvml.xid(1, 79)
        fake_nvml.xid(0, 31)
        answer = program.until(lambda a: a.devices[0].xid)
        answer = program.until(lambda a: len(a.events) == 2)
        assert answer.events[1].message.endswith("XID 31, which is mostly the running program's fault.")


def test_a_gpu_that_tells_no_xids_is_sampled_all_the_same(fake_nvml: Fleet) -> None:
    fake_nvml.play(
        Gpu(fails=(("nvmlDeviceGetSupportedEventTypes", NOT_SUPPORTED),)),
        Gpu(fails=(("nvmlDeviceRegisterEvents", NOT_SUPPORTED),)),
        Gpu(fails=(("nvmlDeviceRegisterEvents", 999),)),
    )
    with inventory(fake_nvml.env()) as program:
        program.until(lambda a: fake_nvml.calls().count("nvmlDeviceRegisterEvents 2") > 1)  # it is tried again
        answer = program.ask()
        assert [d.error for d in answer.devices] == [None, None, None]
    calls = fake_nvml.calls()
    assert calls.count("nvmlDeviceRegisterEvents 1") == 1
    assert calls.count("nvmlEventSetCreate -1") == calls.count("nvmlEventSetFree -1")


def test_uncorrected_errors_are_shown_and_each_rise_is_told(fake_nvml: Fleet) -> None:
    fake_nvml.play(Gpu(ecc=3), Gpu())
    with inventory(fake_nvml.env()) as program:
        answer = program.until(lambda a: len(a.devices) == 2)
        assert [d.ecc_errors for d in answer.devices] == [3, None]
        fake_nvml.set(0, ecc=5)
        (event,) = program.until(lambda a: a.events).events
        assert (event.index, event.reason, event.data) == (0, "DeviceEcc", {"errors": 2, "total": 5})
        fake_nvml.set(0, ecc=0)  # the driver was loaded anew
        program.until(lambda a: a.devices[0].ecc_errors == 0)
        fake_nvml.set(0, ecc=1)
        assert program.until(lambda a: len(a.events) == 2).events[1].data == {"errors": 1, "total": 1}


def test_a_gpu_that_is_lost_is_told_once_and_again_when_it_is_back(fake_nvml: Fleet) -> None:
    fake_nvml.play(Gpu(), Gpu())
    with inventory(fake_nvml.env()) as program:
        program.until(lambda a: len(a.devices) == 2 and "registered 1" in fake_nvml.calls())
        fake_nvml.set(1, state=LOST)
        answer = program.until(lambda a: a.events)
        assert place(answer.devices, {}, Request(2)) is None
        tries = fake_nvml.calls().count("nvmlDeviceGetHandleByIndex_v2 1")
        program.until(lambda a: fake_nvml.calls().count("nvmlDeviceGetHandleByIndex_v2 1") > tries + 5)
        (event,) = program.ask().events
        assert (event.reason, event.uuid) == ("DeviceLost", Fleet.uuid(1))
        assert event.message == answer.devices[1].error
        fake_nvml.set(1, state=0)
        answer = program.until(lambda a: len(a.events) == 2)
        assert answer.events[1].message == "GPU 1 is sampled again."
        assert place(answer.devices, {}, Request(2)) == [Fleet.uuid(0), Fleet.uuid(1)]
        # Its handle is another one by now, and its XIDs come by that.
        program.until(lambda _: fake_nvml.calls().count("registered 1") >= 2)
        fake_nvml.xid(1, 95)
        assert program.until(lambda a: len(a.events) == 3).events[2].data["xid"] == 95


def test_while_a_call_hangs_for_30_seconds_the_other_gpus_go_on_and_the_program_answers(fake_nvml: Fleet) -> None:
    fake_nvml.play(*[Gpu()] * 4)
    with inventory(fake_nvml.env(), hang=2) as program:
        program.until(lambda a: len(a.devices) == 4)
        program.until(lambda _: "registered 3" in fake_nvml.calls())
        fake_nvml.hang(2, 30)
        answer = program.until(lambda a: a.events)
        assert answer.reasons == [(2, "DeviceHangs")]
        assert answer.events[0].message == answer.devices[2].error

        def are_used(percent: float, answer: Answer) -> bool:
            return all(answer.devices[i].utilisation == percent for i in (0, 1, 3))

        for utilisation in range(50, 60):
            for index in (0, 1, 3):
                fake_nvml.set(index, utilisation_percent=utilisation)
            answer = program.until(partial(are_used, utilisation))
            assert answer.devices[2].utilisation is None
        fake_nvml.xid(3, 48)
        program.until(lambda a: (3, "DeviceXid") in a.reasons)
        fake_nvml.hang(2, 0)
        answer = program.until(lambda a: (2, "DeviceBack") in a.reasons)
        assert answer.devices[2].error is None
        assert [reason for index, reason in answer.reasons if index == 2] == ["DeviceHangs", "DeviceBack"]


def test_a_gpu_that_hangs_and_is_then_lost_is_told_both(fake_nvml: Fleet) -> None:
    with inventory(fake_nvml.env(), hang=1) as program:
        program.until(lambda a: a.devices)
        fake_nvml.set(0, state=HANG)
        program.until(lambda a: a.events)
        fake_nvml.set(0, state=LOST)
        program.until(lambda a: len(a.events) == 2)
        fake_nvml.set(0, state=0)
        answer = program.until(lambda a: len(a.events) == 3)
    assert [r for _, r in answer.reasons] == ["DeviceHangs", "DeviceLost", "DeviceBack"]
