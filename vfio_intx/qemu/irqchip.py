"""What QEMU says of its interrupt controllers: pure parsers of ``info pic`` and ``info irq``.

The texts come from ``hw/intc/ioapic_common.c`` (``ioapic_print_redtbl``) and ``hw/intc/i8259_common.c``; the state of
an in-kernel irqchip is fetched from KVM before it is printed. ``x-query-interrupt-controllers`` and ``x-query-irq``
give the same texts. A pin's fields are taken from the printed 64-bit redirection entry (82093AA datasheet, 3.2.4), not
from the words beside it, whose wording has changed.
"""

from __future__ import annotations

import re
from enum import Enum

import msgspec

from vfio_intx.errors import PeerGarbage

KERNEL_IOAPIC_VERSION = 0x11
"""KVM's IOAPIC."""
QEMU_IOAPIC_VERSION = 0x20
"""QEMU's own IOAPIC, on machines since 2.8; an older machine type has 0x11 too, so ``info irq`` decides."""

_MASKED, _LEVEL, _REMOTE_IRR = 1 << 16, 1 << 15, 1 << 14
_MOST_LINES = 4096

_IOAPIC = re.compile(r"ioapic(?P<number>[0-9]{1,3}): ver=0x(?P<version>[0-9a-f]{1,2})\b.*")
_PIN = re.compile(r"\s*pin (?P<pin>[0-9]{1,3})\s+0x(?P<entry>[0-9a-f]{16})\b.*")
# Each way to read it takes one path through a line: a stranger's line of a million spaces must not take an hour.
_SET = re.compile(r"\s*(?P<which>IRR|Remote IRR)\s+(?P<pins>\(none\)|[0-9]{1,3}(?: +[0-9]{1,3})*)\s*")
_PIC = re.compile(
    r"pic(?P<number>[01]): irr=(?P<irr>[0-9a-f]{2}) imr=(?P<imr>[0-9a-f]{2}) isr=(?P<isr>[0-9a-f]{2}) .*"
    r"elcr=(?P<elcr>[0-9a-f]{2})\b.*"
)
_TITLE = re.compile(r"IRQ statistics for (?P<controller>[A-Za-z0-9_.-]{1,64}):")
_COUNT = re.compile(r"\s*(?P<gsi>[0-9]{1,4}): (?P<count>[0-9]{1,20})")


class IrqchipKind(Enum):
    """Where the interrupt controllers of a VM live."""

    KERNEL = "kernel"
    """PIC, IOAPIC and LAPIC in KVM (``kernel-irqchip=on``): a resample irqfd is possible."""
    SPLIT = "split"
    """Only the LAPIC in KVM (``kernel-irqchip=split``)."""
    USERSPACE = "userspace"
    """All in QEMU: TCG, or ``kernel-irqchip=off``."""


class IoapicPin(msgspec.Struct, frozen=True):
    """One redirection entry. ``raised`` is the pin's bit in IRR: the line is up, whatever the mask says."""

    number: int
    vector: int
    level: bool
    masked: bool
    remote_irr: bool
    raised: bool


class Ioapic(msgspec.Struct, frozen=True):
    """One IOAPIC; pin *n* of the first one is GSI *n* on every x86 machine of QEMU."""

    version: int
    pins: tuple[IoapicPin, ...]


class Pic(msgspec.Struct, frozen=True):
    """One 8259; ``number`` 0 has IRQ 0-7, ``number`` 1 has IRQ 8-15. The others are its registers."""

    number: int
    irr: int
    imr: int
    isr: int
    elcr: int


class Controllers(msgspec.Struct, frozen=True):
    """``info pic``: what the guest has programmed and what is pending."""

    ioapics: tuple[Ioapic, ...]
    pics: tuple[Pic, ...]

    def ioapic_pin(self, gsi: int) -> IoapicPin | None:
        """The redirection entry of that GSI on the first IOAPIC, or None."""
        pins = self.ioapics[0].pins if self.ioapics else ()
        return next((pin for pin in pins if pin.number == gsi), None)

    def pic_listens(self, irq: int) -> bool:
        """Whether the PIC has *irq* (0-15) unmasked and level-triggered."""
        bit = 1 << (irq & 7)
        return any(pic.number == irq >> 3 and pic.elcr & bit and not pic.imr & bit for pic in self.pics)

    def listens(self, gsi: int) -> bool:
        """Whether the guest would take a level interrupt on *gsi* now, from the IOAPIC or the PIC."""
        pin = self.ioapic_pin(gsi)
        return (pin is not None and pin.level and not pin.masked) or (gsi < 16 and self.pic_listens(gsi))


class IrqCounts(msgspec.Struct, frozen=True):
    """``info irq``: how often QEMU itself raised each line, since it started, by controller and GSI.

    Lines that KVM raised on its own (an irqfd) are not counted: that is what makes the counts a witness.
    """

    by_controller: dict[str, dict[int, int]] = msgspec.field(default_factory=dict)

    def of(self, gsi: int) -> int:
        """Interrupts that QEMU raised on *gsi*; below 16 both IOAPIC and PIC see each, so the larger count holds."""
        return max((counts.get(gsi, 0) for counts in self.by_controller.values()), default=0)

    @property
    def gsis(self) -> frozenset[int]:
        """Every GSI that QEMU has raised at least once."""
        return frozenset(gsi for counts in self.by_controller.values() for gsi, count in counts.items() if count)

    @property
    def ioapic_in_kernel(self) -> bool | None:
        """Whether the IOAPIC is KVM's, by the controller's name; None where there is no IOAPIC."""
        names = set(self.by_controller)
        return True if "kvm-ioapic" in names else False if "ioapic" in names else None


def _lines(text: str, peer: str, command: str) -> list[str]:
    lines = text.splitlines()
    if len(lines) > _MOST_LINES:
        raise PeerGarbage(f"{peer} answered {command!r} with {len(lines)} lines")
    return lines


def parse_controllers(text: str, peer: str) -> Controllers:
    """``info pic`` or ``x-query-interrupt-controllers``; lines of other controllers are passed over.

    :raise PeerGarbage: if there is neither an IOAPIC nor a PIC in it.
    """
    ioapics: list[tuple[int, dict[int, int]]] = []
    raised: list[set[int]] = []
    pics: list[Pic] = []
    for line in _lines(text, peer, "info pic"):
        if match := _IOAPIC.fullmatch(line):
            ioapics.append((int(match["version"], 16), {}))
            raised.append(set())
        elif ioapics and (match := _PIN.fullmatch(line)):
            ioapics[-1][1][int(match["pin"])] = int(match["entry"], 16)
        elif ioapics and (match := _SET.fullmatch(line)) and match["which"] == "IRR":
            raised[-1] = set(map(int, match["pins"].split())) if match["pins"] != "(none)" else set()
        elif match := _PIC.fullmatch(line):
            pics.append(Pic(int(match["number"]), *(int(match[name], 16) for name in ("irr", "imr", "isr", "elcr"))))
    if not ioapics and not pics:
        raise PeerGarbage(f"{peer} named no interrupt controller in 'info pic'")
    found = (Ioapic(version, _pins(entries, up)) for (version, entries), up in zip(ioapics, raised, strict=True))
    return Controllers(tuple(found), tuple(pics))


def _pins(entries: dict[int, int], raised: set[int]) -> tuple[IoapicPin, ...]:
    return tuple(
        IoapicPin(
            number,
            vector=entry & 0xFF,
            level=bool(entry & _LEVEL),
            masked=bool(entry & _MASKED),
            remote_irr=bool(entry & _REMOTE_IRR),
            raised=number in raised,
        )
        for number, entry in sorted(entries.items())
    )


def parse_counts(text: str, peer: str) -> IrqCounts:
    """``info irq`` or ``x-query-irq``. A controller that was printed without counts has an empty table."""
    tables: dict[str, dict[int, int]] = {}
    current: dict[int, int] | None = None
    for line in _lines(text, peer, "info irq"):
        if match := _TITLE.fullmatch(line):
            current = tables.setdefault(match["controller"], {})
        elif current is not None and (match := _COUNT.fullmatch(line)):
            current[int(match["gsi"])] = int(match["count"])
    return IrqCounts(tables)
