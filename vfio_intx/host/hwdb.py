"""What a card is called: by udev's record of it, else by the ``pci.ids`` file."""

from __future__ import annotations

from collections.abc import Iterator

from vfio_intx.chain.fact import Fact
from vfio_intx.host.pci import PciIds
from vfio_intx.host.root import HostRoot, read_text
from vfio_intx.names import Bdf, escape

_PCI_IDS = ("usr/share/misc/pci.ids", "usr/share/hwdata/pci.ids")
_LONGEST_NAME = 160


def hardware_name(root: HostRoot, bdf: Bdf, ids: PciIds) -> Fact[str]:
    """Vendor and model in words, for people only; unknown where no database is installed or it has no such card."""
    record = read_text(root.file("run/udev/data", f"+pci:{bdf}"), root=root)
    known = _from_udev(record.value or "")
    if known:
        return Fact.known(known, record.source)
    for name in _PCI_IDS:
        text = read_text(root.file(name), root=root)
        found = _from_pci_ids(text.value, ids) if text.value is not None else ""
        if found:
            return Fact.known(found, text.source)
    return Fact.unknown(record.source, "no hardware database knows it")


def _from_udev(text: str) -> str:
    fields = dict(line[2:].split("=", 1) for line in text.splitlines() if line.startswith("E:") and "=" in line)
    words = (fields.get(f"ID_{part}_FROM_DATABASE", "") for part in ("VENDOR", "MODEL"))
    return escape(" ".join(word for word in words if word))[:_LONGEST_NAME]


def _from_pci_ids(text: str, ids: PciIds) -> str:
    # A vendor's line starts in the first column, its devices' with one tab, their subsystems' with two.
    lines = iter(text.splitlines())
    vendor = _after(lines, f"{ids.vendor:04x}  ")
    if vendor is None:
        return ""
    for line in lines:
        if not line.startswith(("\t", "#")):
            break
        if line.startswith(f"\t{ids.device:04x}  "):
            return escape(f"{vendor} {line[7:].strip()}")[:_LONGEST_NAME]
    return escape(vendor)[:_LONGEST_NAME]


def _after(lines: Iterator[str], start: str) -> str | None:
    return next((line[len(start) :].strip() for line in lines if line.startswith(start)), None)
