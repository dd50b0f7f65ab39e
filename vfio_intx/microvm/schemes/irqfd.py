"""``irqfd``: the whole circle in the kernel. The trigger raises the level, the EOI lowers it and signals unmask."""

from __future__ import annotations

from typing import ClassVar

from vfio_intx.abi import kvm
from vfio_intx.chain.scheme import Scheme
from vfio_intx.microvm.schemes.line import Wiring


class Irqfd(Wiring):
    """One KVM_IRQFD with the resample flag; after that nobody in userspace hears of an interrupt."""

    scheme: ClassVar[Scheme] = Scheme.IRQFD

    def wire(self) -> None:
        """Bind trigger and unmask eventfd to the GSI."""
        kvm.assign_irqfd(self.machine.fd, self.ends.trigger, self.ends.gsi, self.ends.unmask)

    def unwire(self) -> None:
        """Unbind; KVM drops the level if it was up."""
        kvm.deassign_irqfd(self.machine.fd, self.ends.trigger, self.ends.gsi)
