"""An IOAPIC in userspace, as far as one needs it beside KVM's split irqchip.

KVM injects what the redirection entries say through MSI routes; the entries live here. A level entry's route carries
the level bit, and its EOI comes back as ``KVM_EXIT_IOAPIC_EOI``. Registers: Intel 82093AA, 3.2.
"""

from __future__ import annotations

from vfio_intx.abi.kvm import IOAPIC_PINS, MsiRoute

#: Where a PC has it.
ADDRESS = 0xFEC0_0000
_SELECT, _WINDOW = 0x00, 0x10
_VERSION_REGISTER = 1
_VERSION = 0x20 | IOAPIC_PINS - 1 << 16
_FIRST_ENTRY = 0x10
_MASKED = 1 << 16
_LEVEL = 1 << 15


class UserspaceIoapic:
    """Redirection entries behind the two windows of an IOAPIC. Not thread-safe: one vCPU, one thread."""

    def __init__(self) -> None:
        self._selected = 0
        self._halves = [_MASKED, 0] * IOAPIC_PINS

    def read(self, offset: int) -> int:
        """A 32-bit read at *offset* from the IOAPIC's address; unknown registers read as 0."""
        if offset == _SELECT:
            return self._selected
        if offset != _WINDOW:
            return 0
        if self._selected == _VERSION_REGISTER:
            return _VERSION
        place = self._selected - _FIRST_ENTRY
        return self._halves[place] if 0 <= place < len(self._halves) else 0

    def write(self, offset: int, value: int) -> bool:
        """A 32-bit write; whether a redirection entry was written, so that the routes have to be renewed."""
        if offset == _SELECT:
            self._selected = value & 0xFF
            return False
        place = self._selected - _FIRST_ENTRY
        if offset != _WINDOW or not 0 <= place < len(self._halves):
            return False
        self._halves[place] = value
        return True

    def routes(self) -> list[MsiRoute]:
        """The MSI route of every pin that is not masked, GSI being the pin's number."""
        return [
            MsiRoute(pin, low & 0xFF, level=bool(low & _LEVEL), destination=self._halves[2 * pin + 1] >> 24)
            for pin in range(IOAPIC_PINS)
            if not (low := self._halves[2 * pin]) & _MASKED
        ]

    def level_pins(self, vector: int) -> list[int]:
        """The unmasked level pins that deliver *vector*: those whose interrupt an EOI ends."""
        return [route.gsi for route in self.routes() if route.level and route.vector == vector]
