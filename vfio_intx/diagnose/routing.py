"""Which host line an INTx pin leads to when sysfs does not tell: by the neighbours on the same wire.

Behind a bridge the pin is swizzled: the device number is added to it at every step towards the root (PCI-to-PCI
Bridge 1.2, 9.1; ``pci_swizzle_interrupt_pin`` in drivers/pci/pci.c). Functions that come out at the same
slot and pin of a root bus share their line, whatever the board's routing is.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from vfio_intx.host.pci import PciFunction
from vfio_intx.names import Bdf, HostIrq

RootPin = tuple[int, int, int, int]
#: A longer way up than this has a loop in it.
_DEEPEST = 32


def root_pin(function: PciFunction, functions: Mapping[Bdf, PciFunction]) -> RootPin | None:
    """(domain, bus, slot, pin) where the function's INTx arrives at its root bus; None if it has no pin."""
    if function.pin is None:
        return None
    pin, at = int(function.pin), function
    for _ in range(_DEEPEST):
        above = functions.get(at.parent) if at.parent is not None else None
        if above is None:
            return (at.bdf.domain, at.bdf.bus, at.bdf.slot, pin)
        pin = (pin - 1 + at.bdf.slot) % 4 + 1
        at = above
    return None


def known_routes(functions: Mapping[Bdf, PciFunction]) -> Mapping[RootPin, HostIrq]:
    """The lines of the root pins that some function has been routed through: one that a driver has enabled."""
    return dict(_routed(functions.values(), functions))


def _routed(some: Iterable[PciFunction], functions: Mapping[Bdf, PciFunction]) -> Iterable[tuple[RootPin, HostIrq]]:
    for function in some:
        irq, where = function.intx_irq.value, root_pin(function, functions)
        if irq and where is not None and function.enabled.value:
            yield where, irq
