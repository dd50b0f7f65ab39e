"""The PCI functions of the host, each as a frozen set of facts; every sysfs file is read at most once.

What is read, and why so: ``uevent`` has ids, class and driver in one file; ``config`` only its first 256 bytes, of
functions without a pin only the header (in a VM each 4 bytes cost an exit to the hypervisor), and not at all in
D3cold, because the read would wake the function (``pci_config_pm_runtime_get`` in drivers/pci/pci.c); ``irq`` is the
INTx interrupt except while the function uses MSI (``irq_show`` in drivers/pci/pci-sysfs.c).
"""

from __future__ import annotations

import os
import re
from typing import NamedTuple

from vfio_intx.abi.pciconf import PCI_INTERRUPT_PIN, PCI_STD_HEADER_SIZEOF, ConfigSpace
from vfio_intx.chain.fact import Fact
from vfio_intx.errors import UsageError
from vfio_intx.host.root import HostRoot, link_at, list_names, read_at
from vfio_intx.names import Bdf, HostIrq, IommuGroup, Pin, escape, parse_driver

#: The group of a function that is in none.
NO_GROUP = IommuGroup(-1)
#: What PCI calls configuration space; PCI Express extended it, by nothing that INTx depends on.
_CONFIG_SIZE = 256
#: Class and subclass of PCI and CardBus bridges.
_BRIDGES = (0x0604, 0x0607)
#: "Unknown or no connection" in the Interrupt Line register (PCI 3.0, 6.2.4); as a Linux IRQ it is one like others.
_NOT_CONNECTED = 255
_HEX_ID = r"([0-9A-Fa-f]{4,8}):([0-9A-Fa-f]{4,8})"


class PciIds(NamedTuple):
    """What a function is: vendor, device, subsystem vendor and device (16 bits each) and class code (24 bits)."""

    vendor: int
    device: int
    subsystem_vendor: int
    subsystem_device: int
    class_code: int

    @property
    def base_class(self) -> int:
        """The class without subclass and interface: 0x02 network, 0x03 display, 0x06 bridge and so on."""
        return self.class_code >> 16

    def __str__(self) -> str:
        return f"{self.vendor:04x}:{self.device:04x}"


class PciFunction(NamedTuple):
    """One function as sysfs showed it at one moment.

    :ivar driver: the driver's name, empty where the function has none.
    :ivar override: ``driver_override``, empty where none is set.
    :ivar irq: sysfs ``irq``, 0 where none; with MSI in use it may be the first MSI vector: see :attr:`intx_irq`.
    :ivar group: the IOMMU group, :data:`NO_GROUP` where the function is in none.
    :ivar power: ``D0``, ``D1``, ``D2``, ``D3hot``, ``D3cold`` or ``unknown``, in the kernel's words.
    :ivar enabled: how many users in the kernel have it enabled; 0 also while vfio-pci has it and nobody has opened it.
    :ivar msi_vectors: Linux IRQ numbers of the MSI or MSI-X vectors that it holds now.
    :ivar msi_allowed: False where ``msi_bus`` forbids MSI below this function's bus.
    :ivar parent: the bridge above it, None on a root bus.
    :ivar interfaces: the network interfaces of a NIC.
    :ivar files: the names in its sysfs directory, which tell what it is (``physfn``: an SR-IOV virtual one).
    """

    bdf: Bdf
    ids: Fact[PciIds]
    driver: Fact[str]
    override: Fact[str]
    irq: Fact[HostIrq]
    config: Fact[ConfigSpace]
    group: Fact[IommuGroup]
    power: Fact[str]
    enabled: Fact[int]
    msi_vectors: Fact[tuple[int, ...]]
    msi_allowed: Fact[bool]
    reset_methods: Fact[tuple[str, ...]]
    boot_vga: Fact[bool]
    parent: Bdf | None
    interfaces: Fact[tuple[str, ...]]
    files: frozenset[str]

    @property
    def pin(self) -> Pin | None:
        """The INTx pin, None where it has none or none could be read."""
        return None if self.config.value is None or self.config.value.is_dead else self.config.value.pin

    @property
    def may_have_pin(self) -> bool:
        """Whether it is no bridge and has an INTx pin, or it cannot be told that it has none."""
        config, ids = self.config.value, self.ids.value
        if config is None:
            return ids is None or ids.class_code >> 8 not in _BRIDGES
        return config.is_dead or (config.raw_pin != 0 and not self.is_bridge)

    @property
    def is_dead(self) -> bool:
        """Whether its configuration space was read and answered all ones."""
        return self.config.value is not None and self.config.value.is_dead

    @property
    def is_virtual_function(self) -> bool:
        """Whether it is an SR-IOV virtual function, which never has INTx."""
        return "physfn" in self.files

    @property
    def virtual_functions(self) -> int:
        """How many SR-IOV virtual functions it has now."""
        return sum(name.startswith("virtfn") for name in self.files)

    @property
    def is_bridge(self) -> bool:
        """Whether it is a PCI or CardBus bridge, by the layout of its header."""
        return self.config.value is not None and not self.config.value.is_dead and self.config.value.header_type != 0

    @property
    def intx_irq(self) -> Fact[HostIrq]:
        """The host IRQ of its INTx line, 0 if there is none; unknown while MSI hides it or nothing is routed yet."""
        if self.is_unrouted:
            return Fact.unknown(self.irq.source, "nobody has enabled the function yet, so irq is the firmware's guess")
        if self.irq.value is not None and self.irq.value in (self.msi_vectors.value or ()):
            return Fact.unknown(self.irq.source, "the function uses MSI, and irq shows its vector")
        config = self.config.value
        unconnected = config is not None and self.irq.value == config.interrupt_line == _NOT_CONNECTED
        return Fact.known(HostIrq(0), self.irq.source) if unconnected else self.irq

    @property
    def is_unrouted(self) -> bool:
        """Whether ``irq`` still shows what the firmware left in the Interrupt Line register (``pci_read_irq``).

        The kernel asks the firmware's tables for the real line when the function is first enabled, and keeps that in
        ``irq`` afterwards (``acpi_pci_irq_enable`` in drivers/acpi/pci_irq.c).
        """
        config = self.config.value
        return self.enabled.value == 0 and (config is None or self.irq.value == config.interrupt_line)


def _text(fact: Fact[bytes]) -> Fact[str]:
    return fact.map(lambda raw: raw.decode("utf-8", "backslashreplace").removesuffix("\n"))


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdigit() and len(text) < 10


def _number(fact: Fact[bytes]) -> Fact[int]:
    text = _text(fact)
    if text.value is not None and not _is_number(text.value):
        return Fact.unknown(text.source, f"not a number: {text.value[:32]!r}")
    return text.map(int)


def _fields(text: str) -> dict[str, str]:
    return dict(line.split("=", 1) for line in text.splitlines() if "=" in line)


def _ids(uevent: Fact[dict[str, str]]) -> Fact[PciIds]:
    fields = uevent.value
    if fields is None:
        return Fact.unknown(uevent.source, uevent.error or "unreadable")
    main = re.fullmatch(_HEX_ID, fields.get("PCI_ID", ""))
    sub = re.fullmatch(_HEX_ID, fields.get("PCI_SUBSYS_ID", "0000:0000"))
    class_code = fields.get("PCI_CLASS", "")
    if main is None or sub is None or not re.fullmatch(r"[0-9A-Fa-f]{1,6}", class_code):
        return Fact.unknown(uevent.source, "has no PCI_ID, PCI_SUBSYS_ID or PCI_CLASS")
    vendor, device, sub_vendor, sub_device = (int(part, 16) & 0xFFFF for part in (*main.groups(), *sub.groups()))
    return Fact.known(PciIds(vendor, device, sub_vendor, sub_device, int(class_code, 16)), uevent.source)


def _driver(uevent: Fact[dict[str, str]]) -> Fact[str]:
    if uevent.value is None:
        return Fact.unknown(uevent.source, uevent.error or "unreadable")
    name = uevent.value.get("DRIVER", "")
    try:
        return Fact.known(parse_driver(name) if name else "", uevent.source)
    except UsageError as error:
        return Fact.unknown(uevent.source, str(error))


def _override(fact: Fact[bytes]) -> Fact[str]:
    # driver_override_show() prints a NULL pointer as "(null)"; what was written there may be anything.
    text = _text(fact).map(lambda word: "" if word == "(null)" else word)
    try:
        return text.map(lambda word: parse_driver(word) if word else "")
    except UsageError as error:
        return Fact.unknown(text.source, str(error))


def _config(directory: int, where: str, power: Fact[str]) -> Fact[ConfigSpace]:
    if power.value == "D3cold":
        return Fact.unknown(f"{where}/config", "not read: the function is in D3cold and reading would wake it")
    try:
        fd = os.open("config", os.O_RDONLY | os.O_CLOEXEC, dir_fd=directory)
        try:
            raw = os.pread(fd, PCI_STD_HEADER_SIZEOF, 0)
            if len(raw) > PCI_INTERRUPT_PIN and raw[PCI_INTERRUPT_PIN]:
                raw += os.pread(fd, _CONFIG_SIZE - PCI_STD_HEADER_SIZEOF, PCI_STD_HEADER_SIZEOF)
        finally:
            os.close(fd)
    except OSError as error:
        return Fact.unknown(f"{where}/config", error.strerror or str(error))
    if len(raw) < PCI_STD_HEADER_SIZEOF:
        return Fact.unknown(f"{where}/config", f"only {len(raw)} bytes")
    return Fact.known(ConfigSpace(raw), f"{where}/config")


def _group(directory: int, where: str, files: frozenset[str]) -> Fact[IommuGroup]:
    if "iommu_group" not in files:
        return Fact.known(NO_GROUP, f"{where}/iommu_group")
    link = link_at(directory, "iommu_group", where)
    name = (link.value or "").rpartition("/")[2]
    if link.value is not None and not _is_number(name):
        return Fact.unknown(link.source, f"points to {link.value[:64]!r}")
    return link.map(lambda _: IommuGroup(int(name)))


def _entries(path: str, name: str, where: str, files: frozenset[str]) -> Fact[tuple[str, ...]]:
    if name not in files:
        return Fact.known((), f"{where}/{name}")
    try:
        return Fact.known(
            tuple(sorted(escape(entry.name) for entry in os.scandir(f"{path}/{name}"))), f"{where}/{name}"
        )
    except OSError as error:
        return Fact.unknown(f"{where}/{name}", error.strerror or str(error))


def _numbers(names: tuple[str, ...]) -> tuple[int, ...]:
    return tuple(int(name) for name in names if _is_number(name))


def _parent(path: str) -> Bdf | None:
    # The entry in bus/pci/devices is a link such as ../../../devices/pci0000:00/0000:00:01.0/0000:01:00.0
    try:
        above = os.readlink(path).rstrip("/").split("/")[-2]
        return Bdf.maybe(above)
    except (OSError, IndexError):
        return None


def _flag(directory: int, name: str, where: str, files: frozenset[str], absent: bool) -> Fact[bool]:
    if name not in files:
        return Fact.known(absent, f"{where}/{name}")
    return _number(read_at(directory, name, where)).map(bool)


def _words(directory: int, name: str, where: str, files: frozenset[str]) -> Fact[tuple[str, ...]]:
    if name not in files:
        return Fact.known((), f"{where}/{name}")
    return _text(read_at(directory, name, where)).map(lambda text: tuple(text.split()))


def read_function(root: HostRoot, bdf: Bdf) -> PciFunction | None:
    """The facts of one function; None where there is no such function (any more)."""
    return _read(root.function(bdf), bdf)


def _read(path: str, bdf: Bdf) -> PciFunction | None:
    where = f"/sys/bus/pci/devices/{bdf}"
    try:
        directory = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        files = frozenset(os.listdir(directory))
        power = _text(read_at(directory, "power_state", where))
        uevent = _text(read_at(directory, "uevent", where)).map(_fields)
        return PciFunction(
            bdf=bdf,
            ids=_ids(uevent),
            driver=_driver(uevent),
            override=_override(read_at(directory, "driver_override", where)),
            irq=_number(read_at(directory, "irq", where)).map(HostIrq),
            config=_config(directory, where, power),
            group=_group(directory, where, files),
            power=power,
            enabled=_number(read_at(directory, "enable", where)),
            msi_vectors=_entries(path, "msi_irqs", where, files).map(_numbers),
            msi_allowed=_flag(directory, "msi_bus", where, files, True),
            reset_methods=_words(directory, "reset_method", where, files),
            boot_vga=_flag(directory, "boot_vga", where, files, False),
            parent=_parent(path),
            interfaces=_entries(path, "net", where, files),
            files=files,
        )
    except OSError:
        return None  # it went away between opening and listing its directory
    finally:
        os.close(directory)


def list_functions(root: HostRoot) -> Fact[tuple[Bdf, ...]]:
    """The addresses of all functions, in order; unknown where the host has no PCI in sysfs."""
    names = list_names(root.file("sys/bus/pci/devices"), root=root)
    return names.map(lambda items: tuple(sorted(bdf for name in items if (bdf := Bdf.maybe(name)) is not None)))
