"""One line of a running VM, as ``attach`` and ``status`` report it."""

from __future__ import annotations

from enum import Enum

import msgspec

from vfio_intx.chain.evidence import Verdict
from vfio_intx.chain.scheme import Scheme
from vfio_intx.names import Bdf, Gsi, escape
from vfio_intx.qemu.intx_state import IntxState
from vfio_intx.qemu.irqchip import IrqchipKind
from vfio_intx.wiring import told
from vfio_intx.wiring.verify import HostLine, Window


class Uptake(Enum):
    """How far the guest has got with a device."""

    UNKNOWN = "unknown"
    """QEMU could not be asked."""
    ABSENT = "absent"
    """Not in the guest's PCI tree (yet)."""
    SEEN = "seen"
    """In the tree; no driver has enabled it, so its BARs answer at no address (``pci_bar_address`` in hw/pci/pci.c)."""
    PROGRAMMED = "programmed"
    """A driver has enabled it: its BARs answer."""
    LISTENING = "listening"
    """Also, the guest has unmasked its interrupt: a driver has requested it (or another device shares it)."""


class LineReport(msgspec.Struct, frozen=True):
    """What is known of one line. Unknown things are None, and ``notes`` say why.

    :ivar device_id: QEMU's id of the device, None where the command line gave it none.
    :ivar guest_address: bus, slot and function in the guest.
    :ivar configured: the scheme that QEMU's options ask for; ``verdict`` has what is proven to run.
    :ivar gsi: confirmed by an unmasked level pin, never only computed.
    :ivar qemu_interrupts: how often QEMU itself raised that GSI since it started.
    :ivar told: what a QEMU with our series says of the line, None of a stock one.
    """

    bdf: Bdf
    device_id: str | None
    guest_address: str | None
    uptake: Uptake
    irqchip: IrqchipKind | None
    configured: Scheme | None
    gsi: Gsi | None
    host: HostLine | None
    qemu_interrupts: int | None
    window: Window | None
    verdict: Verdict
    notes: tuple[str, ...] = ()
    told: IntxState | None = None

    def as_json(self) -> dict[str, object]:
        """The line for programs; the shape of the ``lines`` of ``vfio-intx/status/1`` and of ``vfio-intx/attach/1``."""
        window = self.window
        return {
            "device": str(self.bdf),
            "id": self.device_id,
            "guest_address": self.guest_address,
            "guest": self.uptake.value,
            "irqchip": None if self.irqchip is None else self.irqchip.value,
            "gsi": self.gsi,
            "configured": None if self.configured is None else self.configured.value,
            "scheme": None if self.verdict.scheme is None else self.verdict.scheme.value,
            "proven": self.verdict.proven,
            "why_not_proven": self.verdict.why_not,
            "evidence": [
                {
                    "kind": item.kind.value,
                    "text": item.text,
                    "speaks_for": None if item.speaks_for is None else item.speaks_for.value,
                }
                for item in self.verdict.evidence
            ],
            "host_irq": None if self.host is None else self.host.irq,
            "host_interrupts": None if self.host is None else self.host.count,
            "host_shared_with": [] if self.host is None else [escape(name) for name in self.host.others],
            "qemu_interrupts": self.qemu_interrupts,
            "window": None
            if window is None
            else {"seconds": round(window.seconds, 3), "host": window.host, "qemu": window.qemu},
            "told": None if self.told is None else told.as_json(self.told),
            "notes": list(self.notes),
        }

    def in_words(self) -> list[str]:
        """The line for people: the verdict first, then what it rests on."""
        scheme = "" if self.verdict.scheme is None else self.verdict.scheme.value
        first = f"{self.bdf}: {scheme}, proven" if self.verdict.proven else f"{self.bdf}: {self._asked()}not proven"
        words = [first]
        if self.verdict.why_not:
            words.append(f"  because {self.verdict.why_not}")
        words += [
            f"  {item.kind.value}: {item.text}"
            + (f" -> {item.speaks_for.value}" if item.speaks_for is not None else "")
            for item in self.verdict.evidence
        ]
        words.append(f"  guest: {self.guest_address or 'address unknown'}, {self.uptake.value}, {self._gsi_words()}")
        if self.host is not None:
            shared = f", shared with {', '.join(self.host.others)}" if self.host.others else ""
            words.append(f"  host: IRQ {self.host.irq}, {self.host.count} interrupts since boot{shared}")
        if self.told is not None:
            words += [f"  QEMU: {text}" for text in told.in_words(self.told)]
        words += [f"  note: {note}" for note in self.notes]
        return [escape(text) for text in words]  # evidence and notes name what QEMU named

    def _asked(self) -> str:
        return "scheme " if self.configured is None else f"{self.configured.value} configured, "

    def _gsi_words(self) -> str:
        return "GSI unknown" if self.gsi is None else f"GSI {self.gsi}"
