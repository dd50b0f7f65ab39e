"""What a lab is made of: frozen descriptions, checked when they are made, that say nothing of how it is booted.

L1 is the lab's host (q35, emulated SVM and Intel IOMMU); L2 is a guest in it. A card of L1 is what gets passed through.

* Cards of one slot modulo 4 on L1's root bus share one host IRQ (slots 0x10 and 0x14, say), the others do not.
* A card behind a bridge names the bridge's ``name`` as its ``bus``.
* Module parameters go on the kernel's command line: ``vfio_pci.nointxmask=1`` plays a card from before PCI 2.3.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

from vfio_intx.names import Bdf

#: virtme-ng puts its own devices into the low slots of L1's root bus.
FIRST_FREE_SLOT = 0x10
#: 0x1f is the q35 chipset.
LAST_FREE_SLOT = 0x1E

#: ``struct sockaddr_un`` holds 108 bytes with the terminating zero.
LONGEST_SOCKET_PATH = 107

_NAME = re.compile(r"[a-z][a-z0-9-]{0,30}")
_MODEL = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,40}")


@dataclass(frozen=True, slots=True)
class UserNetwork:
    """QEMU's built-in network, cut off from the machine's own: only its gateway ``10.0.NUMBER.2`` answers.

    :ivar number: two cards of one guest need two networks, hence two numbers.
    """

    number: int = 2

    @property
    def gateway(self) -> str:
        """The address that answers pings."""
        return f"10.0.{self.number}.2"

    @property
    def address(self) -> str:
        """An address for the guest's end, with prefix length."""
        return f"10.0.{self.number}.15/24"


@dataclass(frozen=True, slots=True)
class FrameSocket:
    """Ethernet frames over a unix stream socket ``NAME.sock`` in the results folder; QEMU listens.

    Each frame is preceded by its length, 4 bytes, big endian.
    """

    name: str


@dataclass(frozen=True, slots=True)
class SerialSocket:
    """A serial card's line as a unix stream socket ``NAME.sock`` in the results folder; QEMU listens."""

    name: str


Backend: TypeAlias = UserNetwork | FrameSocket | SerialSocket | None


@dataclass(frozen=True, slots=True)
class Card:
    """One emulated PCI function of L1.

    :ivar model: QEMU's device name (``e1000``, ``pci-serial``, ``pci-bridge``).
    :ivar slot: its slot on L1's root bus, 0x10 to 0x1e, or on *bus*, where any slot will do.
    :ivar options: further ``name=value`` properties of the device.
    :ivar bus: the ``name`` of the bridge it sits behind, None for the root bus.
    :ivar name: its QEMU id; made from model and slot where none is given.
    """

    model: str
    slot: int
    options: tuple[str, ...] = ()
    backend: Backend = None
    bus: str | None = None
    name: str = ""

    def __post_init__(self) -> None:
        if not _MODEL.fullmatch(self.model):
            raise ValueError(f"{self.model!r} is not the name of a QEMU device")
        least, most = (FIRST_FREE_SLOT, LAST_FREE_SLOT) if self.bus is None else (0, 0x1F)
        if not least <= self.slot <= most:
            raise ValueError(f"slot {self.slot:#x} of {self.model} is not in {least:#x} to {most:#x}")
        if any("=" not in option or "," in option for option in self.options):
            raise ValueError(f"the options of {self.model} are name=value, one an item")
        if not self.name:
            object.__setattr__(self, "name", f"card-{self.bus or 'root'}-{self.slot:02x}")
        if not _NAME.fullmatch(self.name):
            raise ValueError(f"{self.name!r} is not a name: small letters, digits and dashes")

    @property
    def bdf(self) -> Bdf:
        """Its address in L1, for a card of the root bus; behind a bridge the kernel numbers the bus."""
        if self.bus is not None:
            raise ValueError(f"{self.name} is behind {self.bus}: its bus number is only known in L1")
        return Bdf(0, 0, self.slot, 0)


@dataclass(frozen=True, slots=True)
class LabSpec:
    """A lab host.

    :ivar kernel: a name of :data:`vfio_intx.lab.kernels.NAMES`.
    :ivar cards: in the order QEMU makes them; a bridge before what sits behind it.
    :ivar cpus: leave it at 1: under TCG two vCPUs race while the kernel patches its own code, and L1 dies of it;
        where a scenario needs two, it holds an idle VM open from start to end.
    :ivar kernel_arguments: words added to L1's command line.
    :ivar qemu: what L1 runs in: a base of ``tools/build-qemu``, empty for the machine's own QEMU.
    """

    kernel: str
    cards: tuple[Card, ...] = ()
    memory_mib: int = 3072
    cpus: int = 1
    kernel_arguments: tuple[str, ...] = ()
    qemu: str = ""

    def __post_init__(self) -> None:
        seen: set[str] = set()
        for card in self.cards:
            if card.name in seen:
                raise ValueError(f"two cards are named {card.name}")
            if card.bus is not None and card.bus not in seen:
                raise ValueError(f"{card.name} sits behind {card.bus}, which does not come before it")
            seen.add(card.name)
        if any(not word or word.split() != [word] for word in self.kernel_arguments):
            raise ValueError("each kernel argument is one word")

    def card(self, name: str) -> Card:
        """The card of that name. :raise KeyError: if there is none."""
        for card in self.cards:
            if card.name == name:
                return card
        raise KeyError(name)


def socket_path(results_dir: Path, name: str) -> Path:
    """Where the socket of a backend lies. :raise ValueError: if the path does not fit into a ``sockaddr_un``."""
    if not _NAME.fullmatch(name):
        raise ValueError(f"{name!r} is not a name: small letters, digits and dashes")
    path = results_dir / f"{name}.sock"
    if len(str(path).encode()) > LONGEST_SOCKET_PATH:
        raise ValueError(f"{path} is longer than the {LONGEST_SOCKET_PATH} bytes of a socket's path")
    return path
