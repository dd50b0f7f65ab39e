"""What a scheme gets to work with, and what it has to offer."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar, Protocol

from vfio_intx.chain.scheme import Scheme
from vfio_intx.microvm.machine import Machine
from vfio_intx.microvm.vcpu import ExitHandler, NoExits


class Registers(Protocol):
    """A card's registers as the VMM reaches them for the guest: 32-bit accesses at byte offsets into the BAR."""

    def read(self, offset: int) -> int:
        """The register's value."""

    def write(self, offset: int, value: int) -> None:
        """Set the register."""


@dataclass(frozen=True, slots=True)
class Ends:
    """Both ends of a line.

    :ivar gsi: the guest's end: the GSI that its pin is on.
    :ivar trigger: signalled when the line has asserted and is masked; ``unmask``: signal it to have the line
        unmasked. With a real card these are the eventfds given to ``VFIO_DEVICE_SET_IRQS``.
    :ivar bar: guest-physical address of the registers; ``bar_size`` their length in bytes.
    :ivar registers: how the VMM reaches them; needed by ``trap`` alone.
    """

    gsi: int
    trigger: int
    unmask: int
    bar: int = 0
    bar_size: int = 0
    registers: Registers | None = None


class Wiring(ABC):
    """One scheme on one line of one machine.

    Order of use: pass :attr:`handler` to ``Machine.start``, then :meth:`wire`, …, :meth:`unwire`, ``Machine.close``.
    """

    scheme: ClassVar[Scheme]
    #: Whether the guest's register accesses must be trapped: the BAR is then not mapped into the guest.
    traps_registers: ClassVar[bool] = False

    def __init__(self, machine: Machine, ends: Ends) -> None:
        self.machine = machine
        self.ends = ends

    @property
    def handler(self) -> ExitHandler:
        """Who answers the guest's exits under this scheme."""
        return NoExits()

    @abstractmethod
    def wire(self) -> None:
        """Put the scheme in place. :raise KernelError: refused; nothing is left wired."""

    @abstractmethod
    def unwire(self) -> None:
        """Take it away; the guest's line is low afterwards. Harmless when done twice."""

    @property
    def wakeups(self) -> int:
        """How often the VMM was woken so far: exits of the vCPU to userspace, and eventfds it waited for."""
        return self.machine.exits

    def check(self) -> None:
        """:raise VfioIntxError: a thread of the scheme or the machine has died."""
        self.machine.check()
