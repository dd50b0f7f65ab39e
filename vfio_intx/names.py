"""The names of things, parsed once at the edge: past this module a ``str`` is never a BDF.

Every parser takes the whole string (``fullmatch``), ASCII only, of bounded length, and raises
:class:`~vfio_intx.errors.UsageError` with the forms it takes. None of them touches the machine.
"""

from __future__ import annotations

import re
from enum import IntEnum
from typing import NamedTuple, NewType

from vfio_intx.errors import UsageError

_HEX = "[0-9a-fA-F]"
#: 0000:05:00.0 and 05:00.0, the former also behind "pci/"; or pci_0000_05_00_0.
_BDF = re.compile(
    rf"(?:(?:pci/)?({_HEX}{{4,8}}):)?({_HEX}{{2}}):({_HEX}{{2}})\.([0-7])"
    rf"|pci_({_HEX}{{4,8}})_({_HEX}{{2}})_({_HEX}{{2}})_([0-7])"
)
#: Some have blanks in them ("cx88-mpeg driver manager"); what a path or a quoted shell word would trip on is out.
_DRIVER = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9 _.,:()+-]{0,61}[A-Za-z0-9_()+-])?")
_LONGEST = 64

Gsi = NewType("Gsi", int)
"""A guest's global system interrupt number: the pin of the guest's irqchip that a line is raised on."""

HostIrq = NewType("HostIrq", int)
"""A Linux IRQ number of the host, as in ``/proc/interrupts``."""

IommuGroup = NewType("IommuGroup", int)
"""The number of a group under ``/sys/kernel/iommu_groups``."""


class Pin(IntEnum):
    """The Interrupt Pin register (PCI Local Bus 3.0, 6.2.4): which of a slot's four lines a function drives."""

    A = 1
    B = 2
    C = 3
    D = 4


class Bdf(NamedTuple):
    """The address of a PCI function: domain, bus, slot (device) and function."""

    domain: int
    bus: int
    slot: int
    function: int

    @classmethod
    def parse(cls, text: str) -> Bdf:
        """A BDF from ``0000:05:00.0``, ``05:00.0``, ``pci_0000_05_00_0`` or ``pci/0000:05:00.0``.

        :raise UsageError: for anything else, including a slot above 1f and trailing white space.
        """
        found = cls.maybe(text)
        if found is None:
            raise UsageError(
                f"{text[:_LONGEST]!r} is not a PCI address",
                hint="write it as 0000:05:00.0, 05:00.0, pci_0000_05_00_0 or pci/0000:05:00.0 (the slot at most 1f); "
                "lspci -D lists them",
            )
        return found

    @classmethod
    def maybe(cls, text: str) -> Bdf | None:
        """As :meth:`parse`, but None where *text* is no PCI address: for names that the kernel chose."""
        match = _BDF.fullmatch(text) if len(text) <= _LONGEST else None
        if match is None:
            return None
        parts = match.groups()[:4] if match[2] is not None else match.groups()[4:]
        domain, bus, slot, function = (int(part or "0", 16) for part in parts)
        return cls(domain, bus, slot, function) if slot <= 0x1F else None

    def __str__(self) -> str:
        return f"{self.domain:04x}:{self.bus:02x}:{self.slot:02x}.{self.function}"


def parse_driver(text: str) -> str:
    """A kernel driver's name, safe as a path component. :raise UsageError: if it is not one."""
    if len(text) > _LONGEST or not _DRIVER.fullmatch(text):
        raise UsageError(f"{text[:_LONGEST]!r} is not the name of a kernel driver")
    return text


def parse_natural(text: str, what: str, *, least: int = 0, most: int = 2**31 - 1) -> int:
    """A decimal number within bounds, ASCII digits only. :raise UsageError: naming *what* and the bounds."""
    if len(text) <= 12 and re.fullmatch(r"[0-9]+", text) and least <= int(text) <= most:
        return int(text)
    raise UsageError(f"{what} must be a whole number from {least} to {most}, not {text[:_LONGEST]!r}")


def escape(text: str) -> str:
    """*text* with every control character and unpaired surrogate written as an escape, fit for a terminal.

    For words of strangers (QEMU's replies, kernel log lines): no byte of theirs moves the cursor.
    """
    if text.isprintable():  # nearly all are, and a kernel log has thousands
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape", "surrogatepass").decode("ascii") for c in text)
