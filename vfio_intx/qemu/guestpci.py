"""The PCI side of a guest, as QEMU's object tree and ``query-pci`` show it: where a device can go and what it got."""

from __future__ import annotations

import re
from typing import TypeVar

import msgspec

from vfio_intx.errors import MissingError, PeerRefused, UsageError
from vfio_intx.names import Bdf
from vfio_intx.qemu import replies
from vfio_intx.qemu.monitor import Monitor, Question, ask

_CONTAINERS = ("/machine/peripheral", "/machine/peripheral-anon")
_ID = re.compile(r"[A-Za-z][A-Za-z0-9._-]{0,62}")
T = TypeVar("T", str, bool)
_ROOT_BUS = re.compile(r"pcie?\.0")


def parse_device_id(text: str) -> str:
    """An id as QEMU takes it (``id_wellformed`` in util/id.c). :raise UsageError: if it is none."""
    if not _ID.fullmatch(text):
        raise UsageError(
            f"{text[:64]!r} is not a QEMU id",
            hint="a letter, then letters, digits, '-', '.' and '_', 63 characters at most",
        )
    return text


def default_device_id(bdf: Bdf) -> str:
    """The id that a line gets unless told otherwise; one host function has one."""
    return f"intx-{bdf.domain:04x}-{bdf.bus:02x}-{bdf.slot:02x}-{bdf.function}"


class PassedThrough(msgspec.Struct, frozen=True):
    """A vfio-pci device of a VM. ``id`` is None for one that the command line gave none."""

    path: str
    id: str | None
    host: Bdf | None


class Bus(msgspec.Struct, frozen=True):
    """A PCI bus that takes a device while the VM runs. ``port`` is True where it has room for one device only."""

    name: str
    path: str
    port: bool


def qom_list(monitor: Monitor, path: str) -> replies.Properties:
    """The members of one object. :raise PeerError: as ``execute`` does; PeerRefused where there is no such object."""
    command, arguments = list_question(path)
    return ask(monitor, command, replies.Properties, arguments)


def list_question(path: str) -> Question:
    """The question that :func:`qom_list` asks."""
    return "qom-list", {"path": path}


def get_question(path: str, name: str) -> Question:
    """The question that :func:`qom_text` and :func:`qom_flag` ask."""
    return "qom-get", {"path": path, "property": name}


def qom_text(monitor: Monitor, path: str, name: str) -> str | None:
    """One string property, None where the object has none of that name. :raise PeerError: as ``execute`` does."""
    try:
        return _get(monitor, path, name, str)
    except PeerRefused:
        return None


def qom_flag(monitor: Monitor, path: str, name: str) -> bool | None:
    """One boolean property, None where the object has none of that name. :raise PeerError: as ``execute`` does."""
    try:
        return _get(monitor, path, name, bool)
    except PeerRefused:
        return None


def _get(monitor: Monitor, path: str, name: str, wanted: type[T]) -> T:
    command, arguments = get_question(path, name)
    return ask(monitor, command, wanted, arguments)


#: What :func:`list_passed_through` asks first.
DEVICES_QUESTIONS: tuple[Question, ...] = tuple(map(list_question, _CONTAINERS))


def list_passed_through(monitor: Monitor) -> tuple[PassedThrough, ...]:
    """Every vfio-pci device of a VM. A host address that is no BDF of ours (``sysfsdev=``) is None."""
    found = [(f"{container}/{name}", container == _CONTAINERS[0], name) for container, name in _vfio_children(monitor)]
    hosts = monitor.execute_all([get_question(path, "host") for path, _, _ in found])
    return tuple(
        PassedThrough(path, name if named else None, _host_address(monitor, path, _text(monitor, said)))
        for (path, named, name), said in zip(found, hosts, strict=True)
    )


def _vfio_children(monitor: Monitor) -> list[tuple[str, str]]:
    return [
        (container, one.name)
        for container in _CONTAINERS
        for one in qom_list(monitor, container)
        if one.child_type in ("vfio-pci", "vfio-pci-nohotplug")
    ]


def _text(monitor: Monitor, said: object) -> str | None:
    return None if isinstance(said, PeerRefused) else replies.parse(said, str, "qom-get", monitor.name)


def _host_address(monitor: Monitor, path: str, host: str | None) -> Bdf | None:
    text = host or ""
    if text in ("", "ffffffff:ffff:ffff.ffffffff"):
        text = (qom_text(monitor, path, "sysfsdev") or "").rpartition("/")[2]
    try:
        return Bdf.parse(text)
    except UsageError:
        return None


def is_present(monitor: Monitor, device_id: str) -> bool:
    """Whether the VM has a device of that id, also while its unplug is under way."""
    return any(one.name == device_id for one in qom_list(monitor, _CONTAINERS[0]) if one.child_type is not None)


def find_bus(monitor: Monitor) -> Bus:
    """A bus that takes a hot-plugged device: the root bus where it does (machine ``pc``), else a free port or bridge.

    Whether a bus does is its own word: the link ``hotplug-handler`` is set. A bus below a device without an id
    cannot be named, so it is passed over.

    :raise MissingError: if there is none, saying what to start the VM with.
    """
    # A port of its own before a place on a bridge: legacy bridges swizzle the pins once more, and share them.
    buses = sorted(_buses(monitor), key=lambda bus: (not (bus.port or _ROOT_BUS.fullmatch(bus.name)), bus.name))
    candidates = [bus for bus in buses if qom_text(monitor, bus.path, "hotplug-handler")]
    for bus in candidates:
        if not bus.port or not _occupied(monitor, bus):
            return bus
    full = f"; taken already: {', '.join(bus.name for bus in candidates)}" if candidates else ""
    raise MissingError(
        f"the VM behind {monitor.name} has no PCI bus with room that takes a device while it runs{full}",
        hint="start it with -device pcie-root-port,id=rp0,chassis=1,slot=1 (one for each device), or with -machine pc",
    )


def _buses(monitor: Monitor) -> list[Bus]:
    found: list[Bus] = []
    for one in qom_list(monitor, "/machine"):
        if one.child_type is not None and one.child_type.endswith("-pcihost"):
            found += [bus for bus in _buses_below(monitor, f"/machine/{one.name}") if _ROOT_BUS.fullmatch(bus.name)]
    for one in qom_list(monitor, _CONTAINERS[0]):
        kind = one.child_type or ""
        if "root-port" in kind or "downstream" in kind or "bridge" in kind or kind == "ioh3420":
            found += _buses_below(monitor, f"{_CONTAINERS[0]}/{one.name}")
    return found


def _buses_below(monitor: Monitor, path: str) -> list[Bus]:
    children = qom_list(monitor, path)
    named = [(one.name, one.child_type) for one in children if one.child_type in ("PCI", "PCIE")]
    return [Bus(name, f"{path}/{name}", kind == "PCIE" and not _ROOT_BUS.fullmatch(name)) for name, kind in named]


def _occupied(monitor: Monitor, bus: Bus) -> bool:
    return any(one.name.startswith("child[") for one in qom_list(monitor, bus.path))


class GuestView(msgspec.Struct, frozen=True):
    """A device as the guest has it now. ``shares_line_with`` are other functions that may be on the same GSI."""

    device: replies.PciDevice
    bridges: tuple[replies.PciDevice, ...]
    shares_line_with: tuple[str, ...]

    @property
    def is_programmed(self) -> bool:
        """Whether the guest has given every BAR an address (the ROM's, number 6, may stay without)."""
        return all(region.is_programmed for region in self.device.regions if region.bar != 6)


#: Every function of a guest with the bridges above it.
Functions = tuple[tuple[replies.PciDevice, tuple[replies.PciDevice, ...]], ...]


def read_functions(monitor: Monitor) -> Functions:
    """``query-pci``. :raise PeerError: as ``execute`` does."""
    return tuple(replies.functions(ask(monitor, "query-pci", replies.PciTree)))


def view_device(everything: Functions, device_id: str, machine: str) -> GuestView | None:
    """The device of that id among a guest's functions, None where there is none."""
    for device, bridges in everything:
        if device.qdev_id == device_id:
            mine = candidate_gsis(machine, device, bridges)[:1]
            others = [
                other
                for other, above in everything
                if other is not device and mine and candidate_gsis(machine, other, above)[:1] == mine
            ]
            return GuestView(device, bridges, tuple(f"{one.address} {one.qdev_id}".strip() for one in others))
    return None


#: What the PIRQ links of both boards can be routed to (build_link_dev() in hw/i386/acpi-build.c).
_ISA_GSIS = (5, 10, 11)
#: The function of ``pc`` whose interrupt is not routed by a link: the PIIX4's SCI.
_PIIX_SLOT = 1


def candidate_gsis(machine: str, device: replies.PciDevice, bridges: tuple[replies.PciDevice, ...]) -> tuple[int, ...]:
    """The GSIs that a guest device's INTx can be on; empty for one without a pin, or where the board is not known.

    On ``q35`` with the IOAPIC in use the pin's PIRQ, A to H, is GSI 16 to 23, the first one given (``ich9_lpc_map_irq``
    in hw/isa/lpc_ich9.c); each bridge on the way turns the pins by its slot (``pci_swizzle`` in include/hw/pci/pci.h).
    On ``pc``, and on ``q35`` without the IOAPIC, four links lead to ISA interrupts, and the guest may lead them
    elsewhere at any time, as Linux does to spread its load. Nothing outside shows where to: the Interrupt Line register
    is only what firmware once wrote, and of a hot-plugged function not even that.
    """
    pin = device.irq_pin - 1
    if pin < 0 or not ("q35" in machine or "i440fx" in machine or machine.startswith("pc")):
        return ()
    if "q35" not in machine:
        return () if device.slot == _PIIX_SLOT and not bridges else _ISA_GSIS
    slot = device.slot
    for bridge in reversed(bridges):
        pin = (pin + slot) % 4
        slot = bridge.slot
    # ich9_cc_init() and ich9_cc_update(): slots below 25 go to PIRQ E-H by (slot + pin) % 4, slot 30 (the DMI bridge)
    # by the pin alone, and 25-31 by registers whose reset value is A-D.
    pirq = (slot + pin) % 4 + 4 if slot < 25 else pin + 4 if slot == 30 else pin
    return (16 + pirq, *_ISA_GSIS)
