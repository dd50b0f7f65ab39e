"""The five ways to build a chain, one file each, behind one interface: :class:`~.line.Wiring`."""

from __future__ import annotations

from vfio_intx.chain.scheme import Scheme
from vfio_intx.microvm.machine import Irqchip, Machine
from vfio_intx.microvm.schemes.ack_eventfd import AckEventfd
from vfio_intx.microvm.schemes.edge import Edge
from vfio_intx.microvm.schemes.irqfd import Irqfd
from vfio_intx.microvm.schemes.line import Ends, Registers, Wiring
from vfio_intx.microvm.schemes.split import Split
from vfio_intx.microvm.schemes.trap import Trap

__all__ = ["Ends", "Registers", "Wiring", "irqchip_of", "wiring_of"]

_WIRINGS: dict[Scheme, type[Wiring]] = {
    Scheme.IRQFD: Irqfd,
    Scheme.ACK_EVENTFD: AckEventfd,
    Scheme.SPLIT: Split,
    Scheme.TRAP: Trap,
    Scheme.EDGE: Edge,
}


def irqchip_of(scheme: Scheme) -> Irqchip:
    """The controllers that a machine needs for *scheme*."""
    return Irqchip.SPLIT if scheme is Scheme.SPLIT else Irqchip.FULL


def wiring_of(scheme: Scheme, machine: Machine, ends: Ends) -> Wiring:
    """The scheme's wiring for this machine and line; nothing is wired yet."""
    return _WIRINGS[scheme](machine, ends)
