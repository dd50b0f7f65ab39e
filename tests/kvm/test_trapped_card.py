"""The trap scheme on the real KVM, with a card whose first access does not quiet it: the guess is wrong every time."""

from __future__ import annotations

from array import array
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.contract.vfio_rigs import RegionRegisters
from tests.fakes.vfio_device import FakeCard, FakeVfioDevice
from tests.kvm.test_device_bench import BDF, GSI, FakeOpened
from vfio_intx.abi import kvm
from vfio_intx.abi.call import close_all
from vfio_intx.chain.scheme import Scheme
from vfio_intx.host.pci import read_function
from vfio_intx.microvm.cards import CardAsserter
from vfio_intx.microvm.cards.edu import CARD
from vfio_intx.microvm.lane import Lane
from vfio_intx.microvm.real_line import BAR_ADDRESS, RealLine
from vfio_intx.microvm.schemes import Ends
from vfio_intx.names import Bdf

pytestmark = pytest.mark.kvm

STATUS, RAISE, ACKNOWLEDGE = 0x24, 0x60, 0x64
ROUNDS = 3000


class FakeEdu(FakeCard):
    """QEMU's teaching device: reading the status changes nothing, only a write to another register quiets it."""

    @property
    def asserts(self) -> bool:
        return bool(self.cause)

    def read(self, offset: int) -> int:
        return self.cause if offset == STATUS else 0

    def write(self, offset: int, value: int) -> None:
        if offset == RAISE:
            self.cause |= value
        elif offset == ACKNOWLEDGE:
            self.cause &= ~value


class TrappedLine(RealLine):
    """A line whose registers are the fake's: no guest can see them but through the VMM."""

    def __init__(self, opened: FakeOpened, root: object) -> None:
        self.fake = opened.device
        self.fake.card = FakeEdu()
        super().__init__(opened, root)  # type: ignore[arg-type]
        self.card = CARD
        self.trapped = RegionRegisters(self.fake, 0)
        self.asserter = CardAsserter(CARD, self.trapped)

    def ends(self, gsi: int) -> Ends:
        return Ends(gsi, self.eventfds.trigger, self.eventfds.resample, BAR_ADDRESS, 0x1000, self.trapped)

    def is_at_rest(self) -> bool:
        return not (self.fake.is_masked or self.fake.card.asserts)


@pytest.fixture
def line(tmp_path: Path) -> Iterator[TrappedLine]:
    from tests.fakes.tree import FakeFunction, FakeTree

    tree = FakeTree(tmp_path)
    tree.driver("vfio-pci")
    tree.add(FakeFunction(BDF, vendor=0x1B36, device=0x0002, driver="vfio-pci", group=7))
    function = read_function(tree.root, Bdf.parse(BDF))
    assert function is not None
    opened = FakeOpened(function)
    found = TrappedLine(opened, tree.root)
    with opened.device, found:
        yield found


def test_no_interrupt_is_lost_and_the_level_never_stays_up(line: TrappedLine) -> None:
    fd = kvm.open_kvm("/dev/kvm")
    with ExitStack() as stack:
        stack.callback(close_all, fd)
        lane = Lane(fd, line, Scheme.TRAP, GSI)
        stack.callback(lane.close)
        lane.wire()
        tally = lane.race(ROUNDS, array("Q", bytes(8 * ROUNDS)), 2.0, 1, grace_s=30.0)
        lane.settle()
        assert (tally.asserted, tally.acknowledged, tally.lost) == (ROUNDS, ROUNDS, 0)
        assert isinstance(line.fake, FakeVfioDevice)
        assert lane.wiring.wakeups > ROUNDS
