"""A real card behind a real vfio-pci line: its registers, its two eventfds, and how to make it interrupt."""

from __future__ import annotations

import mmap
import os

from vfio_intx.abi import eventfd, vfio
from vfio_intx.abi.call import close_all
from vfio_intx.abi.pciconf import PCI_COMMAND, PCI_COMMAND_INTX_DISABLE, PCI_STATUS_INTERRUPT
from vfio_intx.chain.scheme import Scheme
from vfio_intx.errors import KernelError
from vfio_intx.host.root import HostRoot
from vfio_intx.microvm.cards import Asserter, CardAsserter, SoftwareAsserter, card_for
from vfio_intx.microvm.device import MemoryRegisters
from vfio_intx.microvm.guest import GuestParameters, Quiet
from vfio_intx.microvm.machine import Machine
from vfio_intx.microvm.schemes import Ends
from vfio_intx.wiring.device_files import OpenDevice
from vfio_intx.wiring.direct import LineEventfds, require_intx

#: Where the guest finds the card's registers.
BAR_ADDRESS = 0xE000_0000
_REAL_SCHEMES = (Scheme.IRQFD, Scheme.ACK_EVENTFD, Scheme.TRAP)


class RealLine:
    """One function's line, its card's registers and its two eventfds. The device stays the caller's.

    :ivar card: the card file in use, None where only the software trigger is left.
    :ivar asserter: who makes it interrupt; :attr:`asserter.real` says whether that is the card itself.
    :ivar hand_overs: how often it has been wired to a machine.
    """

    def __init__(self, opened: OpenDevice, root: HostRoot) -> None:
        """:raise MissingError: no INTx, or registers that cannot be mapped. :raise KernelError: see errno."""
        require_intx(opened.device)
        self.opened = opened
        self.hand_overs = 0
        ids = opened.function.ids.value
        self.card = card_for(ids.vendor, ids.device) if ids else None
        self.memory: mmap.mmap | None = None
        self.words = memoryview(b"").cast("I")
        self.eventfds = LineEventfds(-1, -1)
        self._config = -1
        try:
            if self.card is not None:
                opened.enable_memory()
                self.memory = opened.map_bar(self.card.bar)
                self.words = memoryview(self.memory).cast("I")
            self._config = _open_config(root, opened)
            self.eventfds = LineEventfds(eventfd.create(), eventfd.create())
        except BaseException:
            self.close()
            raise
        self.asserter = self._asserter()
        self.asserter.prepare()

    def _asserter(self) -> Asserter:
        if self.card is None:
            return SoftwareAsserter(self.opened.device)
        return CardAsserter(self.card, MemoryRegisters(self.words))

    @property
    def schemes(self) -> tuple[Scheme, ...]:
        """The schemes that this line can be wired with: ``trap`` needs registers that the guest touches."""
        return _REAL_SCHEMES if self.card is not None else _REAL_SCHEMES[:2]

    def guest(self, gsi: int) -> GuestParameters:
        """The guest whose handler knows how to quiet this card."""
        if self.card is None:
            return GuestParameters(gsi=gsi, quiet=Quiet.NEVER)
        status, acknowledge = BAR_ADDRESS + self.card.status, BAR_ADDRESS + self.card.acknowledge
        return GuestParameters(gsi=gsi, quiet=self.card.quiet, status=status, acknowledge=acknowledge)

    def ends(self, gsi: int) -> Ends:
        """The line as a scheme takes it."""
        size = len(self.words) * 4
        registers = MemoryRegisters(self.words) if self.card is not None else None
        return Ends(gsi, self.eventfds.trigger, self.eventfds.resample, BAR_ADDRESS, size, registers)

    def show_registers(self, machine: Machine) -> None:
        """Map the BAR into the guest as memory, so that its accesses go to the card and nowhere else."""
        if self.memory is not None:
            machine.map_memory(BAR_ADDRESS, self.memory, len(self.words) * 4)

    def physical(self) -> tuple[int, int]:
        """Command and Status as the hardware holds them. :raise KernelError: the function is gone."""
        try:
            raw = os.pread(self._config, 4, PCI_COMMAND)
        except OSError as error:
            raise KernelError("pread", f"config of {self.opened.device.name}", error.errno or 0) from error
        return int.from_bytes(raw[:2], "little"), int.from_bytes(raw[2:], "little")

    def is_at_rest(self) -> bool:
        """Whether the card is quiet and its line open: what was asserted has been heard, served and acknowledged.

        A card that cannot mask itself is masked at the host's irqchip, which is not seen here: then "quiet" is all.
        The software trigger leaves no trace in the card, so with it this is always true.
        """
        command, status = self.physical()
        return not (command & PCI_COMMAND_INTX_DISABLE or status & PCI_STATUS_INTERRUPT)

    def reset(self) -> None:
        """Quiet the card and open its line by force."""
        self.asserter.silence()
        self.opened.device.set_irqs(vfio.UNMASK)
        self.asserter.prepare()

    def drain(self) -> None:
        """Forget what the eventfds still hold. Between two wirings only."""
        eventfd.drain(self.eventfds.trigger)
        eventfd.drain(self.eventfds.resample)

    def close(self) -> None:
        """Keep the card quiet and give everything but the device back. Harmless when done twice."""
        if len(self.words):
            self._asserter().silence()
        self.words.release()
        self.words = memoryview(b"").cast("I")
        if self.memory is not None:
            self.memory.close()
            self.memory = None
        close_all(self._config, self.eventfds.trigger, self.eventfds.resample)
        self._config, self.eventfds = -1, LineEventfds(-1, -1)

    def __enter__(self) -> RealLine:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()


def _open_config(root: HostRoot, opened: OpenDevice) -> int:
    path = root.pci_device(opened.function.bdf) / "config"
    try:
        return os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise KernelError("open", f"config of {opened.function.bdf}", error.errno or 0) from error
