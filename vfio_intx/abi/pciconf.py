"""PCI configuration space, decoded: numbers and layout as in ``include/uapi/linux/pci_regs.h``; pure."""

from __future__ import annotations

import struct
from typing import NamedTuple

from vfio_intx.names import Pin

PCI_COMMAND = 0x04
PCI_COMMAND_MEMORY = 0x0002
PCI_COMMAND_MASTER = 0x0004
PCI_COMMAND_INTX_DISABLE = 0x0400
PCI_STATUS = 0x06
PCI_STATUS_INTERRUPT = 0x0008
PCI_STATUS_CAP_LIST = 0x0010
PCI_REVISION_ID = 0x08
PCI_HEADER_TYPE = 0x0E
PCI_HEADER_TYPE_MASK = 0x7F
PCI_HEADER_TYPE_NORMAL = 0
PCI_HEADER_TYPE_BRIDGE = 1
PCI_CAPABILITY_LIST = 0x34
PCI_INTERRUPT_LINE = 0x3C
PCI_INTERRUPT_PIN = 0x3D
PCI_STD_HEADER_SIZEOF = 0x40

PCI_CAP_ID_PM = 0x01
PCI_CAP_ID_MSI = 0x05
PCI_CAP_ID_PCIX = 0x07
PCI_CAP_ID_EXP = 0x10
PCI_CAP_ID_MSIX = 0x11
PCI_CAP_ID_AF = 0x13

PCI_MSI_FLAGS = 2
PCI_MSI_FLAGS_ENABLE = 0x0001
PCI_MSIX_FLAGS = 2
PCI_MSIX_FLAGS_ENABLE = 0x8000

_PINS = {int(pin): pin for pin in Pin}
#: The capability list lives above the header, each entry on a 4-byte boundary: a longer list has a loop in it.
_MOST_CAPABILITIES = (256 - PCI_STD_HEADER_SIZEOF) // 4


class _Bytes(NamedTuple):
    raw: bytes


class ConfigSpace(_Bytes):
    """The first 64 or 256 bytes of a function's configuration space, as read at one moment.

    The kernel gives a process without CAP_SYS_ADMIN the first 64 bytes only (``pci_read_config`` in
    drivers/pci/pci-sysfs.c): :attr:`has_capabilities` then says that the capability list could not be seen.

    :ivar raw: at least 64 bytes.
    """

    __slots__ = ()

    def __new__(cls, raw: bytes) -> ConfigSpace:
        """A configuration space of these bytes. :raise ValueError: if they are fewer than 64."""
        if len(raw) < PCI_STD_HEADER_SIZEOF:
            raise ValueError("a configuration space has at least 64 bytes")
        return super().__new__(cls, raw)

    def _u16(self, offset: int) -> int:
        return int(struct.unpack_from("<H", self.raw, offset)[0])

    @property
    def is_dead(self) -> bool:
        """Whether the function answers all ones: it is gone, or too deep asleep to answer (never "all bits set")."""
        return self.raw[:4] == b"\xff\xff\xff\xff"

    @property
    def vendor(self) -> int:
        """The Vendor ID register."""
        return self._u16(0)

    @property
    def device(self) -> int:
        """The Device ID register."""
        return self._u16(2)

    @property
    def revision(self) -> int:
        """The Revision ID register."""
        return self.raw[PCI_REVISION_ID]

    @property
    def command(self) -> int:
        """The Command register."""
        return self._u16(PCI_COMMAND)

    @property
    def status(self) -> int:
        """The Status register."""
        return self._u16(PCI_STATUS)

    @property
    def intx_disabled(self) -> bool:
        """DisINTx, Command bit 10: the function may not assert INTx."""
        return bool(self.command & PCI_COMMAND_INTX_DISABLE)

    @property
    def intx_asserted(self) -> bool:
        """Interrupt Status, bit 3: the function has an interrupt pending, whether or not DisINTx lets it out."""
        return bool(self.status & PCI_STATUS_INTERRUPT)

    @property
    def header_type(self) -> int:
        """The layout of the header: 0 an ordinary function, 1 a PCI bridge, 2 a CardBus bridge."""
        return self.raw[PCI_HEADER_TYPE] & PCI_HEADER_TYPE_MASK

    @property
    def raw_pin(self) -> int:
        """The Interrupt Pin register: 0 no INTx, 1 to 4 a pin, else nonsense (255: asleep, or left so by firmware)."""
        return self.raw[PCI_INTERRUPT_PIN]

    @property
    def pin(self) -> Pin | None:
        """The pin that the function drives; None if it says that it has none, or says nonsense."""
        return _PINS.get(self.raw[PCI_INTERRUPT_PIN])

    @property
    def interrupt_line(self) -> int:
        """The Interrupt Line register: what the firmware wrote there; the kernel's own number is in sysfs ``irq``."""
        return self.raw[PCI_INTERRUPT_LINE]

    @property
    def has_capabilities(self) -> bool:
        """Whether the capability list could be read (or is known to be empty)."""
        return len(self.raw) >= 256 or not self.status & PCI_STATUS_CAP_LIST

    def capabilities(self) -> tuple[tuple[int, int], ...]:
        """(id, offset) of each capability in list order; a broken or looping list ends where it breaks."""
        if self.is_dead or not self.status & PCI_STATUS_CAP_LIST:
            return ()
        found: list[tuple[int, int]] = []
        offset = self.raw[PCI_CAPABILITY_LIST] & 0xFC
        while PCI_STD_HEADER_SIZEOF <= offset <= len(self.raw) - 4 and len(found) < _MOST_CAPABILITIES:
            if self.raw[offset] == 0xFF:
                break
            found.append((self.raw[offset], offset))
            offset = self.raw[offset + 1] & 0xFC
        return tuple(found)

    def capability(self, wanted: int) -> int | None:
        """The offset of the first capability of that id, None where there is none (or none could be seen)."""
        return next((offset for found, offset in self.capabilities() if found == wanted), None)

    @property
    def msi_enabled(self) -> bool:
        """Whether MSI or MSI-X is switched on now, so that INTx is silent (PCI 3.0, 6.8.1.3)."""
        msi, msix = self.capability(PCI_CAP_ID_MSI), self.capability(PCI_CAP_ID_MSIX)
        return bool(
            (msi is not None and self._u16(msi + PCI_MSI_FLAGS) & PCI_MSI_FLAGS_ENABLE)
            or (msix is not None and self._u16(msix + PCI_MSIX_FLAGS) & PCI_MSIX_FLAGS_ENABLE)
        )
