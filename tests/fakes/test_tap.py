"""Eventfds handed to a QEMU, and this process in the EOI path: in, out, refused, dead. The line always goes on."""

from __future__ import annotations

import errno
import functools
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.fakes.patched_qemu import BDF, PatchedQemu
from tests.fakes.vfio_device import ICR, ICS, IMS, FakeVfioDevice
from vfio_intx.abi import vfio
from vfio_intx.deadline import Deadline
from vfio_intx.errors import KernelError, MissingError, PeerRefused, RefusedError, VerifyError
from vfio_intx.names import Bdf
from vfio_intx.qemu.intx_state import Eventfds
from vfio_intx.qemu.monitor import Monitor
from vfio_intx.wiring.direct import own_eventfds
from vfio_intx.wiring.handover import hand_over, require_handover, take_back, verify
from vfio_intx.wiring.tap import Tap

NIC = Bdf.parse(BDF)


@pytest.fixture(autouse=True)
def _short_looks(monkeypatch: pytest.MonkeyPatch) -> None:
    # Its events wake a tap at once; that it is to stop it sees when it looks.
    monkeypatch.setattr("vfio_intx.wiring.tap._LOOK_S", 0.02)


@pytest.fixture
def device() -> Iterator[FakeVfioDevice]:
    with FakeVfioDevice() as fake:
        yield fake


@pytest.fixture
def qemu(device: FakeVfioDevice) -> Iterator[PatchedQemu]:
    vm = PatchedQemu(device)
    yield vm
    vm.end()


def descriptors() -> int:
    return sum(1 for _ in Path("/proc/self/fd").iterdir())


def soon(ready: object) -> bool:
    assert callable(ready)
    return Deadline.after("the line", 60).poll(ready)


def carries(qemu: PatchedQemu, rounds: int = 20) -> bool:
    """Whether the line brings *rounds* interrupts to the guest, each acknowledged, and is open afterwards."""
    device = qemu.device
    bar = device.region_info(0)
    device.write(bar, IMS, (4).to_bytes(4, "little"))
    for _ in range(rounds):
        device.write(bar, ICS, (4).to_bytes(4, "little"))
        if not soon(lambda: qemu.kvm.interrupts() > 0):
            return False
        device.read(bar, ICR, 4)
        qemu.kvm.eoi()
        if not soon(lambda: not device.is_masked):
            return False
    return True


@contextmanager
def serving(tap: Tap) -> Iterator[dict[str, str]]:
    """The tap at work in a thread; why it ended is in the dictionary afterwards."""
    stop, ended = threading.Event(), dict[str, str]()

    def work() -> None:
        ended["why"] = tap.serve(None, stop.is_set)

    thread = threading.Thread(target=work)
    thread.start()
    try:
        yield ended
    finally:
        stop.set()
        thread.join(60)


def test_the_line_works_on_eventfds_that_were_handed_over(qemu: PatchedQemu) -> None:
    before = descriptors()
    with own_eventfds() as pair:
        hand_over(qemu, require_handover(qemu, NIC), pair)
    assert verify(qemu, NIC, Eventfds.GIVEN).eventfds is Eventfds.GIVEN
    assert carries(qemu), "our copies are closed, QEMU's carry the line"
    take_back(qemu, verify(qemu, NIC, Eventfds.GIVEN))
    assert qemu.uses_its_own
    assert carries(qemu)
    assert descriptors() == before
    assert not qemu.names


def test_the_tap_unmasks_counts_and_leaves(qemu: PatchedQemu) -> None:
    before = descriptors()
    with Tap(qemu, NIC, [qemu.device]) as tap:
        assert not qemu.device.has_unmask_listener, "nobody in the kernel unmasks"
        with serving(tap) as ended:
            assert carries(qemu, 300)
    assert ended["why"] == "stopped"
    assert tap.tally.eois == 300
    assert tap.tally.unmasks == tap.tally.wakeups == len(tap.tally.unmask_ns)
    assert tap.tally.refused == 0
    assert qemu.uses_its_own
    assert carries(qemu)
    assert descriptors() == before


@pytest.mark.parametrize("left", [0, 1, 2])
def test_without_a_descriptor_to_spare_nothing_is_entered_and_nothing_left(
    qemu: PatchedQemu, monkeypatch: pytest.MonkeyPatch, left: int
) -> None:
    makers: dict[str, Callable[..., object]] = {"eventfd": os.eventfd, "pipe2": os.pipe2}
    made: list[str] = []

    def limited(name: str, *arguments: int) -> object:
        if len(made) == left:
            raise OSError(errno.EMFILE, "Too many open files")
        made.append(name)
        return makers[name](*arguments)

    before = descriptors()
    for name in makers:
        monkeypatch.setattr(os, name, functools.partial(limited, name))
    with pytest.raises(KernelError) as caught:
        Tap(qemu, NIC, [qemu.device])
    monkeypatch.undo()
    assert caught.value.errno == errno.EMFILE
    assert descriptors() == before
    assert carries(qemu)


def test_when_we_are_gone_qemu_takes_over(qemu: PatchedQemu) -> None:
    tap = Tap(qemu, NIC, [qemu.device])
    bar = qemu.device.region_info(0)
    qemu.device.write(bar, IMS, (4).to_bytes(4, "little"))
    qemu.device.write(bar, ICS, (4).to_bytes(4, "little"))
    assert soon(lambda: qemu.kvm.interrupts() > 0)
    qemu.device.read(bar, ICR, 4)
    qemu.kvm.eoi()  # and nobody unmasks
    assert qemu.device.is_masked
    qemu.faults["query-vfio-intx"] = "the monitor is gone, too"
    tap._let_go()  # what the kernel does for a process that dies: the leash closes
    assert soon(lambda: qemu.uses_its_own)
    assert carries(qemu)


def test_a_line_that_qemu_lets_go_of_ends_the_tap_at_once(qemu: PatchedQemu) -> None:
    before = descriptors()
    tap = Tap(qemu, NIC, [qemu.device])
    with serving(tap) as ended:
        assert carries(qemu)
        qemu.unplug()
        assert soon(lambda: "why" in ended)
    assert ended["why"] == "gone"
    qemu.faults["qom-set"] = "there is no such device"
    tap.leave()
    assert descriptors() <= before


def test_intx_switched_off_meanwhile_is_no_failure(qemu: PatchedQemu) -> None:
    with Tap(qemu, NIC, [qemu.device]) as tap, serving(tap):
        qemu.device.faults.append(("unmask", 22))
        assert qemu.device.is_on
        bar = qemu.device.region_info(0)
        qemu.device.write(bar, IMS, (4).to_bytes(4, "little"))
        qemu.device.write(bar, ICS, (4).to_bytes(4, "little"))
        qemu.device.read(bar, ICR, 4)
        qemu.kvm.eoi()
        assert soon(lambda: tap.tally.refused == 1)
        qemu.kvm.eoi()
        assert soon(lambda: not qemu.device.is_masked)


@pytest.mark.parametrize("fault", ["getfd 1", "getfd 2", "getfd 3", "qom-set"])
def test_each_refusal_leaves_the_line_as_it_was(qemu: PatchedQemu, fault: str) -> None:
    before = descriptors()
    qemu.faults[fault] = "no"
    with pytest.raises(PeerRefused):
        Tap(qemu, NIC, [qemu.device])
    assert descriptors() == before
    assert not qemu.names, "no descriptor stays in the monitor"
    assert qemu.uses_its_own
    assert carries(qemu)


def test_a_qemu_that_agrees_and_does_otherwise_is_found_out(qemu: PatchedQemu) -> None:
    qemu.lies = True
    with pytest.raises(VerifyError, match="uses eventfds of 'qemu'"):
        Tap(qemu, NIC, [qemu.device])
    assert soon(lambda: qemu.uses_its_own), "the leash is closed: nobody waits for us"
    assert carries(qemu)


def test_a_stock_qemu_is_refused(qemu: PatchedQemu) -> None:
    qemu.properties = ["host", "x-no-kvm-intx"]
    with pytest.raises(MissingError, match="lacks"):
        require_handover(qemu, NIC)
    qemu.properties = ["host", "x-intx-scheme"]
    with pytest.raises(MissingError, match="x-intx-eventfds"):
        require_handover(qemu, NIC)


class VirshLike:
    """A monitor without a way for descriptors."""

    name = "virsh"
    peer_pid = None

    def __init__(self, monitor: PatchedQemu) -> None:
        self.execute, self.execute_all = monitor.execute, monitor.execute_all
        self.take_events, self.close = monitor.take_events, monitor.close


def test_a_monitor_that_passes_no_descriptors_is_refused(qemu: PatchedQemu) -> None:
    virsh: Monitor = VirshLike(qemu)
    with pytest.raises(MissingError, match="cannot pass descriptors"):
        require_handover(virsh, NIC)


def test_a_line_that_cannot_take_eventfds_now_is_refused(qemu: PatchedQemu) -> None:
    qemu.mode = "msi"
    with pytest.raises(RefusedError, match="its interrupt mode is msi"):
        require_handover(qemu, NIC)
    qemu.mode, qemu.scheme = "intx", "trap"
    with pytest.raises(RefusedError, match="runs trap"):
        require_handover(qemu, NIC)
    with pytest.raises(MissingError):
        require_handover(qemu, Bdf.parse("0000:00:11.0"))


def test_a_dead_line_is_what_the_tap_would_leave_without_a_leash(qemu: PatchedQemu) -> None:
    """The negative control: with the listener off and nobody unmasking, the second interrupt never comes."""
    qemu.device.set_irqs(vfio.UNMASK_DETACH)
    bar = qemu.device.region_info(0)
    qemu.device.write(bar, IMS, (4).to_bytes(4, "little"))
    qemu.device.write(bar, ICS, (4).to_bytes(4, "little"))
    qemu.device.read(bar, ICR, 4)
    qemu.kvm.eoi()
    assert qemu.device.can_sleep_forever
