"""The replies of QEMU that we use, parsed once: types checked, sizes bounded, everything else refused.

A reply is a stranger's data. :func:`parse` turns it into a frozen struct or raises
:class:`~vfio_intx.errors.PeerGarbage`; members that we do not use are ignored, as the protocol demands of clients.
Field names are those of QEMU's QAPI schema (``qapi/pci.json``, ``qom.json``, ``machine.json``, ``run-state.json``).
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Annotated, TypeVar

import msgspec
from msgspec import Meta

from vfio_intx.errors import PeerGarbage
from vfio_intx.names import escape

T = TypeVar("T")

#: Longest text that a monitor command may answer with, in characters; ``info qtree`` of a big machine is 100 KiB.
LONGEST_TEXT = 4 << 20
_LONGEST_NAME = 4096
#: msgspec (0.22) finds out about a struct when it meets it first, running Python code while other threads can see what
#: is half done; one that used it then died of SIGSEGV. Many VMs are asked at once.
_ONE_AT_A_TIME = threading.Lock()
_MOST_ITEMS = 65536

Name = Annotated[str, Meta(max_length=_LONGEST_NAME)]
Text = Annotated[str, Meta(max_length=LONGEST_TEXT)]
Byte = Annotated[int, Meta(ge=0, le=255)]
Slot = Annotated[int, Meta(ge=0, le=31)]
Function = Annotated[int, Meta(ge=0, le=7)]
PinNumber = Annotated[int, Meta(ge=0, le=4)]


class PciRegion(msgspec.Struct, frozen=True):
    """One BAR. ``address`` is -1 while nobody has programmed it."""

    bar: Byte
    address: int
    size: int
    type: Name

    @property
    def is_programmed(self) -> bool:
        """Whether the guest has given the BAR an address."""
        return self.address not in (-1, 0)


class PciBus(msgspec.Struct, frozen=True):
    """The numbers of a bridge's secondary bus, all 0 while nobody has numbered it."""

    secondary: Byte


class PciBridge(msgspec.Struct, frozen=True):
    """The downstream side of a bridge."""

    bus: PciBus
    devices: Annotated[list[PciDevice], Meta(max_length=_MOST_ITEMS)] = []


class PciDevice(msgspec.Struct, frozen=True):
    """One function of the guest's PCI tree, from ``query-pci``. ``irq`` is its Interrupt Line register."""

    bus: Annotated[int, Meta(ge=0, le=2**31)]
    slot: Slot
    function: Function
    qdev_id: Name
    regions: Annotated[list[PciRegion], Meta(max_length=16)]
    irq_pin: PinNumber = 0
    irq: Byte | None = None
    pci_bridge: PciBridge | None = None

    @property
    def address(self) -> str:
        """Bus, slot and function as the guest writes them."""
        return f"{self.bus:02x}:{self.slot:02x}.{self.function}"


class PciRoot(msgspec.Struct, frozen=True):
    """One root bus of ``query-pci``."""

    bus: Annotated[int, Meta(ge=0, le=2**31)]
    devices: Annotated[list[PciDevice], Meta(max_length=_MOST_ITEMS)]


class QomProperty(msgspec.Struct, frozen=True):
    """One line of ``qom-list`` or ``device-list-properties``."""

    name: Name
    type: Name

    @property
    def child_type(self) -> str | None:
        """The type of the child object that this is, or None where it is a plain property."""
        return self.type[6:-1] if self.type.startswith("child<") and self.type.endswith(">") else None


class CommandInfo(msgspec.Struct, frozen=True):
    """One line of ``query-commands``."""

    name: Name


class RunState(msgspec.Struct, frozen=True):
    """``query-status``: the state's name, and whether the vCPUs run."""

    status: Name
    running: bool


class VmName(msgspec.Struct, frozen=True):
    """``query-name``; None where the VM was started without one."""

    name: Name | None = None


class KvmInfo(msgspec.Struct, frozen=True):
    """``query-kvm``: whether this VM runs on KVM."""

    enabled: bool


class Cpu(msgspec.Struct, frozen=True):
    """One line of ``query-cpus-fast``."""

    qom_path: Name = msgspec.field(name="qom-path")


class HumanReadable(msgspec.Struct, frozen=True):
    """What the ``x-query-…`` commands answer with."""

    text: Text = msgspec.field(name="human-readable-text")


PciTree = Annotated[list[PciRoot], Meta(max_length=256)]
Properties = Annotated[list[QomProperty], Meta(max_length=_MOST_ITEMS)]
Commands = Annotated[list[CommandInfo], Meta(max_length=_MOST_ITEMS)]
Cpus = Annotated[list[Cpu], Meta(max_length=_MOST_ITEMS)]


def parse(reply: object, wanted: type[T], command: str, peer: str) -> T:
    """*reply* as a value of type *wanted*.

    :param command: the command it answers and *peer* the name of the monitor, for the message.
    :raise PeerGarbage: where the reply has another shape, saying which member is wrong.
    """
    try:
        with _ONE_AT_A_TIME:
            return msgspec.convert(reply, wanted, strict=True)
    except (msgspec.ValidationError, RecursionError) as error:
        detail = escape(str(error))[:200]
        raise PeerGarbage(
            f"{peer} answered {command} with something else than the protocol allows: {detail}",
            hint="check that this socket is a QMP monitor of QEMU, and not something else",
        ) from error


def functions(roots: list[PciRoot]) -> Iterator[tuple[PciDevice, tuple[PciDevice, ...]]]:
    """Every function below some roots, each with the bridges above it, the outermost first."""
    waiting: list[tuple[PciDevice, tuple[PciDevice, ...]]] = [(one, ()) for root in roots for one in root.devices]
    while waiting:
        device, bridges = waiting.pop(0)
        yield device, bridges
        if device.pci_bridge is not None:
            waiting.extend((below, (*bridges, device)) for below in device.pci_bridge.devices)
