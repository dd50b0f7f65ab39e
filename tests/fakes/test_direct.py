"""One line wired by hand on the fake device: every step failing in turn, every unfit eventfd, the two silent deaths."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.fakes.kvm_side import FakeKvmSide
from tests.fakes.vfio_device import ICR, ICS, IMS, PROC, FakeVfioDevice
from vfio_intx.abi import eventfd, vfio
from vfio_intx.deadline import Deadline
from vfio_intx.errors import BusyError, KernelError, MissingError, RefusedError, WorldError
from vfio_intx.wiring.direct import LineEventfds, check_eventfds, irqfd_steps, own_eventfds, wire_irqfd
from vfio_intx.wiring.undoable import perform

ORDER = ["trigger eventfd", "mask", "unmask eventfd", "unmask"]
#: Requests of the VFIO side with the errnos that the kernel can answer them with.
FAILURES = [
    ("trigger eventfd", errno.EBUSY),
    ("trigger eventfd", errno.ENODEV),
    ("trigger eventfd", errno.EINVAL),
    ("trigger eventfd", errno.ENOMEM),
    ("mask", errno.EINVAL),
    ("unmask eventfd", errno.EBUSY),
    ("unmask eventfd", errno.EBADF),
    ("unmask", errno.EINVAL),
]


@pytest.fixture
def device() -> Iterator[FakeVfioDevice]:
    with FakeVfioDevice() as fake:
        yield fake


@pytest.fixture
def pair() -> Iterator[LineEventfds]:
    with own_eventfds() as fresh:
        yield fresh


def open_descriptors() -> int:
    return sum(1 for _ in Path("/proc/self/fd").iterdir())


def assert_card(device: FakeVfioDevice) -> None:
    bar = device.region_info(0)
    device.write(bar, IMS, (4).to_bytes(4, "little"))
    device.write(bar, ICS, (4).to_bytes(4, "little"))


def quiet_card(device: FakeVfioDevice) -> int:
    return int.from_bytes(device.read(device.region_info(0), ICR, 4), "little")


def soon(ready: object) -> bool:
    assert callable(ready)
    return Deadline.after("the fake's listener", 60).poll(ready)


def test_the_order_is_the_safe_one(device: FakeVfioDevice, pair: LineEventfds) -> None:
    kvm = FakeKvmSide()
    wired = wire_irqfd(device, kvm, pair, proc=PROC)
    assert wired.steps == ("trigger", "mask", "irqfd", "unmask eventfd", "unmask")
    assert device.requests == ORDER
    assert device.is_on
    assert not device.is_masked
    wired.unwire()
    assert device.requests == [*ORDER, "mask", "unmask detach", "unmask", "disable"]
    assert kvm.calls == ["bind", "unbind"]
    assert not device.is_on


def test_every_interrupt_goes_round(device: FakeVfioDevice, pair: LineEventfds) -> None:
    kvm = FakeKvmSide()
    with wire_irqfd(device, kvm, pair, proc=PROC):
        for _ in range(200):
            assert_card(device)
            assert kvm.interrupts() == 1
            assert device.is_masked
            assert quiet_card(device) == 4
            kvm.eoi()
            assert soon(lambda: not device.is_masked)
    assert device.host_irqs == 200


def test_a_line_still_asserted_at_the_eoi_fires_again(device: FakeVfioDevice, pair: LineEventfds) -> None:
    kvm = FakeKvmSide()
    with wire_irqfd(device, kvm, pair, proc=PROC):
        assert_card(device)
        assert kvm.interrupts() == 1
        kvm.eoi()
        assert soon(lambda: kvm.interrupts() == 1)
        assert device.is_masked


def test_an_interrupt_during_the_wiring_is_not_lost(device: FakeVfioDevice, pair: LineEventfds) -> None:
    kvm = FakeKvmSide()
    assert_card(device)
    with wire_irqfd(device, kvm, pair, proc=PROC):
        assert kvm.interrupts() >= 1


@pytest.mark.parametrize(("request_", "number"), FAILURES)
def test_each_failing_request_leaves_intx_off(
    device: FakeVfioDevice, pair: LineEventfds, request_: str, number: int
) -> None:
    before = open_descriptors()
    device.faults.append((request_, number))
    kvm = FakeKvmSide()
    assert_card(device)
    with pytest.raises(WorldError) as caught:
        wire_irqfd(device, kvm, pair, proc=PROC)
    cause = caught.value if isinstance(caught.value, KernelError) else caught.value.__cause__
    assert isinstance(cause, KernelError)
    assert cause.errno == number
    assert not device.is_on
    assert not kvm.bound
    assert open_descriptors() == before
    # And the line can be wired right afterwards, which it could not if anything had been left behind.
    quiet_card(device)
    with wire_irqfd(device, kvm, pair, proc=PROC):
        assert_card(device)
        assert kvm.interrupts() >= 1


@pytest.mark.parametrize("number", [errno.EBUSY, errno.EINVAL, errno.EBADF, errno.EIO])
def test_a_failing_irqfd_leaves_intx_off(device: FakeVfioDevice, pair: LineEventfds, number: int) -> None:
    kvm = FakeKvmSide()
    kvm.failures.append(number)
    with pytest.raises(WorldError) as caught:
        wire_irqfd(device, kvm, pair, proc=PROC)
    assert isinstance(caught.value, BusyError) == (number == errno.EBUSY)
    assert device.requests == ["trigger eventfd", "mask", "unmask", "disable"]
    assert not device.is_on


@settings(max_examples=60, deadline=None)
@given(broken=st.sampled_from(FAILURES), sour=st.sampled_from(["unmask detach", "unmask"]), asserted=st.booleans())
def test_a_failure_whose_undo_fails_too_still_ends_with_intx_off(
    broken: tuple[str, int], sour: str, asserted: bool
) -> None:
    with FakeVfioDevice() as device, own_eventfds() as pair:
        if asserted:
            assert_card(device)
        device.faults.extend([broken, (sour, errno.EIO)])
        kvm = FakeKvmSide()
        with pytest.raises(WorldError):
            wire_irqfd(device, kvm, pair, proc=PROC)
        assert not device.is_on
        assert not kvm.bound


def test_an_undo_that_fails_does_not_leave_the_line_masked(device: FakeVfioDevice, pair: LineEventfds) -> None:
    wired = wire_irqfd(device, FakeKvmSide(), pair, proc=PROC)
    device.faults.append(("unmask detach", errno.EIO))
    with pytest.raises(KernelError) as caught:
        wired.unwire()
    assert caught.value.errno_name == "EIO"
    assert not device.is_on, "the later undos ran all the same"


def test_a_device_pulled_out_is_told_and_nothing_hangs(device: FakeVfioDevice, pair: LineEventfds) -> None:
    kvm = FakeKvmSide()
    wired = wire_irqfd(device, kvm, pair, proc=PROC)
    device.pull_out()
    with pytest.raises(KernelError) as caught:
        wired.unwire()
    assert caught.value.errno_name == "ENODEV"
    assert not kvm.bound, "KVM's end is taken down although VFIO's is gone"


def test_off_already_is_no_failure_of_the_undo(device: FakeVfioDevice, pair: LineEventfds) -> None:
    steps = irqfd_steps(device, FakeKvmSide(), pair)
    perform(steps[:1])
    device.set_irqs(vfio.DISABLE)
    steps[0].undo()
    assert not device.is_on


def test_ten_thousand_rounds_leave_no_descriptor(device: FakeVfioDevice) -> None:
    before = open_descriptors()
    kvm = FakeKvmSide()
    for _ in range(10_000):
        with own_eventfds() as pair:
            perform(irqfd_steps(device, kvm, pair)).unwire()
    assert open_descriptors() == before
    assert not device.has_unmask_listener


# -- the lifetimes of the essay


def test_the_last_close_of_the_resample_eventfd_is_the_silent_death(device: FakeVfioDevice) -> None:
    kvm = FakeKvmSide()
    trigger, resample = eventfd.create(), eventfd.create()
    perform(irqfd_steps(device, kvm, LineEventfds(trigger, resample)))
    os.close(resample)
    assert not device.has_unmask_listener
    assert_card(device)
    quiet_card(device)
    assert device.can_sleep_forever
    device.set_irqs(vfio.UNMASK)
    assert not device.is_masked, "the remedy that kick applies"
    os.close(trigger)


def test_a_duplicate_makes_the_next_attach_busy(device: FakeVfioDevice) -> None:
    with own_eventfds() as pair:
        device.set_irqs(vfio.trigger(pair.trigger))
        resample = eventfd.create()
        device.set_irqs(vfio.unmask_eventfd(resample))
        copy = os.dup(resample)
        os.close(resample)
        with pytest.raises(BusyError, match="unmask eventfd attached already"):
            perform(irqfd_steps(device, FakeKvmSide(), pair)[3:4])
        os.close(copy)
        perform(irqfd_steps(device, FakeKvmSide(), pair)[3:4])


# -- eventfds that are none, or unfit


def test_a_line_needs_two_eventfds(pair: LineEventfds) -> None:
    copy = os.dup(pair.trigger)
    try:
        for twin in (pair.trigger, copy):
            with pytest.raises(RefusedError, match="are one eventfd"):
                check_eventfds(LineEventfds(pair.trigger, twin), proc=PROC)
    finally:
        os.close(copy)


@pytest.mark.parametrize("where", ["trigger", "resample"])
@pytest.mark.parametrize(
    ("flags", "words"),
    [(os.EFD_NONBLOCK | os.EFD_SEMAPHORE, "semaphore"), (0, "blocks"), (None, "is not an eventfd")],
)
def test_unfit_eventfds_are_refused_before_anything_changes(
    device: FakeVfioDevice, pair: LineEventfds, where: str, flags: int | None, words: str
) -> None:
    odd = os.open("/dev/null", os.O_RDWR) if flags is None else os.eventfd(0, flags)
    try:
        if flags and "eventfd-semaphore" not in (PROC / f"self/fdinfo/{odd}").read_text():
            pytest.skip("this kernel does not show semaphore mode in fdinfo (before 6.5)")
        mixed = LineEventfds(odd, pair.resample) if where == "trigger" else LineEventfds(pair.trigger, odd)
        with pytest.raises(RefusedError, match=words):
            wire_irqfd(device, FakeKvmSide(), mixed, proc=PROC)
    finally:
        os.close(odd)
    assert device.requests == []


def test_a_closed_descriptor_is_refused(device: FakeVfioDevice, pair: LineEventfds) -> None:
    closed = eventfd.create()
    os.close(closed)
    with pytest.raises(KernelError):
        wire_irqfd(device, FakeKvmSide(), LineEventfds(pair.trigger, closed), proc=PROC)
    assert device.requests == []


def test_one_known_to_be_bound_is_refused(pair: LineEventfds) -> None:
    info = eventfd.inspect(pair.resample, proc=PROC)
    assert info is not None
    assert info.identity is not None
    with pytest.raises(BusyError, match="bound to a line already"):
        check_eventfds(pair, proc=PROC, bound=[info.identity])
    check_eventfds(pair, proc=PROC, bound=[info.identity + 1_000_000])


def test_one_that_another_line_holds_is_refused_by_kvm(device: FakeVfioDevice, pair: LineEventfds) -> None:
    kvm = FakeKvmSide()
    kvm.bind(pair.trigger, pair.resample)
    with pytest.raises(BusyError, match="another"):
        wire_irqfd(device, kvm, pair, proc=PROC)
    assert not device.is_on


def test_a_function_without_intx_is_refused(pair: LineEventfds) -> None:
    with FakeVfioDevice(pin=0) as device:
        with pytest.raises(MissingError, match="no INTx"):
            wire_irqfd(device, FakeKvmSide(), pair, proc=PROC)
        assert device.requests == []


def test_a_host_line_in_use_is_told(pair: LineEventfds) -> None:
    with FakeVfioDevice(can_mask=False, host_irq_taken=True) as device:
        with pytest.raises(BusyError, match=r"host IRQ of 0000:00:10\.0 is in use") as caught:
            wire_irqfd(device, FakeKvmSide(), pair, proc=PROC)
        assert "cannot mask INTx itself" in (caught.value.hint or "")


def test_msi_in_use_is_told(device: FakeVfioDevice, pair: LineEventfds) -> None:
    device.uses_msi = True
    with pytest.raises(RefusedError, match="MSI"):
        wire_irqfd(device, FakeKvmSide(), pair, proc=PROC)
