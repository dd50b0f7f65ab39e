"""The race through a device's line on the real KVM, with the fake and its software trigger on VFIO's end."""

from __future__ import annotations

import errno
import mmap
from array import array
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.fakes.tree import FakeFunction, FakeTree
from tests.fakes.vfio_device import FakeVfioDevice
from vfio_intx.abi import kvm
from vfio_intx.abi.call import close_all
from vfio_intx.chain.scheme import Scheme
from vfio_intx.errors import BusyError, MissingError, RefusedError
from vfio_intx.host.pci import PciFunction, read_function
from vfio_intx.host.root import HostRoot
from vfio_intx.microvm.device_bench import device_payload, race_device
from vfio_intx.microvm.guest import CODE, image
from vfio_intx.microvm.lane import Lane
from vfio_intx.microvm.real_line import RealLine
from vfio_intx.names import Bdf

pytestmark = pytest.mark.kvm

BDF = "0000:00:10.0"
GSI = 20


@dataclass
class FakeOpened:
    """An open device whose file is the fake; it has no BAR that a guest could see."""

    function: PciFunction
    device: FakeVfioDevice = field(default_factory=FakeVfioDevice)

    def enable_memory(self) -> None:
        raise AssertionError("no card file, no registers")

    def map_bar(self, index: int) -> mmap.mmap:
        raise AssertionError("no card file, no registers")


@pytest.fixture
def root(tmp_path: Path) -> HostRoot:
    tree = FakeTree(tmp_path)
    tree.driver("vfio-pci")
    tree.add(FakeFunction(BDF, vendor=0x1B36, device=0x0002, driver="vfio-pci", group=7))
    return tree.root


@pytest.fixture
def opened(root: HostRoot) -> Iterator[FakeOpened]:
    function = read_function(root, Bdf.parse(BDF))
    assert function is not None
    found = FakeOpened(function)
    with found.device:
        yield found


@pytest.fixture
def kvm_fd() -> Iterator[int]:
    fd = kvm.open_kvm("/dev/kvm")
    yield fd
    close_all(fd)


def open_descriptors() -> int:
    return sum(1 for _ in Path("/proc/self/fd").iterdir())


def test_every_interrupt_goes_through(kvm_fd: int, opened: FakeOpened, root: HostRoot) -> None:
    before = open_descriptors()
    raced = race_device(kvm_fd, opened, root, None, 300)  # type: ignore[arg-type]
    assert [row.scheme for row in raced.bench.schemes] == [Scheme.IRQFD, Scheme.ACK_EVENTFD]
    for row in raced.bench.schemes:
        assert (row.triggers, row.acknowledged, row.lost) == (300, 300, 0)
        assert row.handler_runs >= 300
        assert row.round_trip is not None
        assert any("software" in note for note in row.notes)
    assert raced.bench.schemes[0].wakeups == 0, "irqfd: nobody of ours is woken"
    assert raced.bench.schemes[1].wakeups >= 300
    assert device_payload(raced)["assertion"] == "software"
    assert raced.hand_overs == 2
    assert not opened.device.is_on
    assert open_descriptors() == before


def test_a_scheme_that_needs_registers_is_refused(kvm_fd: int, opened: FakeOpened, root: HostRoot) -> None:
    with pytest.raises(MissingError, match="none of these schemes"):
        race_device(kvm_fd, opened, root, [Scheme.TRAP, Scheme.SPLIT], 10)  # type: ignore[arg-type]
    with RealLine(opened, root) as line, pytest.raises(RefusedError):  # type: ignore[arg-type]
        Lane(kvm_fd, line, Scheme.TRAP, GSI)


def test_ctrl_c_gives_what_there_is_and_leaves_intx_off(kvm_fd: int, opened: FakeOpened, root: HostRoot) -> None:
    before = open_descriptors()

    def press(done: int, of: int) -> None:
        if done == 2:
            raise KeyboardInterrupt

    raced = race_device(kvm_fd, opened, root, [Scheme.IRQFD], 3000, progress=press)  # type: ignore[arg-type]
    assert raced.bench.partial
    assert raced.bench.schemes[0].acknowledged == 2000
    assert not opened.device.is_on
    assert open_descriptors() == before


@pytest.mark.parametrize("step", ["trigger eventfd", "unmask eventfd"])
def test_a_line_in_use_is_told_and_nothing_is_left(kvm_fd: int, opened: FakeOpened, root: HostRoot, step: str) -> None:
    before = open_descriptors()
    opened.device.faults.append((step, errno.EBUSY))
    with pytest.raises(BusyError):
        race_device(kvm_fd, opened, root, None, 10)  # type: ignore[arg-type]
    assert not opened.device.is_on
    assert open_descriptors() == before


def test_a_line_that_is_dead_is_counted_and_given_up(kvm_fd: int, opened: FakeOpened, root: HostRoot) -> None:
    with ExitStack() as stack:
        line = stack.enter_context(RealLine(opened, root))  # type: ignore[arg-type]
        lane = Lane(kvm_fd, line, Scheme.IRQFD, GSI)
        stack.callback(lane.close)
        lane.wire()
        kvm.set_routing(lane.machine.fd, [])  # from here on nothing that KVM is told arrives anywhere
        durations = array("Q", [1] * 10)
        tally = lane.race(10, durations, 0.02, 3)
        assert (tally.asserted, tally.acknowledged, tally.lost) == (3, 0, 3)
        assert list(durations[:4]) == [0, 0, 0, 1]
        assert len(lane.remains) == 3, "each lost one is told with the link that it got to"
        assert "handler runs 0," in lane.remains[0]
        assert "EOI never heard" in lane.remains[0]


def test_a_slow_one_is_late_and_not_lost(kvm_fd: int, opened: FakeOpened, root: HostRoot) -> None:
    with ExitStack() as stack:
        line = stack.enter_context(RealLine(opened, root))  # type: ignore[arg-type]
        lane = Lane(kvm_fd, line, Scheme.ACK_EVENTFD, GSI)
        stack.callback(lane.close)
        lane.wire()
        tally = lane.race(20, array("Q", bytes(8 * 20)), 0.0, 1, grace_s=30.0)
        assert (tally.acknowledged, tally.lost, tally.late) == (20, 0, 20)
        assert lane.remains == []


def test_a_dead_vcpu_ends_the_race(kvm_fd: int, opened: FakeOpened, root: HostRoot) -> None:
    with ExitStack() as stack:
        line = stack.enter_context(RealLine(opened, root))  # type: ignore[arg-type]
        lane = Lane(kvm_fd, line, Scheme.IRQFD, GSI)
        stack.callback(lane.close)
        lane.wire()
        assert lane.machine._ram is not None
        lane.machine._ram[CODE : CODE + len(image())] = b"\xf1" * len(image())  # ICEBP: a fault in the handler
        tally = lane.race(10, array("Q", [0] * 10), 1.0, 3)
        assert tally.asserted < 10
        assert tally.acknowledged == 0
