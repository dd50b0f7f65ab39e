"""What every part of this program takes for granted of VFIO's INTx, held against the fake and against the kernel.

A difference between the two is a fault of the fake, and with it of every test that stands on it.
"""

from __future__ import annotations

import errno
import os
import struct
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.contract.vfio_rigs import Rig, fake_rig, real_rig
from tests.fakes.kvm_side import FakeKvmSide
from vfio_intx.abi import eventfd, vfio
from vfio_intx.abi.pciconf import PCI_COMMAND, PCI_COMMAND_INTX_DISABLE
from vfio_intx.abi.vfio import IrqSet
from vfio_intx.deadline import Deadline
from vfio_intx.errors import KernelError
from vfio_intx.wiring.direct import LineEventfds, irqfd_steps, own_eventfds
from vfio_intx.wiring.undoable import perform

PROC = Path("/proc")
_S32 = struct.Struct("=i")
_NO_SUCH_FD = 1_000_000


@pytest.fixture(scope="module", params=["fake", pytest.param("real", marks=pytest.mark.l1)])
def opened(request: pytest.FixtureRequest) -> Iterator[Rig]:
    with (fake_rig if request.param == "fake" else real_rig)() as rig:
        yield rig


@pytest.fixture
def rig(opened: Rig) -> Iterator[Rig]:
    """The function with INTx off and the card silent, before and after."""
    yield opened
    opened.card.prepare()
    assert answer(opened, vfio.DISABLE) in ("0", "EINVAL")


@pytest.fixture
def pair(rig: Rig) -> Iterator[LineEventfds]:
    with own_eventfds() as fresh:
        yield fresh


@pytest.fixture
def on(rig: Rig, pair: LineEventfds) -> Rig:
    """The function with INTx on."""
    rig.device.set_irqs(vfio.trigger(pair.trigger))
    return rig


def soon(ready: Callable[[], object]) -> bool:
    return Deadline.after("the line", 60).poll(lambda: bool(ready()))


def raw(
    flags: int, data: bytes = b"", *, index: int = 0, start: int = 0, count: int = 1, argsz: int | None = None
) -> vfio.IrqRequest:
    header = struct.pack("=IIIII", 20 + len(data) if argsz is None else argsz, flags, index, start, count)
    return vfio.IrqRequest("raw", header + data)


def answer(rig: Rig, request: vfio.IrqRequest) -> str:
    try:
        rig.device.set_irqs(request)
    except KernelError as error:
        return error.errno_name
    return "0"


def test_what_it_is(rig: Rig) -> None:
    assert rig.device.info().flags & vfio.DeviceFlag.PCI
    line = rig.device.irq_info()
    assert line.flags == vfio.IrqFlag.EVENTFD | vfio.IrqFlag.MASKABLE | vfio.IrqFlag.AUTOMASKED
    assert line.count == 1
    for ask in (rig.device.irq_info, rig.device.region_info):
        with pytest.raises(KernelError) as caught:
            ask(77)
        assert caught.value.errno == errno.EINVAL


@pytest.mark.parametrize(
    "request_",
    [vfio.MASK, vfio.UNMASK, vfio.UNMASK_DETACH, vfio.LOOPBACK, vfio.DISABLE],
    ids=lambda request: request.name,
)
def test_while_intx_is_off_everything_but_trigger_is_refused(rig: Rig, request_: vfio.IrqRequest) -> None:
    assert answer(rig, request_) == "EINVAL"


REFUSED = [
    ("no action", raw(IrqSet.DATA_NONE), "ENOTTY"),
    ("two actions", raw(IrqSet.DATA_NONE | IrqSet.ACTION_MASK | IrqSet.ACTION_UNMASK), "ENOTTY"),
    ("mask by eventfd", raw(IrqSet.DATA_EVENTFD | IrqSet.ACTION_MASK, _S32.pack(-1)), "ENOTTY"),
    ("no data type", raw(IrqSet.ACTION_MASK), "EINVAL"),
    ("two data types", raw(IrqSet.DATA_NONE | IrqSet.DATA_BOOL | IrqSet.ACTION_MASK, b"\1"), "EINVAL"),
    ("unknown flag", raw(IrqSet.DATA_NONE | IrqSet.ACTION_MASK | 1 << 6), "EINVAL"),
    ("no such index", raw(IrqSet.DATA_NONE | IrqSet.ACTION_MASK, index=5), "EINVAL"),
    ("start beyond", raw(IrqSet.DATA_NONE | IrqSet.ACTION_MASK, start=1), "EINVAL"),
    ("two of one", raw(IrqSet.DATA_NONE | IrqSet.ACTION_MASK, count=2), "EINVAL"),
    ("none of one", raw(IrqSet.DATA_NONE | IrqSet.ACTION_MASK, count=0), "EINVAL"),
    ("short header", raw(IrqSet.DATA_NONE | IrqSet.ACTION_MASK, argsz=16), "EINVAL"),
    ("short data", raw(IrqSet.DATA_EVENTFD | IrqSet.ACTION_UNMASK, b"\0\0"), "EINVAL"),
    ("trigger, no such fd", vfio.trigger(_NO_SUCH_FD), "EBADF"),
    ("unmask, no such fd", vfio.unmask_eventfd(_NO_SUCH_FD), "EBADF"),
]


@pytest.mark.parametrize(("request_", "expected"), [row[1:] for row in REFUSED], ids=[row[0] for row in REFUSED])
def test_malformed_requests(on: Rig, request_: vfio.IrqRequest, expected: str) -> None:
    assert answer(on, request_) == expected


@pytest.mark.parametrize("make", [vfio.trigger, vfio.unmask_eventfd], ids=["trigger", "unmask"])
def test_what_is_no_eventfd_is_refused(on: Rig, make: Callable[[int], vfio.IrqRequest]) -> None:
    fd = os.open("/dev/null", os.O_RDWR | os.O_CLOEXEC)
    try:
        assert answer(on, make(fd)) == "EINVAL"
    finally:
        os.close(fd)


def test_the_software_trigger_signals_and_does_not_mask(on: Rig, pair: LineEventfds) -> None:
    on.device.set_irqs(vfio.LOOPBACK)
    assert soon(lambda: eventfd.drain(pair.trigger))
    assert not on.physical().intx_disabled


def test_a_bool_triggers_masks_and_unmasks_as_none_does(on: Rig, pair: LineEventfds) -> None:
    assert answer(on, raw(IrqSet.DATA_BOOL | IrqSet.ACTION_TRIGGER, b"\1")) == "0"
    assert soon(lambda: eventfd.drain(pair.trigger))
    assert answer(on, raw(IrqSet.DATA_BOOL | IrqSet.ACTION_MASK, b"\1")) == "0"
    assert on.physical().intx_disabled
    assert answer(on, raw(IrqSet.DATA_BOOL | IrqSet.ACTION_UNMASK, b"\1")) == "0"
    assert not on.physical().intx_disabled


def test_an_assertion_masks_signals_once_and_is_counted_once(on: Rig, pair: LineEventfds) -> None:
    before = on.host_interrupts()
    on.card.fire()
    assert soon(lambda: eventfd.drain(pair.trigger) == 1)
    config = on.physical()
    assert config.intx_disabled
    assert config.intx_asserted
    on.card.fire()
    assert eventfd.drain(pair.trigger) == 0, "masked: nobody hears of a second assertion"
    assert on.host_interrupts() == before + 1


def test_unmasking_a_line_that_asserts_signals_again_and_stays_masked(on: Rig, pair: LineEventfds) -> None:
    on.card.fire()
    assert soon(lambda: eventfd.drain(pair.trigger) == 1)
    on.device.set_irqs(vfio.UNMASK)
    assert soon(lambda: eventfd.drain(pair.trigger) == 1)
    assert on.physical().intx_disabled


def test_unmasking_a_quiet_line_opens_it(on: Rig, pair: LineEventfds) -> None:
    on.card.fire()
    assert soon(lambda: eventfd.drain(pair.trigger) == 1)
    assert on.quiet() & 4
    on.device.set_irqs(vfio.UNMASK)
    config = on.physical()
    assert not config.intx_disabled
    assert not config.intx_asserted
    assert eventfd.drain(pair.trigger) == 0


def test_a_masked_line_that_asserts_fires_when_it_is_opened(on: Rig, pair: LineEventfds) -> None:
    on.device.set_irqs(vfio.MASK)
    on.card.fire()
    assert on.physical().intx_asserted
    assert eventfd.drain(pair.trigger) == 0
    on.device.set_irqs(vfio.UNMASK)
    assert soon(lambda: eventfd.drain(pair.trigger))


def test_the_unmask_eventfd_opens_the_line_and_is_drained(on: Rig, pair: LineEventfds) -> None:
    on.device.set_irqs(vfio.unmask_eventfd(pair.resample))
    on.card.fire()
    assert soon(lambda: eventfd.drain(pair.trigger) == 1)
    on.quiet()
    eventfd.signal(pair.resample)
    assert soon(lambda: not on.physical().intx_disabled)
    assert soon(lambda: not _count(pair.resample))


def test_an_unmask_eventfd_that_is_pending_when_attached_opens_the_line(on: Rig, pair: LineEventfds) -> None:
    on.device.set_irqs(vfio.MASK)
    eventfd.signal(pair.resample)
    on.device.set_irqs(vfio.unmask_eventfd(pair.resample))
    assert soon(lambda: not on.physical().intx_disabled)


def test_a_second_unmask_eventfd_is_busy_until_the_first_is_detached(on: Rig, pair: LineEventfds) -> None:
    on.device.set_irqs(vfio.unmask_eventfd(pair.resample))
    assert answer(on, vfio.unmask_eventfd(pair.trigger)) == "EBUSY"
    assert answer(on, vfio.UNMASK_DETACH) == "0"
    assert answer(on, vfio.UNMASK_DETACH) == "0", "nothing there: not an error"
    on.device.set_irqs(vfio.unmask_eventfd(pair.resample))


def test_the_last_close_of_the_unmask_eventfd_is_a_silent_death(on: Rig, pair: LineEventfds) -> None:
    resample = eventfd.create()
    copy = os.dup(resample)
    on.device.set_irqs(vfio.unmask_eventfd(resample))
    os.close(resample)
    assert answer(on, vfio.unmask_eventfd(pair.resample)) == "EBUSY", "a duplicate keeps the listener"
    on.card.fire()
    assert soon(lambda: eventfd.drain(pair.trigger) == 1)
    on.quiet()
    eventfd.signal(copy)
    assert soon(lambda: not on.physical().intx_disabled)

    os.close(copy)
    on.card.fire()
    assert soon(lambda: eventfd.drain(pair.trigger) == 1)
    on.quiet()
    on.card.fire()
    assert eventfd.drain(pair.trigger) == 0
    assert on.physical().intx_disabled, "masked, and nobody left to unmask it"
    on.device.set_irqs(vfio.UNMASK)
    assert soon(lambda: eventfd.drain(pair.trigger)), "the remedy: it fires again"


def test_swapping_the_trigger_keeps_mask_and_listener(on: Rig, pair: LineEventfds) -> None:
    on.device.set_irqs(vfio.unmask_eventfd(pair.resample))
    on.card.fire()
    assert soon(lambda: eventfd.drain(pair.trigger) == 1)
    other = eventfd.create()
    try:
        on.device.set_irqs(vfio.trigger(other))
        assert on.physical().intx_disabled
        eventfd.signal(pair.resample)
        assert soon(lambda: eventfd.drain(other) == 1)
        assert eventfd.drain(pair.trigger) == 0
    finally:
        on.device.set_irqs(vfio.DISABLE)
        os.close(other)


def test_disable_takes_the_listener_away_too(on: Rig, pair: LineEventfds) -> None:
    on.device.set_irqs(vfio.unmask_eventfd(pair.resample))
    on.device.set_irqs(vfio.DISABLE)
    assert answer(on, vfio.MASK) == "EINVAL"
    on.device.set_irqs(vfio.trigger(pair.trigger))
    assert answer(on, vfio.unmask_eventfd(pair.resample)) == "0"


def test_a_line_that_asserted_before_fires_at_the_last_step_of_wiring_at_the_latest(
    rig: Rig, pair: LineEventfds
) -> None:
    # At "trigger" already if the host's interrupt controller kept the level. QEMU's emulated IOAPIC forgets a level
    # that rose while Linux had the pin shut down; VFIO's own look at the card, on unmasking, does not depend on it.
    rig.card.fire()
    assert rig.physical().intx_asserted
    side = FakeKvmSide()
    with perform(irqfd_steps(rig.device, side, pair)):
        assert soon(side.interrupts)


def test_the_guests_own_disable_holds_everything_back(on: Rig, pair: LineEventfds) -> None:
    region = on.device.region_info(vfio.VFIO_PCI_CONFIG_REGION_INDEX)
    command = int.from_bytes(on.device.read(region, PCI_COMMAND, 2), "little")
    assert not command & PCI_COMMAND_INTX_DISABLE
    try:
        on.device.write(region, PCI_COMMAND, (command | PCI_COMMAND_INTX_DISABLE).to_bytes(2, "little"))
        on.card.fire()
        on.device.set_irqs(vfio.UNMASK)
        on.device.set_irqs(vfio.LOOPBACK)
        assert on.physical().intx_disabled, "unmasking has no effect"
        assert eventfd.drain(pair.trigger) == 0, "nor does the software trigger"
    finally:
        on.device.write(region, PCI_COMMAND, command.to_bytes(2, "little"))
    assert soon(lambda: eventfd.drain(pair.trigger))


def test_five_hundred_rounds_of_wiring_leave_nothing(rig: Rig) -> None:
    def descriptors() -> int:
        return sum(1 for _ in (PROC / "self/fd").iterdir())

    before, side = descriptors(), FakeKvmSide()
    for _ in range(500):
        with own_eventfds() as pair:
            perform(irqfd_steps(rig.device, side, pair)).unwire()
    assert descriptors() == before
    assert answer(rig, vfio.MASK) == "EINVAL", "INTx is off"


def test_wired_lines_carry_every_interrupt(rig: Rig, pair: LineEventfds) -> None:
    side = FakeKvmSide()
    with perform(irqfd_steps(rig.device, side, pair)):
        before = rig.host_interrupts()
        for _ in range(200):
            rig.card.fire()
            assert soon(side.interrupts)
            assert rig.quiet() & 4
            side.eoi()
            assert soon(lambda: not rig.physical().intx_disabled)
        assert rig.host_interrupts() == before + 200


def _count(fd: int) -> int:
    info = eventfd.inspect(fd, proc=PROC)
    assert info is not None
    return info.count
