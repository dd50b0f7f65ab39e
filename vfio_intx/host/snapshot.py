"""Everything about this host that INTx depends on, read once; the rules see nothing else."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from vfio_intx.chain.fact import Fact
from vfio_intx.errors import MissingError
from vfio_intx.host.claim import Claim
from vfio_intx.host.iommu import Group, IommuFacts, read_iommu
from vfio_intx.host.irq import IrqLine, Spurious, read_actions, read_interrupts, read_spurious
from vfio_intx.host.kernel import KernelFacts, read_kernel
from vfio_intx.host.log import LogLine, read_log
from vfio_intx.host.owners import read_owners
from vfio_intx.host.pci import PciFunction, list_functions, read_function
from vfio_intx.host.root import HostRoot
from vfio_intx.host.use import Use
from vfio_intx.host.uses import read_uses
from vfio_intx.names import Bdf, HostIrq


class Snapshot(NamedTuple):
    """One host at one moment. Reading takes time and the host goes on living: facts of two files may disagree.

    :ivar functions: by address, in order.
    :ivar lines: the rows of ``/proc/interrupts``.
    :ivar actions: for each IRQ that some function with a pin sits on, who handles it.
    :ivar spurious: for the same IRQs, how many interrupts nobody claimed.
    :ivar uses: what the host itself does with its functions.
    :ivar claims: which tool's configuration names which function.
    :ivar unread: other tools' files that may hold more claims and could not be read, each with the reason.
    :ivar log: the kernel log's lines about interrupts and vfio.
    """

    functions: Mapping[Bdf, PciFunction]
    lines: Fact[Mapping[HostIrq, IrqLine]]
    actions: Mapping[HostIrq, Fact[tuple[str, ...]]]
    spurious: Mapping[HostIrq, Fact[Spurious]]
    iommu: IommuFacts
    kernel: KernelFacts
    uses: Mapping[Bdf, tuple[Use, ...]]
    claims: Mapping[Bdf, tuple[Claim, ...]]
    log: Fact[tuple[LogLine, ...]]
    unread: tuple[tuple[str, str], ...] = ()

    def function(self, bdf: Bdf) -> PciFunction:
        """One function. :raise MissingError: if the host has none at that address."""
        try:
            return self.functions[bdf]
        except KeyError:
            raise MissingError(
                f"there is no PCI function {bdf}", hint="lspci -D lists them; a card may move when others are added"
            ) from None

    def group_of(self, function: PciFunction) -> Group | None:
        """The IOMMU group of a function, None where it is in none or that could not be read."""
        return None if function.group.value is None else self.iommu.groups.get(function.group.value)

    def line_of(self, function: PciFunction) -> IrqLine | None:
        """The row of its INTx line, None while nobody has requested it."""
        irq = function.intx_irq.value
        return None if not irq or self.lines.value is None else self.lines.value.get(irq)

    def handlers_of(self, irq: HostIrq) -> tuple[str, ...]:
        """Who handles an IRQ now, from sysfs or else from ``/proc/interrupts``."""
        named = self.actions.get(irq)
        if named is not None and named.value is not None:
            return named.value
        line = (self.lines.value or {}).get(irq)
        return line.actions if line else ()

    def by_line(self) -> Mapping[HostIrq, tuple[PciFunction, ...]]:
        """The functions with a pin on each INTx line, whether they use it now or not."""
        found: dict[HostIrq, list[PciFunction]] = {}
        for function in self.functions.values():
            irq = function.intx_irq.value
            if irq and function.pin is not None:
                found.setdefault(irq, []).append(function)
        return {irq: tuple(functions) for irq, functions in found.items()}


def take_snapshot(root: HostRoot) -> Snapshot:
    """Read the host once; what cannot be read is unknown in the snapshot, and what vanishes meanwhile is left out.

    :raise MissingError: if the host has no PCI in sysfs at all.
    """
    addresses = list_functions(root)
    if addresses.value is None:
        raise MissingError(
            f"no PCI devices in {addresses.source}: {addresses.error}",
            hint="is sysfs mounted, and is this a machine with a PCI bus?",
        )
    read = (read_function(root, bdf) for bdf in addresses.value)
    functions = {function.bdf: function for function in read if function is not None}
    irqs = sorted({f.intx_irq.value for f in functions.values() if f.pin is not None and f.intx_irq.value})
    kernel = read_kernel(root)
    claims, unread = read_owners(root, functions.values(), kernel.command_line)
    return Snapshot(
        functions=functions,
        lines=read_interrupts(root),
        actions={irq: read_actions(root, irq) for irq in irqs},
        spurious={irq: read_spurious(root, irq) for irq in irqs},
        iommu=read_iommu(root, functions.values()),
        kernel=kernel,
        uses=read_uses(root),
        claims=claims,
        log=read_log(root),
        unread=unread,
    )
