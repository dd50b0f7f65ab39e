"""``split``: the IOAPIC exiled to userspace. KVM injects by an MSI route and hands the EOI out as an exit.

Here the trigger is a plain irqfd on a level-marked MSI route, as in QEMU with ``kernel-irqchip=split``; the vCPU's
thread leaves the guest for every EOI and signals the unmask eventfd. There is no PIC: a split irqchip leaves that to
userspace as well, which would have to inject with KVM_INTERRUPT.
"""

from __future__ import annotations

from typing import ClassVar

from vfio_intx.abi import eventfd, kvm
from vfio_intx.chain.scheme import Scheme
from vfio_intx.microvm import ioapic
from vfio_intx.microvm.machine import Machine
from vfio_intx.microvm.schemes.line import Ends, Wiring
from vfio_intx.microvm.vcpu import NoExits

_IOAPIC_SIZE = 0x1000


class Split(Wiring):
    """A userspace IOAPIC that renews KVM's routes when the guest programs a pin."""

    scheme: ClassVar[Scheme] = Scheme.SPLIT

    def __init__(self, machine: Machine, ends: Ends) -> None:
        super().__init__(machine, ends)
        self._handler = _SplitExits(machine, ends)

    @property
    def handler(self) -> _SplitExits:
        """The IOAPIC's windows, the PICs' ports and the EOIs."""
        return self._handler

    def wire(self) -> None:
        """Bind the trigger to the GSI, whose route the guest's own programming has made."""
        kvm.assign_irqfd(self.machine.fd, self.ends.trigger, self.ends.gsi)

    def unwire(self) -> None:
        """Unbind."""
        kvm.deassign_irqfd(self.machine.fd, self.ends.trigger, self.ends.gsi)


class _SplitExits(NoExits):
    """The vCPU's exits where the controllers are in userspace."""

    def __init__(self, machine: Machine, ends: Ends) -> None:
        self._machine = machine
        self._ends = ends
        self._ioapic = ioapic.UserspaceIoapic()
        self._vectors: frozenset[int] = frozenset()

    def read(self, address: int) -> int | None:
        offset = address - ioapic.ADDRESS
        return self._ioapic.read(offset) if 0 <= offset < _IOAPIC_SIZE else None

    def write(self, address: int, value: int) -> bool:
        offset = address - ioapic.ADDRESS
        if not 0 <= offset < _IOAPIC_SIZE:
            return False
        if self._ioapic.write(offset, value):
            routes = self._ioapic.routes()
            kvm.set_routing(self._machine.fd, routes)
            self._vectors = frozenset(r.vector for r in routes if r.level and r.gsi == self._ends.gsi)
        return True

    def port_write(self, port: int, value: int) -> bool:
        # The guest masks both PICs; there are none.
        return True

    def eoi(self, vector: int) -> bool:
        if vector in self._vectors:
            eventfd.signal(self._ends.unmask)
        return True
