"""What a card is called: by udev's hardware database (pyudev), else by the ``pci.ids`` file."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

from vfio_intx.chain.fact import Fact
from vfio_intx.host.pci import PciIds
from vfio_intx.host.root import HostRoot, read_text
from vfio_intx.names import Bdf, escape

_PCI_IDS = ("usr/share/misc/pci.ids", "usr/share/hwdata/pci.ids")
_LONGEST_NAME = 160


def hardware_name(
    root: HostRoot, bdf: Bdf, ids: PciIds, *, udev: Callable[[Bdf], Mapping[str, str]] | None = None
) -> Fact[str]:
    """Vendor and model in words, for people only; unknown where no database is installed or it has no such card.

    :param udev: what udev holds of a function; on the real host it is asked itself, elsewhere nobody is.
    """
    ask = udev or (udev_properties if not root.text else None)
    known = _in_words(ask(bdf)) if ask is not None else ""
    if known:
        return Fact.known(known, "udev's hardware database")
    source = root.file(*_PCI_IDS[0].split("/"))
    for name in _PCI_IDS:
        text = read_text(root.file(*name.split("/")), root=root)
        found = _from_pci_ids(text.value, ids) if text.value is not None else ""
        if found:
            return Fact.known(found, text.source)
    return Fact.unknown(source, "no hardware database knows it")


def udev_properties(bdf: Bdf) -> Mapping[str, str]:
    """What udev holds of a function of this machine; empty where there is no udev, or it does not know the function."""
    # Not at the top: loading it costs as much as reading the whole machine.
    try:
        import pyudev
    except ImportError:  # the library needs libudev.so.1, which a host without udev may lack
        return {}
    try:
        return dict(pyudev.Devices.from_name(pyudev.Context(), "pci", str(bdf)).properties)
    except (pyudev.DeviceNotFoundError, OSError, UnicodeDecodeError):
        return {}


def _in_words(properties: Mapping[str, str]) -> str:
    words = (properties.get(f"ID_{part}_FROM_DATABASE", "") for part in ("VENDOR", "MODEL"))
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
