"""Which host line an INTx pin leads to when sysfs does not tell: by the neighbours on the same wire.

Functions of one slot that drive the same pin share a wire. Nothing else is sure to: the firmware may route the slots
behind a bridge by a table of the bridge's own (``_PRT``, which ``acpi_pci_irq_find_prt_entry`` in
drivers/acpi/pci_irq.c tries before it derives the line from the bridge's pin), and it does. On Intel's hubs each root
port turns the pins by its own number, and the old PCI slots are wired as the board has it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from vfio_intx.host.pci import PciFunction
from vfio_intx.names import HostIrq

Wire = tuple[int, int, int, int]


def wire_of(function: PciFunction) -> Wire | None:
    """(domain, bus, slot, pin) of the function's INTx; None if it has no pin."""
    bdf = function.bdf
    return None if function.pin is None else (bdf.domain, bdf.bus, bdf.slot, int(function.pin))


def known_lines(functions: Iterable[PciFunction]) -> Mapping[Wire, HostIrq]:
    """The lines of the wires that some function has been routed through: one that a driver has enabled."""
    return dict(_routed(functions))


def _routed(functions: Iterable[PciFunction]) -> Iterable[tuple[Wire, HostIrq]]:
    for function in functions:
        irq, wire = function.intx_irq.value, wire_of(function)
        if irq and wire is not None and function.enabled.value:
            yield wire, irq
