"""``edge``: a plain irqfd on a level line, the negative control.

KVM raises the level and lowers it in the same breath. A PIC pin has forgotten it before the guest looks; an IOAPIC pin
has latched it, but nobody ever hears of the EOI, so the line stays masked after its first interrupt.
"""

from __future__ import annotations

from typing import ClassVar

from vfio_intx.abi import kvm
from vfio_intx.chain.scheme import Scheme
from vfio_intx.microvm.schemes.line import Wiring


class Edge(Wiring):
    """One KVM_IRQFD without the resample flag. The unmask eventfd is left alone: there is nobody to signal it."""

    scheme: ClassVar[Scheme] = Scheme.EDGE

    def wire(self) -> None:
        """Bind the trigger to the GSI."""
        kvm.assign_irqfd(self.machine.fd, self.ends.trigger, self.ends.gsi)

    def unwire(self) -> None:
        """Unbind."""
        kvm.deassign_irqfd(self.machine.fd, self.ends.trigger, self.ends.gsi)
